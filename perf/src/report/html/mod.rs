//! Reports as one HTML page: everything is in it, and it runs no script.

mod axis;
mod course;
mod draw;
mod plots;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use draw::{Ink, RuleAt, SERIES, WIDTH};
use plots::{Drawing, Plot, Run, plots};

use super::figures::figures;
use super::numbers::{clipped, count, figure, printable, time};
use super::{Report, Step};
use crate::error::PerfError;

/// Rows of a table at most. Reports come from files.
const ROWS_MAX: usize = 200;

/// Nothing is loaded from elsewhere, and nothing that gets into the page is run.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = include_str!("page.css");

/// Runs of one work.
struct Group<'a> {
    work: &'a str,
    runs: Vec<Run<'a>>,
}

/// One page for these runs, each with its label. Runs of the same work are compared with the first of them.
///
/// # Errors
/// When there is no run, or when there are more labels than can be told apart in a plot.
pub fn page(runs: &[(String, Report)]) -> Result<String, PerfError> {
    let labels = labels(runs);
    if labels.is_empty() || labels.len() > SERIES {
        return Err(PerfError::Plot(format!(
            "found {} labels, expected 1 to {SERIES}: more cannot be told apart in one page",
            labels.len()
        )));
    }
    let groups = groups(runs, &labels);
    let title = match runs {
        [(label, report)] => format!("{label}: {}", report.work),
        runs => format!("{} runs compared", runs.len()),
    };
    let sections = groups.iter().map(section).collect::<Result<Vec<_>, _>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_SECURITY_POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "ringlock-perf: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (clipped(&title)) }
                (warnings(&groups))
                @if groups.len() > 1 {
                    nav aria-label="Works" { ul { @for (number, group) in groups.iter().enumerate() {
                        li { a href={ "#work-" (number) } { (group.work) } }
                    } } }
                }
                @for (number, (group, section)) in groups.iter().zip(sections).enumerate() {
                    section id={ "work-" (number) } {
                        h2 { (clipped(group.work)) }
                        (section)
                    }
                }
                footer { "Made by ringlock-perf " (env!("CARGO_PKG_VERSION")) "." }
            }
        }
    };
    // Everything a report says is in the page by now: nothing can have gone another way.
    Ok(printable(&page.into_string()))
}

/// The different labels, in the order in which they come.
fn labels(runs: &[(String, Report)]) -> Vec<&str> {
    let mut labels: Vec<&str> = Vec::new();
    for (label, _) in runs {
        if !labels.contains(&label.as_str()) {
            labels.push(label);
        }
    }
    labels
}

fn groups<'a>(runs: &'a [(String, Report)], labels: &[&str]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (label, report) in runs {
        let ink = Ink::Series(labels.iter().position(|one| one == label).unwrap_or(0));
        let run = Run { label, report, ink };
        let same = |group: &&mut Group<'_>| {
            group.work == report.work && group.runs.iter().all(|other| other.report.unit == report.unit)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group {
                work: &report.work,
                runs: vec![run],
            }),
        }
    }
    for group in &mut groups {
        if let [run] = group.runs.as_mut_slice() {
            run.ink = Ink::Series(0);
        }
    }
    groups
}

