//! The objects of a token and their attributes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki_sys::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::folder::{Place, disk};
use crate::key::Key;

/// Of the key's hash, so many bytes are its CKA_ID.
const ID_BYTES: usize = 8;

/// What a private key has and does not tell.
const SENSITIVE: [CK_ATTRIBUTE_TYPE; 7] = [
    CKA_VALUE,
    CKA_PRIVATE_EXPONENT,
    CKA_PRIME_1,
    CKA_PRIME_2,
    CKA_EXPONENT_1,
    CKA_EXPONENT_2,
    CKA_COEFFICIENT,
];

/// An object of a token.
pub(crate) struct Object {
    attributes: BTreeMap<CK_ATTRIBUTE_TYPE, Vec<u8>>,
    /// The pair, of a private key.
    pub(crate) key: Option<Arc<Key>>,
}

impl Object {
    pub(crate) fn attribute(&self, attribute: CK_ATTRIBUTE_TYPE) -> Result<&[u8], CK_RV> {
        if self.key.is_some() && SENSITIVE.contains(&attribute) {
            return Err(CKR_ATTRIBUTE_SENSITIVE);
        }
        let value = self.attributes.get(&attribute);
        value.map(Vec::as_slice).ok_or(CKR_ATTRIBUTE_TYPE_INVALID)
    }

    pub(crate) fn matches(&self, template: &[(CK_ATTRIBUTE_TYPE, Vec<u8>)]) -> bool {
        let same = |(attribute, value): &(_, Vec<u8>)| self.attributes.get(attribute) == Some(value);
        template.iter().all(same)
    }
}

/// Everything in a token. Handles are never given out twice, so that a stale one is noticed.
pub(crate) fn load(place: &Place) -> Result<BTreeMap<CK_OBJECT_HANDLE, Object>, CK_RV> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let (keys, mut certificates) = place.contents().map_err(|error| disk(&error))?;
    let mut objects = Vec::new();
    for (label, pem) in keys {
        let key = Key::from_pem(&pem).map_err(|error| {
            eprintln!("ringlock-faulty: {label}.pem: {error}");
            CKR_GENERAL_ERROR
        })?;
        let id = digest(&SHA256, key.public()).as_ref()[..ID_BYTES].to_vec();
        objects.extend(key_pair(&label, &id, key));
        if let Some(pem) = certificates.remove(&label) {
            objects.extend(chain(&label, &id, &pem)?);
        }
    }
    for (label, pem) in certificates {
        objects.extend(chain(&label, &[], &pem)?);
    }
    let handle = || NEXT.fetch_add(1, Ordering::Relaxed) as CK_OBJECT_HANDLE;
    Ok(objects.into_iter().map(|object| (handle(), object)).collect())
}

fn key_pair(label: &str, id: &[u8], key: Key) -> [Object; 2] {
    let mut both = common(label, id);
    both.push((CKA_KEY_TYPE, number(key.key_type())));
    both.extend(key.public_attributes());
    let mut public = both.clone();
    public.extend([
        (CKA_CLASS, number(CKO_PUBLIC_KEY)),
        (CKA_PRIVATE, boolean(false)),
        (CKA_VERIFY, boolean(true)),
    ]);
    public.extend(key.point().map(|point| (CKA_EC_POINT, point)));
    both.extend([
        (CKA_CLASS, number(CKO_PRIVATE_KEY)),
        (CKA_PRIVATE, boolean(true)),
        (CKA_SIGN, boolean(true)),
        (CKA_SENSITIVE, boolean(true)),
        (CKA_EXTRACTABLE, boolean(false)),
        (CKA_ALWAYS_AUTHENTICATE, boolean(false)),
    ]);
    [
        Object {
            attributes: both.into_iter().collect(),
            key: Some(Arc::new(key)),
        },
        Object {
            attributes: public.into_iter().collect(),
            key: None,
        },
    ]
}

/// The certificates of a file: the first with the key's id, those of its issuers with none.
fn chain(label: &str, id: &[u8], pem: &[u8]) -> Result<Vec<Object>, CK_RV> {
    let mut objects = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| {
            eprintln!("ringlock-faulty: {label}.crt.pem: {error}");
            CKR_GENERAL_ERROR
        })?;
        let mut attributes = common(label, if objects.is_empty() { id } else { &[] });
        attributes.extend([
            (CKA_CLASS, number(CKO_CERTIFICATE)),
            (CKA_CERTIFICATE_TYPE, number(CKC_X_509)),
            (CKA_PRIVATE, boolean(false)),
            (CKA_VALUE, certificate.to_vec()),
        ]);
        objects.push(Object {
            attributes: attributes.into_iter().collect(),
            key: None,
        });
    }
    Ok(objects)
}

fn common(label: &str, id: &[u8]) -> Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)> {
    vec![
        (CKA_TOKEN, boolean(true)),
        (CKA_LABEL, label.as_bytes().to_vec()),
        (CKA_ID, id.to_vec()),
    ]
}

fn number(value: CK_ULONG) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn boolean(value: bool) -> Vec<u8> {
    vec![CK_BBOOL::from(value)]
}
