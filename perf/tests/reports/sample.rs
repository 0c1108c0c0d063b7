//! Results as runs of different kinds write them.

use ringlock_perf::report::{Report, SCHEMA};
use serde_json::{Value, json};

/// A closed loop of handshakes, with the server's cost, in which some connections failed.
pub(crate) fn closed(scale: f64) -> Value {
    json!({
        "schema": SCHEMA, "work": "handshake", "target": "127.0.0.1:8443", "connections": 64,
        "duration_s": 30.0, "unit": "handshake", "units": 90_000.0 / scale, "rate_per_s": 3_000.0 / scale, "bytes": 0,
        "handshakes": {"full": 60_000, "resumed": 30_000, "by_ticket": 25_000, "by_session_id": 5_000},
        "latency_us": latencies(scale), "percentiles": percentiles(scale, 1.0), "series": series(30, scale, true),
        "server": server(scale),
        "client": {"cpu_us_per_unit": 111.25, "cpu_share": 0.45},
        "negotiated": [
            {"version": "TLSv1_3", "suite": "TLS13_AES_128_GCM_SHA256", "group": "X25519", "handshake": "Full", "count": 60_000},
            {"version": "TLSv1_3", "suite": "TLS13_AES_128_GCM_SHA256", "group": "X25519", "handshake": "Resumed", "count": 25_000},
            {"version": "TLSv1_2", "suite": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "group": "none", "handshake": "Resumed", "count": 5_000},
        ],
        "totals": {
            "opened": 90_020, "established": 90_000, "units": 90_000, "bytes": 0, "closed_in_order": 90_000,
            "closed_without_notify": 0, "reset_after_close": 0,
        },
        "errors": {
            "reset": {"count": 17, "first": "reset by the server"},
            "timeout": {"count": 3, "first": "handshake: nothing came for 10 s"},
        },
        "setting": setting(),
    })
}

/// An open loop of messages whose server stopped for a while.
pub(crate) fn open(scale: f64) -> Value {
    let mut value = closed(scale);
    let more = json!({
        "work": "echo", "unit": "message", "units": 600_000.0, "rate_per_s": 20_000.0, "handshakes": null,
        "service_us": latencies(scale / 8.0), "percentiles": percentiles(scale, 0.02), "errors": {},
        "series": series(30, scale, false),
        "open_loop": {
            "rate_per_s": 20_000, "due": 601_000, "started": 600_900, "not_started": 100, "held": 40,
            "late_p50_us": 3.0, "late_p99_us": 55.0},
    });
    merge(&mut value, more);
    value
}

/// A search for the capacity, in the order in which it tried.
pub(crate) fn search(scale: f64) -> Value {
    let mut value = closed(scale);
    let step = |rate: f64, p99: f64, refused: Option<&str>| {
        let mut step = json!({
            "rate_per_s": rate / scale, "done_per_s": rate / scale * 0.99, "p50_us": p99 / 6.0, "p99_us": p99, "p999_us": p99 * 3.0,
            "errors": 0, "server_cpu_us_per_unit": 300.0, "server_cpu_share": (rate / 3_300.0).min(1.0), "client_cpu_share": 0.3,
        });
        if let Some(why) = refused {
            step["refused"] = why.into();
        }
        step
    };
    let more = json!({
        "errors": {},
        "probe_established": {
            "connections": 64, "rate_per_s": 1_000, "messages_alone": 5_000, "messages_beside": 30_000,
            "alone": latencies(0.1), "beside": latencies(scale / 2.0), "p99_ratio": 5.0 * scale, "failed": 0, "unanswered": 0,
            "late_p99_us": 12.0,
        },
        "steps": [
            step(1_000.0, 700.0, None),
            step(2_000.0, 900.0, None),
            step(4_000.0, 250_000.0, Some("p99 250 ms, more than 5 ms")),
            step(3_000.0, 2_600.0, None),
            step(3_500.0, 31_000.0, Some("p99 31 ms, more than 5 ms")),
            step(3_250.0, 4_400.0, None),
        ],
        "capacity": {"rate_per_s": 3_250.0 / scale, "p99_max_us": 5_000.0, "limited_by": "p99 31 ms, more than 5 ms"},
    });
    merge(&mut value, more);
    value
}

