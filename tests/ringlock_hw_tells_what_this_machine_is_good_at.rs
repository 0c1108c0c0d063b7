//! `ringlock hw` measures every operation and says what will be used; what the environment hides from AWS-LC is told by every command.

use crate::support::multibuffer;
use crate::support::*;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// Hides AVX-512 IFMA from AWS-LC.
const MASK: &str = "~0x0:~0x200000";
const EXCHANGES: [&str; 4] = ["X25519", "P-256", "P-384", "X25519MLKEM768"];
const SIGNATURES: [&str; 6] = [
    "ECDSA P-256",
    "ECDSA P-384",
    "Ed25519",
    "RSA-2048",
    "RSA-3072",
    "RSA-4096",
];
const VERIFICATIONS: [&str; 2] = ["ECDSA P-256 verify", "ECDSA P-384 verify"];
/// Those of which several are computed together where the library is.
const BATCHED: [&str; 10] = [
    "X25519",
    "P-256",
    "X25519MLKEM768",
    "ECDSA P-256",
    "ECDSA P-384",
    "RSA-2048",
    "RSA-3072",
    "RSA-4096",
    "ECDSA P-256 verify",
    "ECDSA P-384 verify",
];
const CIPHERS: [&str; 3] = ["AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256"];

/// Runs the binary with OPENSSL_ia32cap set to this, or not at all.
fn with_mask(mask: Option<&str>, arguments: &[&str]) -> Ran {
    let mut all = vec!["-u".to_owned(), "OPENSSL_ia32cap".to_owned()];
    all.extend(mask.map(|mask| format!("OPENSSL_ia32cap={mask}")));
    all.push(env!("CARGO_BIN_EXE_ringlock").to_owned());
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    run("env", &all, b"")
}

fn hw(arguments: &[&str]) -> Ran {
    with_mask(None, &[&["hw"], arguments].concat()).ok()
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// A configuration in order, with these lines in `[crypto]` and `[global]`.
fn configuration(folder: &TempDir, crypto: &str, global: &str) -> PathBuf {
    Ca::new(folder.path()).issue("site", &[SITE], KeyKind::Ecdsa);
    let path = folder.path().join("ringlock.toml");
    let text = format!(
        r#"[crypto]
{crypto}

[global]
{global}

[[listener]]
name = "edge"
address = "{}"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:9"]
"#,
        free_address()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!(number > 0.0 && number.is_finite(), "{number}");
    number
}

fn operation<'j>(json: &'j Value, name: &str) -> &'j Value {
    let operations = json["operations"].as_array().unwrap();
    let found = operations.iter().find(|operation| operation["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is missing: {json}"))
}

#[test]
fn the_table_has_every_operation_and_every_suite() {
    let ran = hw(&[]);
    assert_eq!(ran.stderr, "");
    for name in EXCHANGES.iter().chain(&SIGNATURES).chain(&VERIFICATIONS) {
        let line = ran.stdout.lines().find(|line| line.trim_start().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing: {}", ran.stdout));
        let figures: Vec<&str> = line.trim_start()[name.len()..].split_whitespace().collect();
        assert_eq!(figures.len(), 5, "{line}");
        assert!(figures[0].parse::<f64>().unwrap() > 0.0, "{line}");
    }
    for cipher in CIPHERS {
        let line = ran
            .stdout
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("TLS13_{cipher} ")));
        let figures: Vec<&str> = line.unwrap_or(cipher).split_whitespace().skip(1).collect();
        assert_eq!(figures.len(), 5, "{cipher}: {}", ran.stdout);
        assert!(
            figures.iter().all(|figure| figure.parse::<f64>().unwrap() > 0.0),
            "{figures:?}"
        );
        assert!(
            ran.stdout.contains(&format!("TLS_ECDHE_RSA_WITH_{cipher}")),
            "{}",
            ran.stdout
        );
    }
    for word in [
        "AES",
        "SHA",
        "hypervisor",
        "OPENSSL_",
        "libcrypto_mb",
        "\"auto\"",
        "Ringlock will therefore use",
    ] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
}

#[test]
fn the_json_has_positive_numbers() {
    let json = json(&hw(&["--json"]));
    for (kind, names) in [
        ("key exchange", &EXCHANGES[..]),
        ("signature", &SIGNATURES),
        ("verification", &VERIFICATIONS),
    ] {
        for name in names {
            let operation = operation(&json, name);
            assert_eq!(operation["kind"], kind);
            positive(&operation["alone_us"]);
        }
    }
    let suites = json["suites"].as_array().unwrap();
    assert_eq!(suites.len(), CIPHERS.len());
    for suite in suites {
        for figure in ["seal_us", "seal_gb_per_s", "open_us", "open_gb_per_s", "derive_us"] {
            positive(&suite[figure]);
        }
    }
    positive(&json["seconds"]);
    positive(&json["start_ms"]);
    assert_eq!(json["uses"]["suites"].as_array().unwrap().len(), 9);
    assert_eq!(json["uses"]["driver"], json["driver"]["name"]);
    assert!(!json["processor"]["features"].as_array().unwrap().is_empty());
    assert_eq!(json["settings"]["file"], Value::Null);
    assert_eq!(json["mask"], Value::Null);
}

