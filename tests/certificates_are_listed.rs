//! `ringlock certs`: which certificates a configuration uses, how long they are valid, and what is wrong with them.

use crate::support::responder::*;
use crate::support::*;

use std::path::Path;

use serde_json::Value;

/// What `ringlock certs --json` says, with these arguments more, and its exit code.
#[track_caller]
fn listed(setup: &Setup, arguments: &[&str]) -> (Value, i32) {
    let ran = setup.try_arguments(&[&["certs", "--json"], arguments].concat());
    let inventory = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (inventory, ran.status.code().unwrap())
}

#[track_caller]
fn certificate<'a>(inventory: &'a Value, identity: &str) -> &'a Value {
    let all = inventory["certificates"].as_array().unwrap();
    let found = all.iter().find(|certificate| certificate["identity"] == identity);
    found.unwrap_or_else(|| panic!("no {identity} in {inventory:#}"))
}

fn states(inventory: &Value) -> Vec<&str> {
    let all = inventory["certificates"].as_array().unwrap();
    all.iter()
        .map(|certificate| certificate["state"].as_str().unwrap())
        .collect()
}

fn setup() -> Setup {
    Setup::new(Io::Epoll, &["127.0.0.1:9"])
}

/// What openssl says of a certificate, behind the "=".
fn openssl(file: &Path, what: &[&str]) -> String {
    let ran = run(
        "openssl",
        &[&["x509", "-noout", "-in", file.to_str().unwrap()], what].concat(),
        b"",
    )
    .ok();
    ran.stdout.trim().split_once('=').unwrap().1.to_owned()
}

#[test]
fn json_has_what_the_certificates_have() {
    let setup = setup()
        .identity("shop", &["shop.example", "*.shop.example", "b.example"], KeyKind::Rsa)
        .listener(
            r#"routes = [{ sni = "b.example", upstream = "app" }, { sni = "*.shop.example", upstream = "app" }]"#,
        );
    let (inventory, code) = listed(&setup, &["--strict"]);
    assert_eq!(code, 0, "{inventory:#}");
    assert_eq!(states(&inventory), ["valid", "valid"]);
    let (shop, file) = (certificate(&inventory, "shop"), setup.ca().certificate_file("shop"));
    assert_eq!(shop["problem"], Value::Null);
    assert_eq!(
        shop["names"],
        serde_json::json!(["shop.example", "*.shop.example", "b.example"])
    );
    assert_eq!(shop["subject"], "CN=shop.example");
    assert_eq!(shop["issuer"], "CN=Ringlock test CA");
    assert_eq!(shop["key"], "RSA-2048");
    assert_eq!(shop["signature_algorithm"], "ecdsa-with-SHA256");
    assert_eq!(shop["source"], file.to_str().unwrap());
    assert_eq!(shop["key_source"], setup.ca().key_file("shop").to_str().unwrap());
    let used = serde_json::json!([
        { "listener": "edge", "default": false, "routes": ["b.example", "*.shop.example"] }
    ]);
    assert_eq!(shop["used_by"], used);
    assert_eq!(shop["chain"]["certificates"], 1);
    assert_eq!(shop["chain"]["ends_at"], "CN=Ringlock test CA");
    assert_eq!(shop["ocsp"]["state"], "off");
    assert_eq!(shop["must_staple"], false);
    let serial = openssl(&file, &["-serial"]).to_lowercase();
    let shown = shop["serial"].as_str().unwrap();
    assert_eq!(shown.trim_start_matches('0'), serial.trim_start_matches('0'));
    let fingerprint = openssl(&file, &["-fingerprint", "-sha256"])
        .replace(':', "")
        .to_lowercase();
    assert_eq!(shop["sha256"], fingerprint);
    for (option, key) in [("-startdate", "not_before"), ("-enddate", "not_after")] {
        // "2026-12-22 02:40:00Z"
        let time = openssl(&file, &[option, "-dateopt", "iso_8601"]).replace(' ', "T");
        assert_eq!(shop[key], time, "{key}");
    }
    assert!(shop["seconds_left"].as_i64().unwrap() > 29 * 86_400, "{shop:#}");
    assert_eq!(certificate(&inventory, "site")["used_by"][0]["default"], true);
    assert_eq!(inventory["client_authorities"], serde_json::json!([]));
}

#[test]
fn the_table_has_a_row_for_each() {
    let setup = setup().identity(
        "shop",
        &["1.example", "2.example", "3.example", "4.example"],
        KeyKind::Ed25519,
    );
    let ran = setup.try_arguments(&["certs"]).ok();
    assert_eq!(ran.stderr, "");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    for (line, parts) in [
        (lines[0], &["identity", "names", "until", "OCSP", "source"][..]),
        (
            lines[1],
            &["site", SITE, "P-256", " days", "edge (default)", "off", "site.pem"],
        ),
        (
            lines[2],
            &["shop", "1.example, 2.example, 3.example and 1 more", "Ed25519"],
        ),
    ] {
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
    }
}