/// Idle connections, and what they cost in memory.
pub(crate) fn idle(scale: f64) -> Value {
    let mut value = closed(scale);
    let more = json!({
        "work": "idle", "unit": "connection", "units": 5_000.0, "connections": 5_000, "handshakes": null, "latency_us": null,
        "percentiles": [], "series": [], "errors": {},
        "idle": {"held": 5_000, "lost": 0, "memory": {
            "bytes_per_connection": 3_712.0 * scale, "rss_per_connection": 3_900.0 * scale,
            "private_per_connection": 3_650.0 * scale, "pss_before": 8_000_000, "pss_holding": 26_000_000, "pss_closed": 9_000_000,
        }},
    });
    merge(&mut value, more);
    value
}

/// As the library has it.
pub(crate) fn run(label: &str, value: Value) -> (String, Report) {
    (label.to_owned(), serde_json::from_value(value).unwrap())
}

fn merge(value: &mut Value, more: Value) {
    let (Value::Object(value), Value::Object(more)) = (value, more) else {
        panic!("two objects")
    };
    for (key, one) in more {
        if one.is_null() {
            value.remove(&key);
        } else {
            value.insert(key, one);
        }
    }
}

fn server(scale: f64) -> Value {
    json!({
        "cpu_us_per_unit": 310.5 * scale, "cpu_share": 0.97, "user_part": 0.61,
        "context_switches_per_unit": {"voluntary": 1.25 * scale, "involuntary": 0.125},
        "page_faults_per_unit": {"minor": 0.5, "major": 0.0},
        "system_calls": {
            "per_unit": 14.5 * scale, "by_name": {"read": 8.0 * scale, "write": 4.5 * scale, "epoll_wait": 2.0 * scale},
            "tool": "perf stat", "units": 12_000.0,
        },
    })
}

fn latencies(scale: f64) -> Value {
    json!({
        "mean": 1_250.0 * scale, "p50": 900.0 * scale, "p90": 2_100.0 * scale, "p99": 9_800.0 * scale, "p999": 41_000.0 * scale,
        "max": 180_000.0 * scale,
    })
}

/// A distribution with a long tail; the service time's is `service` of it where it is long.
fn percentiles(scale: f64, service: f64) -> Value {
    let quantiles = [
        0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1.0,
    ];
    let one = |quantile: f64| {
        let latency = scale * 600.0 / (1.0_f64 - quantile).max(1e-5).powf(0.5);
        json!({"quantile": quantile, "latency_us": latency, "service_us": latency.min(600.0 * scale + latency * service)})
    };
    quantiles.map(one).to_vec().into()
}

fn series(seconds: u32, scale: f64, failing: bool) -> Value {
    let one = |second: u32| {
        let wave = 1.0 + 0.2 * f64::from(second).sin();
        let stalled = second == 18;
        let mut interval = json!({
            "at_s": f64::from(second), "length_s": 1.0, "units": if stalled { 0.0 } else { 3_000.0 / scale * wave }, "bytes": 0,
            "errors": if failing && second % 9 == 4 { 5 } else { 0 },
            "server_cpu_share": 0.97, "client_cpu_share": 0.4 + 0.05 * wave,
        });
        if !stalled {
            interval["p50_us"] = (900.0 * scale * wave).into();
            interval["p99_us"] = (9_000.0 * scale * wave).into();
            interval["max_us"] = (60_000.0 * scale * wave * wave).into();
            interval["server_cpu_us_per_unit"] = (310.0 * scale * wave).into();
        }
        interval
    };
    (1..=seconds).map(one).collect::<Vec<_>>().into()
}

fn setting() -> Value {
    json!({
        "command": ["ringlock-perf", "handshake", "--target", "127.0.0.1:8443", "--server-name", "a b"],
        "version": "0.1.0", "began": "2026-11-22T06:00:00Z", "threads": 1, "io": "epoll",
        "processor": "A processor of this kind @ 2.10GHz", "cpus": 2, "kernel": "6.1.0-18-amd64",
    })
}
