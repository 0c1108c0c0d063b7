//! Any bytes as the start of a connection: no panic, and every piece of them leads to the same decision.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock::tls::client_hello::{ClientHello, Gathered, Gathering, gather};

fuzz_target!(|received: &[u8]| {
    let decision = gather(received);
    if let Some((_, before)) = received.split_last() {
        let early = gather(before);
        assert!(
            early == Gathered::NeedMore || early == decision,
            "{early:?}, then {decision:?}"
        );
        let mut gathering = Gathering::default();
        assert_eq!(gathering.gather(before), early);
        assert_eq!(gathering.gather(received), decision);
    }
    if let Gathered::Complete(body) = decision {
        read(&body);
    }
    read(received);
});

fn read(body: &[u8]) {
    let Ok(hello) = ClientHello::parse(body) else { return };
    assert!(
        hello
            .server_name()
            .is_none_or(|name| !name.is_empty() && name.is_ascii() && !name.ends_with('.'))
    );
    assert!(hello.alpn().all(|protocol| !protocol.is_empty()));
    for group in hello.groups() {
        assert!(hello.key_share(group).is_none_or(|share| !share.is_empty()));
    }
    let best = hello.best_version();
    assert!(hello.versions().count() == 0 || hello.versions().any(|version| version == best));
    assert!(!hello.prefers_chacha() || hello.cipher_suites().count() > 0);
    let _ = hello.signature_schemes().count();
}
