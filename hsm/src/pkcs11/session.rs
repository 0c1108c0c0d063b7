//! A session with a token: keys are found, and used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session as RawSession;
use cryptoki::slot::Slot;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::error::fault;
use super::{NO_PANIC, Pkcs11Module, SlotState, TokenDescription, is_logged_in};
use crate::protocol::{Fault, FaultKind, KeyPlace};
use crate::scheme::{KeyKind, Method, PublicKeyError, ec_public_key, rsa_public_key};
use crate::token::{FoundKey, Session};
use crate::uri::ObjectMatch;

/// More objects of a kind are not named in a fault.
const OBJECTS_NAMED_MAX: usize = 20;

/// A session with a token.
pub struct Pkcs11Session {
    /// Taken when it is closed, by `drop` alone.
    session: Option<RawSession>,
    context: Pkcs11,
    slot: Slot,
    state: Arc<SlotState>,
    name: String,
    /// Of the module when the session was opened, and now.
    generation: u64,
    current: Arc<AtomicU64>,
}

impl Pkcs11Session {
    pub(super) fn new(
        module: &Pkcs11Module,
        session: RawSession,
        slot: Slot,
        state: Arc<SlotState>,
        name: String,
    ) -> Pkcs11Session {
        Pkcs11Session {
            session: Some(session),
            context: module.context.clone(),
            slot,
            state,
            name,
            generation: module.generation.load(Ordering::Acquire),
            current: Arc::clone(&module.generation),
        }
    }

    /// The session, unless the module has begun anew since: its handle may be that of another one then.
    pub(super) fn raw(&self) -> Result<&RawSession, Fault> {
        match &self.session {
            Some(session) if self.generation == self.current.load(Ordering::Acquire) => Ok(session),
            _ => Err(self.lost(RvError::SessionHandleInvalid, "module that has begun anew")),
        }
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    pub(super) fn state(&self) -> &SlotState {
        &self.state
    }

    /// The token, for people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn fault(&self, error: &Error) -> Fault {
        fault(error, &self.name)
    }

    fn lost(&self, error: RvError, why: &str) -> Fault {
        let name = super::error::name(error);
        Fault {
            kind: FaultKind::Device,
            found: format!("{}, a {why}", self.name),
            ckr: Some(name),
        }
    }

    /// The token, for people and programs.
    ///
    /// # Errors
    /// The token failed.
    pub fn description(&self) -> Result<TokenDescription, Fault> {
        let info = self.context.get_token_info(self.slot);
        let info = info.map_err(|error| self.fault(&error))?;
        Ok(TokenDescription::new(self.slot, &info, &self.mechanisms()?))
    }

    fn mechanisms(&self) -> Result<Vec<MechanismType>, Fault> {
        let list = self.context.get_mechanism_list(self.slot);
        list.map_err(|error| self.fault(&error))
    }

    /// Objects of a class with these names.
    pub(super) fn objects_like(&self, class: ObjectClass, object: &ObjectMatch) -> Result<Vec<ObjectHandle>, Fault> {
        let mut template = vec![Attribute::Class(class)];
        template.extend(
            object
                .label
                .as_ref()
                .map(|label| Attribute::Label(label.clone().into_bytes())),
        );
        template.extend(object.id.as_ref().map(|id| Attribute::Id(id.clone())));
        self.raw()?.find_objects(&template).map_err(|error| self.fault(&error))
    }

    /// Those of an object's attributes that the token tells.
    pub(super) fn attributes(&self, object: ObjectHandle, types: &[AttributeType]) -> Result<Attributes, Fault> {
        let session = self.raw()?;
        if types.is_empty() {
            return Ok(Attributes(Vec::new()));
        }
        match session.get_attributes(object, types) {
            Ok(attributes) => Ok(Attributes(attributes)),
            Err(error @ Error::Pkcs11(..)) => Err(self.fault(&error)),
            // One of them makes no sense: the others may.
            Err(_) => {
                let each = types
                    .iter()
                    .filter_map(|one| session.get_attributes(object, &[*one]).ok());
                Ok(Attributes(each.flatten().collect()))
            }
        }
    }

