use std::time::Duration;

use der::DateTime;
use der::asn1::{BitStringRef, OctetString};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SigningKey,
};

use super::asn1::{Extension, ResponseBytes};
use super::*;

const NOW: i64 = 1_800_000_000;
/// ecdsa-with-SHA256
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

/// A CA with a certificate of a site.
struct World {
    ca: CertifiedIssuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, key()).unwrap()
}

impl World {
    fn new() -> World {
        let ca = ca("a CA");
        let site = CertificateParams::new(["site.example".to_owned()]).unwrap();
        let site = site.signed_by(&key(), &ca).unwrap();
        World {
            chain: vec![site.der().clone(), ca.der().clone()],
            ca,
        }
    }

    fn question(&self) -> Question {
        Question::about(&self.chain).unwrap()
    }

    /// Signed by the CA itself.
    fn answer(&self, change: impl FnOnce(&mut Parts)) -> Result<Answer, Refused> {
        let mut parts = Parts::default();
        change(&mut parts);
        let question = self.question();
        question.read(&parts.signed_by(&question, self.ca.key()), NOW)
    }

    /// Signed by a responder with this certificate, which comes with it.
    fn delegated(
        &self,
        issuer: &CertifiedIssuer<'_, KeyPair>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Answer, Refused> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a responder");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        change(&mut params);
        let key = key();
        let certificate = params.signed_by(&key, issuer).unwrap();
        let parts = Parts {
            certificates: vec![self.chain[1].clone(), certificate.der().clone()],
            ..Parts::default()
        };
        self.question().read(&parts.signed_by(&self.question(), &key), NOW)
    }
}

/// What an answer is made of.
struct Parts {
    outcome: ResponseStatus,
    kind: ObjectIdentifier,
    hash: usize,
    /// Added to the serial number.
    other_serial: bool,
    status: (Tag, Vec<u8>),
    this_update: i64,
    next_update: Option<i64>,
    critical: bool,
    algorithm: ObjectIdentifier,
    certificates: Vec<CertificateDer<'static>>,
}

fn status(number: u32, value: Vec<u8>) -> (Tag, Vec<u8>) {
    let constructed = !value.is_empty();
    let number = der::TagNumber(number);
    (Tag::ContextSpecific { number, constructed }, value)
}

impl Default for Parts {
    fn default() -> Parts {
        Parts {
            outcome: ResponseStatus::Successful,
            kind: BASIC,
            hash: 0,
            other_serial: false,
            status: status(0, Vec::new()),
            this_update: NOW - 3600,
            next_update: Some(NOW + 3600),
            critical: false,
            algorithm: ECDSA_SHA256,
            certificates: Vec::new(),
        }
    }
}

fn time(unix: i64) -> GeneralizedTime {
    let since = Duration::from_secs(unix.unsigned_abs());
    GeneralizedTime::from_date_time(DateTime::from_unix_duration(since).unwrap())
}

impl Parts {
    fn signed_by(&self, question: &Question, key: &KeyPair) -> Vec<u8> {
        let (oid, hash) = HASHES[self.hash];
        let (name_hash, key_hash) = question.hashes(hash);
        let mut serial = question.serial.to_vec();
        if self.other_serial {
            *serial.last_mut().unwrap() ^= 1;
        }
        let no_value = OctetString::new(Vec::new()).unwrap();
        let single = SingleResponse {
            certificate: CertId {
                hash_algorithm: AlgorithmIdentifier { oid, parameters: None },
                issuer_name_hash: OctetStringRef::new(name_hash.as_ref()).unwrap(),
                issuer_key_hash: OctetStringRef::new(key_hash.as_ref()).unwrap(),
                serial: AnyRef::new(Tag::Integer, &serial).unwrap(),
            },
            status: AnyRef::new(self.status.0, &self.status.1).unwrap(),
            this_update: time(self.this_update),
            next_update: self.next_update.map(time),
            extensions: self.critical.then(|| {
                vec![Extension {
                    id: BASIC,
                    critical: true,
                    value: (&no_value).into(),
                }]
            }),
        };
        let by_key = [0x04, 0x00];
        let number = der::TagNumber(2);
        let responder = Tag::ContextSpecific {
            number,
            constructed: true,
        };
        let data = ResponseData {
            version: 0,
            responder: AnyRef::new(responder, &by_key).unwrap(),
            produced_at: time(self.this_update),
            responses: vec![single],
            extensions: None,
        };
        let data = data.to_der().unwrap();
        let algorithm = AlgorithmIdentifier {
            oid: self.algorithm,
            parameters: None,
        };
        let algorithm = algorithm.to_der().unwrap();
        let signature = key.sign(&data).unwrap();
        let any = |der| AnyRef::from_der(der).unwrap();
        let basic = BasicResponse {
            signed: any(&data),
            signature_algorithm: any(&algorithm),
            signature: BitStringRef::from_bytes(&signature).unwrap(),
            certificates: Some(self.certificates.iter().map(|der| any(der)).collect()),
        };
        let basic = basic.to_der().unwrap();
        let bytes = ResponseBytes {
            kind: self.kind,
            response: OctetStringRef::new(&basic).unwrap(),
        };
        let response = OcspResponse {
            status: self.outcome,
            bytes: Some(bytes),
        };
        response.to_der().unwrap()
    }
}

#[test]
fn what_the_issuer_says_is_believed() {
    let world = World::new();
    let answer = world.answer(|_| {}).unwrap();
    assert_eq!(answer.status, Status::Good);
    assert_eq!((answer.this_update, answer.next_update), (NOW - 3600, NOW + 3600));
    let since = time(NOW - 7200).to_der().unwrap();
    let revoked = world.answer(|parts| parts.status = status(1, since)).unwrap();
    assert_eq!(revoked.status, Status::Revoked { since: NOW - 7200 });
    let unknown = world.answer(|parts| parts.status = status(2, Vec::new())).unwrap();
    assert_eq!(unknown.status, Status::Unknown);
    for hash in 0..HASHES.len() {
        assert!(world.answer(|parts| parts.hash = hash).is_ok(), "{hash}");
    }
}

