//! A token locks after a few wrong PINs. With the module that fails on cue, which counts what it is asked.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringlock_faulty::Folder;
use ringlock_hsm::pkcs11::Pkcs11Module;
use ringlock_hsm::protocol::{FaultKind, TokenSettings};
use ringlock_hsm::token::Module;
use ringlock_hsm::uri::{PinSource, TokenMatch};

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(pin: Option<PathBuf>) -> TokenSettings {
    TokenSettings {
        find: TokenMatch::default(),
        pin: pin.map(PinSource::File),
        sessions: 1,
        timeout: Duration::from_secs(2),
        keep_alive: None,
        login: true,
    }
}

/// A token, and a file with a PIN that is not its own.
fn with_wrong_pin() -> (Folder, TokenSettings) {
    let folder = Folder::new();
    folder.token("t", Some("1234"));
    let wrong = folder.pin_file("t").with_file_name("wrong");
    std::fs::write(&wrong, "4321").unwrap();
    (folder, settings(Some(wrong)))
}

#[test]
fn the_last_attempt_is_not_used() {
    let (folder, wrong) = with_wrong_pin();
    let module = Pkcs11Module::load(&folder.module()).unwrap();
    for _ in 0..2 {
        let fault = module.open(&wrong).err().unwrap();
        assert_eq!(
            (fault.kind, fault.ckr.as_deref()),
            (FaultKind::Pin, Some("CKR_PIN_INCORRECT"))
        );
    }
    // Not even for the right one: Ringlock cannot know that it is.
    for settings in [&wrong, &settings(Some(folder.pin_file("t")))] {
        let fault = module.open(settings).err().unwrap();
        assert_eq!(fault.kind, FaultKind::Pin);
        assert!(fault.found.contains("one attempt at its PIN left"), "{fault}");
    }
    assert_eq!((folder.pin_failures("t"), folder.calls("t", "C_Login")), (2, 2));
    assert_eq!(module.tokens().unwrap()[0].pin_trouble, Some("one attempt left"));
}

#[test]
fn those_who_wait_while_the_pin_is_refused_do_not_try_it() {
    let (folder, wrong) = with_wrong_pin();
    let module = Pkcs11Module::load(&folder.module()).unwrap();
    folder.cue("t", "hang = login");
    std::thread::scope(|scope| {
        let open = || module.open(&wrong).err().unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        let start = Instant::now();
        while folder.calls("t", "C_OpenSession") < 8 {
            assert!(start.elapsed() < PATIENCE, "sessions are opened while a login hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        folder.cue("t", "");
        for thread in threads {
            assert_eq!(thread.join().unwrap().kind, FaultKind::Pin);
        }
    });
    assert_eq!((folder.pin_failures("t"), folder.calls("t", "C_Login")), (1, 1));
}

#[test]
fn a_token_is_logged_in_to_once_and_one_without_a_pin_never() {
    for (pin, logins) in [(Some("1234"), 1), (None, 0)] {
        let folder = Folder::new();
        folder.token("t", pin);
        let module = Pkcs11Module::load(&folder.module()).unwrap();
        let settings = settings(pin.map(|_| folder.pin_file("t")));
        let mut sessions: Vec<_> = (0..3).map(|_| module.open(&settings).unwrap()).collect();
        for session in &mut sessions {
            session.touch().unwrap();
        }
        assert_eq!(folder.calls("t", "C_Login"), logins);
        assert_eq!(folder.calls("t", "C_OpenSession"), 3);
        drop(sessions);
        assert_eq!(folder.calls("t", "C_CloseSession"), 3);
    }
}

#[test]
fn a_session_that_the_token_has_dropped_is_known_for_lost() {
    let folder = Folder::new();
    folder.token("t", Some("1234"));
    let module = Pkcs11Module::load(&folder.module()).unwrap();
    let settings = settings(Some(folder.pin_file("t")));
    let mut session = module.open(&settings).unwrap();
    folder.cue("t", "absent");
    let fault = session.touch().unwrap_err();
    assert!(fault.loses_sessions(), "{fault}");
    folder.cue("t", "");
    let fault = session.touch().unwrap_err();
    assert!(fault.loses_sessions(), "{fault}");
    module.reset().unwrap();
    module.open(&settings).unwrap().touch().unwrap();
}
