//! Honest limits: when figures say more about this client, this machine or chance than about the server, and what to do
//! about it. Each rule is a function of numbers that were observed; [`warnings`] collects the numbers.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cost::{Used, Window};
use crate::host;
use crate::plan::ClientPlan;
use crate::procfs::Descriptors;
use crate::report::Report;

/// The share of its CPUs from which a side counts as being at its limit. Below 1, because a loop that is never idle still
/// loses a little to interrupts and to other processes.
const BUSY_CLIENT: f64 = 0.9;

/// A server this busy was a limit, too: then the figure is the server's, whatever the client's share.
const BUSY_SERVER: f64 = 0.95;

/// The part of the window that a thread may wait for a CPU. The median of runs on an idle machine is below 0.01.
const WAITED_MAX: f64 = 0.05;

/// Units that the client begins this much too late do not matter: a turn of its loop takes about as long.
const LATE_MAX_US: f64 = 100.0;

/// The part of the 99th percentile that the client's own lateness may be.
const LATE_PART_MAX: f64 = 0.1;

/// The part of the units of an open loop that may stay behind. With more of them the rate was another one than asked.
const NOT_STARTED_MAX: f64 = 0.01;

/// A unit that waits this long at the end of the window is one that something holds up.
const UNANSWERED_MAX_US: f64 = 100e3;

/// How many times the 99th percentile that is. Of the units under way at any time some are slow.
const UNANSWERED_PART_MAX: f64 = 2.0;

/// Ten samples beyond a quantile are the least that make it more than a single event: this times `1 / (1 - quantile)`.
const SAMPLES_BEYOND: f64 = 10.0;

/// A window in which a timer tick of the kernel, a reload or a burst is about a percent. A little below the second that users ask for:
/// windows end some microseconds early or late.
const WINDOW_MIN: Duration = Duration::from_millis(950);

/// CPU time that a hypervisor may give to others: what runs differ by anyway.
const STOLEN_MAX: f64 = 0.02;

/// How much the CPUs' frequency may change from begin to end.
const FREQUENCY_CHANGE_MAX: f64 = 0.1;

/// The part of the local ports that may wait in TIME_WAIT. Beyond, each connect searches long for a free one.
const PORTS_USED_MAX: f64 = 0.8;

/// The part of its descriptors that a process may have open.
const DESCRIPTORS_USED_MAX: f64 = 0.9;

/// What switches the fast paths of AWS-LC and OpenSSL off.
const CPU_MASK: &str = "OPENSSL_ia32cap";

/// Congestion controls that send as soon as the window allows. Others pace, which costs both sides timers on loopback.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// Local ports per source address where the kernel does not tell: its default.
const LOCAL_PORTS: u64 = 28_232;

/// Everything there is to say about the result of a window.
pub(crate) fn warnings(report: &Report, window: &Window, plan: &ClientPlan) -> Vec<String> {
    let wall = window.wall;
    let share = |used: &Used| Share::of(used, wall);
    let client = share(&window.client);
    let server = window.server.as_ref().map(share);
    let origin = window.origin.as_ref().map(share);
    let waited = |used: &Used| used.activity.waited_most.as_secs_f64() / wall.as_secs_f64();
    let latency_p99_us = report.latency_us.map(|latency| latency.p99);
    let failed = report.errors.values().map(|error| error.count).sum();
    let cpus = |used: &Used| used.activity.cpus.clone();
    let mask = |used: &Used| used.processes.environment(CPU_MASK);
    let open_files = |used: &Used| used.processes.descriptors();
    let ports = host::local_ports().unwrap_or(LOCAL_PORTS) * plan.sources.len().max(1) as u64;
    let found = [
        client_at_its_limit(client.part, server.map(|server| server.part)),
        origin.and_then(|origin| origin_at_its_limit(origin.part, server.map(|server| server.part))),
        waited_for_a_cpu("client", waited(&window.client)),
        window
            .server
            .as_ref()
            .and_then(|server| waited_for_a_cpu("server", waited(server))),
        window.server.as_ref().zip(server).and_then(|(used, server)| {
            shared_cpus(&cpus(&window.client), &cpus(used), client.cpus_used + server.cpus_used)
        }),
        report
            .open_loop
            .and_then(|open_loop| began_late(open_loop.late_p99_us, latency_p99_us.unwrap_or_default())),
        report
            .open_loop
            .and_then(|open_loop| not_started(open_loop.due, open_loop.not_started, open_loop.held)),
        report
            .unanswered
            .zip(latency_p99_us)
            .and_then(|(left, p99)| unanswered(left.units, left.longest_us, p99)),
        connections_failed(failed),
        report
            .probe_established
            .and_then(|probe| probe_late(probe.late_p99_us, probe.beside.p99)),
        report
            .probe_established
            .and_then(|probe| probe_failed(probe.failed, probe.unanswered)),
        latency_p99_us.and_then(|_| too_few_units(report.units as u64)),
        too_short(wall),
        stolen(window.host.stolen_part),
        window.host.frequency_ratio.and_then(frequency_changed),
        listen_queue_full(window.host.listen_overflows, window.host.listen_drops),
        ports_used_up(window.host.time_wait, ports, window.host.time_wait_overflows),
        open_files(&window.client).and_then(|files| descriptors_used_up("client", files)),
        window
            .server
            .as_ref()
            .and_then(open_files)
            .and_then(|files| descriptors_used_up("server", files)),
        mask(&window.client).and_then(|mask| masked("client", &mask)),
        window
            .server
            .as_ref()
            .and_then(mask)
            .and_then(|mask| masked("server", &mask)),
        host::congestion_control()
            .filter(|_| plan.target.ip().is_loopback())
            .and_then(|name| paced(&name)),
    ];
    found.into_iter().flatten().collect()
}

