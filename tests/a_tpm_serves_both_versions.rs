//! Keys in a TPM serve clients of TLS 1.2 and 1.3: ECDSA, and RSA, whose PSS has to have the salt that TLS wants.

use crate::support::*;

both_drivers!(ecdsa_serves, rsa_serves);

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

fn rsa_serves(io: Io) {
    let (origin, tpm) = (Origin::echo(), Tpm::new("edge"));
    both_versions(&setup(io, &origin, &tpm, KeyKind::Rsa).start());
}
