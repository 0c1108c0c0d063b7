//! PKCS#11 modules: loaded, their tokens found, and logged in to.

mod error;
mod objects;
mod session;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session as RawSession, SessionState, UserType};
use cryptoki::slot::{Limit, Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use serde::Serialize;

use crate::protocol::{Fault, FaultKind, TokenSettings};
use crate::token::{Module, Session};
use crate::uri::TokenMatch;
use error::fault;
pub use objects::{NewKey, ObjectDescription};
pub use session::Pkcs11Session;

/// A loaded PKCS#11 module. One for each module in a process: [`Module::reset`] hits whoever uses it.
pub struct Pkcs11Module {
    context: Pkcs11,
    description: String,
    generation: Arc<AtomicU64>,
    slots: Mutex<BTreeMap<u64, Arc<SlotState>>>,
}

/// What sessions of one token share.
#[derive(Default)]
struct SlotState {
    /// Held while somebody logs in: logins of one token come one after the other.
    login: Mutex<()>,
    /// How often the token has refused the PIN.
    refusals: AtomicU64,
    /// Objects that have been found, by their handles.
    objects: Mutex<BTreeMap<u64, ObjectHandle>>,
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// See what the token shows to everybody: there is no login.
    Public,
    /// Use what the token holds.
    Read,
    /// Make objects, too.
    Write,
}

impl Pkcs11Module {
    /// Loads a module and initialises it.
    ///
    /// # Errors
    /// The file is none that can be loaded, no PKCS#11 module, or does not come up.
    pub fn load(path: &Path) -> Result<Pkcs11Module, Fault> {
        let shown = path.display();
        let context = Pkcs11::new(path).map_err(|error| {
            if let Error::LibraryLoading(error) = error {
                Fault::new(FaultKind::Module, format!("no module that can be loaded: {error}"))
            } else if let Error::MissingSymbol(name) = error {
                let found = format!("a library that is no PKCS#11 module, {shown}: it has no {name}");
                Fault::new(FaultKind::Module, found)
            } else {
                module_fault(&error, &format!("module {shown}"))
            }
        })?;
        // Never unloaded: threads and exit handlers of a module may outlive its use.
        std::mem::forget(context.clone());
        initialize(&context).map_err(|error| module_fault(&error, &format!("module {shown}")))?;
        let description = match context.get_library_info() {
            Ok(info) => {
                let (name, version) = (info.library_description(), info.library_version());
                format!("{} ({}) {version}", name.trim(), info.manufacturer_id().trim())
            }
            Err(_) => shown.to_string(),
        };
        Ok(Pkcs11Module {
            context,
            description,
            generation: Arc::default(),
            slots: Mutex::default(),
        })
    }

    /// The tokens that are there and initialised.
    ///
    /// # Errors
    /// The module does not tell.
    pub fn tokens(&self) -> Result<Vec<TokenDescription>, Fault> {
        let found = self.initialised_tokens()?;
        Ok(found
            .iter()
            .map(|(slot, info)| {
                let mechanisms = self.context.get_mechanism_list(*slot).unwrap_or_default();
                TokenDescription::new(*slot, info, &mechanisms)
            })
            .collect())
    }

    /// Opens a session and logs in, unless the token is logged in to, or wants no login.
    ///
    /// # Errors
    /// As [`Module::open`].
    pub fn session(&self, settings: &TokenSettings, access: Access) -> Result<Pkcs11Session, Fault> {
        let (slot, info) = self.locate(&settings.find)?;
        let state = Arc::clone(self.slots().entry(slot.id()).or_default());
        let refusals = state.refusals.load(Ordering::Acquire);
        let name = shown(&info);
        let session = match access {
            Access::Public | Access::Read => self.context.open_ro_session_no_drop(slot),
            Access::Write => self.context.open_rw_session_no_drop(slot),
        };
        let session = session.map_err(|error| fault(&error, &name))?;
        let session = Pkcs11Session::new(self, session, slot, state, name);
        if access != Access::Public {
            self.login(&session, settings, refusals)?;
        }
        Ok(session)
    }

    fn login(&self, session: &Pkcs11Session, settings: &TokenSettings, refusals: u64) -> Result<(), Fault> {
        let name = session.name();
        let state = session.state();
        let _held = state.login.lock().expect(NO_PANIC);
        if is_logged_in(session.raw()?).map_err(|error| fault(&error, name))? {
            return Ok(());
        }
        let info = self.context.get_token_info(session.slot());
        let info = info.map_err(|error| fault(&error, name))?;
        if !info.login_required() {
            return Ok(());
        }
        let refuse = |why: &str| Err(Fault::new(FaultKind::Pin, format!("{name}, which {why}")));
        if !settings.login {
            return refuse("has refused the PIN and is not asked again until the configuration is loaded again");
        }
        // Each attempt may be one of few: those who waited while one failed do not make another.
        if state.refusals.load(Ordering::Acquire) != refusals {
            return refuse("has just refused the PIN");
        }
        if info.user_pin_locked() {
            return refuse("has locked its PIN after too many wrong ones");
        }
        if info.user_pin_final_try() {
            return refuse("has one attempt at its PIN left, which Ringlock does not use");
        }
        let raw = session.raw()?;
        let login = match &settings.pin {
            Some(source) => raw.login_with_raw(UserType::User, &RawAuthPin::from(Box::new(source.read()?.to_vec()))),
            None if info.protected_authentication_path() => raw.login(UserType::User, None),
            None => return refuse("wants a PIN, for which there is no `pin_source`"),
        };
        match login {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => {
                let fault = fault(&error, name);
                if fault.kind == FaultKind::Pin {
                    state.refusals.fetch_add(1, Ordering::AcqRel);
                }
                Err(fault)
            }
        }
    }

    fn locate(&self, find: &TokenMatch) -> Result<(Slot, TokenInfo), Fault> {
        let tokens = self.initialised_tokens()?;
        let (matching, others): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|(slot, info)| matches(find, *slot, info));
        let list = |tokens: &[(Slot, TokenInfo)]| -> String {
            let names = tokens
                .iter()
                .map(|(slot, info)| format!("{} in slot {slot}", shown(info)));
            names.collect::<Vec<_>>().join(", ")
        };
        match <[_; 1]>::try_from(matching) {
            Ok([token]) => Ok(token),
            Err(matching) => {
                let wanted = describe(find);
                let found = match (matching.as_slice(), others.as_slice()) {
                    ([], []) => format!("no token{wanted}: none is there in {}", self.description),
                    ([], others) => format!("no token{wanted}; there are {}", list(others)),
                    (several, _) => format!("several tokens{wanted}: {}", list(several)),
                };
                Err(Fault::new(FaultKind::Token, found))
            }
        }
    }

    fn initialised_tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Fault> {
        let slots = self.context.get_slots_with_token();
        let slots = slots.map_err(|error| fault(&error, &self.description))?;
        let mut tokens = Vec::new();
        let mut failed = None;
        for slot in slots {
            match self.context.get_token_info(slot) {
                Ok(info) if info.token_initialized() => tokens.push((slot, info)),
                Ok(_) => {}
                // One slot that fails hides no other.
                Err(error) => failed = Some(fault(&error, &format!("slot {slot}"))),
            }
        }
        match failed {
            Some(fault) if tokens.is_empty() => Err(fault),
            _ => Ok(tokens),
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<SlotState>>> {
        self.slots.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "nobody panics while holding it";

impl Module for Pkcs11Module {
    fn description(&self) -> String {
        self.description.clone()
    }

    fn reset(&self) -> Result<(), Fault> {
        // First, so that no session that is left over uses a handle that means another session afterwards.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.slots().clear();
        // A module that has lost its device may be unable to end, and still begin anew.
        let _ = self.context.clone().finalize();
        self.context
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .map_err(|error| module_fault(&error, &self.description))
    }

    fn open(&self, settings: &TokenSettings) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.session(settings, Access::Read)?))
    }
}

impl Drop for Pkcs11Module {
    fn drop(&mut self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Nobody is left to tell.
        let _ = self.context.clone().finalize();
    }
}

fn initialize(context: &Pkcs11) -> Result<(), Error> {
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // By a library of this process that is a user of the module itself.
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        result => result,
    }
}

