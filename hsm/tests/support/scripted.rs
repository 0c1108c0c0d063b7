//! A module that does what the test says: slow, failing, hanging, gone and back. What it signs can be read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace, TokenSettings};
use ringlock_hsm::token::{FoundKey, Module, Session};
use ringlock_hsm::uri::{ObjectMatch, TokenMatch};
use rustls::SignatureScheme;

pub(crate) const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// The test's hand on it.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Shared>);

#[derive(Default)]
struct Shared {
    world: Mutex<World>,
    released: Condvar,
}

/// Everything that is scripted, and everything that has happened.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) resets: u32,
    /// Sessions that were open when the module was reset.
    pub(crate) open_at_reset: u32,
    pub(crate) open: u32,
}

/// One token.
pub(crate) struct Token {
    pub(crate) present: bool,
    /// Only a reset of the module makes it serve again.
    pub(crate) wants_reset: bool,
    pub(crate) wrong_pin: bool,
    pub(crate) logins: u32,
    /// How the next signatures fail.
    pub(crate) failures: VecDeque<Fault>,
    /// How the next openings fail.
    pub(crate) open_failures: VecDeque<Fault>,
    /// So many of the next signatures hang until they are released.
    pub(crate) hang_next: u32,
    /// Every call hangs until it is released.
    pub(crate) hang: bool,
    pub(crate) hanging: u32,
    pub(crate) releases: u32,
    pub(crate) delay: Duration,
    /// Keys by label: what their public key is.
    pub(crate) keys: BTreeMap<String, Vec<u8>>,
    /// Messages in the order in which they were signed.
    pub(crate) signed: Vec<Vec<u8>>,
    /// The next signature panics.
    pub(crate) panics: bool,
    pub(crate) touches: u32,
    pub(crate) finds: u32,
    pub(crate) openings: u32,
    pub(crate) handles: u64,
}

impl Default for Token {
    fn default() -> Token {
        Token {
            present: true,
            wants_reset: false,
            wrong_pin: false,
            logins: 0,
            failures: VecDeque::new(),
            open_failures: VecDeque::new(),
            hang_next: 0,
            hang: false,
            hanging: 0,
            releases: 0,
            delay: Duration::ZERO,
            keys: BTreeMap::from([("key".to_owned(), b"public".to_vec())]),
            signed: Vec::new(),
            panics: false,
            touches: 0,
            finds: 0,
            openings: 0,
            handles: 1,
        }
    }
}

pub(crate) fn failure(ckr: &str) -> Fault {
    Fault {
        ckr: Some(ckr.to_owned()),
        ..Fault::new(FaultKind::Device, format!("{ckr} from a script"))
    }
}

impl Script {
    /// With these tokens.
    pub(crate) fn new(tokens: &[&str]) -> Script {
        let script = Script::default();
        let tokens = tokens.iter().map(|name| ((*name).to_owned(), Token::default()));
        script.world().tokens = tokens.collect();
        script
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap()
    }

    /// Changes a token, and releases what does not hang any more.
    pub(crate) fn token<T>(&self, name: &str, change: impl FnOnce(&mut Token) -> T) -> T {
        let changed = change(self.world().tokens.get_mut(name).unwrap());
        self.0.released.notify_all();
        changed
    }

    /// A call to the token: hangs when it is to, and fails when the token is gone.
    fn call(&self, name: &str, signs: bool) -> Result<(), Fault> {
        let mut world = self.world();
        let token = world.tokens.get_mut(name).unwrap();
        let alone = signs && token.hang_next > 0;
        token.hang_next -= u32::from(alone);
        if alone || token.hang {
            token.hanging += 1;
            let before = token.releases;
            let hangs = |world: &mut World| world.tokens[name].releases == before;
            world = self.0.released.wait_while(world, hangs).unwrap();
            world.tokens.get_mut(name).unwrap().hanging -= 1;
        }
        let token = &world.tokens[name];
        if !token.present {
            return Err(failure("CKR_DEVICE_REMOVED"));
        }
        if token.wants_reset {
            return Err(failure("CKR_SESSION_HANDLE_INVALID"));
        }
        Ok(())
    }
}

