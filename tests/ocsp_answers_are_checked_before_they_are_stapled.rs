//! What is not stapled: answers that nobody may give, that are about others, or over, and whatever else a responder may send.

use crate::support::responder::*;
use crate::support::*;

use std::io::Write;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::AlertDescription;

const RESPONSES: &str = "ringlock_ocsp_responses_total";
const LAST: &str = "ringlock_ocsp_last_result";

/// An identity `site` whose certificate names a responder that is not there yet.
fn setup(change: impl FnOnce(&mut CertificateParams)) -> (Setup, Origin, Responder) {
    let origin = Origin::echo();
    let responder = Responder::start(|_, stream| reply(stream, "503 Service Unavailable", "", b""));
    let setup = Setup::new(Io::Epoll, &[origin.address()]).no_identities();
    setup.ca().issue_with("site", &[SITE], |params| {
        names_responder(params, &responder.url());
        change(params);
    });
    let setup = setup.issued_identity("site", "site.pem", "site.key", "ocsp = \"auto\"");
    (setup, origin, responder)
}

#[track_caller]
fn not_stapled(gateway: &Gateway) {
    let text = s_client_echo(gateway, &["-status"]);
    assert!(text.contains("OCSP response: no response sent"), "{text}");
}

#[track_caller]
fn wait_for_result(gateway: &Gateway, result: &str) {
    wait_for_metric(gateway, LAST, &[("identity", "site"), ("result", result)], 1.0);
}

/// Waits for the log line about the responder that has these words.
#[track_caller]
fn is_told(gateway: &Gateway, level: &str, words: &str) {
    let line = gateway.wait_for_line(words, |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("OCSP:") && text.contains(words))
    });
    assert_eq!(line["level"], level, "{line}");
    assert_eq!(line["identity"], "site", "{line}");
}

/// The gateway gets `response`, has this result, says these words, and staples nothing.
#[track_caller]
fn refused(make: impl FnOnce(&Ca) -> Vec<u8>, result: &str, level: &str, words: &str) {
    let (setup, _origin, responder) = setup(|_| {});
    responder.change_to(&make(setup.ca()));
    let gateway = setup.start();
    wait_for_result(&gateway, result);
    is_told(&gateway, level, words);
    not_stapled(&gateway);
    assert!(gateway.metrics().count(RESPONSES, &[("result", result)]) >= 1);
}

fn about(listed: Listed, arguments: &'static [&'static str]) -> impl FnOnce(&Ca) -> Vec<u8> {
    move |ca| {
        let answer = Answer {
            listed,
            arguments,
            ..Answer::default()
        };
        answer.about(ca, "site")
    }
}

/// Signed by another certificate of the CA.
fn by(usages: &'static [ExtendedKeyUsagePurpose]) -> impl FnOnce(&Ca) -> Vec<u8> {
    move |ca| {
        ca.issue_with("responder", &[], |params| params.extended_key_usages = usages.to_vec());
        let answer = Answer {
            signer: Some("responder"),
            ..Answer::default()
        };
        answer.about(ca, "site")
    }
}

#[test]
fn a_revoked_certificate_is_an_error() {
    refused(
        about(Listed::Revoked, &["-ndays", "1"]),
        "revoked",
        "ERROR",
        "was revoked",
    );
}

#[test]
fn an_unknown_certificate_is_told() {
    refused(
        about(Listed::Nowhere, &["-ndays", "1"]),
        "unknown",
        "WARN",
        "does not know",
    );
}

#[test]
fn an_answer_whose_time_is_over_is_refused() {
    let over = |ca: &Ca| {
        let answer = Answer {
            time: Some("-2d"),
            ..Answer::default()
        };
        answer.about(ca, "site")
    };
    refused(over, "expired", "WARN", "has expired");
}

#[test]
fn an_answer_from_the_future_is_refused() {
    let early = |ca: &Ca| {
        let answer = Answer {
            time: Some("+2h"),
            ..Answer::default()
        };
        answer.about(ca, "site")
    };
    refused(early, "not_yet_valid", "WARN", "check the clocks");
}

#[test]
fn an_answer_without_an_end_is_refused() {
    refused(about(Listed::Good, &[]), "no_next_update", "WARN", "nextUpdate");
}