/// How much of what it could use a side did use.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    /// 0 to 1: of its busiest thread's time, or of the CPUs that it may use, whichever is more. One thread that is always
    /// busy is a limit, however many CPUs are idle.
    part: f64,
    /// CPU time by wall time.
    cpus_used: f64,
}

impl Share {
    fn of(used: &Used, wall: Duration) -> Self {
        let wall = wall.as_secs_f64();
        let cpus_used = used.cpu.total.as_secs_f64() / wall;
        let busiest = used.activity.busiest.as_secs_f64() / wall;
        Self {
            part: busiest.max(cpus_used / used.activity.cpus.len().max(1) as f64).min(1.0),
            cpus_used,
        }
    }
}

fn client_at_its_limit(client: f64, server: Option<f64>) -> Option<String> {
    let more = "Give the client more CPUs (--threads, --cpu), or spare it work (--insecure).";
    match server {
        _ if client < BUSY_CLIENT => None,
        Some(server) if server >= BUSY_SERVER => None,
        Some(server) => Some(format!(
            "The client was the limit: it was busy {} of the time, the server {}. The rate is a lower bound of the \
             server's, and latencies contain waiting in the client. {more}",
            percent(client),
            percent(server)
        )),
        None => Some(format!(
            "The client was busy {} of the time, and it is not known whether the server was (--server-pid tells): the rate \
             may be no more than a lower bound of the server's. {more}",
            percent(client)
        )),
    }
}

fn origin_at_its_limit(origin: f64, server: Option<f64>) -> Option<String> {
    let server_was_too = server.is_some_and(|server| server >= BUSY_SERVER);
    (origin >= BUSY_CLIENT && !server_was_too).then(|| {
        format!(
            "The origin was the limit: it was busy {} of the time. The rate is a lower bound of the server's. Give the \
             origin more CPUs, or a cheaper one (ringlock-perf origin).",
            percent(origin)
        )
    })
}

fn waited_for_a_cpu(side: &str, part: f64) -> Option<String> {
    (part > WAITED_MAX).then(|| {
        format!(
            "A thread of the {side} waited for a CPU for {} of the window, though it could have run: latencies contain that. \
             Something else runs on its CPU; pin client, server and origin to different ones (--cpu).",
            percent(part)
        )
    })
}

/// Both on the same single CPU, or on common CPUs that are all in use.
fn shared_cpus(client: &BTreeSet<usize>, server: &BTreeSet<usize>, cpus_used: f64) -> Option<String> {
    let common: Vec<String> = client.intersection(server).map(usize::to_string).collect();
    let all = client.union(server).count();
    let contended = all == 1 || cpus_used >= BUSY_CLIENT * all as f64;
    (!common.is_empty() && contended).then(|| {
        format!(
            "Client and server may both run on CPU {}, and took CPU time from each other: rate and latencies are of both. Pin \
             them to different ones (--cpu).",
            common.join(", ")
        )
    })
}

