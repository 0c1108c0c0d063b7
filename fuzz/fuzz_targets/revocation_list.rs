//! Any bytes as a file of revocation lists: read or refused, without a panic; and so is a client's certificate that is looked up in them.
#![no_main]

mod seeds;

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, IsCa, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    date_time_ymd,
};
use ringlock::identity::client_auth::{ClientAuth, RevocationList, Rules};
use rustls::pki_types::{CertificateDer, UnixTime};

struct World {
    ca: String,
    client: CertificateDer<'static>,
    lists: Vec<Vec<u8>>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let point = || CrlDistributionPoint {
        uris: vec!["http://a.example/one".to_owned()],
    };
    let mut params = CertificateParams::default();
    params.serial_number = Some(300_u64.into());
    params.crl_distribution_points = vec![point()];
    let client = params.signed_by(&key, &ca).expect("a certificate").der().clone();
    let list = |serials: &[u64], scope: Option<Option<CrlScope>>| {
        let entry = |&serial: &u64| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: Some(date_time_ymd(2025, 12, 1)),
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 2),
            next_update: date_time_ymd(2036, 1, 3),
            crl_number: 7_u64.into(),
            issuing_distribution_point: scope.map(|scope| CrlIssuingDistributionPoint {
                distribution_point: point(),
                scope,
            }),
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&ca).expect("a list").der().to_vec()
    };
    let lists = vec![
        list(&[], None),
        list(&[1, 300, u64::MAX], None),
        list(&[300], Some(None)),
        list(&[1], Some(Some(CrlScope::UserCertsOnly))),
        list(&[1], Some(Some(CrlScope::CaCertsOnly))),
    ];
    World {
        ca: ca.pem(),
        client,
        lists,
    }
});

fuzz_target!(|file: &[u8]| {
    let Ok(lists) = RevocationList::all_in(file, "fuzz.crl") else {
        return;
    };
    assert!(!lists.is_empty());
    let rules = Rules {
        lists,
        ..Rules::default()
    };
    let auth = ClientAuth::from_pem(WORLD.ca.as_bytes(), rules).expect("the CA is good");
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    let _ = auth.revokes(std::slice::from_ref(&WORLD.client));
    let _ = auth.verifier(&provider).verify_client_cert(&WORLD.client, &[], now);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    seeds::mutate(data, size, max_size, seed, &WORLD.lists)
});
