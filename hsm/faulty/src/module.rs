//! Slots, sessions and logins: what the module does, once pointers are out of the way.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki_sys::*;
use rustix::thread::set_current_timer_slack;

use crate::cue::{Absence, Cue, Operation};
use crate::folder::{Place, disk, of_module};
use crate::key::{Key, MECHANISMS, Mechanism};
use crate::object::{Object, load};

/// A wrong PIN so many times locks the token.
const PIN_FAILURES_MAX: u64 = 3;

/// What `C_Initialize` made, until `C_Finalize`. Held for no longer than a look takes: calls wait and sign without it.
static MODULE: Mutex<Option<Module>> = Mutex::new(None);

type Answer<T> = Result<T, CK_RV>;
type Template = Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>;

struct Module {
    place: Arc<Place>,
    slots: Vec<Slot>,
    sessions: BTreeMap<CK_SESSION_HANDLE, Session>,
}

/// A slot, which a token of this name is in or is not.
struct Slot {
    label: String,
    place: Arc<Place>,
    /// `None`: no token is there.
    objects: Option<BTreeMap<CK_OBJECT_HANDLE, Object>>,
    /// It has gone, and is not seen again before the module is initialized anew.
    stays_away: bool,
    logged_in: bool,
}

struct Session {
    slot: usize,
    writes: bool,
    used: Instant,
    found: Vec<CK_OBJECT_HANDLE>,
    signs: Option<(Mechanism, Arc<Key>)>,
}

pub(crate) fn initialize() -> Answer<()> {
    let place = of_module().and_then(|folder| Place::open(&folder));
    let place = Arc::new(place.map_err(|error| disk(&error))?);
    place.count_call("C_Initialize");
    place.obey(Operation::Initialize)?;
    let mut state = lock();
    if state.is_some() {
        return Err(CKR_CRYPTOKI_ALREADY_INITIALIZED);
    }
    let mut slots = Vec::new();
    for (label, folder) in place.tokens().map_err(|error| disk(&error))? {
        let place = Place::open(&folder).map_err(|error| disk(&error))?;
        slots.push(Slot {
            label,
            place: Arc::new(place),
            objects: None,
            stays_away: false,
            logged_in: false,
        });
    }
    *state = Some(Module {
        place,
        slots,
        sessions: BTreeMap::new(),
    });
    Ok(())
}

pub(crate) fn finalize() -> Answer<()> {
    let module = lock().take().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    module.place.count_call("C_Finalize");
    Ok(())
}

pub(crate) fn info() -> Answer<CK_INFO> {
    outside("C_GetInfo", Operation::Info)?;
    Ok(CK_INFO {
        cryptokiVersion: VERSION,
        manufacturerID: padded("Ringlock"),
        flags: 0,
        libraryDescription: padded("fails on cue, for tests only"),
        libraryVersion: CK_VERSION { major: 1, minor: 0 },
    })
}

/// The version of PKCS#11 that this is.
pub(crate) const VERSION: CK_VERSION = CK_VERSION { major: 2, minor: 40 };

pub(crate) fn slots(with_token: bool) -> Answer<Vec<CK_SLOT_ID>> {
    outside("C_GetSlotList", Operation::List)?;
    with(|module| {
        let mut found = Vec::new();
        for slot in 0..module.slots.len() {
            let present = module.token(slot).is_ok();
            if present || !with_token {
                found.push(slot as CK_SLOT_ID);
            }
        }
        Ok(found)
    })
}

pub(crate) fn slot_info(slot: CK_SLOT_ID) -> Answer<CK_SLOT_INFO> {
    with(|module| {
        let label = &module.slot(slot)?.label;
        let slot_description = padded(&format!("slot of {label}"));
        let present = module.token(slot as usize).is_ok();
        Ok(CK_SLOT_INFO {
            slotDescription: slot_description,
            manufacturerID: padded("Ringlock"),
            flags: CKF_REMOVABLE_DEVICE | if present { CKF_TOKEN_PRESENT } else { 0 },
            hardwareVersion: CK_VERSION::default(),
            firmwareVersion: CK_VERSION::default(),
        })
    })
}

