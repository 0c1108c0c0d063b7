//! Results of runs beside each other: as a page, as a table, and what is said of files that are none.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

mod chromium;
mod sample;

use std::path::{Path, PathBuf};

use ringlock_perf::report::command::{ReportArgs, report};
use ringlock_perf::report::html::page;
use ringlock_perf::report::{Report, SCHEMA};
use sample::run;
use serde_json::{Value, json};

/// The titles of the plots, in their order.
fn plots(page: &str) -> Vec<&str> {
    let begins = page.split("<svg class=\"plot\"").skip(1);
    begins.map(|plot| between(plot, "aria-label=\"", "\"")).collect()
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once(end).unwrap().0
}

fn keys<'a>(page: &'a str, plot: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("aria-label=\"{plot}\"")).unwrap();
    between(rest, "<ul class=\"key\">", "</ul>")
}

#[test]
fn a_closed_loop_has_its_plots_and_tables() {
    let page = page(&[run("ringlock", sample::closed(1.0))]).unwrap();
    assert_eq!(
        plots(&page),
        [
            "Latency by percentile",
            "Latency over time",
            "Throughput over time",
            "Failed connections by cause",
            "Failed connections over time",
            "Server CPU per handshake over time",
            "CPU in use over time",
            "Server system calls per handshake",
            "Handshakes by kind",
        ]
    );
    for text in [
        "3,000",
        "310",
        "reset by the server",
        "TLS13_AES_128_GCM_SHA256",
        "A processor of this kind @ 2.10GHz",
        "ringlock-perf handshake --target 127.0.0.1:8443 --server-name &#39;a b&#39;",
        "resumed by ticket",
        "resumed by session id",
        "14.5",
        "epoll_wait",
        "2026-11-22T06:00:00Z",
    ] {
        let text = text.replace("&#39;", "'");
        assert!(page.contains(&text), "{text}");
    }
    assert!(keys(&page, "Throughput over time").contains("connections failed"));
    assert!(!page.contains("service time") && !page.contains("class=\"ratio\"") && !page.contains("Read this first"));
}

#[test]
fn an_open_loop_shows_both_latencies() {
    let page = page(&[run("ringlock", sample::open(1.0))]).unwrap();
    let key = keys(&page, "Latency by percentile");
    assert!(
        key.contains("from when it was due") && key.contains("service time"),
        "{key}"
    );
    assert!(
        page.contains("Begun late, all connections busy")
            && page.contains("Due and not started")
            && page.contains("Service time, p99")
    );
    assert!(!plots(&page).contains(&"Failed connections by cause"));
}

#[test]
fn a_search_shows_its_steps_with_bound_and_capacity() {
    let page = page(&[run("ringlock", sample::search(1.0))]).unwrap();
    assert_eq!(plots(&page)[0], "Latency by rate, and the capacity");
    let key = keys(&page, "Latency by rate, and the capacity");
    for text in ["bound on p99: 5.00 ms", "capacity: 3,250/s", "did not hold"] {
        assert!(key.contains(text), "{text}: {key}");
    }
    let plot = between(&page, "aria-label=\"Latency by rate, and the capacity\"", "</svg>");
    // A cross is two lines.
    assert_eq!(plot.matches("class=\"line-failure\"").count(), 4, "{plot}");
    assert!(page.contains("no: p99 31 ms, more than 5 ms"));
    assert!(plots(&page).contains(&"99th percentile of established connections"));
    assert!(page.contains("Established connections, p99 beside the work"));
}

#[test]
fn a_step_that_was_given_up_has_a_reason_and_no_latency() {
    let plot = |value| {
        let page = page(&[run("a", value)]).unwrap();
        assert!(page.contains("no: p99 31 ms, more than 5 ms"));
        let plot = between(&page, "aria-label=\"Latency by rate, and the capacity\"", "</svg>").to_owned();
        (plot, page.contains("no: 1000 connections failed"))
    };
    let mut value = sample::search(1.0);
    let (without, _) = plot(value.clone());
    value["steps"].as_array_mut().unwrap().push(json!({
        "rate_per_s": 8_000.0, "done_per_s": 0.0, "p50_us": 0.0, "p99_us": 0.0, "p999_us": 0.0, "errors": 0,
        "client_cpu_share": 0.0, "refused": "1000 connections failed",
    }));
    assert_eq!(plot(value), (without, true));
}

