//! OCSP stapling: answers of responders reach clients of both versions, also after reloads and restarts, and through a proxy.

use crate::support::responder::*;
use crate::support::*;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::HandshakeKind;
use tempfile::TempDir;

both_drivers!(a_good_answer_is_stapled_in_both_versions);

const STAPLED: &str = "Cert Status: good";
const NOT_STAPLED: &str = "OCSP response: no response sent";
const AGE: &str = "ringlock_ocsp_staple_age_seconds";
const SITE_IDENTITY: [(&str, &str); 1] = [("identity", "site")];
const AUTO: &str = "ocsp = \"auto\"";

/// An identity `site` whose certificate names this responder.
fn setup(io: Io, origin: &Origin, url: &str, lines: &str) -> Setup {
    let setup = Setup::new(io, &[origin.address()]).no_identities();
    setup
        .ca()
        .issue_with("site", &[SITE], |params| names_responder(params, url));
    setup.issued_identity("site", "site.pem", "site.key", lines)
}

fn unavailable() -> Responder {
    Responder::start(|_, stream| reply(stream, "503 Service Unavailable", "", b""))
}

/// What `openssl` sees of a staple, in both versions.
#[track_caller]
fn all_see(gateway: &Gateway, what: &str) {
    for version in ["-tls1_2", "-tls1_3"] {
        let text = s_client_echo(gateway, &["-status", version]);
        assert!(text.contains(what), "{version}: {text}");
    }
}

#[track_caller]
fn wait_for_staple(gateway: &Gateway) {
    eventually("the staple", || {
        gateway.metrics().has(AGE, &SITE_IDENTITY).then_some(())
    });
}

/// The file in `dir` that the response about `site` is kept in.
fn kept(ca: &Ca, dir: &TempDir) -> PathBuf {
    let file = ca.certificate_file("site");
    let arguments = [
        "x509",
        "-in",
        file.to_str().unwrap(),
        "-noout",
        "-fingerprint",
        "-sha256",
    ];
    let text = run("openssl", &arguments, b"").ok().stdout;
    let (_, fingerprint) = text.trim().split_once('=').unwrap();
    let name = fingerprint.replace(':', "").to_ascii_lowercase();
    dir.path().join(name).with_extension("der")
}

fn a_good_answer_is_stapled_in_both_versions(io: Io) {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(io, &origin, &responder.url(), AUTO);
    let response = Answer::default().about(setup.ca(), "site");
    responder.change_to(&response);
    let gateway = setup.workers(2).start();
    wait_for_staple(&gateway);
    all_see(&gateway, STAPLED);
    // Whoever does not ask gets none.
    exchange(&gateway);
    let asked = responder.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, "GET");
    assert!(!asked[0].target[1..].contains(['/', '+', '=']), "{}", asked[0].target);
    let host = format!("host: {}", &responder.url()[7..]);
    assert!(asked[0].head.to_ascii_lowercase().contains(&host), "{}", asked[0].head);
    let metrics = gateway.metrics();
    let good = [("identity", "site"), ("result", "good")];
    assert!(metrics.has("ringlock_ocsp_last_result", &good), "{}", metrics.text());
    assert_eq!(metrics.count("ringlock_ocsp_responses_total", &[("result", "good")]), 1);
    let end = metrics.sum("ringlock_ocsp_staple_next_update_seconds", &SITE_IDENTITY);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!(end > now && end < now + 2.0 * DAY.as_secs_f64(), "{end}");
    assert!(!metrics.has("ringlock_ocsp_must_staple_missing", &SITE_IDENTITY));
}

#[test]
fn openssl_as_responder_is_understood() {
    // With a path it does not understand what is asked by GET, and says so.
    for (path, method) in [("", "GET"), ("/ca", "POST")] {
        // It listens at every address, so the port has to be free at all of them.
        let free = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let (origin, responder) = (Origin::echo(), SocketAddr::new(own_ip(), free));
        let setup = setup(Io::Epoll, &origin, &format!("http://{responder}{path}"), AUTO);
        let ca = setup.ca();
        let (index, key) = (index(ca, "site", Listed::Good), ca.write_key());
        let (ca, port) = (ca.file(), responder.port().to_string());
        let [index, key, ca] = [&index, &key, &ca].map(|path| path.to_str().unwrap());
        let arguments = [
            "ocsp",
            "-ignore_err",
            "-port",
            &port,
            "-index",
            index,
            "-CA",
            ca,
            "-rsigner",
            ca,
            "-rkey",
            key,
            "-ndays",
            "1",
        ];
        let server = Program::start("openssl", &arguments);
        server.wait_for("waiting for OCSP client connections");
        let gateway = setup.start();
        wait_for_staple(&gateway);
        all_see(&gateway, STAPLED);
        assert!(
            server.text().contains(&format!("1st line: {method}")),
            "{}",
            server.text()
        );
    }
}