pub(crate) fn token_info(slot: CK_SLOT_ID) -> Answer<CK_TOKEN_INFO> {
    in_token(slot, "C_GetTokenInfo", Operation::Info, |module, index, cue| {
        let slot = &module.slots[index];
        let mut flags = CKF_TOKEN_INITIALIZED;
        if slot.place.pin().is_some() {
            flags |= CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED;
        }
        let failures = slot.place.pin_failures();
        if failures >= PIN_FAILURES_MAX {
            flags |= CKF_USER_PIN_LOCKED;
        } else if failures > 0 {
            flags |= CKF_USER_PIN_COUNT_LOW;
            if failures + 1 == PIN_FAILURES_MAX {
                flags |= CKF_USER_PIN_FINAL_TRY;
            }
        }
        let sessions = || module.sessions.values().filter(|session| session.slot == index);
        let sessions_max = cue.sessions_max.map_or(CK_EFFECTIVELY_INFINITE, |max| max as CK_ULONG);
        let hash = digest(&SHA256, slot.label.as_bytes());
        let serial: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(CK_TOKEN_INFO {
            label: padded(&slot.label),
            manufacturerID: padded("Ringlock"),
            model: padded("faulty"),
            serialNumber: padded(&serial),
            flags,
            ulMaxSessionCount: sessions_max,
            ulSessionCount: sessions().count() as CK_ULONG,
            ulMaxRwSessionCount: sessions_max,
            ulRwSessionCount: sessions().filter(|session| session.writes).count() as CK_ULONG,
            ulMaxPinLen: 255,
            ulMinPinLen: 1,
            ulTotalPublicMemory: CK_UNAVAILABLE_INFORMATION,
            ulFreePublicMemory: CK_UNAVAILABLE_INFORMATION,
            ulTotalPrivateMemory: CK_UNAVAILABLE_INFORMATION,
            ulFreePrivateMemory: CK_UNAVAILABLE_INFORMATION,
            hardwareVersion: CK_VERSION::default(),
            firmwareVersion: CK_VERSION::default(),
            utcTime: padded(""),
        })
    })
}

pub(crate) fn mechanisms(slot: CK_SLOT_ID) -> Answer<Vec<CK_MECHANISM_TYPE>> {
    in_token(slot, "C_GetMechanismList", Operation::Info, |_, _, _| {
        Ok(MECHANISMS.map(|(mechanism, ..)| mechanism).to_vec())
    })
}

pub(crate) fn mechanism_info(slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE) -> Answer<CK_MECHANISM_INFO> {
    in_token(slot, "C_GetMechanismInfo", Operation::Info, |_, _, _| {
        let found = MECHANISMS.iter().find(|(known, ..)| *known == mechanism);
        let (_, shortest, longest) = found.ok_or(CKR_MECHANISM_INVALID)?;
        Ok(CK_MECHANISM_INFO {
            ulMinKeySize: *shortest as CK_ULONG,
            ulMaxKeySize: *longest as CK_ULONG,
            flags: CKF_SIGN,
        })
    })
}

pub(crate) fn open_session(slot: CK_SLOT_ID, flags: CK_FLAGS) -> Answer<CK_SESSION_HANDLE> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if flags & CKF_SERIAL_SESSION == 0 {
        return Err(CKR_SESSION_PARALLEL_NOT_SUPPORTED);
    }
    in_token(slot, "C_OpenSession", Operation::Open, |module, slot, cue| {
        let sessions = module.sessions.values().filter(|session| session.slot == slot).count();
        if cue.sessions_max.is_some_and(|max| sessions >= max) {
            return Err(CKR_SESSION_COUNT);
        }
        let handle = NEXT.fetch_add(1, Ordering::Relaxed) as CK_SESSION_HANDLE;
        module.sessions.insert(
            handle,
            Session {
                slot,
                writes: flags & CKF_RW_SESSION != 0,
                used: Instant::now(),
                found: Vec::new(),
                signs: None,
            },
        );
        Ok(handle)
    })
}

pub(crate) fn close_session(session: CK_SESSION_HANDLE) -> Answer<()> {
    in_session(session, "C_CloseSession", Operation::Close, |module, handle, _| {
        module.drop_sessions(|candidate, _| candidate == handle);
        Ok(())
    })
}

pub(crate) fn close_all_sessions(slot: CK_SLOT_ID) -> Answer<()> {
    in_token(slot, "C_CloseAllSessions", Operation::Close, |module, slot, _| {
        module.drop_sessions(|_, session| session.slot == slot);
        Ok(())
    })
}

pub(crate) fn session_info(session: CK_SESSION_HANDLE) -> Answer<CK_SESSION_INFO> {
    in_session(session, "C_GetSessionInfo", Operation::Info, |module, handle, _| {
        let session = &module.sessions[&handle];
        let state = match (session.writes, module.slots[session.slot].logged_in) {
            (false, false) => CKS_RO_PUBLIC_SESSION,
            (false, true) => CKS_RO_USER_FUNCTIONS,
            (true, false) => CKS_RW_PUBLIC_SESSION,
            (true, true) => CKS_RW_USER_FUNCTIONS,
        };
        Ok(CK_SESSION_INFO {
            slotID: session.slot as CK_SLOT_ID,
            state,
            flags: CKF_SERIAL_SESSION | if session.writes { CKF_RW_SESSION } else { 0 },
            ulDeviceError: 0,
        })
    })
}

