//! The report as text, for people.

use std::fmt::{self, Display, Formatter};

use ringlock::control::table::table;

use super::{Capacity, Cpu, Handshakes, IdleMemory, Latency, NegotiatedCount, OpenLoop, Report, Totals, Unit};

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
        if let Some(Handshakes {
            full,
            by_ticket,
            by_session_id,
            ..
        }) = self.handshakes
        {
            writeln!(
                f,
                "  handshakes  {full} full, {by_ticket} resumed by ticket, {by_session_id} by session id"
            )?;
        }
        if !self.statuses.is_empty() {
            let statuses: Vec<_> = self
                .statuses
                .iter()
                .map(|(status, count)| format!("{count} × {status}"))
                .collect();
            writeln!(f, "  responses   {}", statuses.join(", "))?;
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
        latencies(self, f)?;
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
            closed_at_rest,
            ..
        } = self.totals;
        let at_rest = if closed_at_rest > 0 {
            format!("; {closed_at_rest} by the server between two requests")
        } else {
            String::new()
        };
        writeln!(
            f,
            "  connections {opened} opened; closed {closed_in_order} in order, {closed_without_notify} without \
             close_notify, {reset_after_close} by reset{at_rest}"
        )?;
        for (kind, error) in &self.errors {
            writeln!(f, "  error       {kind}: {} ({})", error.count, error.first)?;
        }
        steps(self, f)
    }
}

fn latencies(report: &Report, f: &mut Formatter<'_>) -> fmt::Result {
    let Some(latency) = &report.latency_us else {
        return Ok(());
    };
    let row = |name: &str, latency: &Latency| {
        let times = [
            latency.mean,
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max,
        ];
        std::iter::once(name.to_owned())
            .chain(times.map(|time| format!("{time:.1}")))
            .collect()
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    if let Some(service) = &report.service_us {
        rows.push(row("since it was due", latency));
        rows.push(row("since it began", service));
    } else {
        rows.push(row(&format!("per {}", report.unit), latency));
    }
    f.write_str(&table(
        &["latency, µs", "mean", "p50", "p90", "p99", "p99.9", "longest"],
        rows,
        2,
        1,
    ))
}

/// Of a ramp or a search.
fn steps(report: &Report, f: &mut Formatter<'_>) -> fmt::Result {
    if report.steps.is_empty() {
        return Ok(());
    }
    let none = || "–".to_owned();
    let rows = report.steps.iter().map(|step| {
        let was_given_up = step.refused.is_some() && step.done_per_s == 0.0;
        let figure = |text: String| if was_given_up { none() } else { text };
        vec![
            format!("{:.0}", step.rate_per_s),
            figure(format!("{:.0}", step.done_per_s)),
            figure(format!("{:.2}", step.p50_us / 1e3)),
            figure(format!("{:.2}", step.p99_us / 1e3)),
            figure(step.errors.to_string()),
            step.server_cpu_share
                .map_or_else(none, |share| format!("{:.0} %", share * 100.0)),
            figure(format!("{:.0} %", step.client_cpu_share * 100.0)),
            (if step.refused.is_some() { "no" } else { "yes" }).to_owned(),
        ]
    });
    let head = [
        "asked/s", "done/s", "p50 ms", "p99 ms", "errors", "server", "client", "holds",
    ];
    f.write_str(&table(&head, rows.collect(), 2, 0))?;
    if let Some(Capacity {
        rate_per_s,
        p99_max_us,
        limited_by,
    }) = &report.capacity
    {
        let why = limited_by
            .as_deref()
            .unwrap_or("the highest rate that was asked for held (--rate-max)");
        let unit = report.unit;
        writeln!(
            f,
            "  capacity    {rate_per_s:.0} {unit}/s with p99 below {:.1} ms and no errors; above: {why}",
            p99_max_us / 1e3
        )?;
    }
    Ok(())
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
