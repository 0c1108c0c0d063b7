//! `isolation = "thread"`: the module is in the gateway's own process, and a token that fails heals all the same.

use crate::support::*;

both_drivers!(
    no_process_is_started,
    a_token_that_has_failed_serves_again,
    softhsm_serves_and_the_gateway_ends_in_order,
);

const THREAD: &str = "isolation = \"thread\"\nsessions = 4";

fn gateway(io: Io, origin: &Origin, token: &dyn Token) -> Gateway {
    Setup::new(io, &[origin.address()])
        .no_identities()
        .workers(2)
        .token(token, THREAD)
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
        .start()
}

fn no_process_is_started(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = gateway(io, &origin, &token);
    for _ in 0..20 {
        exchange(&gateway);
    }
    assert_eq!(signers(&gateway), [0; 0]);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", gateway.pid())).unwrap();
    assert!(
        maps.contains(token.module().to_str().unwrap()),
        "the module is in the gateway"
    );
    let metrics = gateway.wait_until_quiet();
    let signed = metrics.count(
        "ringlock_key_requests_total",
        &[("group", "edge"), ("result", "signed")],
    );
    assert_eq!(signed, 20);
}

fn a_token_that_has_failed_serves_again(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = gateway(io, &origin, &token);
    exchange(&gateway);
    for cue in [
        "absent",
        "fail = CKR_DEVICE_REMOVED",
        "fail_sign = CKR_SESSION_HANDLE_INVALID",
    ] {
        token.cue(cue);
        // Somebody has to ask before it is found out.
        let refused = try_exchange(&Client::new(&gateway));
        assert!(refused.is_err(), "{cue}: a token that is away does not sign");
        let open = [("token", "edge"), ("state", "closed")];
        wait_for_metric(&gateway, "ringlock_token_breaker", &open, 0.0);
        token.cue("");
        eventually("the token to sign again", || try_exchange(&Client::new(&gateway)).ok());
        for _ in 0..10 {
            exchange(&gateway);
        }
    }
    assert_eq!(signers(&gateway), [0; 0]);
}

fn softhsm_serves_and_the_gateway_ends_in_order(io: Io) {
    let (origin, token) = (Origin::echo(), SoftHsm::new("edge"));
    let gateway = gateway(io, &origin, &token);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    exchange(&gateway);
                }
            });
        }
    });
    gateway.stop();
}
