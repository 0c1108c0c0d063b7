//! `ringlock-perf attack`: what TLS servers are attacked with, against one's own. A well-behaved client beside it says whether
//! the server still serves others.
//!
//! From the outside in: [`args`] and `target` (who may be attacked) → `modes` → `flood` (the loop) → `script` (what one connection
//! does): `opening` before the handshake is complete, `established` with `key_update` and `renegotiation` behind it.
//! `witness`, `server` and `tally` measure, [`report`] tells.

pub mod args;
mod established;
mod flood;
mod hello;
mod key_update;
mod modes;
mod opening;
mod protection;
mod records;
mod renegotiation;
mod replay;
pub mod report;
mod script;
mod server;
mod tally;
mod target;
mod witness;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls_pki_types::ServerName;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::PerfError;
use crate::measure::own_cpu_time;
use crate::plan::{DESCRIPTORS_SPARE, DURATION_MAX, RATE_MAX, raise_descriptor_limit};
use crate::procfs::Processes;
use args::{AttackArgs, Mode};
use flood::{Bounds, Flood};
use modes::Scripts;
use report::{AttackReport, EndedBy, EndingCount, Kept, SCHEMA, WitnessReport};
use server::Meter;
pub use server::ServerCost;
pub use tally::Ending;
use tally::Tally;
pub use witness::Observed;
use witness::{CLIENTS_MAX, Witness};

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 100_000;

/// Between two bytes, unless said otherwise.
const PAUSE: Duration = Duration::from_millis(100);

/// Attacks until SIGINT or SIGTERM at the latest; there is a result then, too.
///
/// # Errors
/// As [`run`].
pub fn run_until_signal(args: &AttackArgs) -> Result<AttackReport, PerfError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(|error| PerfError::io("handle signals", error))?;
    }
    run(args, &stop)
}

/// Attacks until its time is over or `stop` is set.
///
/// # Errors
/// When the target may not be attacked, a flag cannot be used, the server does not serve even before, or no connection comes to
/// do what the mode is about.
pub fn run(args: &AttackArgs, stop: &AtomicBool) -> Result<AttackReport, PerfError> {
    let plan = Plan::new(args)?;
    let stopped = || stop.load(Ordering::Relaxed);
    let witness = if args.witness_rate > 0 {
        let config = Arc::new(hello::config(&[&TLS12, &TLS13])?);
        let pace = (args.witness_rate, args.witness_timeout);
        Some(Witness::new(plan.bounds.target, plan.name.clone(), config, pace)?)
    } else {
        None
    };
    let (scripts, left_out) = Scripts::new(args, &plan)?;
    let alone = |witness: &Witness| {
        let end = Instant::now() + args.baseline;
        witness.observe(|| stopped() || Instant::now() >= end)
    };
    let mut meter = plan.server.clone().map(Meter::start).transpose()?;
    let before = witness.as_ref().map(alone);
    if let Some(meter) = &mut meter {
        meter.attack_begins()?;
    }

    let (own, begin) = (own_cpu_time()?, Instant::now());
    // A server that is gone is a result.
    let mut server_lost: Option<PerfError> = None;
    let over = AtomicBool::new(false);
    let (tally, during) = std::thread::scope(|scope| {
        let watching = witness
            .as_ref()
            .map(|witness| scope.spawn(|| witness.observe(|| over.load(Ordering::Relaxed))));
        let flood = Flood::new(plan.bounds, |number| scripts.script(number));
        let tally = flood.and_then(|flood| {
            flood.run(|| {
                let sampled = meter.as_mut().map_or(Ok(()), Meter::sample);
                server_lost = server_lost.take().or(sampled.err());
                stopped() || server_lost.is_some()
            })
        });
        over.store(true, Ordering::Relaxed);
        let during = watching.map(|thread| thread.join().expect("the witness does not panic"));
        tally.map(|tally| (tally, during))
    })?;
    if !tally.attacked(args.mode) {
        return Err(nothing_attacked(args, &tally, server_lost.as_ref()));
    }
    let measured = tally.wall;
    let client_cpu = own_cpu_time()?.saturating_sub(own);
    let ended = meter.as_mut().map_or(Ok(()), Meter::attack_ends);
    server_lost = server_lost.or(ended.err());
    let ended_by = if server_lost.is_some() {
        EndedBy::ServerGone
    } else if stopped() {
        EndedBy::Signal
    } else if measured >= args.duration {
        EndedBy::Duration
    } else {
        EndedBy::ConnectionsMax
    };
    let after = witness.as_ref().map(alone);
    let server = match meter.map(|meter| meter.finish(tally.attempts, tally.open_most)) {
        Some(Ok(cost)) if server_lost.is_none() => Some(cost),
        Some(Err(error)) => {
            server_lost.get_or_insert(error);
            None
        }
        Some(Ok(_)) | None => None,
    };
    let witness = match (witness, before, during, after) {
        (Some(witness), Some(before), Some(during), Some(after)) => Some(WitnessReport {
            does: if witness.exchanges() { "exchange" } else { "handshake" }.to_owned(),
            before,
            during,
            after,
        }),
        _ => None,
    };
    let mut verdict = witness
        .as_ref()
        .map(|witness| witness.complaints(args.witness_p99_max))
        .unwrap_or_default();
    verdict.extend(
        server_lost
            .as_ref()
            .map(|error| format!("the server has gone: {error}")),
    );
    Ok(AttackReport {
        schema: SCHEMA,
        mode: args.mode.name(),
        target: plan.bounds.target.to_string(),
        duration_s: measured.as_secs_f64(),
        ended_by,
        attempts: tally.attempts,
        connected: tally.connected,
        open_most: tally.open_most,
        kept_ms: Kept::of(&tally.kept),
        bytes_sent: tally.sent,
        bytes_received: tally.received,
        messages: tally.messages,
        left_out,
        server,
        server_lost: server_lost.map(|error| error.to_string()),
        client_cpu_share: client_cpu.as_secs_f64() / begin.elapsed().as_secs_f64().max(1e-9),
        witness,
        verdict,
        endings: tally
            .endings
            .into_iter()
            .map(|(ending, count)| EndingCount { ending, count })
            .collect(),
    })
}