pub(crate) fn login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: &[u8]) -> Answer<()> {
    in_session(session, "C_Login", Operation::Login, |module, handle, _| {
        if user != CKU_USER {
            return Err(CKR_USER_TYPE_INVALID);
        }
        let slot = module.sessions[&handle].slot;
        let slot = &mut module.slots[slot];
        if slot.logged_in {
            return Err(CKR_USER_ALREADY_LOGGED_IN);
        }
        let right = slot.place.pin().ok_or(CKR_USER_PIN_NOT_INITIALIZED)?;
        if slot.place.pin_failures() >= PIN_FAILURES_MAX {
            return Err(CKR_PIN_LOCKED);
        }
        if pin != right {
            slot.place.count_pin_failure().map_err(|error| disk(&error))?;
            return Err(CKR_PIN_INCORRECT);
        }
        slot.place.forget_pin_failures();
        slot.logged_in = true;
        Ok(())
    })
}

pub(crate) fn logout(session: CK_SESSION_HANDLE) -> Answer<()> {
    in_session(session, "C_Logout", Operation::Login, |module, handle, _| {
        let slot = module.sessions[&handle].slot;
        if !std::mem::take(&mut module.slots[slot].logged_in) {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        Ok(())
    })
}

pub(crate) fn find_init(session: CK_SESSION_HANDLE, template: &Template) -> Answer<()> {
    in_session(session, "C_FindObjectsInit", Operation::Find, |module, handle, _| {
        let objects = module.visible(module.sessions[&handle].slot);
        let found = objects.filter(|(_, object)| object.matches(template));
        // Taken from its end.
        let found: Vec<_> = found.map(|(&handle, _)| handle).collect();
        module.session(handle)?.found = found.into_iter().rev().collect();
        Ok(())
    })
}

pub(crate) fn find(session: CK_SESSION_HANDLE, most: usize) -> Answer<Vec<CK_OBJECT_HANDLE>> {
    in_session(session, "C_FindObjects", Operation::Find, |module, handle, _| {
        let found = &mut module.session(handle)?.found;
        let rest = found.len().saturating_sub(most);
        Ok(found.split_off(rest).into_iter().rev().collect())
    })
}

pub(crate) fn find_final(session: CK_SESSION_HANDLE) -> Answer<()> {
    in_session(session, "C_FindObjectsFinal", Operation::Find, |module, handle, _| {
        module.session(handle)?.found.clear();
        Ok(())
    })
}

/// The values of these attributes, each by itself: some may be missing or not for reading.
pub(crate) fn attributes(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    wanted: &[CK_ATTRIBUTE_TYPE],
) -> Answer<Vec<Answer<Vec<u8>>>> {
    in_session(session, "C_GetAttributeValue", Operation::Read, |module, handle, _| {
        let mut objects = module.visible(module.sessions[&handle].slot);
        let (_, object) = objects
            .find(|(handle, _)| **handle == object)
            .ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        let value = |&attribute| object.attribute(attribute).map(<[u8]>::to_vec);
        Ok(wanted.iter().map(value).collect())
    })
}

pub(crate) fn sign_init(session: CK_SESSION_HANDLE, mechanism: Mechanism, key: CK_OBJECT_HANDLE) -> Answer<()> {
    in_session(session, "C_SignInit", Operation::Read, |module, handle, _| {
        if module.sessions[&handle].signs.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        let slot = module.sessions[&handle].slot;
        let mut objects = module.visible(slot);
        let (_, object) = objects
            .find(|(handle, _)| **handle == key)
            .ok_or(CKR_KEY_HANDLE_INVALID)?;
        let key = object.key.clone().ok_or(CKR_KEY_FUNCTION_NOT_PERMITTED)?;
        key.signature_bytes(mechanism)?;
        drop(objects);
        module.session(handle)?.signs = Some((mechanism, key));
        Ok(())
    })
}

/// How long the signature will be. The operation goes on.
pub(crate) fn signature_bytes(session: CK_SESSION_HANDLE) -> Answer<usize> {
    with(|module| {
        let (mechanism, key) = module
            .session(session)?
            .signs
            .as_ref()
            .ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        key.signature_bytes(*mechanism)
    })
}

pub(crate) fn sign(session: CK_SESSION_HANDLE, data: &[u8]) -> Answer<Vec<u8>> {
    // The operation ends here, whatever comes of it.
    let taken = with(|module| Ok(module.session(session)?.signs.take()))?;
    let (cue, place) = in_session(session, "C_Sign", Operation::Sign, |module, handle, cue| {
        let slot = module.sessions[&handle].slot;
        Ok((Arc::clone(cue), Arc::clone(&module.slots[slot].place)))
    })?;
    let (mechanism, key) = taken.ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    let begin = Instant::now();
    let mut signature = key.sign(mechanism, data)?;
    if !cue.latency.is_zero() {
        // Sleeping takes 50 µs longer unless the thread says otherwise. Fails nowhere; later would be later.
        let _ = set_current_timer_slack(Some(NonZeroU64::MIN));
        sleep(cue.latency.saturating_sub(begin.elapsed()));
    }
    if cue.wrong && place.fires(&cue) {
        let last = signature.last_mut().expect("signatures are not empty");
        *last ^= 1;
    }
    // The session may have gone meanwhile, and with it what it would have answered.
    with(|module| {
        module.session(session)?.used = Instant::now();
        Ok(signature)
    })
}

impl Module {
    fn slot(&self, slot: CK_SLOT_ID) -> Answer<&Slot> {
        usize::try_from(slot)
            .ok()
            .and_then(|slot| self.slots.get(slot))
            .ok_or(CKR_SLOT_ID_INVALID)
    }

    fn session(&mut self, session: CK_SESSION_HANDLE) -> Answer<&mut Session> {
        self.sessions.get_mut(&session).ok_or(CKR_SESSION_HANDLE_INVALID)
    }

    /// Looks whether the token is there, and what the cue says. A token that comes is loaded; one that goes takes its sessions along.
    fn token(&mut self, index: usize) -> Answer<Arc<Cue>> {
        let slot = &mut self.slots[index];
        let cue = slot.place.cue();
        slot.stays_away |= cue.absent == Some(Absence::Sticky);
        if cue.absent.is_some() || slot.stays_away {
            slot.objects = None;
            self.drop_sessions(|_, session| session.slot == index);
            return Err(CKR_TOKEN_NOT_PRESENT);
        }
        if slot.objects.is_none() {
            slot.objects = Some(load(&slot.place)?);
        }
        if let Some(limit) = cue.drop_idle {
            self.drop_sessions(|_, session| session.slot == index && session.used.elapsed() > limit);
        }
        Ok(cue)
    }

    /// Forgets sessions. The login ends with the last session of a token.
    fn drop_sessions(&mut self, gone: impl Fn(CK_SESSION_HANDLE, &Session) -> bool) {
        self.sessions.retain(|&handle, session| !gone(handle, session));
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.logged_in &= self.sessions.values().any(|session| session.slot == index);
        }
    }

    /// What may be seen of a token now: private keys only after a login, if it wants one.
    fn visible(&self, slot: usize) -> impl Iterator<Item = (&CK_OBJECT_HANDLE, &Object)> {
        let slot = &self.slots[slot];
        let all = slot.logged_in || slot.place.pin().is_none();
        let objects = slot.objects.iter().flatten();
        objects.filter(move |(_, object)| all || object.key.is_none())
    }
}

