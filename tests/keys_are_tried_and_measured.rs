//! `ringlock keys test` and `ringlock keys bench`, with tokens of SoftHSM and the one that fails on cue.

use crate::support::*;

use std::fmt::Write as _;

use serde_json::Value;
use tempfile::TempDir;

/// A configuration with one token, and `ringlock keys` with it.
struct Case<'a> {
    token: &'a dyn Token,
    folder: TempDir,
    ca: Ca,
    identities: Vec<String>,
    toml: String,
}

impl Case<'_> {
    fn new<'a>(token: &'a dyn Token, lines: &str) -> Case<'a> {
        let folder = tempfile::tempdir().unwrap();
        Case {
            token,
            ca: Ca::new(folder.path()),
            folder,
            identities: Vec::new(),
            toml: token.section(lines),
        }
    }

    /// An identity whose key is in the token.
    fn in_token(mut self, name: &str, kind: KeyKind) -> Self {
        self.token.issue(&self.ca, name, &[SITE], kind);
        let uri = self.token.uri(name);
        self.identity(name, &uri, "");
        self
    }

    /// An identity whose key is in a file.
    fn in_file(mut self, name: &str, lines: &str) -> Self {
        self.ca.issue(name, &[SITE], KeyKind::Ecdsa);
        self.identity(name, &format!("{name}.key"), lines);
        self
    }

    fn identity(&mut self, name: &str, key: &str, lines: &str) {
        let _ = writeln!(
            self.toml,
            "[[identity]]\nname = {name:?}\ncertificate = \"{name}.pem\"\nkey = {key:?}\n{lines}"
        );
        self.identities.push(name.to_owned());
    }

    fn start(&self, command: &str, arguments: &[&str]) -> Program {
        let mut toml = format!(
            "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\nidentities = {:?}\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:1\"]\n",
            self.identities
        );
        toml += &self.toml;
        let file = self.folder.path().join("ringlock.toml");
        std::fs::write(&file, toml).unwrap();
        let options = ["keys", command, "--config", file.to_str().unwrap()];
        let program = env!("CARGO_BIN_EXE_ringlock");
        Program::start_with(&self.token.environment(), program, &[&options, arguments].concat())
    }

    /// Nothing that it says has the PIN.
    #[track_caller]
    fn keys(&self, command: &str, arguments: &[&str]) -> Ran {
        let ran = self.start(command, arguments).finish();
        assert!(!ran.text().contains(PIN), "{ran:#?}");
        ran
    }

    /// `keys test`: its exit code, and what it says of each key.
    #[track_caller]
    fn test(&self) -> (i32, Vec<Value>) {
        let ran = self.keys("test", &["--json"]);
        let report = json(&ran);
        let code = ran.status.code().unwrap();
        assert_eq!(report["works"], code == 0, "{ran:#?}");
        (code, report["keys"].as_array().unwrap().clone())
    }
}

#[track_caller]
fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {ran:#?}"))
}

#[track_caller]
fn has(value: &Value, text: &str) {
    assert!(
        value.as_str().is_some_and(|value| value.contains(text)),
        "{value} does not say {text:?}"
    );
}

