//! Any bytes as the answer of an OCSP responder: believed or refused, without a panic. Some are taken for what the CA or its responder has
//! signed, so that what is behind the signature is reached.
#![no_main]

mod seeds;

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, PKCS_ED25519,
    SigningKey,
};
use ringlock::identity::ocsp::Question;
use rustls::pki_types::PrivatePkcs8KeyDer;

const NOW: i64 = 1_800_000_000;
const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
/// Ed25519 as an AlgorithmIdentifier.
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
/// id-pkix-ocsp-basic
const BASIC: &[u8] = b"\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x01";

struct World {
    question: Question,
    ca: KeyPair,
    responder: KeyPair,
    certificate: Vec<u8>,
    seeds: Vec<Vec<u8>>,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// The same in each run, so that what was found is found again.
fn key(byte: u8) -> KeyPair {
    let der = [b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20", &[byte; 32][..]].concat();
    let der = PrivatePkcs8KeyDer::from(der);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).expect("any 32 bytes are a key")
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let length = match length {
        0..0x80 => vec![length as u8],
        0x80..0x100 => vec![0x81, length as u8],
        _ => vec![0x82, (length >> 8) as u8, length as u8],
    };
    [&[tag], &*length, content].concat()
}

/// A response with these bytes as the part that is signed.
fn signed(data: &[u8], key: &KeyPair, certificate: &[u8]) -> Vec<u8> {
    let signature = key.sign(data).expect("Ed25519 signs anything");
    let signature = element(0x03, &[&[0], &*signature].concat());
    let certificates = element(0xa0, &element(SEQUENCE, certificate));
    let basic = element(SEQUENCE, &[data, ED25519, &signature, &certificates].concat());
    let bytes = element(SEQUENCE, &[BASIC, &element(OCTET_STRING, &basic)].concat());
    element(SEQUENCE, &[b"\x0a\x01\x00", &*element(0xa0, &bytes)].concat())
}

impl World {
    fn new() -> World {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, key(1)).expect("a CA");
        let leaf = CertificateParams::new(["site.example".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key(2), &ca).expect("a certificate");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "responder");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        let certificate = params.signed_by(&key(3), &ca).expect("a certificate");
        let mut world = World {
            question: Question::about(&[leaf.der().clone(), ca.der().clone()]).expect("the CA has issued it"),
            ca: key(1),
            responder: key(3),
            certificate: certificate.der().to_vec(),
            seeds: Vec::new(),
        };
        // What is asked names the certificate as an answer does. Four elements are around the name.
        let request = world.question.request();
        let name = &request[8..];
        assert_eq!(name[0], SEQUENCE);
        for status in [&[0x80, 0][..], &[0x82, 0], b"\xa1\x11\x18\x0f20260101000000Z"] {
            let until = element(0xa0, b"\x18\x0f20270201000000Z");
            let single = element(SEQUENCE, &[name, status, b"\x18\x0f20261101000000Z", &until].concat());
            let responder = element(0xa2, &element(OCTET_STRING, &[0; 20]));
            let data = [&*responder, b"\x18\x0f20261101000000Z", &element(SEQUENCE, &single)].concat();
            let data = element(SEQUENCE, &data);
            world.seeds.push([&[0], &*data].concat());
            world.seeds.push([&[1], &*data].concat());
            world.seeds.push([&[2], &*signed(&data, &world.responder, &world.certificate)].concat());
        }
        for seed in &world.seeds {
            assert!(world.is_believed(seed), "a seed is right");
        }
        world
    }

    /// By the first byte: what the CA has signed, what its responder has signed, or a whole response.
    fn is_believed(&self, input: &[u8]) -> bool {
        let Some((mode, data)) = input.split_first() else {
            return false;
        };
        let response = match mode {
            0 => signed(data, &self.ca, &[]),
            1 => signed(data, &self.responder, &self.certificate),
            _ => data.to_vec(),
        };
        let answer = self.question.read(&response, NOW);
        if let Ok(answer) = &answer {
            assert!(answer.next_update > NOW && answer.this_update <= NOW + 300);
        }
        answer.is_ok()
    }
}

fuzz_target!(|input: &[u8]| {
    let _ = WORLD.is_believed(input);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    seeds::mutate(data, size, max_size, seed, &WORLD.seeds)
});