fn began_late(late: f64, latency_p99_us: f64) -> Option<String> {
    (late > LATE_MAX_US && late > LATE_PART_MAX * latency_p99_us).then(|| {
        format!(
            "The client began units up to {late:.0} µs late (99th percentile), because it was busy or waited for a CPU; that is in \
             their latencies (p99 {latency_p99_us:.0} µs). Ask for a lower --rate, or give it more --threads."
        )
    })
}

/// `held`: units that began late because nothing could take them.
fn not_started(due: u64, not_started: u64, held: u64) -> Option<String> {
    let part = not_started as f64 / due.max(1) as f64;
    (part > NOT_STARTED_MAX).then(|| {
        let why = if held > 0 {
            format!("{held} others waited for a free connection: the server is slower than --rate, or --connections too few")
        } else {
            "the client was too slow".to_owned()
        };
        format!(
            "{not_started} of {due} units that were due did not begin ({}; {why}). They are in no latency, so the tail is worse \
             than shown.",
            percent(part)
        )
    })
}

/// What was under way at the end of the window.
fn unanswered(units: u64, longest_us: f64, latency_p99_us: f64) -> Option<String> {
    (longest_us > UNANSWERED_MAX_US && longest_us > UNANSWERED_PART_MAX * latency_p99_us).then(|| {
        format!(
            "{units} units were not done when the window ended, the first of them for {:.0} ms by then, far above the 99th \
             percentile ({:.0} ms). They are in no latency, so the tail is worse than shown. Measure longer (--duration).",
            longest_us / 1e3,
            latency_p99_us / 1e3
        )
    })
}

fn connections_failed(failed: u64) -> Option<String> {
    (failed > 0).then(|| {
        format!(
            "{failed} connections failed (see errors): rate and latencies are of the others, and a failure may be cheaper \
             than a unit."
        )
    })
}

fn probe_late(late_us: f64, latency_p99_us: f64) -> Option<String> {
    (late_us > LATE_MAX_US && late_us > LATE_PART_MAX * latency_p99_us).then(|| {
        format!(
            "The probe of established connections began messages up to {late_us:.0} µs late (99th percentile): its latencies \
             (p99 {latency_p99_us:.0} µs) contain waiting in the client. Leave a CPU of the client less busy."
        )
    })
}

fn probe_failed(failed: u64, unanswered: u64) -> Option<String> {
    (failed > 0 || unanswered > 0).then(|| {
        format!(
            "The probe of established connections lost {failed} connections, and {unanswered} of its messages were never answered: \
             its latencies hold only how long those waited. Look into the server's log for why, or wait longer (--timeout)."
        )
    })
}

/// Of the quantiles that the report shows, the lowest for which there are too few.
fn too_few_units(units: u64) -> Option<String> {
    let quantile = [(0.99, "p99 and p99.9 are"), (0.999, "p99.9 is")];
    quantile.into_iter().find_map(|(quantile, name)| {
        let needed = (SAMPLES_BEYOND / (1.0 - quantile)).round();
        ((units as f64) < needed).then(|| {
            format!("With {units} units, {name} chance: at least {needed} are needed. Measure longer (--duration).")
        })
    })
}

fn too_short(wall: Duration) -> Option<String> {
    (wall < WINDOW_MIN).then(|| {
        format!(
            "The window was {:.3} s long: the rate is chance. Measure for at least {} s.",
            wall.as_secs_f64(),
            WINDOW_MIN.as_secs_f64().ceil()
        )
    })
}

fn stolen(part: f64) -> Option<String> {
    (part > STOLEN_MAX).then(|| {
        format!(
            "The hypervisor gave {} of the CPU time to other machines: rates are too low and latencies too long by an amount \
             that differs between runs. CPU time per unit holds better.",
            percent(part)
        )
    })
}

fn frequency_changed(ratio: f64) -> Option<String> {
    ((ratio - 1.0).abs() > FREQUENCY_CHANGE_MAX).then(|| {
        format!(
            "The CPUs ran at {} of the frequency that they had when the window began: set a fixed one (governor performance, \
             no turbo), or warm up longer (--warmup).",
            percent(ratio)
        )
    })
}