impl Token {
    /// Lets the calls return that hang, and those after them.
    pub(crate) fn release(&mut self) {
        self.hang = false;
        self.hang_next = 0;
        self.releases += 1;
    }
}

impl Module for Script {
    fn description(&self) -> String {
        "a script".to_owned()
    }

    fn reset(&self) -> Result<(), Fault> {
        let mut world = self.world();
        world.resets += 1;
        world.open_at_reset += world.open;
        for token in world.tokens.values_mut() {
            token.wants_reset = false;
            token.handles += 100;
        }
        Ok(())
    }

    fn open(&self, settings: &TokenSettings) -> Result<Box<dyn Session>, Fault> {
        let name = settings.find.label.clone().unwrap();
        self.token(&name, |token| token.openings += 1);
        let missing = |_| Fault::new(FaultKind::Token, "no token like that");
        self.call(&name, false).map_err(missing)?;
        let mut world = self.world();
        let token = world.tokens.get_mut(&name).unwrap();
        if let Some(fault) = token.open_failures.pop_front() {
            return Err(fault);
        }
        if settings.pin.is_some() {
            if !settings.login {
                return Err(Fault::new(FaultKind::Pin, "a token that has refused its PIN"));
            }
            token.logins += 1;
            if token.wrong_pin {
                return Err(Fault::new(FaultKind::Pin, "CKR_PIN_INCORRECT from a script"));
            }
        }
        world.open += 1;
        let script = self.clone();
        Ok(Box::new(Scripted { script, name }))
    }
}

struct Scripted {
    script: Script,
    name: String,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.script.world().open -= 1;
    }
}

impl Session for Scripted {
    fn token(&self) -> String {
        self.name.clone()
    }

    fn find(&mut self, place: &KeyPlace) -> Result<FoundKey, Fault> {
        self.script.call(&self.name, false)?;
        let KeyPlace::Object(object) = place else {
            panic!("the tests ask for objects")
        };
        self.script.token(&self.name, |token| {
            token.finds += 1;
            let label = object.label.as_ref().unwrap();
            let missing = || Fault::new(FaultKind::Object, format!("no object {label:?}"));
            let public = token.keys.get(label).cloned().ok_or_else(missing)?;
            Ok(FoundKey {
                handle: token.handles,
                public,
                schemes: vec![(SCHEME, "CKM_SCRIPT")],
            })
        })
    }

    fn sign(&mut self, key: &FoundKey, _scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        self.script.call(&self.name, true)?;
        let delay = self.script.token(&self.name, |token| token.delay);
        std::thread::sleep(delay);
        assert!(
            !self.script.token(&self.name, |token| token.panics),
            "as the script says"
        );
        self.script.token(&self.name, |token| {
            if let Some(fault) = token.failures.pop_front() {
                return Err(fault);
            }
            if key.handle != token.handles {
                return Err(failure("CKR_KEY_HANDLE_INVALID"));
            }
            token.signed.push(message.to_vec());
            Ok([&key.public, &b" signs "[..], message].concat())
        })
    }

    fn certificates(&mut self, _object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault> {
        self.script.call(&self.name, false)?;
        Ok(vec![b"certificate".to_vec()])
    }

    fn touch(&mut self) -> Result<(), Fault> {
        self.script.token(&self.name, |token| token.touches += 1);
        self.script.call(&self.name, false)
    }
}

/// Of a token with this label; fast enough for tests.
pub(crate) fn settings(label: &str, sessions: u32) -> TokenSettings {
    TokenSettings {
        find: TokenMatch {
            label: Some(label.to_owned()),
            ..TokenMatch::default()
        },
        pin: None,
        sessions,
        timeout: Duration::from_millis(200),
        keep_alive: None,
        login: true,
    }
}

/// The key with this label.
pub(crate) fn place(label: &str) -> KeyPlace {
    KeyPlace::Object(ObjectMatch {
        label: Some(label.to_owned()),
        id: None,
    })
}