fn module_fault(error: &Error, of: &str) -> Fault {
    Fault {
        kind: FaultKind::Module,
        ..fault(error, of)
    }
}

fn is_logged_in(session: &RawSession) -> Result<bool, Error> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

/// A token as people know it: label and serial number.
fn shown(info: &TokenInfo) -> String {
    format!(
        "token `{}` (serial number {})",
        trim(info.label()),
        trim(info.serial_number())
    )
}

/// Without the padding: spaces, says the standard, but some modules have zeros.
fn trim(text: &str) -> &str {
    text.trim_end_matches(['\0', ' '])
}

fn matches(find: &TokenMatch, slot: Slot, info: &TokenInfo) -> bool {
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| trim(wanted) == trim(is));
    fits(&find.label, info.label())
        && fits(&find.serial, info.serial_number())
        && fits(&find.manufacturer, info.manufacturer_id())
        && fits(&find.model, info.model())
        && find.slot_id.is_none_or(|id| id == slot.id())
}

/// What is looked for, to be read after "token".
fn describe(find: &TokenMatch) -> String {
    let texts = [
        ("label", &find.label),
        ("serial number", &find.serial),
        ("manufacturer", &find.manufacturer),
        ("model", &find.model),
    ];
    let mut wanted: Vec<String> = texts
        .iter()
        .filter_map(|(what, text)| Some(format!("{what} `{}`", text.as_ref()?)))
        .collect();
    wanted.extend(find.slot_id.map(|id| format!("slot {id}")));
    if wanted.is_empty() {
        String::new()
    } else {
        format!(" with {}", wanted.join(", "))
    }
}