#[test]
fn http_responses_are_told_by_status() {
    let mut value = sample::open(1.0);
    value["statuses"] = json!({"200": 599_000, "503": 1_000});
    let page = page(&[run("a", value)]).unwrap();
    assert!(page.contains("<td>503</td><td class=\"number\">1,000</td>"));
}

#[test]
fn idle_connections_have_memory_and_nothing_else() {
    let page = page(&[run("ringlock", sample::idle(1.0))]).unwrap();
    assert_eq!(
        plots(&page),
        [
            "Server system calls per connection",
            "Server memory per connection",
            "Handshakes by kind"
        ]
    );
    assert!(page.contains("3,712 bytes"));
}

#[test]
fn the_first_of_several_runs_is_the_base() {
    let runs = [
        run("nginx", sample::closed(1.0)),
        run("haproxy", sample::closed(1.5)),
        run("ringlock", sample::closed(0.5)),
    ];
    let page = page(&runs).unwrap();
    assert!(plots(&page).contains(&"99th percentile of the latency over time"));
    assert!(plots(&page).contains(&"Server CPU per handshake"));
    let row = between(&page, "<th scope=\"row\">Server CPU per handshake</th>", "</tr>");
    let expected = concat!(
        "<td class=\"unit\">µs</td><td class=\"number\">310</td>",
        "<td class=\"number\">466 <span class=\"ratio\">×1.50</span></td>",
        "<td class=\"number best\">155 <span class=\"ratio\">×0.50</span> <span class=\"mark\">better</span></td>",
    );
    assert_eq!(row, expected);
    for label in ["nginx", "haproxy", "ringlock"] {
        assert!(keys(&page, "Latency by percentile").contains(label));
    }
    assert!(keys(&page, "Throughput over time").contains("connections failed"));
}

#[test]
fn runs_of_different_works_are_not_compared() {
    let page = page(&[run("a", sample::closed(1.0)), run("b", sample::idle(1.0))]).unwrap();
    assert!(!page.contains("class=\"ratio\"") && page.contains("<a href=\"#work-1\">idle</a>"));
}

#[test]
fn warnings_come_first() {
    let mut value = sample::closed(1.0);
    value["warnings"] = json!(["the client was the limit: 99 % of its CPU"]);
    let page = page(&[run("a", value)]).unwrap();
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing"));
    assert!(at("Read this first") < at("the client was the limit") && at("the client was the limit") < at("Summary"));
}

#[test]
fn warnings_that_differ_by_numbers_are_said_once() {
    let warned = |label: &str, warning: &str| {
        let mut value = sample::closed(1.0);
        value["warnings"] = json!([warning]);
        run(label, value)
    };
    let page = page(&[
        warned("first", "It waited for 8 % of the window."),
        warned("second", "It waited for 12.5 % of the window."),
        warned("third", "It was late."),
    ])
    .unwrap();
    assert!(page.contains("It waited for 8 %") && !page.contains("12.5 %") && page.contains("It was late."));
    assert!(page.contains("and 1 more") && page.contains("second"));
}