/// What limits the figures comes before them.
fn warnings(groups: &[Group<'_>]) -> Markup {
    let runs = || {
        groups
            .iter()
            .flat_map(|group| group.runs.iter().map(move |run| (group, run)))
    };
    let several = runs().count() > 1;
    // What differs by its numbers only is said once, with the runs that it is about.
    let mut alike: Vec<(String, &str, Vec<String>)> = Vec::new();
    for (group, run) in runs() {
        let mut name = run.label.to_owned();
        if groups.len() > 1 {
            name = format!("{name}, {}", group.work);
        }
        for text in &run.report.warnings {
            let kind = without_numbers(text);
            match alike.iter_mut().find(|(known, ..)| *known == kind) {
                Some((_, _, names)) => names.push(name.clone()),
                None => alike.push((kind, text, vec![name.clone()])),
            }
        }
    }
    html! {
        @if !alike.is_empty() {
            section .warnings aria-label="Warnings" {
                h2 { "Read this first" }
                ul { @for (_, text, names) in alike.iter().take(ROWS_MAX) {
                    li {
                        @if several { strong { (clipped(&names[0])) } ": " }
                        (clipped(text))
                        @if names.len() > 1 {
                            details {
                                summary { "and " (names.len() - 1) " more, with other numbers" }
                                (clipped(&names[1..].join("; ")))
                            }
                        }
                    }
                } }
                (more(alike.len()))
            }
        }
    }
}

/// What warnings of the same kind have in common.
fn without_numbers(text: &str) -> String {
    let mut kind = String::with_capacity(text.len());
    for c in text.chars() {
        let of_a_number = c.is_ascii_digit() || c == '.' && kind.ends_with('#');
        if !of_a_number {
            kind.push(c);
        } else if !kind.ends_with('#') {
            kind.push('#');
        }
    }
    kind
}

fn section(group: &Group<'_>) -> Result<Markup, PerfError> {
    let runs = group.runs.as_slice();
    let plots = plots(runs).iter().map(plot).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        (summary(runs))
        div .plots { @for plot in plots { (plot) } }
        (errors(runs))
        (steps(runs))
        (percentiles(runs))
        (negotiated(runs))
        (statuses(runs))
        (setting(runs))
    })
}

fn plot(plot: &Plot) -> Result<Markup, PerfError> {
    let ((content, height), key) = match &plot.drawing {
        Drawing::Chart(chart) => (draw::chart(chart)?, chart_key(chart)),
        Drawing::Bars { bars, key } => (draw::bars(bars)?, bars_key(key)),
    };
    let height = height.to_string();
    Ok(html! {
        figure {
            figcaption { strong { (plot.title) } " " span .note { (plot.note) } }
            svg .plot role="img" aria-label=(plot.title) viewBox={ "0 0 " (WIDTH) " " (height) } {
                title { (plot.title) }
                (PreEscaped(content))
            }
            (key)
        }
    })
}

fn chart_key(chart: &draw::Chart) -> Markup {
    html! {
        ul .key {
            @for line in chart.lines.iter().filter(|line| !line.label.is_empty()) { li { (line_sample(line.ink)) (clipped(&line.label)) } }
            @for rule in &chart.rules { li {
                @match rule.at {
                    RuleAt::Y(_) => (line_sample(rule.ink)),
                    RuleAt::X(_) => svg .sample aria-hidden="true" viewBox="0 0 24 24" {
                        line class={ "line-" (rule.ink.name()) } stroke-width="4" x1="12" x2="12" y1="0" y2="24" {}
                    },
                }
                (clipped(&rule.label))
            } }
            @for points in &chart.points { li {
                svg .sample aria-hidden="true" viewBox="0 0 24 24" {
                    path class={ "line-" (Ink::Failure.name()) } stroke-width="5" d="M3 3L21 21M3 21L21 3" {}
                }
                (clipped(&points.label))
            } }
        }
    }
}

fn line_sample(ink: Ink) -> Markup {
    html! {
        svg .sample .wide aria-hidden="true" viewBox="0 0 88 24" {
            line class={ "line-" (ink.name()) } stroke-width=(draw::line_width(ink)) x1="0" x2="88" y1="12" y2="12" {}
        }
    }
}

fn bars_key(key: &[(String, Ink)]) -> Markup {
    html! {
        @if !key.is_empty() {
            ul .key { @for (label, ink) in key { li {
                svg .sample aria-hidden="true" viewBox="0 0 24 24" {
                    rect class={ "fill-" (ink.name()) } width="24" height="24" {}
                }
                (clipped(label))
            } } }
        }
    }
}

