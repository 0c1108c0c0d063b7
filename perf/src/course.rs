//! The measuring window piece by piece: for the progress line, and for plots.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::args::client::Progress;
use crate::error::PerfError;
use crate::measure::{self, own_cpu_time};
use crate::procfs::Processes;
use crate::report::{Interval, Unit, rounded};

/// Shorter ends of a window belong to the interval before them.
const LENGTH_LEAST: f64 = 0.1;

/// Collects the intervals of all threads.
pub(crate) struct Course {
    unit: Unit,
    threads: usize,
    /// By number: what was heard of, and from how many threads.
    open: BTreeMap<u64, (measure::Interval, usize)>,
    done: Vec<Interval>,
    length: Duration,
    server: Option<Processes>,
    /// Up to where intervals are done.
    at: Reading,
    progress: bool,
}

/// Clocks at one time.
#[derive(Clone, Copy)]
struct Reading {
    when: Instant,
    server_cpu: Option<Duration>,
    client_cpu: Duration,
}

impl Course {
    /// The window of `threads` threads, in intervals of `length`.
    pub(crate) fn new(
        length: Duration,
        threads: usize,
        unit: Unit,
        server: Option<Processes>,
        progress: bool,
    ) -> Result<Self, PerfError> {
        let at = Reading::now(server.as_ref())?;
        Ok(Self {
            unit,
            threads,
            open: BTreeMap::new(),
            done: Vec::new(),
            length,
            server,
            at,
            progress,
        })
    }

    /// The window begins now.
    pub(crate) fn begin(&mut self) -> Result<(), PerfError> {
        self.at = Reading::now(self.server.as_ref())?;
        Ok(())
    }

    /// What a thread measured in the interval with this number.
    pub(crate) fn add(&mut self, number: u64, part: &measure::Interval) -> Result<(), PerfError> {
        let (sum, heard) = self.open.entry(number).or_insert_with(|| (measure::Interval::new(), 0));
        sum.add(part);
        *heard += 1;
        if *heard == self.threads
            && let Some((sum, _)) = self.open.remove(&number)
        {
            let now = Reading::now(self.server.as_ref())?;
            let interval = self.interval(number, &sum, now);
            if self.progress {
                self.tell(&interval);
            }
            self.done.push(interval);
            self.at = now;
        }
        Ok(())
    }

    /// All intervals; the window was `wall` long.
    pub(crate) fn finish(mut self, wall: Duration) -> Vec<Interval> {
        // Threads see the end of a run by --count at slightly different times: some have an interval more.
        for (number, (sum, _)) in std::mem::take(&mut self.open) {
            let interval = self.interval(number, &sum, self.at);
            self.done.push(interval);
        }
        if self.progress && io::stderr().is_terminal() {
            // The line ends where the report begins.
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
        if let Some(last) = self.done.last_mut() {
            let begin_s = last.at_s - last.length_s;
            last.length_s = rounded((wall.as_secs_f64() - begin_s).max(0.0));
            last.at_s = rounded(wall.as_secs_f64());
            // A rate of a few milliseconds is chance.
            if last.length_s < LENGTH_LEAST * self.length.as_secs_f64() && self.done.len() > 1 {
                let rest = self.done.pop();
                if let (Some(rest), Some(last)) = (rest, self.done.last_mut()) {
                    last.units += rest.units;
                    last.bytes += rest.bytes;
                    last.errors += rest.errors;
                    last.length_s = rounded(last.length_s + rest.length_s);
                    last.at_s = rest.at_s;
                }
            }
        }
        self.done
    }

    /// Units are of the interval by the threads' clocks, CPU time since the last reading.
    fn interval(&self, number: u64, sum: &measure::Interval, now: Reading) -> Interval {
        let wall = now.when.saturating_duration_since(self.at.when).as_secs_f64();
        let units = self.unit.count(sum.units, sum.bytes);
        let quantile = |at| (!sum.latency.is_empty()).then(|| rounded(sum.latency.value_at_quantile(at) as f64 / 1e3));
        let server = now.server_cpu.zip(self.at.server_cpu);
        let server = server.map(|(now, before)| now.saturating_sub(before).as_secs_f64());
        let share = |cpu: f64| if wall > 0.0 { rounded(cpu / wall) } else { 0.0 };
        let length_s = self.length.as_secs_f64();
        Interval {
            at_s: (number + 1) as f64 * length_s,
            length_s,
            units: rounded(units),
            bytes: sum.bytes,
            errors: sum.failures,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: (!sum.latency.is_empty()).then(|| rounded(sum.latency.max() as f64 / 1e3)),
            server_cpu_share: server.map(share),
            server_cpu_us_per_unit: server.filter(|_| units > 0.0).map(|cpu| rounded(cpu * 1e6 / units)),
            client_cpu_share: share(now.client_cpu.saturating_sub(self.at.client_cpu).as_secs_f64()),
        }
    }

    fn tell(&self, interval: &Interval) {
        let terminal = io::stderr().is_terminal();
        let rate = if interval.length_s > 0.0 {
            interval.units / interval.length_s
        } else {
            0.0
        };
        let mut line = format!("{:4.0} s  {rate:.0} {}/s", interval.at_s, self.unit);
        if let Some(p99_us) = interval.p99_us {
            line += &format!("  p99 {:.2} ms", p99_us / 1e3);
        }
        line += &format!("  errors {}", interval.errors);
        if let Some(share) = interval.server_cpu_share {
            line += &format!("  server {:.0} %", share * 100.0);
        }
        line += &format!("  client {:.0} %", interval.client_cpu_share * 100.0);
        // With standard error gone there is nobody to tell.
        let _ = if terminal {
            write!(io::stderr(), "\r\x1b[2K{line}")
        } else {
            writeln!(io::stderr(), "{line}")
        };
    }
}

impl Reading {
    fn now(server: Option<&Processes>) -> Result<Self, PerfError> {
        Ok(Self {
            when: Instant::now(),
            server_cpu: server.map(Processes::cpu_time).transpose()?.map(|cpu| cpu.total),
            client_cpu: own_cpu_time()?,
        })
    }
}

impl Progress {
    /// Whether the line is wanted here.
    pub(crate) fn is_wanted(self) -> bool {
        match self {
            Self::Auto => io::stderr().is_terminal(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}
