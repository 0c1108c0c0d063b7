//! The same key in two tokens of a group: both sign, and while one of them is away no client notices.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::*;

both_drivers!(
    both_tokens_sign,
    a_token_that_is_removed_and_comes_back_is_noticed_by_no_client,
    a_token_whose_device_fails_is_noticed_by_no_client,
    a_token_that_signs_wrongly_is_noticed_by_no_client,
    a_token_of_another_module_takes_over,
    a_token_that_is_away_at_the_start_is_used_when_it_comes,
    another_key_under_the_same_name_is_warned_of_and_not_used,
);

const GROUP: &str = "group = \"pair\"\nsessions = 4\ntimeout = \"2s\"";
const URI: &str = "pkcs11:token=pair;object=site;type=private";

/// Two tokens of one module, each with the key of [`SITE`].
fn pair(io: Io, origin: &Origin) -> (Faulty, Faulty, Setup) {
    let first = Faulty::new("first");
    let second = first.another("second");
    let setup = with_key(io, origin, &[&first, &second]);
    let setup = setup.token(&first, GROUP).token(&second, GROUP);
    (first, second, setup)
}

/// A configuration with an identity whose key is in these tokens.
fn with_key(io: Io, origin: &Origin, tokens: &[&Faulty]) -> Setup {
    let setup = Setup::new(io, &[origin.address()]).no_identities().workers(2);
    setup.ca().issue("site", &[SITE], KeyKind::Ecdsa);
    let key = setup.ca().key_file("site");
    let pem = fs::read_to_string(&key).unwrap();
    for token in tokens {
        token.folder().key(token.label(), "site", &pem);
    }
    fs::remove_file(key).unwrap();
    setup.issued_identity("site", "site.pem", URI, "")
}

/// Clients come all the time while `meanwhile` runs, and none of them may fail.
fn under_load(gateway: &Gateway, meanwhile: impl FnOnce(&AtomicUsize)) {
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match try_exchange(&Client::new(gateway)) {
                        Ok(()) => served.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            failures.lock().unwrap().push(error.to_string());
                            break;
                        }
                    };
                }
            });
        }
        // Ends the clients also when what happens meanwhile fails.
        let _over = Ends(&over);
        meanwhile(&served);
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:?}\n{}", gateway.log());
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until so many clients more have been served.
#[track_caller]
fn wait_for_clients(served: &AtomicUsize, count: usize) {
    let before = served.load(Ordering::Relaxed);
    eventually("clients to be served", || {
        (served.load(Ordering::Relaxed) >= before + count).then_some(())
    });
}

/// Waits until this token is asked for signatures.
#[track_caller]
fn wait_until_used(token: &Faulty) {
    let before = token.calls("C_Sign");
    eventually(&format!("{} to sign", token.label()), || {
        (token.calls("C_Sign") > before + 10).then_some(())
    });
}

fn both_tokens_sign(io: Io) {
    let origin = Origin::echo();
    let (first, second, setup) = pair(io, &origin);
    let gateway = setup.start();
    // A signature that takes its time keeps a token busy: then the other one has more room.
    first.cue("latency_ms = 5");
    second.cue("latency_ms = 5");
    let before = [&first, &second].map(|token| token.calls("C_Sign"));
    under_load(&gateway, |served| wait_for_clients(served, 200));
    let signed: Vec<usize> = [&first, &second]
        .iter()
        .zip(before)
        .map(|(token, before)| token.calls("C_Sign") - before)
        .collect();
    let all: usize = signed.iter().sum();
    assert!(
        signed.iter().all(|&signed| signed > all / 5),
        "one does all the work: {signed:?}"
    );
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_key_retries_total", &[]), 0);
}

/// With this cue the first token fails; afterwards it is well again.
fn goes_and_comes_back(io: Io, cue: &str) -> Metrics {
    let origin = Origin::echo();
    let (first, second, setup) = pair(io, &origin);
    let gateway = setup.start();
    under_load(&gateway, |served| {
        wait_until_used(&first);
        wait_until_used(&second);
        first.cue(cue);
        wait_for_metric(
            &gateway,
            "ringlock_token_breaker",
            &[("token", "first"), ("state", "closed")],
            0.0,
        );
        wait_for_clients(served, 100);
        wait_until_used(&second);
        first.cue("");
        wait_until_used(&first);
        wait_until_used(&second);
    });
    let metrics = gateway.wait_until_quiet();
    for result in ["failed", "refused", "expired"] {
        let labels = [("result", result)];
        assert_eq!(
            metrics.count("ringlock_key_requests_total", &labels),
            0,
            "{}",
            metrics.text()
        );
    }
    metrics
}