#[test]
fn no_responder_and_no_wish_are_silent() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let off = setup(Io::Epoll, &origin, &responder.url(), "").start();
    let none = Setup::new(Io::Epoll, &[origin.address()]).no_identities();
    none.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    let none = none.issued_identity("site", "site.pem", "site.key", AUTO);
    let checked = none.try_command("check");
    assert!(!checked.text().contains("ocsp"), "{checked:?}");
    let none = none.start();
    for gateway in [&off, &none] {
        all_see(gateway, NOT_STAPLED);
        assert!(!gateway.log().contains("OCSP"), "{}", gateway.log());
        let metrics = gateway.metrics();
        assert!(!metrics.has("ringlock_ocsp_last_result", &[]), "{}", metrics.text());
    }
    assert!(responder.asked().is_empty());
}

#[test]
fn a_staple_outlives_a_reload_and_goes_with_its_certificate() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(Io::Epoll, &origin, &responder.url(), AUTO);
    responder.change_to(&Answer::default().about(setup.ca(), "site"));
    let gateway = setup.start();
    wait_for_staple(&gateway);
    reload(&gateway);
    all_see(&gateway, STAPLED);
    assert_eq!(responder.asked().len(), 1, "it is not asked again");
    // Another certificate gets its own staple, and never this one.
    responder.change(|_, stream| reply(stream, "503 Service Unavailable", "", b""));
    let url = responder.url();
    gateway
        .ca
        .issue_with("site", &[SITE], |params| names_responder(params, &url));
    reload(&gateway);
    eventually("the new certificate without a staple", || {
        s_client_echo(&gateway, &["-status"])
            .contains(NOT_STAPLED)
            .then_some(())
    });
    responder.change_to(&Answer::default().about(&gateway.ca, "site"));
    wait_for_staple(&gateway);
    all_see(&gateway, STAPLED);
    // Switched off, it is gone at once.
    gateway.edit_config(AUTO, "ocsp = \"off\"");
    reload(&gateway);
    eventually("no staple", || {
        s_client_echo(&gateway, &["-status"])
            .contains(NOT_STAPLED)
            .then_some(())
    });
    all_see(&gateway, NOT_STAPLED);
}

#[test]
fn sessions_are_resumed_whatever_is_stapled() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(Io::Epoll, &origin, &responder.url(), AUTO);
    let response = Answer::default().about(setup.ca(), "site");
    let gateway = setup.start();
    let clients = [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()].map(Client::keeps_sessions);
    for client in &clients {
        assert_eq!(handshake_kind(client), HandshakeKind::Full);
    }
    responder.change_to(&response);
    wait_for_staple(&gateway);
    for client in &clients {
        assert_eq!(handshake_kind(client), HandshakeKind::Resumed);
    }
}

#[test]
fn answers_are_kept_over_restarts() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let dir = TempDir::new().unwrap();
    let global = format!("ocsp_dir = {:?}", dir.path());
    let first = setup(Io::Epoll, &origin, &responder.url(), AUTO).global(&global);
    let response = Answer::default().about(first.ca(), "site");
    responder.change_to(&response);
    let file = kept(first.ca(), &dir);
    let gateway = first.start();
    eventually("the file", || file.exists().then_some(()));
    assert_eq!(std::fs::read(&file).unwrap(), response);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(gateway);

    // One that starts with such a file has a staple before anybody has answered.
    responder.change(|_, stream| reply(stream, "503 Service Unavailable", "", b""));
    let second = setup(Io::Epoll, &origin, &responder.url(), AUTO).global(&global);
    let response = Answer::default().about(second.ca(), "site");
    std::fs::write(kept(second.ca(), &dir), &response).unwrap();
    let asked = responder.asked().len();
    let gateway = second.start();
    all_see(&gateway, STAPLED);
    assert_eq!(responder.asked().len(), asked, "it has half of its time left");

    // What is there and wrong is as good as nothing.
    let third = setup(Io::Epoll, &origin, &responder.url(), AUTO).global(&global);
    std::fs::write(kept(third.ca(), &dir), &response).unwrap();
    let gateway = third.start();
    all_see(&gateway, NOT_STAPLED);
    eventually("the question", || (responder.asked().len() > asked).then_some(()));
}

#[test]
fn a_proxy_gets_the_whole_address() {
    let (origin, proxy) = (Origin::echo(), unavailable());
    let url = "http://ocsp.nowhere.invalid:8080/status";
    let setup = setup(Io::Epoll, &origin, url, AUTO).global(&format!("ocsp_proxy = {:?}", proxy.url()));
    proxy.change_to(&Answer::default().about(setup.ca(), "site"));
    let gateway = setup.start();
    wait_for_staple(&gateway);
    all_see(&gateway, STAPLED);
    let asked = &proxy.asked()[0];
    assert!(asked.target.starts_with(&format!("{url}/")), "{}", asked.target);
    assert!(
        asked
            .head
            .to_ascii_lowercase()
            .contains("host: ocsp.nowhere.invalid:8080"),
        "{}",
        asked.head
    );
}

