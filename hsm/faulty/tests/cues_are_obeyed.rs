//! What a cue says goes wrong, and goes right again when the cue has gone.
#![allow(clippy::unwrap_used, reason = "an error here is a failed test")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use rcgen::KeyPair;
use ringlock_faulty::Folder;

const HASH: [u8; 32] = [7; 32];

fn token() -> Folder {
    let folder = Folder::new();
    folder.token("t", Some("1234"));
    folder.key("t", "k", &KeyPair::generate().unwrap().serialize_pem());
    folder
}

fn load(folder: &Folder) -> Pkcs11 {
    let pkcs11 = Pkcs11::new(folder.module()).unwrap();
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    pkcs11
}

fn open(pkcs11: &Pkcs11) -> Result<(Session, ObjectHandle), RvError> {
    let slot = *pkcs11
        .get_slots_with_token()
        .unwrap()
        .first()
        .ok_or(RvError::TokenNotPresent)?;
    let session = code(pkcs11.open_ro_session(slot))?;
    match code(session.login(UserType::User, Some(&AuthPin::new("1234".into())))) {
        Ok(()) | Err(RvError::UserAlreadyLoggedIn) => {}
        Err(error) => return Err(error),
    }
    let key = code(session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]))?[0];
    Ok((session, key))
}

fn code<T>(result: Result<T, Error>) -> Result<T, RvError> {
    result.map_err(|error| {
        let Error::Pkcs11(code, _) = error else {
            panic!("not from the module: {error}");
        };
        code
    })
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, RvError> {
    code(session.sign(&Mechanism::Ecdsa, key, &HASH))
}

#[test]
fn latency_is_each_sessions_own() {
    let folder = token();
    let pkcs11 = load(&folder);
    let sessions: Vec<_> = (0..8).map(|_| open(&pkcs11).unwrap()).collect();
    folder.cue("t", "latency_ms = 300");
    let begin = Instant::now();
    scope(|threads| {
        for (session, key) in sessions {
            threads.spawn(move || sign(&session, key).unwrap());
        }
    });
    let taken = begin.elapsed();
    assert!(taken >= Duration::from_millis(300), "{taken:?}");
    assert!(taken < Duration::from_millis(8 * 300), "one after the other: {taken:?}");
}

#[test]
fn a_call_hangs_until_the_cue_changes_and_others_go_on() {
    let folder = token();
    let pkcs11 = load(&folder);
    let (session, key) = open(&pkcs11).unwrap();
    let (other, _) = open(&pkcs11).unwrap();
    folder.cue("t", "hang = sign");
    let signed = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| {
            // A session may be used by one thread at a time, and moves to this one.
            let session = session;
            sign(&session, key).unwrap();
            signed.store(true, Ordering::SeqCst);
        });
        while folder.calls("t", "C_Sign") == 0 {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(50));
        other.get_session_info().unwrap();
        assert!(!signed.load(Ordering::SeqCst), "it hangs");
        folder.cue("t", "");
    });
    assert!(signed.load(Ordering::SeqCst));
}

#[test]
fn calls_fail_with_the_code_and_as_often_as_the_cue_says() {
    let folder = token();
    let pkcs11 = load(&folder);
    let (session, key) = open(&pkcs11).unwrap();
    folder.cue("t", "fail_sign = CKR_DEVICE_REMOVED\ntimes = 2");
    assert_eq!(sign(&session, key), Err(RvError::DeviceRemoved));
    session.get_session_info().unwrap();
    assert_eq!(sign(&session, key), Err(RvError::DeviceRemoved));
    assert_eq!(sign(&session, key).unwrap().len(), 64);
    folder.cue("t", "fail = CKR_GENERAL_ERROR");
    assert_eq!(code(session.get_session_info()).unwrap_err(), RvError::GeneralError);
    folder.cue("t", "");
    session.get_session_info().unwrap();
    folder.module_cue("fail_list = CKR_HOST_MEMORY");
    assert_eq!(code(pkcs11.get_slots_with_token()).unwrap_err(), RvError::HostMemory);
}

#[test]
fn a_wrong_signature_is_that_of_another_message() {
    let folder = Folder::new();
    folder.token("t", None);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    folder.key("t", "k", &key.serialize_pem());
    let pkcs11 = load(&folder);
    let session = pkcs11
        .open_ro_session(pkcs11.get_slots_with_token().unwrap()[0])
        .unwrap();
    let key = session
        .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])
        .unwrap()[0];
    // Ed25519 gives one signature for one message, so that one bit can be told.
    let scheme = cryptoki::mechanism::eddsa::EddsaSignatureScheme::Ed25519;
    let mechanism = Mechanism::Eddsa(cryptoki::mechanism::eddsa::EddsaParams::new(scheme));
    let right = session.sign(&mechanism, key, &HASH).unwrap();
    folder.cue("t", "wrong\ntimes = 1");
    let wrong = session.sign(&mechanism, key, &HASH).unwrap();
    let differ: u32 = right
        .iter()
        .zip(&wrong)
        .map(|(right, wrong)| (right ^ wrong).count_ones())
        .sum();
    assert_eq!(differ, 1);
    assert_eq!(session.sign(&mechanism, key, &HASH).unwrap(), right, "once only");
}

