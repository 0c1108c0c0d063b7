//! The reader of metrics that the tests use refuses what a scraper would.

use crate::support::*;

#[test]
fn both_formats_are_read() {
    let text = "# HELP a_total An a.\n# TYPE a_total counter\na_total{x=\"1,}\\\"\\n\",y=\"2\"} 3\na_total{x=\"2\",y=\"2\"} 4\n\
                # HELP b A b.\n# TYPE b gauge\nb{} -1.5\nb{z=\"\"} 2\n";
    let read = Exposition::parse(text, Format::Prometheus).unwrap();
    assert_eq!(read.sum("a_total", &[("y", "2")]), 7.0);
    assert_eq!(read.sum("a_total", &[("x", "1,}\"\n")]), 3.0);
    assert_eq!(read.count("b", &[]), 2);
    assert_eq!(read.types["a_total"], "counter");
    let text = "# HELP a An a.\n# TYPE a counter\na_total 3\n# HELP v A v.\n# TYPE v info\nv_info{x=\"1\"} 1\n# EOF\n";
    let read = Exposition::parse(text, Format::OpenMetrics).unwrap();
    assert_eq!(read.sum("a_total", &[]), 3.0);
    assert_eq!(read.label_values("v_info", "x").into_iter().collect::<Vec<_>>(), ["1"]);
}

#[test]
fn what_is_not_exact_is_refused() {
    let good = "# HELP a_total An a.\n# TYPE a_total counter\na_total{x=\"1\"} 3\n";
    Exposition::parse(good, Format::Prometheus).unwrap();
    for (what, text) in [
        ("no end", good.trim_end().to_owned()),
        ("an empty line", format!("{good}\n")),
        ("no type", "a_total 3\n".to_owned()),
        ("a series twice", format!("{good}a_total{{x=\"1\"}} 3\n")),
        ("a second type", format!("{good}# TYPE a_total counter\n")),
        ("an unknown type", good.replace("counter", "count")),
        ("below zero", good.replace(" 3", " -3")),
        ("no number", good.replace(" 3", " three")),
        ("two spaces", good.replace(" 3", "  3")),
        ("an open label", good.replace("\"}", "}")),
        ("a label twice", good.replace("x=\"1\"", "x=\"1\",x=\"2\"")),
        ("an illegal name", good.replace("a_total", "a-total")),
        ("another family", good.replace("a_total{", "b_total{")),
        (
            "families apart",
            format!("{good}# HELP b A b.\n# TYPE b gauge\nb 1\n# HELP a_total An a.\n"),
        ),
    ] {
        assert!(Exposition::parse(&text, Format::Prometheus).is_err(), "{what}: {text}");
    }
    assert!(Exposition::parse(good, Format::OpenMetrics).is_err(), "no end mark");
}