#[test]
fn what_is_batched_is_measured_in_batches() {
    let Some(library) = multibuffer::library() else { return };
    let folder = TempDir::new().unwrap();
    let path = configuration(&folder, &format!("multibuffer = \"{}\"", library.display()), "");
    let json = json(&hw(&["--json", "--config", text(&path)]));
    assert_eq!(json["settings"]["file"], text(&path));
    assert_eq!(json["settings"]["multibuffer"], text(&library));
    assert_eq!(json["library"]["path"], text(&library));
    for name in EXCHANGES.iter().chain(&SIGNATURES).chain(&VERIFICATIONS) {
        let operation = operation(&json, name);
        let batch = &operation["batch"];
        assert_eq!(batch.is_object(), BATCHED.contains(name), "{operation}");
        if batch.is_null() {
            continue;
        }
        let (call, each) = (positive(&batch["call_us"]), positive(&batch["operation_us"]));
        assert!((call / each - 8.0).abs() < 0.01, "{operation}");
        let together = json["uses"]["together"].as_array().unwrap();
        let together = together.iter().find(|together| together["name"] == *name);
        match batch["break_even"].as_u64() {
            None => assert!(together.is_none(), "{json}"),
            Some(count) => {
                assert!((2..=8).contains(&count), "{operation}");
                assert_eq!(together.unwrap()["from"], count);
            }
        }
    }
    for halved in ["X25519", "P-256", "ECDSA P-256", "ECDSA P-384"] {
        let operation = operation(&json, halved);
        assert!(
            positive(&operation["left_us"]) < positive(&operation["alone_us"]),
            "{operation}"
        );
    }
}

#[test]
fn the_settings_of_a_file_are_used() {
    let folder = TempDir::new().unwrap();
    let path = configuration(&folder, "multibuffer = \"off\"\nmade_ahead = \"off\"", "io = \"epoll\"");
    let json = json(&hw(&["--json", "--config", text(&path)]));
    assert_eq!(json["driver"]["name"], "epoll");
    assert_eq!(json["settings"]["io"], "epoll");
    assert_eq!(json["settings"]["multibuffer"], "off");
    assert_eq!(json["settings"]["made_ahead"], "off");
    assert_eq!(json["uses"]["made_ahead"], "nothing");
    assert_eq!(json["library"]["path"], Value::Null);
    assert_eq!(json["uses"]["together"], Value::Array(Vec::new()));
    assert!(operation(&json, "X25519")["batch"].is_null());
}

#[test]
fn a_library_that_is_none_is_refused_as_check_does() {
    let folder = TempDir::new().unwrap();
    let broken = folder.path().join("libcrypto_mb.so.13");
    std::fs::write(&broken, "no library").unwrap();
    let path = configuration(&folder, &format!("multibuffer = \"{}\"", broken.display()), "");
    let told = ["hw", "check", "run"].map(|command| {
        let ran = ringlock(&[command, "--config", text(&path)]);
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        ran.stderr
    });
    let start = format!(
        "error: {}:2: crypto.multibuffer: found \"{}\": ",
        path.display(),
        broken.display()
    );
    assert!(told[0].starts_with(&start), "{told:?}");
    assert!(told[0].contains("scripts/setup-multibuffer"), "{told:?}");
    assert_eq!(told[0].lines().count(), 1, "{told:?}");
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
}

#[test]
fn a_file_that_is_no_configuration_is_refused() {
    let ran = ringlock(&["hw", "--config", "/nonexistent/ringlock.toml"]).says("/nonexistent/ringlock.toml");
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_hidden_from_aws_lc_is_told_and_everything_still_works() {
    let masked = json(&with_mask(Some(MASK), &["hw", "--json"]).ok());
    assert_eq!(masked["mask"]["variable"], "OPENSSL_ia32cap");
    assert_eq!(masked["mask"]["value"], MASK);
    let features = masked["processor"]["features"].as_array().unwrap();
    let ifma = features
        .iter()
        .find(|feature| feature["name"] == "AVX-512 IFMA")
        .unwrap();
    let hidden: Vec<&str> = ifma["present"]
        .as_bool()
        .unwrap()
        .then_some("AVX-512 IFMA")
        .into_iter()
        .collect();
    assert_eq!(masked["mask"]["hides"], serde_json::json!(hidden));
    for name in EXCHANGES.iter().chain(&SIGNATURES).chain(&VERIFICATIONS) {
        positive(&operation(&masked, name)["alone_us"]);
    }
    let table = with_mask(Some(MASK), &["hw"]).ok();
    let line = table.stdout.lines().find(|line| line.starts_with("WARNING")).unwrap();
    assert!(
        line.contains("OPENSSL_ia32cap") && line.contains(MASK) && line.contains("AWS-LC"),
        "{line}"
    );
    assert!(hidden.iter().all(|name| line.contains(name)), "{line}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn check_warns_of_what_is_hidden_from_aws_lc() {
    let folder = TempDir::new().unwrap();
    let path = configuration(&folder, "multibuffer = \"off\"", "");
    let strict = ["check", "--strict", "--config", text(&path)];
    let ran = with_mask(None, &strict).ok();
    assert_eq!(ran.stderr, "");
    let ran = with_mask(Some(MASK), &strict);
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    let start = format!("warning: {}: environment variable OPENSSL_ia32cap: ", path.display());
    assert!(ran.stderr.starts_with(&start) && ran.stderr.contains(MASK), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn run_warns_of_what_is_hidden_from_aws_lc() {
    let origin = Origin::echo();
    let gateway = Setup::new(Io::Epoll, &[origin.address()])
        .through(&["env", &format!("OPENSSL_ia32cap={MASK}")])
        .start();
    let line = gateway.wait_for_line("what is hidden", |line| line.to_string().contains("OPENSSL_ia32cap"));
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line.to_string().contains(MASK), "{line}");
    exchange(&gateway);
}