#[test]
fn an_answer_is_about_one_certificate() {
    let world = World::new();
    let other = world.answer(|parts| parts.other_serial = true);
    assert_eq!(other.unwrap_err(), Refused::OtherCertificate);
    // Another CA of the same name, whose key has a hash of its own.
    let namesake = World::new();
    let answer = Parts::default().signed_by(&namesake.question(), world.ca.key());
    assert_eq!(world.question().read(&answer, NOW), Err(Refused::OtherCertificate));
}

#[test]
fn an_answer_is_believed_in_its_time_only() {
    let world = World::new();
    let times = |this: i64, next: Option<i64>| {
        world.answer(|parts| (parts.this_update, parts.next_update) = (NOW + this, next.map(|next| NOW + next)))
    };
    assert_eq!(times(-20, Some(0)), Err(Refused::Expired(0)));
    assert_eq!(times(-20, Some(-10)), Err(Refused::Expired(10)));
    assert!(times(-20, Some(1)).is_ok());
    assert!(times(OCSP_CLOCK_TOLERANCE_SECONDS, Some(9000)).is_ok());
    assert_eq!(times(301, Some(9000)), Err(Refused::NotYetValid(301)));
    assert_eq!(times(-20, None), Err(Refused::Endless));
}

#[test]
fn a_responder_needs_a_certificate_for_that() {
    let world = World::new();
    assert_eq!(world.delegated(&world.ca, |_| {}).unwrap().status, Status::Good);
    let why = |result: Result<Answer, Refused>| match result {
        Err(Refused::Delegation(why)) => why,
        other => panic!("{other:?}"),
    };
    let without = world.delegated(&world.ca, |params| params.extended_key_usages.clear());
    assert!(why(without).contains("extended key usage OCSPSigning"));
    let server = world.delegated(&world.ca, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(why(server).contains("extended key usage OCSPSigning"));
    let namesake = ca("a CA");
    assert!(why(world.delegated(&namesake, |_| {})).contains("not signed by the same CA"));
    let stranger = ca("a stranger");
    assert!(why(world.delegated(&stranger, |_| {})).contains("not issued by the same CA"));
    let expired = world.delegated(&world.ca, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(why(expired).contains("has expired"));
    let early = world.delegated(&world.ca, |params| params.not_before = rcgen::date_time_ymd(2100, 1, 1));
    assert!(why(early).contains("not valid yet"));
    let authority = world.delegated(&world.ca, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
    });
    assert!(why(authority).contains("one of a CA"));
}

#[test]
fn a_signature_of_anybody_else_is_none() {
    let world = World::new();
    let question = world.question();
    let answer = Parts::default().signed_by(&question, &key());
    assert_eq!(question.read(&answer, NOW), Err(Refused::Signature));
    // The certificate of another key of theirs does not help.
    let parts = Parts {
        certificates: world.chain.clone(),
        ..Parts::default()
    };
    assert_eq!(
        question.read(&parts.signed_by(&question, &key()), NOW),
        Err(Refused::Signature)
    );
    let weak = world.answer(|parts| parts.algorithm = ECDSA_SHA1);
    assert_eq!(weak, Err(Refused::Algorithm));
    // Whatever bit is changed.
    let good = Parts::default().signed_by(&question, world.ca.key());
    assert!(question.read(&good, NOW).is_ok());
    for position in 0..good.len() {
        let mut changed = good.clone();
        changed[position] ^= 1;
        // Parts that nobody has signed say nothing either: an empty list of certificates may have any contents that are none.
        if let Ok(answer) = question.read(&changed, NOW) {
            assert_eq!(answer.status, Status::Good, "byte {position}");
            assert_eq!((answer.this_update, answer.next_update), (NOW - 3600, NOW + 3600));
        }
        assert!(question.read(&good[..position], NOW).is_err(), "{position} bytes");
    }
}

#[test]
fn what_is_no_answer_says_what_it_is() {
    let world = World::new();
    let refused = |change: fn(&mut Parts)| world.answer(change).unwrap_err();
    let unauthorized = refused(|parts| parts.outcome = ResponseStatus::Unauthorized);
    assert!(unauthorized.to_string().contains("unauthorized"), "{unauthorized}");
    assert_eq!(
        refused(|parts| parts.outcome = ResponseStatus::TryLater),
        Refused::Responder("tryLater")
    );
    let kind = refused(|parts| parts.kind = ECDSA_SHA256);
    assert_eq!(kind, Refused::Malformed("it has no basic response".into()));
    let critical = refused(|parts| parts.critical = true);
    assert!(critical.to_string().contains("critical extension"), "{critical}");
    let strange = refused(|parts| parts.status = status(3, Vec::new()));
    assert!(strange.to_string().contains("a status with the tag"), "{strange}");
    for garbage in [&b""[..], b"<html>", &[0x30, 0x80], &[0x30, 0x03, 0x0a, 0x01, 0x00]] {
        assert!(
            matches!(world.question().read(garbage, NOW), Err(Refused::Malformed(_))),
            "{garbage:?}"
        );
    }
}

#[test]
fn without_the_issuer_nothing_can_be_asked() {
    let World { chain, .. } = World::new();
    assert!(Question::about(&chain[..1]).is_none());
    assert!(Question::about(&[]).is_none());
    let other = ca("another CA").der().clone();
    assert!(Question::about(&[chain[0].clone(), other]).is_none());
}