/// A token, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenDescription {
    /// The slot that it is in.
    pub slot_id: u64,
    /// Its label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Its manufacturer.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Whether private keys can be used only after a login.
    pub login_required: bool,
    /// Whether the PIN is entered at the token itself.
    pub protected_authentication_path: bool,
    /// What the token says of its PIN, if not all is well.
    pub pin_trouble: Option<&'static str>,
    /// Whether nothing can be written to it.
    pub write_protected: bool,
    /// Sessions that this process has, if it tells.
    pub sessions: Option<u64>,
    /// Sessions that it can have; absent when it does not tell, or there is no bound.
    pub sessions_max: Option<u64>,
    /// Those of its mechanisms that TLS can use.
    pub mechanisms: Vec<&'static str>,
}

impl TokenDescription {
    fn new(slot: Slot, info: &TokenInfo, mechanisms: &[MechanismType]) -> TokenDescription {
        let pin_trouble = [
            (info.user_pin_locked(), "locked"),
            (info.user_pin_final_try(), "one attempt left"),
            (info.user_pin_count_low(), "wrong at the last login"),
            (info.user_pin_to_be_changed(), "to be changed"),
            (info.login_required() && !info.user_pin_initialized(), "not set"),
        ];
        let trouble = pin_trouble.into_iter().find(|(is, _)| *is).map(|(_, what)| what);
        let known = OF_INTEREST
            .into_iter()
            .filter(|(mechanism, _)| mechanisms.contains(mechanism));
        TokenDescription {
            slot_id: slot.id(),
            label: trim(info.label()).to_owned(),
            serial: trim(info.serial_number()).to_owned(),
            manufacturer: trim(info.manufacturer_id()).to_owned(),
            model: trim(info.model()).to_owned(),
            login_required: info.login_required(),
            protected_authentication_path: info.protected_authentication_path(),
            pin_trouble: trouble,
            write_protected: info.write_protected(),
            sessions: info.session_count(),
            sessions_max: match info.max_session_count() {
                Limit::Max(sessions) => Some(sessions),
                Limit::Unavailable | Limit::Infinite => None,
            },
            mechanisms: known.map(|(_, name)| name).collect(),
        }
    }
}

const OF_INTEREST: [(MechanismType, &str); 7] = [
    (MechanismType::ECDSA, "CKM_ECDSA"),
    (MechanismType::EDDSA, "CKM_EDDSA"),
    (MechanismType::RSA_PKCS_PSS, "CKM_RSA_PKCS_PSS"),
    (MechanismType::RSA_PKCS, "CKM_RSA_PKCS"),
    (MechanismType::ECC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"),
    (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, "CKM_EC_EDWARDS_KEY_PAIR_GEN"),
    (MechanismType::RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"),
];
