//! `/certs`, the metrics of each certificate, and what is logged of those that near their end while the gateway runs.

use crate::support::responder::*;
use crate::support::*;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use serde_json::Value;

both_drivers!(
    the_admin_server_lists_what_is_in_force,
    each_certificate_has_its_series,
    the_state_of_each_staple_is_told,
    each_stage_is_logged_once,
    ends_of_cas_and_revocation_lists_are_logged_once,
);

fn certs(gateway: &Gateway, query: &str) -> Value {
    let (status, body) = gateway.ask(&format!("/certs{query}"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn the_admin_server_lists_what_is_in_force(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"]).start();
    let first = certs(&gateway, "");
    assert_eq!((&first["epoch"], &first["last_reload"]), (&1.into(), &Value::Null));
    assert_eq!(first["certificates"][0]["identity"], "site");
    assert_eq!(first["certificates"][0]["state"], "valid");
    assert_eq!(first["certificates"][0]["used_by"][0]["listener"], "edge");
    assert_eq!(first["left_out"], 0);

    gateway.ca.issue("site", &["renewed.example"], KeyKind::Ecdsa);
    reload(&gateway);
    let second = certs(&gateway, "");
    assert_eq!(
        second["certificates"][0]["names"],
        serde_json::json!(["renewed.example"])
    );
    assert_ne!(second["certificates"][0]["sha256"], first["certificates"][0]["sha256"]);

    let key = gateway.ca.key_file("site");
    std::fs::write(&key, "nothing").unwrap();
    gateway.signal(Signal::HUP);
    let third = eventually("the reload to fail", || {
        let told = certs(&gateway, "");
        (told["last_reload"]["succeeded"] == false).then_some(told)
    });
    let error = third["last_reload"]["error"].as_str().unwrap();
    assert!(error.contains("site.key"), "{error}");
    assert_eq!(third["certificates"], third_of(&second, &third), "the old one stays");
    assert_eq!(third["epoch"], second["epoch"]);

    assert_eq!(
        certs(&gateway, "?expires_within=29d")["certificates"],
        serde_json::json!([])
    );
    let soon = certs(&gateway, "?expires_within=31d");
    assert_eq!(soon["certificates"][0]["state"], "expiring");
    let (status, body) = gateway.ask("/certs?expires_within=never");
    assert_eq!(status, 400);
    assert!(body.contains("expires_within=30d"), "{body}");
}

/// The certificates of `old` with the time that they have left in `new`.
fn third_of(old: &Value, new: &Value) -> Value {
    let mut certificates = old["certificates"].clone();
    for (old, new) in certificates
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .zip(new["certificates"].as_array().unwrap())
    {
        old["seconds_left"] = new["seconds_left"].clone();
    }
    certificates
}

fn each_certificate_has_its_series(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"])
        .identity("shop", &["shop.example"], KeyKind::Rsa)
        .start();
    let (told, metrics) = (certs(&gateway, ""), gateway.metrics());
    for certificate in told["certificates"].as_array().unwrap() {
        let text = |key: &str| certificate[key].as_str().unwrap();
        let labels = [("identity", text("identity")), ("serial", text("serial"))];
        let end = metrics.sum("ringlock_certificate_not_after_seconds", &labels);
        let begin = metrics.sum("ringlock_certificate_not_before_seconds", &labels);
        // As they were issued.
        assert_eq!((end - begin) as u64, 31 * 86_400, "{labels:?}");
        let at = UNIX_EPOCH + Duration::from_secs(end as u64);
        let left = at.duration_since(SystemTime::now()).unwrap();
        let shown = certificate["seconds_left"].as_u64().unwrap();
        assert!(shown.abs_diff(left.as_secs()) < PATIENCE.as_secs(), "{shown}, {left:?}");
    }
}

fn the_state_of_each_staple_is_told(io: Io) {
    let responder = Responder::start(|_, stream| reply(stream, "503 Service Unavailable", "", b""));
    let setup = Setup::new(io, &["127.0.0.1:9"])
        .issued_identity("asked", "asked.pem", "asked.key", "ocsp = \"auto\"")
        .issued_identity("file", "file.pem", "file.key", "ocsp = \"file.ocsp\"")
        .issued_identity("bare", "bare.pem", "bare.key", "");
    for name in ["asked", "file"] {
        let dns_name = format!("{name}.example");
        setup
            .ca()
            .issue_with(name, &[&dns_name], |params| names_responder(params, &responder.url()));
    }
    setup.ca().issue_with("bare", &["bare.example"], must_staple);
    let response = Answer::default().about(setup.ca(), "file");
    std::fs::write(setup.folder().join("file.ocsp"), response).unwrap();
    let good = Answer::default().about(setup.ca(), "asked");
    let gateway = setup.start();

    let staple = |identity: &str| -> Value {
        let told = certs(&gateway, "");
        let mut certificates = told["certificates"].as_array().unwrap().iter();
        certificates
            .find(|certificate| certificate["identity"] == identity)
            .unwrap()["ocsp"]
            .clone()
    };
    let waits_for = |result: &str| {
        eventually(result, || {
            let ocsp = staple("asked");
            (ocsp["result"] == result).then_some(ocsp)
        })
    };
    let refused = waits_for("http_status");
    assert_eq!(
        (&refused["state"], &refused["next_update"]),
        (&"missing".into(), &Value::Null)
    );
    responder.change_to(&good);
    let asked = waits_for("good");
    let file = staple("file");
    for (ocsp, identity) in [(&asked, "asked"), (&file, "file")] {
        assert_eq!(ocsp["state"], "stapled", "{identity}");
        assert_eq!(ocsp["urls"], serde_json::json!([responder.url()]));
        let end = gateway
            .metrics()
            .sum("ringlock_ocsp_staple_next_update_seconds", &[("identity", identity)]);
        let told = ocsp["next_update"].as_str().unwrap();
        assert_eq!(rfc3339(told), end, "{told}");
    }
    assert_eq!(file["result"], Value::Null, "nobody was asked");
    assert_eq!(staple("bare")["state"], "missing");
    assert_eq!(staple("site")["state"], "off");
}

/// As seconds since 1970.
fn rfc3339(text: &str) -> f64 {
    let ran = run("date", &["-d", text, "+%s"], b"").ok();
    ran.stdout.trim().parse().unwrap()
}

/// A minute of its clock is three seconds. Of 36 minutes 200 seconds are left: the start tells of the first stage, and those at 3 minutes,
/// 1 minute and the end come later.
fn each_stage_is_logged_once(io: Io) {
    let setup = Setup::new(io, &["127.0.0.1:9"]);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([SITE.to_owned()]).unwrap();
    let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
    params.not_before = (now - 36 * minute + Duration::from_secs(200)).into();
    params.not_after = (now + Duration::from_secs(200)).into();
    std::fs::write(
        setup.ca().certificate_file("site"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(setup.ca().key_file("site"), key.serialize_pem()).unwrap();
    let gateway = setup.clock("+0 x20").start();
    let told = || -> Vec<String> {
        let lines = gateway.log_lines();
        let messages = lines
            .iter()
            .filter(|line| line["level"] == "WARN")
            .map(|line| &line["message"]);
        let messages = messages
            .filter_map(Value::as_str)
            .filter(|message| message.starts_with("identity "));
        messages.map(str::to_owned).collect()
    };
    eventually("the certificate to expire", || {
        told()
            .last()
            .is_some_and(|last| last.contains("has expired"))
            .then_some(())
    });
    // Whoever looks more often says no more.
    std::thread::sleep(Duration::from_secs(2));
    let told = told();
    assert_eq!(told.len(), 3, "{told:#?}");
    for message in &told {
        assert!(
            message.starts_with("identity \"site\": ") && message.contains("site.pem"),
            "{message}"
        );
        assert!(message.contains("renew it"), "{message}");
    }
    assert!(told[0].contains("expires in 2 minutes"), "{told:#?}");
    assert_eq!(certs(&gateway, "")["certificates"][0]["state"], "expired");
}

/// A minute of its clock is three seconds. Of the list's 20 minutes 4 are left, and it is warned of when 2 are; the CA ends in between.
fn ends_of_cas_and_revocation_lists_are_logged_once(io: Io) {
    let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
    let root = Authority::root("clients");
    let list = root.list_with(&[], |params| {
        params.this_update = (now - 16 * minute).into();
        params.next_update = (now + 4 * minute).into();
    });
    let ending = root.below_with("ending", KeyKind::Ecdsa, |params| {
        params.not_after = (now + 3 * minute).into();
    });
    let rules = r#"{ mode = "required", ca = "clients.pem", crl = ["clients.crl"] }"#;
    let routes = format!(r#"routes = [{{ sni = "admin.example", upstream = "app", client_auth = {rules} }}]"#);
    let setup = Setup::new(io, &["127.0.0.1:9"]).listener(&routes);
    let write = |name: &str, bytes: &[u8]| std::fs::write(setup.folder().join(name), bytes).unwrap();
    write("clients.pem", (root.pem() + &ending.pem()).as_bytes());
    write("clients.crl", &list);
    let gateway = setup.clock("+0 x20").start();
    let told = || -> Vec<String> {
        let lines = gateway.log_lines();
        let warnings = lines.iter().filter(|line| line["level"] == "WARN");
        let messages = warnings.filter_map(|line| line["message"].as_str());
        let about_clients = messages.filter(|message| message.contains(" holds a "));
        about_clients.map(str::to_owned).collect()
    };
    eventually("the list to expire", || {
        told()
            .last()
            .is_some_and(|last| last.contains("that has expired: clients of this CA are refused"))
            .then_some(())
    });
    // Whoever looks more often says no more.
    std::thread::sleep(Duration::from_secs(2));
    let told = told();
    assert_eq!(told.len(), 3, "{told:#?}");
    let list = [
        "routes[0].client_auth.crl",
        "clients.crl",
        "CN=clients",
        "fetch the CA's",
    ];
    let authority = [
        "routes[0].client_auth.ca",
        "clients.pem",
        "CN=ending",
        "remove it, or renew it",
    ];
    for (message, parts) in told.iter().zip([list, authority, list]) {
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
    assert!(told[0].contains("that expires in "), "{told:#?}");
}