#[test]
fn every_key_that_a_signer_has_is_tried_with_every_scheme() {
    let hsm = SoftHsm::new("edge");
    let case = Case::new(&hsm, "")
        .in_token("small", KeyKind::Ecdsa)
        .in_token("large", KeyKind::Rsa)
        .in_file("behind", "key_isolation = \"process\"")
        .in_file("inside", "");
    let (code, keys) = case.test();
    assert_eq!(code, 0, "{keys:#?}");
    let names: Vec<&Value> = keys.iter().map(|key| &key["identity"]).collect();
    assert_eq!(
        names,
        ["small", "large", "behind"],
        "what is used in the gateway itself is left out"
    );
    let tried = |key: &Value| -> Vec<(String, String)> {
        let schemes = key["schemes"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        schemes
            .map(|scheme| {
                assert!(scheme["signing_us"].as_u64().unwrap() > 0, "{scheme}");
                assert_eq!(scheme["trouble"], Value::Null);
                (text(&scheme["scheme"]), text(&scheme["mechanism"]))
            })
            .collect()
    };
    let by = |mechanism: &str, schemes: &[&str]| -> Vec<(String, String)> {
        let pair = |scheme: &&str| ((*scheme).to_owned(), mechanism.to_owned());
        schemes.iter().map(pair).collect()
    };
    assert_eq!(tried(&keys[0]), by("CKM_ECDSA", &["ECDSA_NISTP256_SHA256"]));
    let pss = by(
        "CKM_RSA_PKCS_PSS",
        &["RSA_PSS_SHA256", "RSA_PSS_SHA384", "RSA_PSS_SHA512"],
    );
    let pkcs1 = by(
        "CKM_RSA_PKCS",
        &["RSA_PKCS1_SHA256", "RSA_PKCS1_SHA384", "RSA_PKCS1_SHA512"],
    );
    assert_eq!(tried(&keys[1]), [pss, pkcs1].concat());
    assert_eq!(tried(&keys[2]), by("software", &["ECDSA_NISTP256_SHA256"]));
    for (key, kind) in keys.iter().zip(["P-256", "RSA-2048", "P-256"]) {
        assert_eq!(key["kind"], kind);
        assert_eq!(key["certificate"]["trouble"], Value::Null, "{key}");
        assert_eq!(key["trouble"], Value::Null);
    }
    has(&keys[0]["token"], "token `edge`");

    let ran = case.keys("test", &[]).ok();
    for text in [
        "identity \"small\": pkcs11:token=edge;object=small;type=private in edge",
        "key RSA-2048 found in token `edge`",
        "small.pem is the key's",
        "every key works",
    ] {
        assert!(ran.stdout.contains(text), "it does not say {text:?}: {ran:#?}");
    }
    let row = ran.stdout.lines().find(|line| line.contains("RSA_PSS_SHA384")).unwrap();
    assert!(
        row.contains("CKM_RSA_PKCS_PSS") && row.contains("right") && row.contains("ms"),
        "{row}"
    );
}

#[test]
fn one_key_is_named_by_its_uri_with_and_without_a_configuration() {
    let hsm = SoftHsm::new("edge");
    let case = Case::new(&hsm, "")
        .in_token("small", KeyKind::Ecdsa)
        .in_file("inside", "");
    let uri = "pkcs11:token=edge;object=small";
    let report = json(&case.keys("test", &["--key", uri, "--json"]).ok());
    assert_eq!(report["keys"].as_array().unwrap().len(), 1);
    has(&report["keys"][0]["certificate"]["certificate"], "small.pem");
    let module = hsm.module().display().to_string();
    let pin = format!("file:{}", hsm.pin_file().display());
    let direct = [
        "keys",
        "test",
        "--module",
        &module,
        "--token",
        "edge",
        "--pin-source",
        &pin,
    ];
    let ringlock = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_ringlock");
        run_with(&hsm.environment(), program, &[&direct, arguments].concat(), b"")
    };
    ringlock(&["--key", "pkcs11:object=small"])
        .ok()
        .says("ECDSA_NISTP256_SHA256");
    let ran = ringlock(&["--key", "pkcs11:object=other"]).says("`ringlock keys list`");
    assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
    let ran = ringlock(&[]).says("--config FILE").says("--key URI");
    assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
}

#[test]
fn a_certificate_of_another_key_fails_and_hides_no_other_failure() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "")
        .in_token("site", KeyKind::Ecdsa)
        .in_token("good", KeyKind::Ecdsa);
    // The certificate is renewed with another key.
    case.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    let (code, keys) = case.test();
    assert_eq!(code, 1);
    has(&keys[0]["certificate"]["trouble"], "does not belong");
    has(&keys[0]["certificate"]["trouble"], "renewed together");
    assert_eq!(keys[0]["schemes"][0]["trouble"], Value::Null);
    assert_eq!(keys[1]["certificate"]["trouble"], Value::Null);
    case.keys("test", &[]).says("1 of 2 keys fail").says("site.pem");
}