#[test]
fn an_answer_about_another_certificate_is_refused() {
    let other = |ca: &Ca| {
        ca.issue_with("other", &[SITE], |_| {});
        Answer::default().about(ca, "other")
    };
    refused(other, "other_certificate", "WARN", "another certificate");
}

#[test]
fn a_strangers_signature_is_refused() {
    // Without its certificate nobody is known to have signed.
    let stranger = |ca: &Ca| {
        ca.issue_with("responder", &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning]
        });
        let answer = Answer {
            signer: Some("responder"),
            arguments: &["-ndays", "1", "-resp_no_certs"],
            ..Answer::default()
        };
        answer.about(ca, "site")
    };
    refused(stranger, "bad_signature", "WARN", "neither the certificate's issuer");
}

#[test]
fn a_responder_without_the_right_is_refused() {
    refused(
        by(&[ExtendedKeyUsagePurpose::ServerAuth]),
        "unauthorized_responder",
        "WARN",
        "OCSPSigning",
    );
}

#[test]
fn a_responder_with_the_right_is_believed() {
    let (setup, _origin, responder) = setup(|_| {});
    responder.change_to(&by(&[ExtendedKeyUsagePurpose::OcspSigning])(setup.ca()));
    let gateway = setup.start();
    wait_for_result(&gateway, "good");
    let text = s_client_echo(&gateway, &["-status"]);
    assert!(text.contains("Cert Status: good"), "{text}");
}

#[test]
fn a_responder_that_says_no_is_told() {
    // OCSPResponse { tryLater }
    refused(
        |_| vec![0x30, 0x03, 0x0a, 0x01, 0x03],
        "responder_error",
        "WARN",
        "tryLater",
    );
}

#[test]
fn garbage_is_refused() {
    refused(|_| b"what is this".to_vec(), "malformed", "WARN", "no OCSP response");
}

#[test]
fn a_revocation_takes_the_staple_away_and_another_failure_does_not() {
    let (setup, _origin, responder) = setup(|_| {});
    let short = Answer {
        time: Some("-50s"),
        arguments: &["-nmin", "1"],
        ..Answer::default()
    };
    let revoked = Answer {
        listed: Listed::Revoked,
        ..Answer::default()
    };
    let file = setup.folder().join("kept");
    std::fs::create_dir(&file).unwrap();
    let setup = setup.global("ocsp_dir = \"kept\"");
    let revoked = revoked.about(setup.ca(), "site");
    responder.change_to(&short.about(setup.ca(), "site"));
    let gateway = setup.start();
    wait_for_result(&gateway, "good");
    responder.change(|_, stream| reply(stream, "500 Internal Server Error", "", b""));
    wait_for_result(&gateway, "http_status");
    is_told(&gateway, "WARN", "500");
    responder.change_to(&revoked);
    wait_for_result(&gateway, "revoked");
    not_stapled(&gateway);
    assert_eq!(std::fs::read_dir(&file).unwrap().count(), 0, "nothing is kept of it");
}

/// The gateway asks, has this result, and says these words once, however often it asks again.
#[track_caller]
fn fails(serve: impl Fn(&Asked, Stream) + Send + Sync + 'static, result: &str, words: &str) {
    let (setup, _origin, responder) = setup(|_| {});
    responder.change(serve);
    let gateway = setup.start();
    eventually("two attempts", || {
        (gateway.metrics().count(RESPONSES, &[("result", result)]) >= 2).then_some(())
    });
    is_told(&gateway, "WARN", words);
    let told = gateway.log().matches("OCSP:").count();
    assert_eq!(told, 1, "{}", gateway.log());
    not_stapled(&gateway);
}

#[test]
fn errors_of_http_are_told() {
    fails(
        |_, stream| reply(stream, "500 Internal Server Error", "", b""),
        "http_status",
        "500 Internal Server Error",
    );
}

#[test]
fn pages_of_somebody_else_are_no_answers() {
    let page = |_: &Asked, stream: Stream| reply(stream, "200 OK", "Content-Type: text/html\r\n", b"<html>");
    fails(page, "content_type", "text/html");
}

#[test]
fn an_answer_that_does_not_end_is_given_up() {
    let endless = |_: &Asked, mut stream: Stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\n\r\n";
        if stream.write_all(head).is_ok() {
            while stream.write_all(&[0; 4096]).is_ok() {}
        }
    };
    fails(endless, "too_large", "more than 32768 bytes");
}