    pub(super) fn names(&self, object: ObjectHandle) -> Result<ObjectMatch, Fault> {
        let names = self.attributes(object, &[AttributeType::Label, AttributeType::Id])?;
        Ok(ObjectMatch {
            label: names.label(),
            id: names.id(),
        })
    }

    /// The public key of a private one: from itself, from the public key with its CKA_ID (or label), or from a certificate.
    pub(super) fn public_key(&self, key: ObjectHandle) -> Result<Vec<u8>, Fault> {
        let names = self.names(key)?;
        // Without an identifier the label is what they have in common.
        let partner = match &names.id {
            Some(id) => ObjectMatch {
                label: None,
                id: Some(id.clone()),
            },
            None => names.clone(),
        };
        let mut candidates = vec![key];
        if partner != ObjectMatch::default() {
            candidates.extend(self.objects_like(ObjectClass::PUBLIC_KEY, &partner)?);
        }
        let mut bad = None;
        for candidate in candidates {
            match self.public_key_of(candidate)? {
                Some(Ok(public)) => return Ok(public),
                Some(Err(error)) => bad = Some(error),
                None => {}
            }
        }
        if partner != ObjectMatch::default() {
            for certificate in self.certificate_values(&partner)? {
                if let Some(public) = public_key_of_certificate(certificate) {
                    return Ok(public);
                }
            }
        }
        let key = describe(&names);
        let (kind, found) = match bad {
            Some(error) => (
                FaultKind::Mechanism,
                format!("private key{key} in {} with {error}", self.name),
            ),
            None => (
                FaultKind::Object,
                format!(
                    "private key{key} in {} without a public key: there is no CKO_PUBLIC_KEY and no certificate with the same CKA_ID",
                    self.name
                ),
            ),
        };
        Err(Fault::new(kind, found))
    }

    /// What an object's own attributes say; nothing when they say nothing.
    pub(super) fn public_key_of(&self, object: ObjectHandle) -> Result<Option<Result<Vec<u8>, PublicKeyError>>, Fault> {
        use AttributeType as T;
        let attributes = self.attributes(
            object,
            &[T::KeyType, T::Modulus, T::PublicExponent, T::EcParams, T::EcPoint],
        )?;
        let is = |kind| attributes.0.contains(&Attribute::KeyType(kind));
        let rsa = (attributes.bytes(T::Modulus), attributes.bytes(T::PublicExponent));
        if let (true, (Some(modulus), Some(exponent))) = (is(KeyType::RSA), rsa) {
            return Ok(Some(rsa_public_key(modulus, exponent)));
        }
        let ec = (attributes.bytes(T::EcParams), attributes.bytes(T::EcPoint));
        if let (true, (Some(parameters), Some(point))) = (is(KeyType::EC) || is(KeyType::EC_EDWARDS), ec) {
            return Ok(Some(ec_public_key(parameters, point)));
        }
        // Asked for alone: many modules do not know it, and some then tell nothing else either.
        let whole = self.attributes(object, &[T::PublicKeyInfo]).ok();
        let whole = whole.as_ref().and_then(|attributes| attributes.bytes(T::PublicKeyInfo));
        Ok(whole
            .filter(|public| KeyKind::of(public).is_some())
            .map(|public| Ok(public.to_vec())))
    }