#[test]
fn every_scheme_is_tried_although_one_fails() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "").in_token("site", KeyKind::Rsa);
    for (cue, trouble) in [
        (
            "wrong\ntimes = 1",
            "found a wrong signature by CKM_RSA_PKCS_PSS (RSA_PSS_SHA256)",
        ),
        ("fail_sign = CKR_FUNCTION_FAILED\ntimes = 1", "CKR_FUNCTION_FAILED"),
    ] {
        faulty.cue(cue);
        let (code, keys) = case.test();
        assert_eq!(code, 1, "{keys:#?}");
        let schemes = keys[0]["schemes"].as_array().unwrap();
        assert_eq!(schemes.len(), 6);
        has(&schemes[0]["trouble"], trouble);
        has(&schemes[0]["trouble"], "; ");
        for scheme in &schemes[1..] {
            assert_eq!(scheme["trouble"], Value::Null, "{cue}");
        }
    }
}

#[test]
fn a_token_that_is_dead_hangs_or_crashes_is_told_of() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "timeout = \"300ms\"").in_token("site", KeyKind::Ecdsa);
    for (cue, trouble) in [
        ("absent", "no token with label `edge`"),
        ("hang = sign", "within"),
        ("crash = sign", "a signer that has ended"),
        ("fail = CKR_DEVICE_REMOVED", "CKR_DEVICE_REMOVED"),
    ] {
        faulty.cue(cue);
        let (code, keys) = case.test();
        assert_eq!(code, 1, "{cue}: {keys:#?}");
        has(&keys[0]["trouble"], trouble);
        let ran = case.keys("bench", &["--key", &faulty.uri("site"), "--duration", "100ms"]);
        assert_eq!(ran.status.code(), Some(1), "{cue}: {ran:#?}");
    }
    faulty.cue("");
    assert_eq!(case.test().0, 0);
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "")
        .in_token("one", KeyKind::Ecdsa)
        .in_token("other", KeyKind::Ecdsa);
    let wrong = case.folder.path().join("pin");
    std::fs::write(&wrong, "wrong-and-secret").unwrap();
    let case = Case {
        toml: case
            .toml
            .replace(faulty.pin_file().to_str().unwrap(), wrong.to_str().unwrap()),
        ..case
    };
    let ran = case
        .keys("test", &[])
        .says("CKR_PIN_INCORRECT")
        .says("before the next attempt");
    assert_eq!(ran.status.code(), Some(1));
    assert!(!ran.text().contains("secret"), "{ran:#?}");
    assert_eq!(faulty.folder().pin_failures("edge"), 1, "for both keys together");
    let ran = case
        .keys("bench", &["--key", &faulty.uri("one")])
        .says("CKR_PIN_INCORRECT");
    assert_eq!(ran.status.code(), Some(1));
    assert!(!ran.text().contains("secret"), "{ran:#?}");
    assert_eq!(
        faulty.folder().pin_failures("edge"),
        2,
        "for all numbers of sessions together"
    );
}

#[test]
fn with_a_slow_token_rates_grow_with_its_sessions() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "").in_token("site", KeyKind::Ecdsa);
    faulty.cue("latency_ms = 20");
    let uri = faulty.uri("site");
    let bench = ["--key", &uri, "--sessions", "4,1,2,1", "--duration", "400ms"];
    let report = json(&case.keys("bench", &[&bench[..], &["--json"]].concat()).ok());
    let rows = report["rows"].as_array().unwrap();
    let sessions: Vec<u64> = rows.iter().map(|row| row["sessions"].as_u64().unwrap()).collect();
    assert_eq!(sessions, [1, 2, 4]);
    for kind in ["raw", "signer", "verified"] {
        let number = |row: usize, what: &str| rows[row][kind][what].as_f64().unwrap();
        let growth = number(2, "per_second") / number(0, "per_second");
        assert!(
            growth >= 2.5,
            "{kind}: 4 sessions make {growth} times as many: {report:#}"
        );
        for row in 0..3 {
            // A session makes no two at once.
            assert!(number(row, "median_us") >= 20_000.0, "{kind}: {report:#}");
            assert!(
                number(row, "per_second") <= 1.1 * f64::from(1 << row) / 0.020,
                "{kind}: {report:#}"
            );
            assert!(number(row, "p99_us") >= number(row, "median_us"));
        }
    }
    assert_eq!(report["recommended"]["sessions"], 4);
    assert_eq!(report["sessions_max"], Value::Null);
    let bench = ["--key", &uri, "--sessions", "1,2", "--duration", "200ms"];
    let ran = case.keys("bench", &bench).ok().says("Configure sessions = 2,");
    assert!(
        ran.stdout
            .lines()
            .last()
            .unwrap()
            .contains("full handshakes per second"),
        "{ran:#?}"
    );
}