#[test]
fn a_head_that_does_not_end_is_given_up() {
    let endless = |_: &Asked, mut stream: Stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X-Filler: more and more and more\r\n").is_ok() {}
    };
    fails(endless, "broken_off", "has broken off");
}

#[test]
fn an_answer_that_is_cut_off_is_refused() {
    let cut = |_: &Asked, mut stream: Stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\nContent-Length: 1000\r\n\r\nonly this",
        );
    };
    fails(cut, "broken_off", "has broken off");
}

#[test]
fn a_responder_that_is_not_there_is_told() {
    let origin = Origin::echo();
    let setup = Setup::new(Io::Epoll, &[origin.address()]).no_identities();
    let url = format!("http://{}", free_address());
    setup
        .ca()
        .issue_with("site", &[SITE], |params| names_responder(params, &url));
    let gateway = setup
        .issued_identity("site", "site.pem", "site.key", "ocsp = \"auto\"")
        .start();
    wait_for_result(&gateway, "unreachable");
    is_told(&gateway, "WARN", "Connection refused");
    exchange(&gateway);
}

#[test]
fn a_slow_responder_holds_up_nobody() {
    let (setup, _origin, responder) = setup(|_| {});
    responder.change(|_, stream| {
        std::thread::sleep(PATIENCE);
        drop(stream);
    });
    let gateway = setup.start();
    eventually("the question", || (!responder.asked().is_empty()).then_some(()));
    // The control thread goes on with its other work, and the gateway ends when it is asked to.
    reload(&gateway);
    exchange(&gateway);
    wait_for_result(&gateway, "timeout");
    is_told(&gateway, "WARN", "in time");
    eventually("another question", || (responder.asked().len() > 1).then_some(()));
}

#[test]
fn redirects_are_followed_a_few_times_and_over_http_only() {
    let to = |location: &'static str| {
        move |_: &Asked, stream: Stream| reply(stream, "302 Found", &format!("Location: {location}\r\n"), b"")
    };
    fails(to("/again"), "redirect", "more than 3 times");
    fails(to("https://127.0.0.1/"), "redirect", "no http:// address");
    fails(to("file:///etc/passwd"), "redirect", "no http:// address");
    fails(
        |_, stream| reply(stream, "301 Moved Permanently", "", b""),
        "redirect",
        "no http:// address",
    );
}

#[test]
fn a_redirect_leads_to_the_answer() {
    let (setup, _origin, responder) = setup(|_| {});
    let there = Responder::with(&Answer::default().about(setup.ca(), "site"));
    let url = format!("{}/there", there.url());
    responder.change(move |_, stream| reply(stream, "307 Temporary Redirect", &format!("Location: {url}\r\n"), b""));
    let gateway = setup.start();
    wait_for_result(&gateway, "good");
    assert_eq!(there.asked()[0].target, "/there");
    assert_eq!(responder.asked().len(), 1);
}

#[test]
fn a_certificate_that_demands_a_staple_is_served_without_and_told() {
    let (setup, _origin, responder) = setup(must_staple);
    let response = Answer::default().about(setup.ca(), "site");
    let gateway = setup.start();
    let line = gateway.wait_for_line("the demand", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("must-staple"))
    });
    assert_eq!(line["level"], "WARN", "{line}");
    let missing = |gateway: &Gateway| {
        gateway
            .metrics()
            .sum("ringlock_ocsp_must_staple_missing", &[("identity", "site")])
    };
    assert_eq!(missing(&gateway), 1.0);
    not_stapled(&gateway);
    reload(&gateway);
    assert_eq!(gateway.log().matches("must-staple").count(), 1, "{}", gateway.log());
    responder.change_to(&response);
    wait_for_result(&gateway, "good");
    assert_eq!(missing(&gateway), 0.0);
}

#[test]
fn a_certificate_that_demands_a_staple_can_be_held_back() {
    let (setup, _origin, responder) = setup(must_staple);
    let response = Answer::default().about(setup.ca(), "site");
    let gateway = setup.global("must_staple = \"refuse\"").start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        assert_eq!(client.refused_with(), AlertDescription::HandshakeFailure);
    }
    responder.change_to(&response);
    wait_for_result(&gateway, "good");
    let text = s_client_echo(&gateway, &["-status"]);
    assert!(text.contains("Cert Status: good"), "{text}");
}