/// Every text of a report, replaced by this one.
fn with_texts(value: &mut Value, text: &str) {
    match value {
        Value::String(one) => *one = text.to_owned(),
        Value::Array(all) => all.iter_mut().for_each(|one| with_texts(one, text)),
        Value::Object(all) => {
            if let Some(errors) = all.get_mut("errors").and_then(Value::as_object_mut) {
                let (_, first) = errors
                    .iter()
                    .next()
                    .map(|(key, one)| (key.clone(), one.clone()))
                    .unwrap();
                errors.insert(text.to_owned(), first);
            }
            for (key, one) in all.iter_mut() {
                if key != "unit" {
                    with_texts(one, text);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn nothing_in_a_report_becomes_markup() {
    let hostile =
        "</title></style></svg>\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\u{1b}[31m\u{0}\u{202e}";
    let mut value = sample::search(1.0);
    value["errors"] = json!({"reset": {"count": 1, "first": "a"}});
    value["warnings"] = json!(["a"]);
    value["setting"]["scenario"] = "a".into();
    with_texts(&mut value, hostile);
    let labels = [hostile.to_owned(), format!("{hostile}2")];
    let runs = labels.map(|label| run(&label, value.clone()));
    for page in [page(&runs).unwrap(), page(&runs[..1]).unwrap()] {
        assert!(page.contains("&lt;script&gt;"), "the text is there, as text");
        let text = page.split_once("<body>").unwrap().1;
        for markup in ["<script", "<img", "</style", "</title></style"] {
            assert!(!text.contains(markup), "{markup}");
        }
        assert_eq!(page.matches("<title>").count(), page.matches("</title>").count());
        let acting = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!page.contains(acting));
    }
}

#[test]
fn no_number_in_a_file_stops_a_page() {
    for number in [0.0, -1.0, f64::MAX, f64::MIN_POSITIVE, -f64::MAX] {
        fn replace(value: &mut Value, number: f64) {
            match value {
                Value::Number(one) if one.is_f64() => *value = number.into(),
                Value::Number(one) => *one = if number > 1.0 { u32::MAX.into() } else { 0.into() },
                Value::Array(all) => all.iter_mut().for_each(|one| replace(one, number)),
                Value::Object(all) => all.values_mut().for_each(|one| replace(one, number)),
                Value::Null | Value::Bool(_) | Value::String(_) => {}
            }
        }
        for mut value in [
            sample::closed(1.0),
            sample::open(1.0),
            sample::search(1.0),
            sample::idle(1.0),
        ] {
            replace(&mut value, number);
            let runs = [run("a", value.clone()), run("b", value)];
            for runs in [&runs[..], &runs[..1]] {
                let page = page(runs).unwrap();
                assert!(page.ends_with("</html>") && !page.contains("NaN"), "{number}");
            }
        }
    }
}

#[test]
fn a_page_has_a_bounded_size_and_is_the_same_each_time() {
    let mut value = sample::search(1.0);
    for list in ["series", "steps", "percentiles", "negotiated"] {
        let one = value[list][0].clone();
        value[list] = vec![one; 20_000].into();
    }
    value["warnings"] = vec!["w".repeat(10_000); 1_000].into();
    let runs = [run("a", value.clone()), run("b", value)];
    let first = page(&runs).unwrap();
    assert!(first.len() < 2_000_000, "{} bytes", first.len());
    assert!(first.contains("The first 200 of 40000."));
    assert!(first == page(&runs).unwrap());
}

#[test]
fn as_many_labels_as_can_be_told_apart() {
    let runs = |count: usize| -> Vec<(String, Report)> {
        (0..count)
            .map(|number| run(&format!("run {number}"), sample::closed(1.0)))
            .collect()
    };
    assert!(page(&runs(12)).is_ok());
    let error = page(&runs(13)).unwrap_err().to_string();
    assert!(error.contains("13") && error.contains("1 to 12"), "{error}");
    assert!(page(&[]).is_err());
}

/// A folder with a file of this name and content.
fn file(folder: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn args(files: &[&Path]) -> ReportArgs {
    ReportArgs {
        files: files.iter().map(|path| path.to_path_buf()).collect(),
        labels: Vec::new(),
        html: None,
    }
}

#[test]
fn files_become_a_table_or_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let one = file(&folder, "one.json", &sample::closed(1.0).to_string());
    let other = file(&folder, "two.json", &sample::closed(2.0).to_string());
    let mut args = args(&[&one, &other]);
    args.labels = vec!["nginx".into()];
    let table = report(&args).unwrap();
    let line = |name: &str| {
        table
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {table}"))
    };
    let cells: Vec<_> = line("Server CPU per handshake").split_whitespace().collect();
    assert_eq!(cells[4..], ["µs", "310", "*", "621", "×2.00"]);
    assert!(line("handshake").contains("nginx") && line("handshake").contains("two"));

    let path = folder.path().join("page.html");
    args.html = Some(path.clone());
    assert_eq!(report(&args).unwrap(), "");
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains(">two</th>"));
}

#[test]
fn a_comparison_gives_the_round_in_the_middle_of_each_server() {
    let record = |server: &str, work: &str, scale: f64| json!({"kind": "cell", "server": server, "work": work, "round": 1, "report": sample::closed(scale)});
    let comparison = json!({
        "schema": 1,
        "facts": {},
        "records": [
            {"kind": "sanity", "server": "nginx", "work": "tickets=2", "round": 0, "report": sample::closed(9.0)},
            record("nginx", "handshake-rsa", 3.0), record("nginx", "handshake-rsa", 1.0), record("nginx", "handshake-rsa", 2.0),
            record("ringlock", "handshake-rsa", 1.0),
            {"kind": "left_out", "server": "hitch", "work": "handshake-rsa", "round": 1, "reason": "none"},
            record("ringlock", "handshake-mtls", 1.0),
        ],
    });
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "compare.json", &comparison.to_string());
    let table = report(&args(&[&path])).unwrap();
    assert!(
        table.contains("handshake-rsa") && table.contains("handshake-mtls"),
        "{table}"
    );
    let line = table
        .lines()
        .find(|line| line.starts_with("Server CPU per handshake"))
        .unwrap();
    let cells: Vec<_> = line.split_whitespace().collect();
    assert_eq!(cells[4..], ["µs", "621", "310", "×0.50", "*"], "{table}");
}

#[test]
fn what_is_no_result_is_named_with_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(&folder, "good.json", &sample::closed(1.0).to_string());
    let mut old = sample::closed(1.0);
    old["schema"] = json!(999);
    let mut broken = sample::closed(1.0);
    broken["connections"] = "many".into();
    let schema = SCHEMA.to_string();
    for (name, content, expected) in [
        (
            "text.json",
            "hello".to_owned(),
            vec!["found no result", "line 1", "--json"],
        ),
        ("empty.json", "\n".into(), vec!["it is empty"]),
        (
            "other.json",
            json!({"name": "x"}).to_string(),
            vec!["neither `work` nor `records`", "--json"],
        ),
        ("list.json", json!([1, 2]).to_string(), vec!["found no result"]),
        (
            "old.json",
            old.to_string(),
            vec!["its schema is 999", &schema, "measure again"],
        ),
        (
            "broken.json",
            broken.to_string(),
            vec!["not a result of schema", "many"],
        ),
        (
            "none.json",
            json!({"records": []}).to_string(),
            vec!["no records of the kind `cell`"],
        ),
    ] {
        let path = file(&folder, name, &content);
        let error = report(&args(&[&good, &path])).unwrap_err().to_string();
        for text in expected.into_iter().chain([name]) {
            assert!(error.contains(text), "{text}: {error}");
        }
    }
    let error = report(&args(&[&folder.path().join("missing.json")]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing.json") && error.contains("No such file"),
        "{error}"
    );
    let mut many = args(&[&good]);
    many.labels = vec!["a".into(), "b".into()];
    assert!(report(&many).unwrap_err().to_string().contains("--label"));
    let mut over = args(&[&good]);
    over.html = Some(good.clone());
    assert!(report(&over).unwrap_err().to_string().contains("--html"));
    assert_eq!(std::fs::read_to_string(&good).unwrap(), sample::closed(1.0).to_string());
}

#[test]
fn files_of_the_same_name_are_told_apart() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let paths = folders
        .each_ref()
        .map(|folder| file(folder, "run.json", &sample::closed(1.0).to_string()));
    let table = report(&args(&[&paths[0], &paths[1]])).unwrap();
    assert!(table.lines().next().unwrap().contains("run (2)"), "{table}");
}

/// Contrast as WCAG 2 defines it: 1 to 21.
fn contrast(one: &str, other: &str) -> f64 {
    let luminance = |color: &str| {
        let part = |at: usize| {
            let value = f64::from(u8::from_str_radix(&color[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[test]
fn texts_and_lines_stand_out_in_light_and_in_dark() {
    let page = page(&[run("a", sample::closed(1.0))]).unwrap();
    let schemes: Vec<&str> = page
        .split(":root {")
        .skip(1)
        .map(|block| block.split_once('}').unwrap().0)
        .collect();
    assert_eq!(schemes.len(), 2, "one for light and one for dark");
    for scheme in schemes {
        let color = |name: &str| between(scheme, &format!("--{name}: "), ";");
        for (text, back) in [
            ("text", "back"),
            ("quiet", "back"),
            ("good", "back"),
            ("run-0", "back"),
            ("text", "tint"),
            ("text", "warn-back"),
        ] {
            let found = contrast(color(text), color(back));
            assert!(found >= 4.5, "{text} on {back}: {found:.2}");
        }
        for line in [
            "run-0",
            "run-1",
            "run-2",
            "run-3",
            "run-4",
            "run-5",
            "bound",
            "failure",
            "warn-edge",
        ] {
            let found = contrast(color(line), color("back"));
            assert!(found >= 3.0, "{line}: {found:.2}");
        }
    }
}
