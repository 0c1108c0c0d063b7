//! Any text as an entry of `allow` or `deny`, and any as the name of a certificate: no panic, and an entry means the same when it is written
//! in its one form. No name with a control character is meant.
#![no_main]

mod seeds;

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ringlock::config::ClientName;

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    [
        "spiffe://example.org/ns/prod/*\nspiffe://example.org/ns/prod/sa/web",
        "uri:https://example.org/a\nhttps://example.org/a",
        "dns:*.clients.example.com\na.clients.example.com",
        "email:ops@example.com\nops@example.com",
        "cn:batch-7\nbatch-7",
        "o:Example Corp\nExample Corp",
        "ou:Payments\nPayments",
        "spki:sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "issuer:CN=Clients\\, new,OU=a+OU=b,O=M\\C3\\BCller,C=DE\nCN=Clients",
        "serial:8a:1B@CN=clients\n8a1b@CN=clients",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
});

fuzz_target!(|text: &str| {
    let (rule, name) = text.split_once('\n').unwrap_or((text, text));
    let Ok(rule) = ClientName::parse(rule) else {
        return;
    };
    let form = rule.to_string();
    let again = ClientName::parse(&form).unwrap_or_else(|remedy| panic!("{form:?}: {remedy}"));
    assert_eq!(again, rule);
    assert_eq!(again.to_string(), form);
    assert!(!rule.matches(rule.kind(), name) || !name.chars().any(char::is_control));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    seeds::mutate(data, size, max_size, seed, &SEEDS)
});