#[test]
fn another_certificate_stands_in_for_one_that_is_held_back() {
    let (setup, _origin, _responder) = setup(must_staple);
    let setup = setup
        .global("must_staple = \"refuse\"")
        .identity("plain", &[SITE], KeyKind::Rsa);
    let gateway = setup.start();
    exchange(&gateway);
    let text = s_client_echo(&gateway, &["-status"]);
    assert!(text.contains("Peer signature type: RSA"), "{text}");
}

#[test]
fn a_file_that_cannot_be_right_is_a_mistake_and_one_that_is_over_a_warning() {
    let (setup, _origin, _responder) = setup(|_| {});
    let setup = setup
        .no_identities()
        .issued_identity("site", "site.pem", "site.key", "ocsp = \"site.ocsp\"");
    let file = setup.folder().join("site.ocsp");
    let check = |content: Option<&[u8]>| {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        setup.try_command("check")
    };
    setup.ca().issue_with("other", &[SITE], |_| {});
    for (content, words) in [
        (b"garbage".to_vec(), "no OCSP response"),
        (by(&[ExtendedKeyUsagePurpose::ServerAuth])(setup.ca()), "OCSPSigning"),
        (vec![0; 100_000], "100000 bytes"),
    ] {
        let ran = check(Some(&content));
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        for part in ["identity \"site\": ocsp: found", words, "site.ocsp", "openssl ocsp"] {
            assert!(
                part == "openssl ocsp" || ran.stderr.contains(part),
                "{part:?} is missing: {ran:?}"
            );
        }
    }
    let ran = check(None);
    assert!(ran.stderr.contains("No such file"), "{ran:?}");
    let over = Answer {
        time: Some("-2d"),
        ..Answer::default()
    };
    let ran = check(Some(&over.about(setup.ca(), "site")));
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(
        ran.text().contains("has expired") && ran.text().contains("it is not stapled"),
        "{ran:?}"
    );
    // As after a renewal, when the response comes later.
    let ran = check(Some(&Answer::default().about(setup.ca(), "other")));
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(ran.text().contains("another certificate"), "{ran:?}");
    let revoked = about(Listed::Revoked, &["-ndays", "1"])(setup.ca());
    let ran = check(Some(&revoked));
    assert!(ran.text().contains("is revoked"), "{ran:?}");
}

#[test]
fn what_keeps_an_answer_from_being_asked_for_is_warned_of() {
    let warned = |change: &dyn Fn(&mut CertificateParams), lines: &str, words: &str| {
        let setup = Setup::new(Io::Epoll, &["127.0.0.1:9"]).no_identities();
        setup.ca().issue_with("site", &[SITE], change);
        let setup = setup.issued_identity("site", "site.pem", "site.key", lines);
        let ran = setup.try_command("check").ok();
        assert!(ran.text().contains(words), "{words:?} is missing: {ran:?}");
        setup
    };
    let auto = "ocsp = \"auto\"";
    warned(
        &|params| names_responder(params, "https://ocsp.example.com/"),
        auto,
        "no responder that is asked over http://",
    );
    warned(&must_staple, auto, "names no responder");
    warned(&must_staple, "", "demands an OCSP staple");
    // Without its issuer no answer can be verified.
    let setup = warned(&|_| {}, auto, "no errors");
    setup.ca().issue_with("site", &[SITE], |params| {
        names_responder(params, "http://ocsp.example.com/")
    });
    let file = setup.folder().join("site.pem");
    let chain = std::fs::read_to_string(&file).unwrap();
    let end = "-----END CERTIFICATE-----\n";
    let leaf = chain.split_inclusive(end).next().unwrap();
    std::fs::write(&file, leaf).unwrap();
    let ran = setup.try_command("check").ok();
    assert!(ran.text().contains("the chain has no issuer"), "{ran:?}");
    let ran = setup.global("ocsp_dir = \"nowhere\"").try_command("check");
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("global.ocsp_dir") && ran.stderr.contains("install -d"),
        "{ran:?}"
    );
}

/// Long enough for everything that a responder may take.
const _: () = assert!(PATIENCE.as_secs() > Duration::from_secs(20).as_secs());
