//! What an operator does with a token: sees what it holds, and makes keys in it.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use serde::Serialize;

use super::session::{Pkcs11Session, hex};
use crate::protocol::{Fault, FaultKind};
use crate::scheme::{Curve, KeyKind, ed25519_parameters};
use crate::uri::ObjectMatch;

/// An object of a token, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectDescription {
    /// "private key", "public key" or "certificate".
    pub class: &'static str,
    /// CKA_LABEL
    pub label: Option<String>,
    /// CKA_ID, in hexadecimal digits.
    pub id: Option<String>,
    /// Of keys: algorithm with size or curve.
    pub key: Option<String>,
    /// Whether it may sign; of private keys.
    pub sign: Option<bool>,
    /// Whether the token never shows its value; of private keys.
    pub sensitive: Option<bool>,
    /// Whether it may leave the token, wrapped; of private keys.
    pub extractable: Option<bool>,
}

/// What key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKey {
    /// ECDSA
    Ec(Curve),
    /// RSA with so many bits.
    Rsa(u32),
    /// Ed25519
    Ed25519,
}

impl Pkcs11Session {
    /// The keys and certificates that the token holds.
    ///
    /// # Errors
    /// The token failed.
    pub fn objects(&mut self) -> Result<Vec<ObjectDescription>, Fault> {
        use AttributeType as T;
        let classes = [
            ("private key", ObjectClass::PRIVATE_KEY),
            ("public key", ObjectClass::PUBLIC_KEY),
            ("certificate", ObjectClass::CERTIFICATE),
        ];
        let mut found = Vec::new();
        for (name, class) in classes {
            for object in self.objects_like(class, &ObjectMatch::default())? {
                let names = self.names(object)?;
                let public = if class == ObjectClass::PRIVATE_KEY {
                    self.public_key(object).ok()
                } else if class == ObjectClass::PUBLIC_KEY {
                    self.public_key_of(object)?.and_then(Result::ok)
                } else {
                    None
                };
                let flags = if class == ObjectClass::PRIVATE_KEY {
                    &[T::Sign, T::Sensitive, T::Extractable][..]
                } else {
                    &[]
                };
                let flags = self.attributes(object, flags)?;
                found.push(ObjectDescription {
                    class: name,
                    label: names.label,
                    id: names.id.as_deref().map(hex),
                    key: public
                        .and_then(|public| KeyKind::of(&public))
                        .map(|kind| kind.to_string()),
                    sign: flags.flag(Attribute::Sign),
                    sensitive: flags.flag(Attribute::Sensitive),
                    extractable: flags.flag(Attribute::Extractable),
                });
            }
        }
        // Tokens list them in any order.
        let class = |object: &ObjectDescription| classes.iter().position(|(name, _)| *name == object.class);
        found.sort_by_cached_key(|object| (class(object), object.label.clone(), object.id.clone()));
        Ok(found)
    }

    /// Makes a key pair in the token: to sign with, and never to leave it. The session has to be one that may write.
    ///
    /// # Errors
    /// An object has that label or identifier, or the token failed.
    pub fn generate(&mut self, kind: NewKey, label: &str, id: &[u8]) -> Result<(), Fault> {
        let by_label = ObjectMatch {
            label: Some(label.to_owned()),
            id: None,
        };
        let by_id = ObjectMatch {
            label: None,
            id: Some(id.to_owned()),
        };
        for (what, names) in [
            (format!("label `{label}`"), by_label),
            (format!("id {}", hex(id)), by_id),
        ] {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                if !self.objects_like(class, &names)?.is_empty() {
                    let found = format!("a key with {what} in {} already", self.name());
                    return Err(Fault::new(FaultKind::Object, found));
                }
            }
        }
        let (mechanism, parameters) = match kind {
            NewKey::Ec(curve) => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(curve.parameters())]),
            NewKey::Ed25519 => (
                Mechanism::EccEdwardsKeyPairGen,
                vec![Attribute::EcParams(ed25519_parameters())],
            ),
            NewKey::Rsa(bits) => (
                Mechanism::RsaPkcsKeyPairGen,
                vec![
                    Attribute::ModulusBits(u64::from(bits).into()),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                ],
            ),
        };
        let names = [
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
            Attribute::Token(true),
        ];
        let mut public = parameters;
        public.extend(names.clone());
        public.extend([Attribute::Private(false), Attribute::Verify(true)]);
        let mut private = names.to_vec();
        private.extend([
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ]);
        let made = self.raw()?.generate_key_pair(&mechanism, &public, &private);
        made.map(|_| ()).map_err(|error| self.fault(&error))
    }
}