fn listen_queue_full(overflows: u64, drops: u64) -> Option<String> {
    (overflows > 0 || drops > 0).then(|| {
        format!(
            "The kernel dropped {drops} connections at listening sockets, {overflows} of them because a queue was full: those \
             clients tried again a second later. Raise the server's listen backlog and net.core.somaxconn."
        )
    })
}

fn ports_used_up(time_wait: u64, ports: u64, overflows: u64) -> Option<String> {
    if overflows > 0 {
        return Some(format!(
            "{overflows} sockets could not wait in TIME_WAIT (net.ipv4.tcp_max_tw_buckets): the kernel was busy with them \
             beside its work for client and server."
        ));
    }
    (time_wait as f64 > PORTS_USED_MAX * ports as f64).then(|| {
        format!(
            "{time_wait} of {ports} local ports were in TIME_WAIT: connects search long for a free one, or fail. Use more \
             --sources, or fewer connections."
        )
    })
}

fn descriptors_used_up(side: &str, Descriptors { open, limit }: Descriptors) -> Option<String> {
    (open as f64 > DESCRIPTORS_USED_MAX * limit as f64).then(|| {
        format!(
            "The {side} has {open} of at most {limit} descriptors open: it may refuse or hold back connections. Raise its limit \
             of open files (ulimit -n, LimitNOFILE)."
        )
    })
}

fn masked(side: &str, mask: &str) -> Option<String> {
    (!mask.is_empty()).then(|| {
        format!(
            "The {side} was started with {CPU_MASK}={mask}, which hides instructions of the processor from its cryptography: it is \
             slower than it could be. Unset it."
        )
    })
}