/// What came instead of an attack.
fn nothing_attacked(args: &AttackArgs, tally: &Tally, server_lost: Option<&PerfError>) -> PerfError {
    let lost = server_lost.map_or(String::new(), |error| format!("; the server has gone: {error}"));
    PerfError::NotAttacked(format!(
        "found {}{lost}, expected {}; check the server at {}, and --connections and `ulimit -n` if ports or descriptors are wanting",
        tally.in_words(),
        args.mode.needs(),
        args.target
    ))
}

/// Legal settings of an attack.
struct Plan {
    bounds: Bounds,
    name: ServerName<'static>,
    /// At least one.
    variants: Vec<&'static str>,
    server: Option<Processes>,
}

impl Plan {
    fn new(args: &AttackArgs) -> Result<Self, PerfError> {
        let target = target::permitted(&args.target, args.i_own.as_deref())?;
        within("--connections", args.connections, 1..=CONNECTIONS_MAX)?;
        within("--connections-max", args.connections_max, 1..=u64::MAX)?;
        within("--rate", args.rate.unwrap_or(1), 1..=RATE_MAX)?;
        within("--witness-rate", args.witness_rate, 0..=1000)?;
        let pause = args.pause.unwrap_or(PAUSE);
        let parts = [
            ("--duration", args.duration),
            ("--timeout", args.timeout),
            ("--pause", pause),
            ("--witness-timeout", args.witness_timeout),
        ];
        for (name, value) in parts {
            if value.is_zero() || value > DURATION_MAX {
                return Err(PerfError::flag(
                    name,
                    format!("{value:?}"),
                    "more than 0 and at most 24h",
                ));
            }
        }
        if args.baseline > DURATION_MAX {
            return Err(PerfError::flag(
                "--baseline",
                format!("{:?}", args.baseline),
                "at most 24h",
            ));
        }
        let name = ServerName::try_from(args.server_name.clone())
            .map_err(|_| PerfError::flag("--server-name", &args.server_name, "a DNS name or an IP address"))?;
        let server = match args.server_pid.as_slice() {
            [] => None,
            pids => Some(Processes::find(pids, args.server_children)?),
        };
        if let Some(most) = args.witness_p99_max
            && args.witness_rate == 0
        {
            let expected = "a --witness-rate above 0, or no bound: without a witness nothing is measured against it";
            return Err(PerfError::flag("--witness-p99-max", format!("{most:?}"), expected));
        }
        if let Some(pause) = args.pause
            && args.mode != Mode::SlowHello
        {
            let expected = "no such flag: only slow-hello pauses";
            return Err(PerfError::flag("--pause", format!("{pause:?}"), expected));
        }
        let witnesses = if args.witness_rate > 0 { CLIENTS_MAX } else { 0 };
        raise_descriptor_limit((args.connections + witnesses) as u64 + DESCRIPTORS_SPARE)?;
        Ok(Self {
            bounds: Bounds {
                target,
                connections: args.connections,
                connections_max: args.connections_max,
                rate: args.rate,
                duration: args.duration,
                timeout: args.timeout,
                pause,
            },
            name,
            variants: variants(args)?,
            server,
        })
    }
}

fn variants(args: &AttackArgs) -> Result<Vec<&'static str>, PerfError> {
    let all = args.mode.variants();
    match &args.variant {
        None => Ok(all.to_vec()),
        Some(wanted) => match all.iter().find(|name| *name == wanted) {
            Some(name) => Ok(vec![name]),
            None => Err(PerfError::flag(
                "--variant",
                wanted,
                format!("one of {}", all.join(", ")),
            )),
        },
    }
}

fn within<N: Copy + PartialOrd + Display>(
    name: &'static str,
    value: N,
    legal: RangeInclusive<N>,
) -> Result<(), PerfError> {
    if legal.contains(&value) {
        return Ok(());
    }
    let (least, most) = (legal.start(), legal.end());
    Err(PerfError::flag(name, value, format!("{least} to {most}")))
}
