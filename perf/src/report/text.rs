//! The report as text, for people.

use std::fmt::{self, Display, Formatter};

use super::{Cpu, Handshakes, IdleMemory, Latency, NegotiatedCount, OpenLoop, Report, Totals, Unit};

impl Display for Unit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "handshake",
            Self::Message => "message",
            Self::Request => "request",
            Self::Megabyte => "MB",
            Self::Connection => "connection",
        })
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let unit = self.unit;
        let (work, target, connections) = (&self.work, &self.target, self.connections);
        writeln!(
            f,
            "{work} to {target}, {connections} connections, {:.1} s",
            self.duration_s
        )?;
        for warning in &self.warnings {
            writeln!(f, "  WARNING     {warning}")?;
        }
        for parameters in &self.negotiated {
            let NegotiatedCount {
                version,
                suite,
                group,
                handshake,
                count,
            } = parameters;
            writeln!(
                f,
                "  negotiated  {version} {suite} {group}, {handshake}: {count} connections"
            )?;
        }
        writeln!(
            f,
            "  rate        {:.1} {unit}/s ({:.1} in all)",
            self.rate_per_s, self.units
        )?;
        if let Some(Handshakes { full, resumed, .. }) = self.handshakes {
            writeln!(f, "  handshakes  {full} full, {resumed} resumed")?;
        }
        if let Some(OpenLoop {
            rate_per_s,
            due,
            started,
            not_started,
            ..
        }) = self.open_loop
        {
            writeln!(
                f,
                "  open loop   {rate_per_s}/s asked: {due} due, {started} started, {not_started} not started"
            )?;
        }
        if let Some(Latency {
            mean,
            p50,
            p90,
            p99,
            p999,
            max,
        }) = self.latency_us
        {
            writeln!(
                f,
                "  latency µs  mean {mean} p50 {p50} p90 {p90} p99 {p99} p99.9 {p999} max {max}"
            )?;
        }
        if let Some(server) = &self.server {
            server.lines(unit, f)?;
        }
        writeln!(f, "  client      {}", self.client.line(unit))?;
        if let Some(idle) = &self.idle {
            writeln!(f, "  held        {} connections, {} lost", idle.held, idle.lost)?;
            if let Some(memory) = &idle.memory {
                let IdleMemory {
                    bytes_per_connection,
                    rss_per_connection,
                    private_per_connection,
                    ..
                } = memory;
                writeln!(
                    f,
                    "  memory      {bytes_per_connection:.0} bytes per connection (pss), {rss_per_connection:.0} (rss), \
                     {private_per_connection:.0} (private)"
                )?;
            }
        }
        if let Some(probe) = &self.probe_established {
            writeln!(f, "  probe       {probe}")?;
        }
        let Totals {
            opened,
            closed_in_order,
            closed_without_notify,
            reset_after_close,
            ..
        } = self.totals;
        writeln!(
            f,
            "  connections {opened} opened; closed {closed_in_order} in order, {closed_without_notify} without \
             close_notify, {reset_after_close} by reset"
        )?;
        for (kind, error) in &self.errors {
            writeln!(f, "  error       {kind}: {} ({})", error.count, error.first)?;
        }
        Ok(())
    }
}

impl Cpu {
    fn line(&self, unit: Unit) -> String {
        format!(
            "{:.2} CPU-µs/{unit}, {:.0} % of a CPU",
            self.cpu_us_per_unit,
            self.cpu_share * 100.0
        )
    }
}