#[test]
fn a_token_that_goes_takes_its_sessions_and_handles_along() {
    let folder = token();
    let pkcs11 = load(&folder);
    let (session, key) = open(&pkcs11).unwrap();
    folder.cue("t", "absent");
    assert_eq!(sign(&session, key), Err(RvError::DeviceRemoved));
    assert_eq!(open(&pkcs11).unwrap_err(), RvError::TokenNotPresent);
    folder.cue("t", "");
    assert_eq!(sign(&session, key), Err(RvError::SessionHandleInvalid));
    let (session, new) = open(&pkcs11).unwrap();
    assert_eq!(
        sign(&session, key),
        Err(RvError::KeyHandleInvalid),
        "handles are not what they were"
    );
    sign(&session, new).unwrap();
}

#[test]
fn a_sticky_absence_ends_with_a_new_initialization() {
    let folder = token();
    let pkcs11 = load(&folder);
    let (session, key) = open(&pkcs11).unwrap();
    folder.cue("t", "absent = sticky");
    assert_eq!(sign(&session, key), Err(RvError::DeviceRemoved));
    folder.cue("t", "");
    assert_eq!(open(&pkcs11).unwrap_err(), RvError::TokenNotPresent);
    drop(session);
    pkcs11.finalize().unwrap();
    let pkcs11 = load(&folder);
    let (session, key) = open(&pkcs11).unwrap();
    sign(&session, key).unwrap();
    assert_eq!(folder.module_calls("C_Initialize"), 2);
}

#[test]
fn idle_sessions_are_dropped_and_used_ones_stay() {
    let folder = token();
    let pkcs11 = load(&folder);
    let (idle, key) = open(&pkcs11).unwrap();
    let (used, _) = open(&pkcs11).unwrap();
    folder.cue("t", "drop_idle_ms = 1000");
    for _ in 0..15 {
        sleep(Duration::from_millis(100));
        used.get_session_info().unwrap();
    }
    assert_eq!(sign(&idle, key), Err(RvError::SessionHandleInvalid));
    sign(&used, key).unwrap();
}

#[test]
fn a_token_has_only_so_many_sessions() {
    let folder = token();
    let pkcs11 = load(&folder);
    folder.cue("t", "sessions_max = 2");
    let (first, second) = (open(&pkcs11).unwrap(), open(&pkcs11).unwrap());
    assert_eq!(open(&pkcs11).unwrap_err(), RvError::SessionCount);
    drop(first);
    open(&pkcs11).unwrap();
    sign(&second.0, second.1).unwrap();
}

#[test]
fn three_wrong_pins_lock_the_token_and_its_flags_tell() {
    let folder = token();
    let pkcs11 = load(&folder);
    let slot = pkcs11.get_slots_with_token().unwrap()[0];
    let flags = || {
        let info = pkcs11.get_token_info(slot).unwrap();
        [
            info.user_pin_count_low(),
            info.user_pin_final_try(),
            info.user_pin_locked(),
        ]
    };
    let session = pkcs11.open_ro_session(slot).unwrap();
    let login = |pin: &str| code(session.login(UserType::User, Some(&AuthPin::new(pin.into()))));
    assert_eq!(flags(), [false, false, false]);
    assert_eq!(login("0"), Err(RvError::PinIncorrect));
    assert_eq!(flags(), [true, false, false]);
    login("1234").unwrap();
    session.logout().unwrap();
    assert_eq!(folder.pin_failures("t"), 0, "the right PIN forgets the wrong ones");
    assert_eq!(login("0"), Err(RvError::PinIncorrect));
    assert_eq!(login("1"), Err(RvError::PinIncorrect));
    assert_eq!(flags(), [true, true, false]);
    assert_eq!(login("2"), Err(RvError::PinIncorrect));
    assert_eq!(flags(), [false, false, true]);
    assert_eq!(login("1234"), Err(RvError::PinLocked));
    assert_eq!(folder.calls("t", "C_Login"), 6);
}

#[test]
fn a_crash_ends_the_process_once() {
    let folder = token();
    folder.cue("t", "crash = sign\ntimes = 1");
    let hash = folder.pin_file("t").with_file_name("hash");
    std::fs::write(&hash, HASH).unwrap();
    let pkcs11_tool = || {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(folder.module());
        command.args([
            "--login",
            "--pin",
            "1234",
            "--sign",
            "--mechanism",
            "ECDSA",
            "--label",
            "k",
            "--output-file",
        ]);
        command
            .arg(hash.with_file_name("signature"))
            .arg("--input-file")
            .arg(&hash);
        command
            .output()
            .expect("pkcs11-tool is there: scripts/setup installs opensc")
    };
    let crashed = pkcs11_tool();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&crashed.status),
        Some(6),
        "{crashed:?}"
    );
    let signed = pkcs11_tool();
    assert!(signed.status.success(), "{signed:?}");
    assert_eq!(std::fs::read(hash.with_file_name("signature")).unwrap().len(), 64);
}