#[test]
fn what_cannot_be_loaded_hides_nothing() {
    let setup = setup().identity("gone", &["gone.example"], KeyKind::Ecdsa).identity(
        "mixed",
        &["mixed.example"],
        KeyKind::Ecdsa,
    );
    std::fs::remove_file(setup.ca().certificate_file("gone")).unwrap();
    std::fs::copy(setup.ca().key_file("site"), setup.ca().key_file("mixed")).unwrap();
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 1, "{inventory:#}");
    let unusable = |identity, part: &str| {
        let certificate = certificate(&inventory, identity);
        assert_eq!(certificate["state"], "unusable");
        let problem = certificate["problem"].as_str().unwrap();
        assert!(problem.contains(part), "{part:?} is not in {problem:?}");
        certificate
    };
    assert_eq!(unusable("gone", "No such file")["not_after"], Value::Null);
    assert_eq!(unusable("mixed", "does not belong")["names"][0], "mixed.example");
    assert_eq!(certificate(&inventory, "site")["state"], "valid");
    assert_eq!(
        inventory["certificates"][2]["identity"], "site",
        "what is wrong comes first"
    );
    let table = setup.try_arguments(&["certs"]);
    assert_eq!(table.status.code(), Some(1));
    assert_eq!(
        table.stderr.lines().filter(|line| line.starts_with("error: ")).count(),
        2,
        "{table:?}"
    );
    for part in ["cannot be loaded", "mixed.example", SITE] {
        assert!(table.stdout.contains(part), "{part:?} is not in {table:?}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused_as_by_check() {
    let setup = setup().global("banana = 1");
    let ran = setup.try_arguments(&["certs", "--json"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("banana: found an unknown key"), "{ran:?}");
}

#[test]
fn expires_within_shows_what_does() {
    // It has 30 days left, but for what this test has taken.
    let setup = setup();
    let (inventory, code) = listed(&setup, &["--strict", "--expires-within", "29d"]);
    assert_eq!((states(&inventory).len(), code), (0, 0), "{inventory:#}");
    let (inventory, code) = listed(&setup, &["--strict", "--expires-within", "31d"]);
    assert_eq!((states(&inventory), code), (vec!["expiring"], 2), "{inventory:#}");
    let (_, code) = listed(&setup, &["--expires-within", "31d"]);
    assert_eq!(code, 0, "only --strict fails");
    let ran = setup.try_arguments(&["certs", "--expires-within", "29d"]).ok();
    assert_eq!(ran.stdout, "nothing to show\n");
}

#[test]
fn states_follow_the_clock() {
    for (offset, state, words, code) in [
        ("+0.5d", "valid", "29 days", 0),
        // Of 31 days a quarter is 7.75.
        ("+22.2d", "valid", "7 days", 0),
        ("+22.3d", "expiring", "7 days: renew it", 2),
        ("+30.1d", "expired", "expired 2 hours ago", 2),
        ("+34.1d", "expired", "expired 4 days ago", 2),
        ("-2d", "not_yet_valid", "not valid yet", 2),
    ] {
        let setup = setup().clock(offset);
        let (inventory, exit) = listed(&setup, &["--strict"]);
        assert_eq!(
            (states(&inventory), exit),
            (vec![state], code),
            "{offset}: {inventory:#}"
        );
        let ran = setup.try_arguments(&["certs"]).ok();
        assert!(ran.stdout.contains(words), "{offset}: {words:?} is not in {ran:?}");
    }
}

#[test]
fn cas_and_revocation_lists_of_clients_are_shown() {
    let root = Authority::root("clients");
    // The CA has 30 days and a half left.
    let setup = setup()
        .clock("-0.5d")
        .listener(r#"client_auth = { mode = "required", ca = "clients.pem", crl = ["old.crl", "new.crl"] }"#);
    let write = |name: &str, bytes: &[u8]| std::fs::write(setup.folder().join(name), bytes).unwrap();
    write("clients.pem", root.pem().as_bytes());
    let list = |from: u32, until: u32| {
        root.list_with(&[], |params| {
            let now = std::time::SystemTime::now();
            params.this_update = (now - from * DAY).into();
            params.next_update = (now + until * DAY).into();
        })
    };
    write("old.crl", &list(7, 1));
    write("new.crl", &list(1, 9));
    let (inventory, code) = listed(&setup, &["--strict"]);
    assert_eq!(code, 0, "what is not used expires unheard: {inventory:#}");
    let authority = &inventory["client_authorities"][0];
    assert_eq!(authority["listener"], "edge");
    assert_eq!(authority["subject"], "CN=clients");
    assert!(
        authority["source"].as_str().unwrap().ends_with("/clients.pem"),
        "{authority}"
    );
    let lists = inventory["revocation_lists"].as_array().unwrap();
    let shown: Vec<(&Value, &Value)> = lists.iter().map(|list| (&list["replaced"], &list["state"])).collect();
    assert_eq!(
        shown,
        [(&false.into(), &"valid".into()), (&true.into(), &"expiring".into())]
    );
    assert_eq!(lists[0]["issuer"], "CN=clients");
    let table = setup.try_arguments(&["certs"]).ok();
    for part in [
        "CA of clients",
        "CN=clients",
        "revocation list of",
        "there is a newer one",
        " days",
    ] {
        assert!(table.stdout.contains(part), "{part:?} is not in {table:?}");
    }

    write("new.crl", b"hello");
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 1, "{inventory:#}");
    let problem = inventory["client_authorities"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("new.crl"), "{problem}");
    assert_eq!(states(&inventory), ["valid"]);
}

#[test]
fn cas_and_revocation_lists_of_routes_are_shown() {
    let rules = |name: &str| format!("{{ mode = \"required\", ca = \"{name}.pem\", crl = [\"{name}.crl\"] }}");
    let routes = format!(
        "routes = [{{ sni = [\"admin.example\", \"*.admin.example\"], upstream = \"app\", client_auth = {} }}]",
        rules("admins")
    );
    let setup = setup()
        .listener(&format!("client_auth = {}", rules("clients")))
        .listener(&routes);
    for name in ["clients", "admins"] {
        let root = Authority::root(name);
        std::fs::write(setup.folder().join(format!("{name}.pem")), root.pem()).unwrap();
        std::fs::write(setup.folder().join(format!("{name}.crl")), root.list(&[])).unwrap();
    }
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 0, "{inventory:#}");
    let shown = |inventory: &Value, what: &str, whose: &str| -> Vec<Value> {
        let all = inventory[what].as_array().unwrap();
        all.iter()
            .map(|of| serde_json::json!([of["listener"], of["routes"], of[whose]]))
            .collect()
    };
    let expected = [
        serde_json::json!(["edge", [], "CN=clients"]),
        serde_json::json!(["edge", ["admin.example", "*.admin.example"], "CN=admins"]),
    ];
    assert_eq!(shown(&inventory, "client_authorities", "subject"), expected);
    assert_eq!(shown(&inventory, "revocation_lists", "issuer"), expected);
    let table = setup.try_arguments(&["certs"]).ok();
    let rows = table.stdout.lines().filter(|line| line.starts_with("CN=admins"));
    let rows: Vec<&str> = rows.collect();
    assert_eq!(rows.len(), 2, "{table:?}");
    for row in rows {
        assert!(row.contains("edge (admin.example, *.admin.example)"), "{row}");
    }

    let gateway = setup.start();
    let (status, body) = gateway.ask("/certs");
    assert_eq!(status, 200, "{body}");
    let in_force: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(shown(&in_force, "client_authorities", "subject"), expected);
    assert_eq!(shown(&in_force, "revocation_lists", "issuer"), expected);
}

#[test]
fn staples_are_shown() {
    let url = "http://ocsp.nowhere.invalid/";
    let setup = setup()
        .issued_identity("file", "file.pem", "file.key", "ocsp = \"file.ocsp\"")
        .issued_identity("old", "old.pem", "old.key", "ocsp = \"old.ocsp\"")
        .issued_identity("asked", "asked.pem", "asked.key", "ocsp = \"auto\"")
        .issued_identity("off", "off.pem", "off.key", "ocsp = \"off\"")
        .issued_identity("bare", "bare.pem", "bare.key", "");
    for name in ["file", "old", "asked", "off"] {
        let dns_name = format!("{name}.example");
        setup
            .ca()
            .issue_with(name, &[&dns_name], |params| names_responder(params, url));
    }
    setup.ca().issue_with("bare", &["bare.example"], must_staple);
    let over = Answer {
        time: Some("-3d"),
        ..Answer::default()
    };
    for (name, answer) in [("file", Answer::default()), ("old", over)] {
        let response = answer.about(setup.ca(), name);
        std::fs::write(setup.folder().join(format!("{name}.ocsp")), response).unwrap();
    }
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 0, "{inventory:#}");
    let table = setup.try_arguments(&["certs"]).ok();
    for (identity, state) in [
        ("file", "stapled"),
        ("old", "missing"),
        ("asked", "auto"),
        ("off", "off"),
        ("bare", "missing"),
        ("site", "off"),
    ] {
        let ocsp = &certificate(&inventory, identity)["ocsp"];
        assert_eq!(ocsp["state"], state, "{identity}");
        assert_eq!(ocsp["next_update"].is_string(), state == "stapled", "{identity}");
        assert_eq!(ocsp["result"], Value::Null, "{identity}");
        let row = table.stdout.lines().find(|line| line.starts_with(identity)).unwrap();
        assert!(row.contains(&format!("  {state}  ")), "{row}");
    }
    assert_eq!(
        certificate(&inventory, "asked")["ocsp"]["urls"],
        serde_json::json!([url])
    );

    // What `run` would refuse.
    std::fs::write(setup.folder().join("file.ocsp"), "hello").unwrap();
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 1, "{inventory:#}");
    let file = certificate(&inventory, "file");
    assert_eq!(
        (&file["state"], &file["ocsp"]["state"]),
        (&"unusable".into(), &"missing".into())
    );
    let problem = file["problem"].as_str().unwrap();
    assert!(
        problem.contains("identity \"file\": ocsp") && problem.contains("file.ocsp"),
        "{problem}"
    );
    assert_eq!(setup.try_command("check").status.code(), Some(1));
}