    fn certificate_values(&self, object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault> {
        let mut found = Vec::new();
        for handle in self.objects_like(ObjectClass::CERTIFICATE, object)? {
            let attributes = self.attributes(handle, &[AttributeType::CertificateType, AttributeType::Value])?;
            let other = |attribute: &Attribute| matches!(attribute, Attribute::CertificateType(kind) if *kind != CertificateType::X_509);
            if let (false, Some(value)) = (attributes.0.iter().any(other), attributes.bytes(AttributeType::Value)) {
                found.push(value.to_vec());
            }
        }
        Ok(found)
    }

    /// "no private key with label `x`; there are …"
    fn none_like(&self, what: &str, class: ObjectClass, object: &ObjectMatch) -> Fault {
        let others = match self.objects_like(class, &ObjectMatch::default()) {
            Ok(others) => others,
            Err(fault) => return fault,
        };
        let there = if others.is_empty() {
            String::from("it holds none")
        } else {
            format!("it holds {}", self.list(&others))
        };
        Fault::new(
            FaultKind::Object,
            format!("no {what}{} in {}; {there}", describe(object), self.name),
        )
    }

    fn list(&self, objects: &[ObjectHandle]) -> String {
        let mut names: Vec<String> = objects
            .iter()
            .take(OBJECTS_NAMED_MAX)
            .map(|object| match self.names(*object) {
                Ok(names) => format!("one{}", describe(&names)),
                Err(_) => format!("one with handle {object}"),
            })
            .collect();
        // Tokens list them in any order; what is said twice should be the same.
        names.sort();
        if objects.len() > OBJECTS_NAMED_MAX {
            names.push(format!("{} more", objects.len() - OBJECTS_NAMED_MAX));
        }
        names.join(", ")
    }

    fn private_key(&self, object: &ObjectMatch) -> Result<(ObjectHandle, Vec<u8>), Fault> {
        let all = self.objects_like(ObjectClass::PRIVATE_KEY, object)?;
        let mut keys = Vec::new();
        for handle in &all {
            let attributes = self.attributes(*handle, &[AttributeType::Sign])?;
            if attributes.flag(Attribute::Sign) != Some(false) {
                keys.push(*handle);
            }
        }
        let (first, rest) = match keys.as_slice() {
            [] if all.is_empty() => return Err(self.none_like("private key", ObjectClass::PRIVATE_KEY, object)),
            [] => {
                let found = format!(
                    "private key{} in {} that may not sign: its CKA_SIGN is false",
                    describe(object),
                    self.name
                );
                return Err(Fault::new(FaultKind::Object, found));
            }
            [first, rest @ ..] => (*first, rest),
        };
        if rest.is_empty() {
            return Ok((first, self.public_key(first)?));
        }
        // Several objects of the same key are one.
        let public = self.public_key(first);
        if let Ok(public) = public
            && rest.iter().all(|other| self.public_key(*other).as_ref() == Ok(&public))
        {
            return Ok((first, public));
        }
        let found = format!(
            "several private keys{} in {}: {}",
            describe(object),
            self.name,
            self.list(&keys)
        );
        Err(Fault::new(FaultKind::Object, found))
    }
}

impl Session for Pkcs11Session {
    fn token(&self) -> String {
        self.name.clone()
    }

    fn find(&mut self, place: &KeyPlace) -> Result<FoundKey, Fault> {
        let KeyPlace::Object(object) = place else {
            return Err(Fault::new(FaultKind::Object, "a file asked of a token"));
        };
        let (key, public) = self.private_key(object)?;
        let kind = KeyKind::of(&public);
        let unusable = |why: String| {
            let found = format!("private key{} in {}, {why}", describe(object), self.name);
            Err(Fault::new(FaultKind::Mechanism, found))
        };
        let always = self.attributes(key, &[AttributeType::AlwaysAuthenticate])?;
        if always.flag(Attribute::AlwaysAuthenticate) == Some(true) {
            return unusable("which wants the PIN for each signature (CKA_ALWAYS_AUTHENTICATE)".to_owned());
        }
        let Some(kind) = kind else {
            return unusable("which is none of RSA, ECDSA and Ed25519".to_owned());
        };
        let mechanisms = self.mechanisms()?;
        let schemes: Vec<_> = kind
            .methods(&mechanisms)
            .map(|(scheme, method)| (scheme, method.name()))
            .collect();
        if schemes.is_empty() {
            return unusable(format!("{kind}, for which the token has no mechanism that TLS can use"));
        }
        let handle = key.handle();
        self.state.objects.lock().expect(NO_PANIC).insert(handle, key);
        Ok(FoundKey {
            handle,
            public,
            schemes,
        })
    }