fn paced(congestion_control: &str) -> Option<String> {
    (!UNPACED.contains(&congestion_control)).then(|| {
        format!(
            "TCP's congestion control is {congestion_control}, which costs CPU time on loopback that {} do not: compare only runs \
             with the same one (net.ipv4.tcp_congestion_control).",
            UNPACED.join(" and ")
        )
    })
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(warning: Option<String>, parts: &[&str]) {
        let warning = warning.expect("a warning");
        for part in parts {
            assert!(warning.contains(part), "`{part}` is not in: {warning}");
        }
    }

    #[test]
    fn a_busy_client_makes_the_rate_a_lower_bound_unless_the_server_was_busy_too() {
        says(
            client_at_its_limit(0.97, Some(0.61)),
            &["97 %", "61 %", "lower bound of the server's"],
        );
        says(client_at_its_limit(0.97, None), &["--server-pid", "lower bound"]);
        assert_eq!(client_at_its_limit(0.97, Some(0.96)), None);
        assert_eq!(client_at_its_limit(0.89, Some(0.2)), None);
        assert_eq!(client_at_its_limit(0.3, None), None);
    }

    #[test]
    fn a_busy_origin_is_the_limit_unless_the_server_was_busy_too() {
        says(origin_at_its_limit(0.93, Some(0.5)), &["93 %", "lower bound"]);
        says(origin_at_its_limit(0.93, None), &["origin"]);
        assert_eq!(origin_at_its_limit(0.93, Some(0.99)), None);
        assert_eq!(origin_at_its_limit(0.5, Some(0.5)), None);
    }

    #[test]
    fn waiting_for_a_cpu_is_told_for_either_side() {
        says(waited_for_a_cpu("server", 0.12), &["server", "12 %", "pin"]);
        assert_eq!(waited_for_a_cpu("client", 0.02), None);
    }

    #[test]
    fn cpus_are_shared_when_there_is_one_or_when_all_are_used() {
        let (zero, one, both) = (BTreeSet::from([0]), BTreeSet::from([1]), BTreeSet::from([0, 1]));
        says(shared_cpus(&zero, &zero, 0.1), &["CPU 0,", "--cpu"]);
        says(shared_cpus(&both, &both, 1.9), &["CPU 0, 1"]);
        says(shared_cpus(&both, &one, 1.9), &["CPU 1"]);
        assert_eq!(shared_cpus(&both, &both, 1.2), None);
        assert_eq!(shared_cpus(&zero, &one, 2.0), None);
        assert_eq!(shared_cpus(&BTreeSet::new(), &one, 2.0), None);
    }

    #[test]
    fn lateness_matters_by_itself_and_as_a_part_of_the_latency() {
        says(began_late(900.0, 2_000.0), &["900 µs", "p99 2000 µs", "--rate"]);
        assert_eq!(began_late(900.0, 20_000.0), None);
        assert_eq!(began_late(90.0, 200.0), None);
        says(probe_late(900.0, 2_000.0), &["900 µs", "p99 2000 µs", "probe"]);
        assert_eq!(probe_late(900.0, 20_000.0), None);
        assert_eq!(probe_late(90.0, 200.0), None);
    }

    #[test]
    fn units_that_did_not_begin_are_told_with_whose_doing_it_was() {
        says(not_started(10_000, 500, 0), &["client was too slow"]);
        assert_eq!(not_started(10_000, 100, 70), None);
    }

    #[test]
    fn too_little_is_chance() {
        says(too_few_units(999), &["p99 and p99.9", "1000"]);
        says(too_few_units(9_999), &["p99.9 is chance", "10000"]);
        assert_eq!(too_few_units(10_000), None);
        says(unanswered(5, 800e3, 1e3), &["5 units", "800 ms", "1 ms"]);
        assert_eq!(unanswered(64, 90e3, 1e3), None);
        assert_eq!(unanswered(64, 900e3, 800e3), None);
        says(too_short(Duration::from_millis(250)), &["0.250 s"]);
        assert_eq!(too_short(Duration::from_secs(1)), None);
        says(connections_failed(3), &["3 connections failed"]);
        assert_eq!(connections_failed(0), None);
        says(probe_failed(2, 0), &["lost 2 connections", "log"]);
        says(
            probe_failed(0, 7),
            &["7 of its messages were never answered", "--timeout"],
        );
        assert_eq!(probe_failed(0, 0), None);
    }

    #[test]
    fn the_machine_is_told_when_it_disturbed() {
        says(stolen(0.05), &["5 %"]);
        assert_eq!(stolen(0.02), None);
        says(frequency_changed(0.7), &["70 %", "governor"]);
        says(frequency_changed(1.3), &["130 %"]);
        assert_eq!(frequency_changed(1.05), None);
        says(listen_queue_full(7, 9), &["9 connections", "7 of them", "somaxconn"]);
        says(listen_queue_full(0, 2), &["2 connections"]);
        assert_eq!(listen_queue_full(0, 0), None);
        says(masked("server", "~0x0"), &["server", "OPENSSL_ia32cap=~0x0"]);
        assert_eq!(masked("client", ""), None);
        says(paced("bbr"), &["bbr", "cubic and reno"]);
        assert_eq!(paced("cubic"), None);
    }

    #[test]
    fn ports_and_descriptors_are_told_before_they_are_used_up() {
        says(ports_used_up(27_000, 28_000, 0), &["27000 of 28000", "--sources"]);
        says(ports_used_up(1, 28_000, 4), &["4 sockets", "tcp_max_tw_buckets"]);
        assert_eq!(ports_used_up(20_000, 28_000, 0), None);
        let files = |open, limit| Descriptors { open, limit };
        says(
            descriptors_used_up("server", files(1_000, 1_024)),
            &["server", "1000 of at most 1024", "LimitNOFILE"],
        );
        assert_eq!(descriptors_used_up("client", files(900, 1_024)), None);
    }

    #[test]
    fn a_side_is_as_busy_as_its_busiest_thread_or_all_its_cpus() {
        let used = |total, busiest, cpus: &[usize]| Used {
            processes: crate::procfs::Processes::find(&[std::process::id()], false).unwrap(),
            cpu: crate::procfs::CpuTime {
                total: Duration::from_millis(total),
                ..Default::default()
            },
            activity: crate::procfs::Activity {
                busiest: Duration::from_millis(busiest),
                cpus: cpus.iter().copied().collect(),
                ..Default::default()
            },
        };
        let part = |used: &Used| Share::of(used, Duration::from_secs(1)).part;
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        // One of two threads is at its limit.
        near(part(&used(1_200, 950, &[0, 1, 2, 3])), 0.95);
        // Four threads share two CPUs.
        near(part(&used(1_960, 490, &[0, 1])), 0.98);
        near(part(&used(100, 100, &[])), 0.1);
    }
}