fn summary(runs: &[Run<'_>]) -> Markup {
    let reports: Vec<&Report> = runs.iter().map(|run| run.report).collect();
    let body = html! { @for figure in figures(&reports) {
        tr {
            th scope="row" { (figure.name) }
            td .unit { (figure.unit) }
            @for cell in figure.cells {
                @match cell {
                    Some(cell) => td .number .best[cell.best] {
                        (cell.text)
                        @if let Some(ratio) = cell.ratio { " " span .ratio { (ratio) } }
                        @if cell.best { " " span .mark { "better" } }
                    },
                    None => td .number { "–" },
                }
            }
        }
    } };
    let head = html! { th { "Figure" } th { "Unit" } @for run in runs { th .number { (clipped(run.label)) } } };
    html! {
        (table("Summary", &head, &body))
        @if runs.len() > 1 {
            p .note {
                "× is the ratio to " (clipped(runs[0].label)) ". “better” is the best of the row, where the runs differ by more than one percent."
            }
        }
    }
}

fn errors(runs: &[Run<'_>]) -> Markup {
    let all: Vec<_> = runs
        .iter()
        .flat_map(|run| run.report.errors.iter().map(move |error| (run, error)))
        .collect();
    let body = html! { @for (run, (cause, error)) in all.iter().take(ROWS_MAX) { tr {
        (run_cell(runs, run))
        td { (clipped(cause)) }
        td .number { (count(error.count as f64)) }
        td { (clipped(&error.first)) }
    } } };
    let head =
        html! { (run_head(runs)) th { "Cause" } th .number { "Failed connections" } th { "What the first one said" } };
    optional_table("Failed connections", all.len(), &head, &body)
}

fn steps(runs: &[Run<'_>]) -> Markup {
    let all: Vec<(&Run<'_>, &Step)> = runs
        .iter()
        .flat_map(|run| run.report.steps.iter().map(move |step| (run, step)))
        .collect();
    let percent = |share: f64| format!("{} %", figure(share * 100.0));
    let body = html! { @for (run, step) in all.iter().take(ROWS_MAX) { tr {
        (run_cell(runs, run))
        td .number { (figure(step.rate_per_s)) }
        td .number { (figure(step.done_per_s)) }
        td .number { (time(step.p50_us)) }
        td .number { (time(step.p99_us)) }
        td .number { (time(step.p999_us)) }
        td .number { (count(step.errors as f64)) }
        td .number { (step.server_cpu_us_per_unit.map_or_else(|| "–".to_owned(), time)) }
        td .number { (step.server_cpu_share.map_or_else(|| "–".to_owned(), percent)) }
        td .number { (percent(step.client_cpu_share)) }
        td { (step.refused.as_deref().map_or_else(|| "yes".to_owned(), |why| format!("no: {}", clipped(why)))) }
    } } };
    let head = html! {
        (run_head(runs))
        th .number { "Asked for per s" } th .number { "Done per s" } th .number { "p50" } th .number { "p99" }
        th .number { "p99.9" } th .number { "Failed" } th .number { "Server CPU per unit" } th .number { "Server CPU" }
        th .number { "Client CPU" } th { "Held" }
    };
    let limits = runs.iter().filter_map(|run| Some((run, run.report.capacity.as_ref()?)));
    html! {
        (optional_table("Steps", all.len(), &head, &body))
        @for (run, capacity) in limits {
            p {
                @if runs.len() > 1 { strong { (clipped(run.label)) ": " } }
                "capacity " (figure(capacity.rate_per_s)) "/s with a p99 of at most " (time(capacity.p99_max_us)) "; "
                @match &capacity.limited_by {
                    Some(why) => { "the next higher rate did not hold: " (clipped(why)) },
                    None => "no higher rate was tried",
                }
                "."
            }
        }
    }
}

fn percentiles(runs: &[Run<'_>]) -> Markup {
    let Some(longest) = runs
        .iter()
        .map(|run| &run.report.percentiles)
        .max_by_key(|all| all.len())
    else {
        return html! {};
    };
    let open_loop = |run: &Run<'_>| {
        run.report
            .percentiles
            .iter()
            .any(|one| one.latency_us != one.service_us)
    };
    let value = |run: &Run<'_>, quantile: f64| {
        run.report
            .percentiles
            .iter()
            .find(|one| one.quantile == quantile)
            .copied()
    };
    let body = html! { @for row in longest.iter().take(ROWS_MAX) { tr {
        th scope="row" { (percentile_name(row.quantile)) }
        @for run in runs {
            @let found = value(run, row.quantile);
            td .number { (found.map_or_else(|| "–".to_owned(), |one| time(one.latency_us))) }
            @if open_loop(run) { td .number { (found.map_or_else(|| "–".to_owned(), |one| time(one.service_us))) } }
        }
    } } };
    let head = html! {
        th { "Percentile" }
        @for run in runs {
            th .number { (clipped(run.label)) @if open_loop(run) { ", from when it was due" } }
            @if open_loop(run) { th .number { (clipped(run.label)) ", service time" } }
        }
    };
    optional_table("Latency by percentile", longest.len(), &head, &body)
}

fn percentile_name(quantile: f64) -> String {
    if quantile >= 1.0 {
        "longest".into()
    } else {
        format!("{}", (quantile * 1e7).round() / 1e5)
    }
}

fn negotiated(runs: &[Run<'_>]) -> Markup {
    let all: Vec<_> = runs
        .iter()
        .flat_map(|run| run.report.negotiated.iter().map(move |one| (run, one)))
        .collect();
    let body = html! { @for (run, one) in all.iter().take(ROWS_MAX) { tr {
        (run_cell(runs, run))
        @for text in [&one.version, &one.suite, &one.group, &one.handshake] { td { (clipped(text)) } }
        td .number { (count(one.count as f64)) }
    } } };
    let head = html! {
        (run_head(runs)) th { "Version" } th { "Cipher suite" } th { "Group" } th { "Handshake" } th .number { "Connections" }
    };
    optional_table("Negotiated", all.len(), &head, &body)
}

fn statuses(runs: &[Run<'_>]) -> Markup {
    let all: Vec<_> = runs
        .iter()
        .flat_map(|run| run.report.statuses.iter().map(move |status| (run, status)))
        .collect();
    let body = html! { @for (run, (status, number)) in all.iter().take(ROWS_MAX) { tr {
        (run_cell(runs, run))
        td { (clipped(status)) }
        td .number { (count(**number as f64)) }
    } } };
    let head = html! { (run_head(runs)) th { "Status" } th .number { "Responses" } };
    optional_table("HTTP responses", all.len(), &head, &body)
}

fn setting(runs: &[Run<'_>]) -> Markup {
    type Row = (&'static str, fn(&Report) -> String);
    let rows: [Row; 10] = [
        ("Target", |run| run.target.clone()),
        ("Scenario", |run| run.setting.scenario.clone().unwrap_or_default()),
        ("Began", |run| run.setting.began.clone()),
        ("ringlock-perf", |run| run.setting.version.clone()),
        ("Threads of the client", |run| number(run.setting.threads)),
        ("Driver", |run| run.setting.io.clone()),
        ("Processor", |run| run.setting.processor.clone()),
        ("CPUs", |run| number(run.setting.cpus)),
        ("Kernel", |run| run.setting.kernel.clone()),
        ("Command", |run| command_line(&run.setting.command)),
    ];
    let body = html! { @for (name, value) in rows {
        @let values: Vec<String> = runs.iter().map(|run| value(run.report)).collect();
        @if values.iter().any(|value| !value.is_empty()) { tr {
            th scope="row" { (name) }
            @for value in &values { td .code[name == "Command"] { (clipped(value)) } }
        } }
    } };
    let head = html! { th {} @for run in runs { th { (clipped(run.label)) } } };
    table("Setting", &head, &body)
}

fn number(of: usize) -> String {
    if of == 0 { String::new() } else { of.to_string() }
}

/// So that it can be typed again: what a shell would take apart is in quotes.
fn command_line(arguments: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = |argument: &String| match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.clone(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Several runs have a column that names them.
fn run_head(runs: &[Run<'_>]) -> Markup {
    html! { @if runs.len() > 1 { th { "Run" } } }
}

fn run_cell(runs: &[Run<'_>], run: &Run<'_>) -> Markup {
    html! { @if runs.len() > 1 { th scope="row" { (clipped(run.label)) } } }
}

fn optional_table(title: &str, rows: usize, head: &Markup, body: &Markup) -> Markup {
    html! { @if rows > 0 { (table(title, head, body)) (more(rows)) } }
}

fn table(title: &str, head: &Markup, body: &Markup) -> Markup {
    html! {
        h3 { (title) }
        div .scroll tabindex="0" role="region" aria-label=(title) {
            table { thead { tr { (head) } } tbody { (body) } }
        }
    }
}

fn more(rows: usize) -> Markup {
    html! { @if rows > ROWS_MAX { p .note { "The first " (ROWS_MAX) " of " (rows) "." } } }
}
