//! Handshakes with a key that is in a token and nowhere else, for each kind of token that there is here.

use crate::support::*;

both_drivers!(our_own_module, softhsm, softhsm_behind_p11_kit, a_tpm);

fn our_own_module(io: Io) {
    let token = Faulty::new("edge");
    let gateway = serves(
        io,
        &token,
        &[KeyKind::Ecdsa, KeyKind::Rsa, KeyKind::P384, KeyKind::Ed25519],
    );
    gateway.stop();
    assert_eq!(
        token.calls("C_Login"),
        1,
        "the PIN is used once, and not again when the gateway ends"
    );
}

fn softhsm(io: Io) {
    let token = SoftHsm::new("edge");
    let kinds = [KeyKind::Ecdsa, KeyKind::Rsa3072, KeyKind::P384];
    let gateway = serves(io, &token, &kinds);
    token.remove();
    token.recreate();
    serves_again(&gateway, &kinds);
}

fn softhsm_behind_p11_kit(io: Io) {
    let hsm = SoftHsm::new("edge");
    let token = P11Kit::new(&hsm);
    let gateway = serves(io, &token, &[KeyKind::Ecdsa]);
    token.kill();
    token.start();
    serves_again(&gateway, &[KeyKind::Ecdsa]);
}

fn a_tpm(io: Io) {
    let token = Tpm::new("edge");
    let kinds = [KeyKind::Ecdsa, KeyKind::Rsa];
    let gateway = serves(io, &token, &kinds);
    token.restart();
    serves_again(&gateway, &kinds);
}

/// Each key has a name of its own, so that its signature is what the handshake needs.
#[track_caller]
fn serves(io: Io, token: &dyn Token, kinds: &[KeyKind]) -> Gateway {
    let origin = Origin::echo();
    let mut setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .token(token, "sessions = 2");
    for kind in kinds {
        setup = setup.token_identity(token, &format!("{kind:?}"), &[&name(*kind)], *kind);
    }
    let gateway = setup.start();
    for kind in kinds {
        let mut client = Client::new(&gateway).name(&name(*kind)).connect();
        client.send(b"hello");
        assert_eq!(client.receive(5), b"hello", "{kind:?}");
        client.finish();
    }
    gateway
}

/// By itself: nothing is reloaded.
#[track_caller]
fn serves_again(gateway: &Gateway, kinds: &[KeyKind]) {
    for kind in kinds {
        let connect = || Client::new(gateway).name(&name(*kind)).try_connect().ok();
        eventually("the token to serve again", connect);
    }
}

fn name(kind: KeyKind) -> String {
    format!("{kind:?}.example").to_lowercase()
}