fn a_token_that_is_removed_and_comes_back_is_noticed_by_no_client(io: Io) {
    let metrics = goes_and_comes_back(io, "absent");
    let recoveries = metrics.count("ringlock_token_recoveries_total", &[("token", "first")]);
    assert!(recoveries > 0, "{}", metrics.text());
}

fn a_token_whose_device_fails_is_noticed_by_no_client(io: Io) {
    let metrics = goes_and_comes_back(io, "fail = CKR_DEVICE_REMOVED");
    let labels = [("token", "first"), ("error", "CKR_DEVICE_REMOVED")];
    assert!(
        metrics.count("ringlock_token_errors_total", &labels) > 0,
        "{}",
        metrics.text()
    );
}

fn a_token_that_signs_wrongly_is_noticed_by_no_client(io: Io) {
    let origin = Origin::echo();
    let (first, second, setup) = pair(io, &origin);
    let gateway = setup.start();
    under_load(&gateway, |served| {
        wait_until_used(&first);
        first.cue("wrong");
        wait_for_clients(served, 100);
        first.cue("");
        wait_until_used(&second);
    });
    let metrics = gateway.wait_until_quiet();
    assert!(metrics.count("ringlock_key_wrong_signatures_total", &[("group", "pair")]) > 0);
}

/// The signer of one of them is killed over and over: its module does not come up.
fn a_token_of_another_module_takes_over(io: Io) {
    let origin = Origin::echo();
    let (first, second) = (Faulty::new("first"), Faulty::new("second"));
    let setup = with_key(io, &origin, &[&first, &second]);
    let gateway = setup.token(&first, GROUP).token(&second, GROUP).start();
    assert_eq!(signers(&gateway).len(), 2, "a signer for each module");
    under_load(&gateway, |served| {
        wait_until_used(&first);
        first.cue("crash");
        wait_for_metric(
            &gateway,
            "ringlock_token_breaker",
            &[("token", "first"), ("state", "closed")],
            0.0,
        );
        wait_for_clients(served, 100);
        first.cue("");
        wait_until_used(&first);
        wait_until_used(&second);
    });
    let restarts = |token| {
        gateway
            .metrics()
            .count("ringlock_signer_restarts_total", &[("token", token)])
    };
    assert!(restarts("first") > 0);
    assert_eq!(restarts("second"), 0);
}

fn a_token_that_is_away_at_the_start_is_used_when_it_comes(io: Io) {
    let origin = Origin::echo();
    let (first, second, setup) = pair(io, &origin);
    first.cue("absent");
    let ran = setup.try_command("check").ok();
    let warning = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("warning: "))
        .unwrap_or_default();
    let says = [
        "identity \"site\": key",
        "the token first",
        "no token with label `first`",
        "keys list",
    ];
    assert!(says.iter().all(|text| warning.contains(text)), "{ran:#?}");
    let gateway = setup.start();
    under_load(&gateway, |served| {
        wait_for_clients(served, 20);
        first.cue("");
        wait_until_used(&first);
        wait_until_used(&second);
    });
}

fn another_key_under_the_same_name_is_warned_of_and_not_used(io: Io) {
    let origin = Origin::echo();
    let first = Faulty::new("first");
    let second = first.another("second");
    let setup = with_key(io, &origin, &[&first])
        .token(&first, GROUP)
        .token(&second, GROUP);
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    second.folder().key("second", "site", &other);
    let ran = setup.try_command("check").ok();
    let warning = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("warning: "))
        .unwrap_or_default();
    let says = [
        "identity \"site\": key",
        "the token second",
        "another key",
        "correct the URI",
    ];
    assert!(says.iter().all(|text| warning.contains(text)), "{ran:#?}");
    let gateway = setup.start();
    let before = [&first, &second].map(|token| token.calls("C_Sign"));
    under_load(&gateway, |served| wait_for_clients(served, 100));
    assert_eq!(second.calls("C_Sign"), before[1], "it is not used");
    assert!(first.calls("C_Sign") >= before[0] + 100);
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_key_wrong_signatures_total", &[]), 0);
}