#[test]
fn names_of_responders_are_looked_up() {
    let origin = Origin::echo();
    let responder = Responder::start_at(Ipv4Addr::LOCALHOST.into(), |_, stream| {
        reply(stream, "503 Service Unavailable", "", b"");
    });
    let setup = setup(
        Io::Epoll,
        &origin,
        &format!("http://localhost:{}/", responder.port()),
        AUTO,
    );
    responder.change_to(&Answer::default().about(setup.ca(), "site"));
    let gateway = setup.start();
    wait_for_staple(&gateway);
    all_see(&gateway, STAPLED);
}

#[test]
fn responders_that_want_post_get_it() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(Io::Epoll, &origin, &responder.url(), AUTO);
    let response = Answer::default().about(setup.ca(), "site");
    responder.change(move |asked, stream| match asked.method.as_str() {
        "POST" => answer(stream, &response),
        _ => reply(stream, "405 Method Not Allowed", "", b""),
    });
    let gateway = setup.start();
    wait_for_staple(&gateway);
    let asked = responder.asked();
    let methods: Vec<&str> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["GET", "POST"]);
    assert!(
        asked[1]
            .head
            .to_ascii_lowercase()
            .contains("content-type: application/ocsp-request")
    );
    assert_eq!(
        asked[1].body,
        std::fs::read(gateway.folder().join("site.request")).unwrap(),
        "as openssl asks"
    );
}

#[test]
fn an_answer_is_renewed_before_its_end() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(Io::Epoll, &origin, &responder.url(), AUTO);
    let short = Answer {
        time: Some("-50s"),
        arguments: &["-nmin", "1"],
        ..Answer::default()
    };
    responder.change_to(&short.about(setup.ca(), "site"));
    let long = Answer::default().about(setup.ca(), "site");
    let gateway = setup.start();
    wait_for_staple(&gateway);
    responder.change_to(&long);
    eventually("the new one", || {
        let end = gateway
            .metrics()
            .sum("ringlock_ocsp_staple_next_update_seconds", &SITE_IDENTITY);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        (end > (now + Duration::from_secs(3600)).as_secs_f64()).then_some(())
    });
    all_see(&gateway, STAPLED);
}

#[test]
fn an_expired_staple_is_not_sent() {
    let (origin, responder) = (Origin::echo(), unavailable());
    let setup = setup(Io::Epoll, &origin, &responder.url(), AUTO);
    let short = Answer {
        time: Some("-40s"),
        arguments: &["-nmin", "1"],
        ..Answer::default()
    };
    responder.change_to(&short.about(setup.ca(), "site"));
    let gateway = setup.start();
    wait_for_staple(&gateway);
    gateway.wait_for_line("the end of the staple", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("OCSP staple has expired"))
    });
    all_see(&gateway, NOT_STAPLED);
    assert!(!gateway.metrics().has(AGE, &SITE_IDENTITY));
}

#[test]
fn files_are_stapled() {
    let origin = Origin::echo();
    let lines = "ocsp = \"site.ocsp\"";
    let setup = setup(Io::Epoll, &origin, "http://nowhere.invalid/", lines).global("watch_files = true");
    let file = setup.folder().join("site.ocsp");
    std::fs::write(&file, Answer::default().about(setup.ca(), "site")).unwrap();
    let checked = setup.try_command("check").ok();
    assert!(!checked.text().contains("ocsp"), "{checked:?}");
    let gateway = setup.start();
    all_see(&gateway, STAPLED);
    let end = || {
        gateway
            .metrics()
            .sum("ringlock_ocsp_staple_next_update_seconds", &SITE_IDENTITY)
    };
    let before = end();
    let longer = Answer {
        arguments: &["-ndays", "3"],
        ..Answer::default()
    };
    replace(&file, &longer.about(&gateway.ca, "site"));
    eventually("the new one", || (end() > before).then_some(()));
    all_see(&gateway, STAPLED);
    // One whose time is over leaves the one that is in use.
    let over = Answer {
        time: Some("-3d"),
        ..Answer::default()
    };
    let before = end();
    replace(&file, &over.about(&gateway.ca, "site"));
    gateway.wait_for_line("why not", |line| {
        line["what"]
            .as_str()
            .is_some_and(|what| what.contains("an answer that has expired"))
    });
    assert_eq!(end(), before);
    all_see(&gateway, STAPLED);
}

/// As operators replace files.
fn replace(file: &Path, content: &[u8]) {
    let next = file.with_extension("next");
    std::fs::write(&next, content).unwrap();
    std::fs::rename(&next, file).unwrap();
}
