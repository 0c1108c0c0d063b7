//! A token that signs wrongly is found out before a client sees anything: the handshake is refused, or the next token of the group
//! makes the signature.

use crate::support::*;

use rustls::AlertDescription;

both_drivers!(
    without_another_token_the_handshake_is_refused,
    with_another_token_the_handshake_succeeds,
    one_wrong_signature_costs_a_second_attempt,
);

const WRONG: &str = "ringlock_key_wrong_signatures_total";
const FAILURES: &str = "ringlock_handshake_failures_total";
const OF_SIGNATURE: [(&str, &str); 1] = [("cause", "key_wrong_signature")];

fn clients(gateway: &Gateway) -> [Client<'_>; 2] {
    [Client::new(gateway).tls12(), Client::new(gateway).tls13()]
}

fn refused_with_kind(io: Io, kind: KeyKind) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(&token, "sessions = 2")
        .token_identity(&token, "site", &[SITE], kind)
        .start();
    let mut established = Client::new(&gateway).connect();
    echoes(&mut established, b"before");
    token.cue("wrong");
    for (number, client) in clients(&gateway).iter().enumerate() {
        // Had it seen the signature, the client would refuse that with an alert of its own.
        assert_eq!(client.refused_with(), AlertDescription::InternalError, "{kind:?}");
        let metrics = gateway.metrics();
        let refused = number as u64 + 1;
        assert_eq!(metrics.count(WRONG, &[("group", "edge")]), 2 * refused, "both attempts");
        assert_eq!(metrics.count("ringlock_key_retries_total", &[]), refused);
    }
    let line = gateway.wait_for_cause("the private key could not be used: its token signs wrongly");
    assert_eq!(
        (&line["fault"], &line["level"]),
        (&"key".into(), &"ERROR".into()),
        "{line}"
    );
    wait_for_metric(&gateway, FAILURES, &OF_SIGNATURE, 2.0);
    echoes(&mut established, b"meanwhile");

    token.cue("");
    for client in clients(&gateway) {
        try_exchange(&client).unwrap();
    }
    echoes(&mut established, b"after");
    assert!(established.finish().is_empty());
    gateway.wait_until_quiet();
}

fn without_another_token_the_handshake_is_refused(io: Io) {
    for kind in [KeyKind::Ecdsa, KeyKind::P384, KeyKind::Rsa, KeyKind::Ed25519] {
        refused_with_kind(io, kind);
    }
}

fn one_wrong_signature_costs_a_second_attempt(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(&token, "")
        .token_identity(&token, "site", &[SITE], KeyKind::Ecdsa)
        .start();
    token.cue("wrong\ntimes = 1");
    exchange(&gateway);
    let metrics = gateway.metrics();
    assert_eq!(metrics.count(WRONG, &[]), 1);
    assert_eq!(metrics.count("ringlock_key_retries_total", &[]), 1);
}

fn with_another_token_the_handshake_succeeds(io: Io) {
    let origin = Origin::echo();
    let (wrong, right) = (Faulty::new("first"), Faulty::new("second"));
    let pair = FaultyPair::new("pair", &wrong, &right);
    let gateway = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(&pair, "sessions = 2")
        .token_identity(&pair, "site", &[SITE], KeyKind::Ecdsa)
        .start();
    wrong.cue("wrong");
    // Only a token that is asked signs wrongly: the one with the most room is.
    let (load, ()) = under_load(&Client::new(&gateway), 4, |load| {
        eventually("wrong signatures", || {
            (gateway.metrics().sum(WRONG, &[]) >= 8.0).then_some(())
        });
        load.wait_for_more(8);
    });
    assert!(load.failures().is_empty(), "{:?}\n{}", load.failures(), gateway.log());
    let metrics = gateway.wait_until_quiet();
    let (wrongs, retries) = (
        metrics.count(WRONG, &[("group", "pair")]),
        metrics.count("ringlock_key_retries_total", &[]),
    );
    assert_eq!(
        wrongs, retries,
        "each wrong signature is made once more, by the other token"
    );
    assert_eq!(metrics.sum(FAILURES, &OF_SIGNATURE), 0.0);
}
