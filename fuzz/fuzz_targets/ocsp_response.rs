//! Any bytes as the answer of an OCSP responder: believed or refused, without a panic.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringlock::identity::ocsp::Question;

fn question() -> Question {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let leaf = CertificateParams::new(["site.example".to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&KeyPair::generate().expect("a key"), &ca).expect("a certificate");
    Question::about(&[leaf.der().clone(), ca.der().clone()]).expect("the CA has issued it")
}

fuzz_target!(|response: &[u8]| {
    static QUESTION: OnceLock<Question> = OnceLock::new();
    let answer = QUESTION.get_or_init(question).read(response, 1_800_000_000);
    // The CA has signed nothing.
    assert!(answer.is_err());
});