/// A call that concerns no token.
fn outside(function: &str, operation: Operation) -> Answer<()> {
    let place = with(|module| Ok(Arc::clone(&module.place)))?;
    place.count_call(function);
    place.obey(operation)
}

/// A call for a slot's token: counted, done as the cue wants it, and only then answered.
fn in_token<T>(
    slot: CK_SLOT_ID,
    function: &str,
    operation: Operation,
    answer: impl FnOnce(&mut Module, usize, &Arc<Cue>) -> Answer<T>,
) -> Answer<T> {
    let place = with(|module| Ok(Arc::clone(&module.slot(slot)?.place)))?;
    place.count_call(function);
    place.obey(operation)?;
    with(|module| {
        module.slot(slot)?;
        let cue = module.token(slot as usize)?;
        answer(module, slot as usize, &cue)
    })
}

/// The same for a session's token. Whoever loses a session is told by [`CKR_DEVICE_REMOVED`] if the token has gone.
fn in_session<T>(
    session: CK_SESSION_HANDLE,
    function: &str,
    operation: Operation,
    answer: impl FnOnce(&mut Module, CK_SESSION_HANDLE, &Arc<Cue>) -> Answer<T>,
) -> Answer<T> {
    let place = with(|module| {
        let slot = module.session(session)?.slot;
        Ok(Arc::clone(&module.slots[slot].place))
    })?;
    place.count_call(function);
    place.obey(operation)?;
    with(|module| {
        let slot = module.session(session)?.slot;
        let cue = module.token(slot).map_err(|code| match code {
            CKR_TOKEN_NOT_PRESENT => CKR_DEVICE_REMOVED,
            code => code,
        })?;
        module.session(session)?.used = Instant::now();
        answer(module, session, &cue)
    })
}

fn with<T>(look: impl FnOnce(&mut Module) -> Answer<T>) -> Answer<T> {
    look(lock().as_mut().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?)
}

fn lock() -> MutexGuard<'static, Option<Module>> {
    MODULE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Text as PKCS#11 has it: cut or filled up with spaces.
fn padded<const BYTES: usize>(text: &str) -> [CK_UTF8CHAR; BYTES] {
    let mut padded = [b' '; BYTES];
    for (place, byte) in padded.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    padded
}