/// A PIN that is wrong would be refused; here it is not even asked for.
#[test]
fn certificates_of_keys_in_tokens_are_shown_without_pin() {
    let hsm = SoftHsm::new("edge");
    let setup = setup()
        .no_identities()
        .token(&hsm, "")
        .token_identity(&hsm, "here", &["here.example"], KeyKind::Ecdsa)
        .token_identity(&hsm, "there", &["there.example"], KeyKind::Rsa);
    hsm.put_certificate(setup.ca(), "there");
    let certificate_uri = "pkcs11:token=edge;object=there;type=cert";
    let setup = setup.issued_identity("both", certificate_uri, &hsm.uri("there"), "");
    std::fs::write(hsm.pin_file(), "000000\n").unwrap();
    let (inventory, code) = listed(&setup, &["--strict"]);
    assert_eq!(code, 0, "{inventory:#}");
    let (here, both) = (certificate(&inventory, "here"), certificate(&inventory, "both"));
    assert_eq!(here["names"][0], "here.example");
    assert_eq!(here["key_source"], hsm.uri("here"));
    assert_eq!(both["names"][0], "there.example");
    assert_eq!(both["source"], certificate_uri);
    assert_eq!(setup.try_command("check").status.code(), Some(1), "the PIN is wrong");

    let missing = setup.issued_identity(
        "missing",
        "pkcs11:token=edge;object=nothing;type=cert",
        &hsm.uri("there"),
        "",
    );
    let (inventory, code) = listed(&missing, &[]);
    assert_eq!((states(&inventory)[0], code), ("unusable", 1), "{inventory:#}");
    assert!(
        inventory["certificates"][0]["problem"]
            .as_str()
            .unwrap()
            .contains("nothing")
    );
}