    fn sign(&mut self, key: &FoundKey, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let Some(method) = Method::of(scheme) else {
            return Err(Fault::new(FaultKind::Mechanism, format!("no mechanism for {scheme:?}")));
        };
        let object = self.state.objects.lock().expect(NO_PANIC).get(&key.handle).copied();
        let Some(object) = object else {
            return Err(self.lost(RvError::KeyHandleInvalid, "token in which the key has not been found"));
        };
        let made = self.raw()?.sign(&method.mechanism(), object, &method.input(message));
        let made = made.map_err(|error| self.fault(&error))?;
        let bytes = made.len();
        method.output(made).ok_or_else(|| {
            let found = format!(
                "{bytes} bytes in place of a signature by {} from {}",
                method.name(),
                self.name
            );
            Fault::new(FaultKind::Device, found)
        })
    }

    fn certificates(&mut self, object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault> {
        let found = self.certificate_values(object)?;
        if found.is_empty() {
            return Err(self.none_like("certificate", ObjectClass::CERTIFICATE, object));
        }
        Ok(found)
    }

    fn touch(&mut self) -> Result<(), Fault> {
        let session = self.raw()?;
        let logged_in = is_logged_in(session).map_err(|error| self.fault(&error))?;
        // A module answers that from memory; a token has to be asked for what it says of itself.
        let info = self
            .context
            .get_token_info(self.slot)
            .map_err(|error| self.fault(&error))?;
        if info.login_required() && !logged_in {
            return Err(self.lost(RvError::UserNotLoggedIn, "token that has forgotten its login"));
        }
        if !info.rng() {
            return Ok(());
        }
        match session.generate_random_slice(&mut [0]) {
            Ok(()) | Err(Error::Pkcs11(RvError::RandomNoRng | RvError::FunctionNotSupported, _)) => Ok(()),
            Err(error) => Err(self.fault(&error)),
        }
    }
}

impl Drop for Pkcs11Session {
    fn drop(&mut self) {
        let lost = self.raw().is_err();
        if let (Some(session), false) = (self.session.take(), lost) {
            // Nobody is left to tell.
            let _ = session.close();
        }
    }
}

/// Attributes of one object, as far as the token tells them.
pub(super) struct Attributes(Vec<Attribute>);

impl Attributes {
    fn label(&self) -> Option<String> {
        let label = self.bytes(AttributeType::Label)?;
        Some(String::from_utf8_lossy(label).into_owned())
    }

    fn id(&self) -> Option<Vec<u8>> {
        self.bytes(AttributeType::Id).map(<[u8]>::to_vec)
    }

    /// One that is true or false, such as `Attribute::Sign`.
    pub(super) fn flag(&self, attribute: fn(bool) -> Attribute) -> Option<bool> {
        [true, false].into_iter().find(|is| self.0.contains(&attribute(*is)))
    }

    /// One whose value is bytes; nothing when it is empty, which is how many tokens say that they have none.
    fn bytes(&self, kind: AttributeType) -> Option<&[u8]> {
        let attribute = self.0.iter().find(|attribute| attribute.attribute_type() == kind)?;
        if let Attribute::Label(bytes)
        | Attribute::Id(bytes)
        | Attribute::Modulus(bytes)
        | Attribute::PublicExponent(bytes)
        | Attribute::EcParams(bytes)
        | Attribute::EcPoint(bytes)
        | Attribute::PublicKeyInfo(bytes)
        | Attribute::Value(bytes) = attribute
            && !bytes.is_empty()
        {
            return Some(bytes);
        }
        None
    }
}

fn public_key_of_certificate(der: Vec<u8>) -> Option<Vec<u8>> {
    let der = CertificateDer::from(der);
    let public = EndEntityCert::try_from(&der).ok()?.subject_public_key_info().to_vec();
    KeyKind::of(&public).map(|_| public)
}

/// What is looked for, to be read after "key".
fn describe(object: &ObjectMatch) -> String {
    let label = object.label.as_ref().map(|label| format!("label `{label}`"));
    let id = object.id.as_ref().map(|id| format!("id {}", hex(id)));
    let names: Vec<String> = label.into_iter().chain(id).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" with {}", names.join(" and "))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
