//! Runs from files: results of `--json`, and of `scripts/compare --json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Report, SCHEMA};
use crate::error::PerfError;

/// Far more than a result has.
const FILE_MAX: u64 = 64 << 20;

const EXPECTED: &str = "expected what `ringlock-perf … --json` or `scripts/compare --json` writes";

/// What tells the two kinds of files apart.
#[derive(Deserialize)]
struct Head<'a> {
    schema: Option<u64>,
    #[serde(borrow)]
    work: Option<&'a RawValue>,
    #[serde(borrow)]
    records: Option<Vec<Record<'a>>>,
}

/// One line of a comparison. Only those that have a report of one run are of use here.
#[derive(Deserialize)]
struct Record<'a> {
    kind: String,
    #[serde(default)]
    server: String,
    #[serde(default)]
    work: String,
    #[serde(borrow, default)]
    report: Option<&'a RawValue>,
}

/// The runs in a file, each with its server's name where it is a comparison.
pub(super) fn read(path: &Path) -> Result<Vec<(Option<String>, Report)>, PerfError> {
    let shown = || path.display().to_string();
    let file = File::open(path).map_err(|source| PerfError::io(format!("open {}", shown()), source))?;
    let mut text = String::new();
    let length = file.take(FILE_MAX + 1).read_to_string(&mut text);
    let length = length.map_err(|source| PerfError::io(format!("read {}", shown()), source))?;
    let refused = |problem: String| PerfError::Result { file: shown(), problem };
    if length as u64 > FILE_MAX {
        return Err(refused(format!(
            "it has more than {FILE_MAX} bytes, more than a result can have"
        )));
    }
    parse(&text).map_err(refused)
}

fn parse(text: &str) -> Result<Vec<(Option<String>, Report)>, String> {
    if text.trim().is_empty() {
        return Err("it is empty: the run that should have written it had no result".into());
    }
    let head: Head<'_> =
        serde_json::from_str(text).map_err(|error| format!("found no result ({error}), {EXPECTED}"))?;
    match head {
        Head {
            records: Some(records), ..
        } => compared(records),
        Head {
            work: Some(_), schema, ..
        } => Ok(vec![(None, report(text, schema)?)]),
        Head {
            work: None,
            records: None,
            ..
        } => Err(format!("found neither `work` nor `records`, {EXPECTED}")),
    }
}

fn report(text: &str, schema: Option<u64>) -> Result<Report, String> {
    if schema != Some(u64::from(SCHEMA)) {
        let found = schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
        return Err(format!(
            "its schema is {found}, expected {SCHEMA}: measure again with this version of ringlock-perf, or use the version that wrote it"
        ));
    }
    serde_json::from_str(text).map_err(|error| format!("not a result of schema {SCHEMA}: {error}"))
}

/// Of each work and server, the round in the middle: by what a unit cost the server, else by the rate.
fn compared(records: Vec<Record<'_>>) -> Result<Vec<(Option<String>, Report)>, String> {
    #[derive(Deserialize)]
    struct Schema {
        schema: Option<u64>,
    }
    let mut order = Vec::new();
    let mut rounds: BTreeMap<(String, String), Vec<Report>> = BTreeMap::new();
    for record in records {
        let (Some(text), "cell") = (record.report, record.kind.as_str()) else {
            continue;
        };
        let place = || format!("the record of {}, {}", record.server, record.work);
        let schema: Schema = serde_json::from_str(text.get()).map_err(|error| format!("{}: {error}", place()))?;
        let mut report = report(text.get(), schema.schema).map_err(|problem| format!("{}: {problem}", place()))?;
        report.work.clone_from(&record.work);
        let key = (record.work.clone(), record.server.clone());
        if !order.contains(&key) {
            order.push(key.clone());
        }
        rounds.entry(key).or_default().push(report);
    }
    if order.is_empty() {
        return Err("found no records of the kind `cell` with a report, expected a comparison that has run".into());
    }
    let middle = |key: (String, String)| {
        let mut rounds = rounds.remove(&key)?;
        rounds.sort_by(|one, other| cost(one).total_cmp(&cost(other)));
        let middle = rounds.len().saturating_sub(1) / 2;
        Some((Some(key.1), rounds.swap_remove(middle)))
    };
    Ok(order.into_iter().filter_map(middle).collect())
}

fn cost(report: &Report) -> f64 {
    match (
        report.idle.as_ref().and_then(|idle| idle.memory.as_ref()),
        &report.server,
    ) {
        (Some(memory), _) => memory.bytes_per_connection,
        (None, Some(server)) => server.cpu_us_per_unit,
        (None, None) => report.rate_per_s,
    }
}
