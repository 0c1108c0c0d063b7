//! What this machine did meanwhile: CPU time it was denied, connections its kernel dropped, ports that are used up. What
//! a kernel does not tell counts as nothing: these are hints, not results.

use std::fs;

/// The kernel's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Host {
    /// CPU time of all CPUs, clock ticks: of everything, and of what a hypervisor gave to others.
    ticks: u64,
    stolen_ticks: u64,
    listen: ListenDrops,
    /// Sockets in TIME_WAIT.
    time_wait: u64,
    time_wait_overflows: u64,
    /// Mean frequency of all CPUs, kHz; `None` where it is not told.
    frequency_khz: Option<f64>,
}

/// Connections that the kernel could not hand to who listens, of one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ListenDrops {
    overflows: u64,
    drops: u64,
}

/// What changed between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct HostChange {
    /// CPU time that a hypervisor gave to others, by all CPU time: 0 to 1.
    pub(crate) stolen_part: f64,
    /// Connections dropped because a listener's queue was full.
    pub(crate) listen_overflows: u64,
    /// Connections dropped at a listener for any reason, those included.
    pub(crate) listen_drops: u64,
    /// Sockets in TIME_WAIT at the end.
    pub(crate) time_wait: u64,
    /// Sockets that should have waited and were dropped instead.
    pub(crate) time_wait_overflows: u64,
    /// Mean frequency of the CPUs at the end by that at the begin.
    pub(crate) frequency_ratio: Option<f64>,
}

impl Host {
    /// Reads what is told now. `listener`: a process in the network namespace of the server, if one is known.
    pub(crate) fn read(listener: Option<u32>) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let namespace = listener.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        let (ticks, stolen_ticks) = parse_cpu_ticks(&text("/proc/stat")).unwrap_or_default();
        let server = text(&format!("/proc/{namespace}/net/netstat"));
        let counter = |text: &str, name| parse_counter(text, "TcpExt", name).unwrap_or(0);
        Self {
            ticks,
            stolen_ticks,
            listen: ListenDrops {
                overflows: counter(&server, "ListenOverflows"),
                drops: counter(&server, "ListenDrops"),
            },
            time_wait: parse_time_wait(&text("/proc/net/sockstat")).unwrap_or(0),
            time_wait_overflows: counter(&text("/proc/net/netstat"), "TCPTimeWaitOverflow"),
            frequency_khz: frequency_khz(),
        }
    }

    /// What changed between `earlier` and `self`.
    pub(crate) fn since(&self, earlier: &Self) -> HostChange {
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        let stolen = self.stolen_ticks.saturating_sub(earlier.stolen_ticks);
        HostChange {
            stolen_part: stolen as f64 / ticks.max(1) as f64,
            listen_overflows: self.listen.overflows.saturating_sub(earlier.listen.overflows),
            listen_drops: self.listen.drops.saturating_sub(earlier.listen.drops),
            time_wait: self.time_wait,
            time_wait_overflows: self.time_wait_overflows.saturating_sub(earlier.time_wait_overflows),
            frequency_ratio: self
                .frequency_khz
                .zip(earlier.frequency_khz)
                .map(|(now, before)| now / before),
        }
    }
}

/// How the kernel of this machine paces what connections send, for example `cubic`.
pub(crate) fn congestion_control() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").ok()?;
    Some(text.trim().to_owned())
}

/// Local ports that the kernel gives to connections, per source address.
pub(crate) fn local_ports() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    Some(last.saturating_sub(first) + 1)
}

/// All ticks and the stolen ones: user nice system idle iowait irq softirq steal, without the guests' part, which is in
/// user and nice already.
fn parse_cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    Some((ticks.iter().sum(), *ticks.get(7)?))
}

/// A counter of `/proc/net/netstat`: one line of names, one of values, both with the group in front.
fn parse_counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

fn parse_time_wait(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_ascii_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

fn frequency_khz() -> Option<f64> {
    let folders = fs::read_dir("/sys/devices/system/cpu").ok()?;
    let frequencies: Vec<f64> = folders
        .filter_map(|folder| {
            let file = folder.ok()?.path().join("cpufreq/scaling_cur_freq");
            fs::read_to_string(file).ok()?.trim().parse().ok()
        })
        .collect();
    (!frequencies.is_empty()).then(|| frequencies.iter().sum::<f64>() / frequencies.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_summed_without_the_guests_part() {
        let text = "cpu  100 20 30 400 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_cpu_ticks(text), Some((621, 8)));
        assert_eq!(parse_cpu_ticks("cpu  100 20"), None);
        assert_eq!(parse_cpu_ticks("intr 5"), None);
    }

    #[test]
    fn counters_are_found_by_group_and_name() {
        let text =
            "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 23\nIpExt: ListenDrops\nIpExt: 9\n";
        assert_eq!(parse_counter(text, "TcpExt", "ListenOverflows"), Some(22));
        assert_eq!(parse_counter(text, "IpExt", "ListenDrops"), Some(9));
        assert_eq!(parse_counter(text, "TcpExt", "Missing"), None);
        assert_eq!(
            parse_time_wait("sockets: used 23\nTCP: inuse 2 orphan 0 tw 17 alloc 2 mem 205\n"),
            Some(17)
        );
        assert_eq!(parse_time_wait("UDP: inuse 0"), None);
    }

    #[test]
    fn a_change_is_of_counters_and_a_level_is_as_it_is() {
        let before = Host {
            ticks: 1_000,
            stolen_ticks: 10,
            listen: ListenDrops { overflows: 5, drops: 6 },
            time_wait: 900,
            time_wait_overflows: 1,
            frequency_khz: Some(3_000.0),
        };
        let after = Host {
            ticks: 1_200,
            stolen_ticks: 30,
            listen: ListenDrops { overflows: 7, drops: 9 },
            time_wait: 300,
            time_wait_overflows: 1,
            frequency_khz: Some(1_500.0),
        };
        let expected = HostChange {
            stolen_part: 0.1,
            listen_overflows: 2,
            listen_drops: 3,
            time_wait: 300,
            time_wait_overflows: 0,
            frequency_ratio: Some(0.5),
        };
        assert_eq!(after.since(&before), expected);
    }

    #[test]
    fn this_machine_tells_its_ticks_and_ports() {
        assert!(Host::read(None).ticks > 0);
        assert!(local_ports().is_some_and(|ports| ports > 0));
        assert!(congestion_control().is_some_and(|name| !name.is_empty()));
    }
}
