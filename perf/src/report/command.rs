//! `ringlock-perf report`: results of earlier runs beside each other, as a page or as a table.

use std::path::PathBuf;

use clap::Args;
use ringlock::control::table::table;

use super::figures::figures;
use super::numbers::printable;
use super::{Report, files, html};
use crate::error::PerfError;

/// `ringlock-perf report`
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Results of `--json`, or of `scripts/compare --json`. The first run is what the others are compared with.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What to call the run of a file: the first is for the first file (default: the files' names).
    #[arg(long = "label", value_name = "NAME")]
    pub labels: Vec<String>,
    /// Write one self-contained HTML page with plots to this file instead of printing a table.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Writes the page, or returns the table that is to be printed.
///
/// # Errors
/// When a file is no result, and when the page cannot be written.
pub fn report(args: &ReportArgs) -> Result<String, PerfError> {
    let runs = runs(args)?;
    let Some(path) = &args.html else {
        return Ok(compared(&runs));
    };
    // A forgotten FILE would make the shell's next word the page, and that word may be a result.
    if args.files.iter().any(|file| same_file(file, path)) {
        return Err(PerfError::Flag {
            flag: "--html",
            found: path.display().to_string(),
            expected: "a file that is none of the results to read".into(),
        });
    }
    let page = html::page(&runs)?;
    std::fs::write(path, page).map_err(|source| PerfError::io(format!("write {}", path.display()), source))?;
    Ok(String::new())
}

fn same_file(one: &PathBuf, other: &PathBuf) -> bool {
    match (std::fs::canonicalize(one), std::fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        // What does not exist is not overwritten.
        (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

fn runs(args: &ReportArgs) -> Result<Vec<(String, Report)>, PerfError> {
    if args.labels.len() > args.files.len() {
        return Err(PerfError::Flag {
            flag: "--label",
            found: format!("{} labels", args.labels.len()),
            expected: format!("at most as many as files, which are {}", args.files.len()),
        });
    }
    let mut runs: Vec<(String, Report)> = Vec::new();
    for (number, path) in args.files.iter().enumerate() {
        let given = args.labels.get(number).cloned();
        let stem = || {
            path.file_stem()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned()
        };
        for (server, report) in files::read(path)? {
            let label = match (server, &given) {
                (None, given) => given.clone().unwrap_or_else(stem),
                (Some(server), Some(given)) => format!("{given}: {server}"),
                (Some(server), None) if args.files.len() > 1 => format!("{}: {server}", stem()),
                (Some(server), None) => server,
            };
            let label = unused(&runs, &report, label);
            runs.push((label, report));
        }
    }
    Ok(runs)
}

/// The label, with a number when another run of the same work has it already.
fn unused(runs: &[(String, Report)], report: &Report, label: String) -> String {
    let taken = |label: &str| {
        runs.iter()
            .any(|(other, run)| other == label && run.work == report.work)
    };
    let numbered = (2..).map(|number| format!("{label} ({number})"));
    let mut candidates = std::iter::once(label.clone()).chain(numbered);
    candidates.find(|candidate| !taken(candidate)).unwrap_or(label)
}

/// One table for each work.
fn compared(runs: &[(String, Report)]) -> String {
    let mut text = String::new();
    for (label, report) in runs {
        for warning in &report.warnings {
            text.push_str(&format!("warning: {label}, {}: {warning}\n", report.work));
        }
    }
    let mut works: Vec<_> = runs.iter().map(|(_, report)| (&report.work, report.unit)).collect();
    let mut seen = Vec::new();
    works.retain(|work| {
        !seen.contains(work) && {
            seen.push(*work);
            true
        }
    });
    for (work, unit) in works {
        let same: Vec<_> = runs
            .iter()
            .filter(|(_, report)| report.work == *work && report.unit == unit)
            .collect();
        let labels = same.iter().map(|(label, _)| label.as_str());
        let head: Vec<&str> = [work.as_str(), ""].into_iter().chain(labels).collect();
        let mut rows = Vec::new();
        for figure in figures(&same.iter().map(|(_, report)| report).collect::<Vec<_>>()) {
            let cells = figure.cells.into_iter().map(|cell| {
                cell.map_or_else(
                    || "–".to_owned(),
                    |cell| {
                        let ratio = cell.ratio.map_or_else(String::new, |ratio| format!(" {ratio}"));
                        format!("{}{ratio}{}", cell.text, if cell.best { " *" } else { "" })
                    },
                )
            });
            rows.push([figure.name, figure.unit].into_iter().chain(cells).collect());
        }
        text.push_str(&format!("{}\n", table(&head, rows, 0, 2)));
    }
    if runs.len() > 1 {
        text.push_str(
            "× is the ratio to the first run; * is the better one, where they differ by more than one percent.\n",
        );
    }
    printable(&text)
}
