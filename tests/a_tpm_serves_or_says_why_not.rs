//! Keys in a TPM: ECDSA serves, and RSA either serves or is refused for a reason that is told, as TPMs differ in the salt of PSS.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[macro_use]
mod support;

use support::*;

both_drivers!(ecdsa_serves, rsa_serves_or_is_refused);

fn setup(io: Io, origin: &Origin, tpm: &Tpm, kind: KeyKind) -> Setup {
    Setup::new(io, &[origin.address()])
        .no_identities()
        .token(tpm, "sessions = 2\ntimeout = \"10s\"")
        .token_identity(tpm, "site", &[SITE], kind)
}

fn both_versions(gateway: &Gateway) {
    for client in [Client::new(gateway).tls12(), Client::new(gateway).tls13()] {
        for _ in 0..3 {
            try_exchange(&client).unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
        }
    }
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_key_wrong_signatures_total", &[]), 0);
}

fn ecdsa_serves(io: Io) {
    let (origin, tpm) = (Origin::echo(), Tpm::new("edge"));
    both_versions(&setup(io, &origin, &tpm, KeyKind::Ecdsa).start());
}

fn rsa_serves_or_is_refused(io: Io) {
    let (origin, tpm) = (Origin::echo(), Tpm::new("edge"));
    let setup = setup(io, &origin, &tpm, KeyKind::Rsa);
    let ran = setup.try_command("check");
    // What a process leaves in the TPM would be in the way of the next one.
    tpm.restart();
    if ran.status.success() {
        both_versions(&setup.start());
    } else {
        let error = ran.stderr.lines().find(|line| line.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("nothing is said: {ran:#?}"));
        for part in ["identity \"site\": key", "CKM_RSA_PKCS", "token `edge`", "keys test"] {
            assert!(error.contains(part), "{part:?} is missing: {error}");
        }
    }
}