#[test]
fn a_token_with_few_sessions_is_measured_as_far_as_they_go() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "").in_token("site", KeyKind::Ecdsa);
    faulty.cue("latency_ms = 5\nsessions_max = 3");
    let uri = faulty.uri("site");
    let bench = ["--key", &uri, "--sessions", "2,8,16", "--duration", "200ms"];
    let report = json(&case.keys("bench", &[&bench[..], &["--json"]].concat()).ok());
    let sessions: Vec<&Value> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["sessions"])
        .collect();
    assert_eq!(sessions, [2, 3], "{report:#}");
    assert_eq!(report["sessions_max"]["sessions"], 3);
    assert_eq!(report["sessions_max"]["error"], "CKR_SESSION_COUNT");
    case.keys("bench", &bench)
        .ok()
        .says("3 sessions and no more (CKR_SESSION_COUNT)");
    let (code, keys) = case.test();
    assert_eq!(code, 0, "eight are configured, three are enough: {keys:#?}");
}

#[test]
fn a_bench_tells_what_it_cannot_measure() {
    let hsm = SoftHsm::new("edge");
    let case = Case::new(&hsm, "").in_token("site", KeyKind::Rsa);
    let uri = hsm.uri("site");
    let ran = case
        .keys("bench", &["--key", &uri, "--scheme", "ED25519"])
        .says("RSA_PKCS1_SHA512");
    assert_eq!(ran.status.code(), Some(1));
    case.keys("bench", &["--key", "pkcs11:token=edge;object=other"])
        .says("no private key with label `other`");
    case.keys("bench", &["--key", "pkcs11:token=edge"]).says("object=LABEL");
    for (option, value) in [
        ("--sessions", "0"),
        ("--sessions", "1,x"),
        ("--duration", "0s"),
        ("--duration", "2"),
    ] {
        let ran = case.keys("bench", &["--key", &uri, option, value]).says(option);
        assert_eq!(ran.status.code(), Some(2), "{ran:#?}");
    }
    let quick = ["--key", &uri, "--sessions", "1", "--duration", "50ms"];
    let named = [&quick[..], &["--scheme", "rsa_pkcs1_sha256", "--json"]].concat();
    let report = json(&case.keys("bench", &named).ok());
    assert_eq!(
        (&report["scheme"], &report["mechanism"]),
        (&"RSA_PKCS1_SHA256".into(), &"CKM_RSA_PKCS".into())
    );
    assert!(report["rows"][0]["ratio"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_was_measured_is_told_when_the_token_goes() {
    let faulty = Faulty::new("edge");
    let case = Case::new(&faulty, "").in_token("site", KeyKind::Ecdsa);
    let uri = faulty.uri("site");
    faulty.cue("wrong");
    let ran = case
        .keys("bench", &["--key", &uri])
        .says("a wrong signature by CKM_ECDSA");
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(faulty.calls("C_Sign"), 1, "it is not measured");
    faulty.cue("latency_ms = 5");
    let bench = case.start(
        "bench",
        &["--key", &uri, "--sessions", "1,2", "--duration", "2s", "--json"],
    );
    // One to try the key, some for the first number of sessions.
    eventually("some signatures", || (faulty.calls("C_Sign") > 20).then_some(()));
    faulty.cue("fail_sign = CKR_DEVICE_REMOVED");
    let ran = bench.finish();
    assert_eq!(ran.status.code(), Some(1), "{ran:#?}");
    let report = json(&ran);
    has(&report["trouble"], "sessions = 1: found CKR_DEVICE_REMOVED");
    assert_eq!(report["recommended"], Value::Null);
}