#[test]
fn a_folder_has_a_row_for_each_of_its_certificates() {
    let setup = setup();
    let folder = setup.folder().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for name in ["one", "two", "three"] {
        setup.ca().issue(name, &[&format!("{name}.example")], KeyKind::Ecdsa);
        for file in [setup.ca().certificate_file(name), setup.ca().key_file(name)] {
            std::fs::rename(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(folder.join("three.key"), "nothing").unwrap();
    let setup = setup.more(&format!(
        "[[identity]]\nname = \"many\"\ncertificates = \"folder\"\n\n\
         [[listener]]\nname = \"second\"\naddress = \"{}\"\nidentities = [\"many\"]\nupstream = \"app\"\n",
        free_address()
    ));
    let (inventory, code) = listed(&setup, &[]);
    assert_eq!(code, 1, "{inventory:#}");
    for (name, state) in [("one", "valid"), ("two", "valid"), ("three", "unusable")] {
        let found = certificate(&inventory, &format!("many/{name}.pem"));
        assert_eq!(found["state"], state);
        assert_eq!(found["names"][0], format!("{name}.example"));
        assert_eq!(found["source"], folder.join(format!("{name}.pem")).to_str().unwrap());
        assert_eq!(
            found["key_source"],
            folder.join(format!("{name}.key")).to_str().unwrap()
        );
        assert_eq!(found["used_by"][0]["listener"], "second");
        // The first by name.
        assert_eq!(found["used_by"][0]["default"], name == "one");
    }
}
