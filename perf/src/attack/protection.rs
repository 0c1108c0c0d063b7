//! Records sealed and opened with a connection's own keys: for what rustls would not send.

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf, hmac};
use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroizing;

use super::records::{APPLICATION_DATA, HEADER};

/// Version in the header of every record but the first.
const VERSION: [u8; 2] = [3, 3];

/// The part of a nonce that TLS 1.2 sends with AES-GCM (RFC 5288 section 3).
const EXPLICIT: usize = 8;

/// A tag, of every AEAD that TLS uses here.
const TAG: usize = 16;

/// One direction under one key.
pub(super) struct Protection {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    form: Form,
}

/// How a record looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// TLS 1.2 with AES-GCM.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl Protection {
    /// With what rustls hands out: sequence number and key. Nothing for algorithms that are not offered here.
    pub(super) fn new(form: Form, (sequence, secrets): &(u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (algorithm, key, iv) = parts(secrets)?;
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?),
            iv: iv.try_into().ok()?,
            sequence: *sequence,
            form,
        })
    }

    /// Puts a record of this type behind `out`.
    pub(super) fn seal(&mut self, kind: u8, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let nonce = self.next_nonce();
        match self.form {
            Form::Tls12 => {
                let length = u16::try_from(EXPLICIT + payload.len() + TAG).expect("payloads here are short");
                out.extend([kind, VERSION[0], VERSION[1]]);
                out.extend(length.to_be_bytes());
                out.extend_from_slice(&nonce[4..]);
                out.extend_from_slice(payload);
            }
            Form::Tls13 => {
                let length = u16::try_from(payload.len() + 1 + TAG).expect("payloads here are short");
                out.extend([APPLICATION_DATA, VERSION[0], VERSION[1]]);
                out.extend(length.to_be_bytes());
                out.extend_from_slice(payload);
                out.push(kind);
            }
        }
        let plain = start + self.plain_at();
        let aad = self.aad(kind, &out[start..start + HEADER], out.len() - plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut out[plain..])
            .expect("the payload is far below the algorithm's limit");
        out.extend_from_slice(tag.as_ref());
        self.sequence += 1;
    }

    /// Type and payload of a whole record; nothing when it is not under this key.
    pub(super) fn open(&mut self, record: &[u8]) -> Option<(u8, Vec<u8>)> {
        let plain = self.plain_at();
        let mut payload = record.get(plain..)?.to_vec();
        let length = payload.len().checked_sub(TAG)?;
        let mut nonce = self.next_nonce();
        if self.form == Form::Tls12 {
            nonce[4..].copy_from_slice(&record[HEADER..plain]);
        }
        let aad = self.aad(record[0], &record[..HEADER], length);
        self.key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut payload)
            .ok()?;
        self.sequence += 1;
        payload.truncate(length);
        if self.form == Form::Tls12 {
            return Some((record[0], payload));
        }
        let end = payload.iter().rposition(|&byte| byte != 0)?;
        let kind = payload[end];
        payload.truncate(end);
        Some((kind, payload))
    }

    fn plain_at(&self) -> usize {
        match self.form {
            Form::Tls12 => HEADER + EXPLICIT,
            Form::Tls13 => HEADER,
        }
    }

    fn next_nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, bits) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= bits;
        }
        nonce
    }

    fn aad(&self, kind: u8, header: &[u8], plain: usize) -> Vec<u8> {
        match self.form {
            Form::Tls12 => {
                let length = u16::try_from(plain).expect("a record's length fits its field");
                let mut aad = self.sequence.to_be_bytes().to_vec();
                aad.extend([kind, VERSION[0], VERSION[1]]);
                aad.extend(length.to_be_bytes());
                aad
            }
            Form::Tls13 => header.to_vec(),
        }
    }
}

/// Algorithm, key and IV.
fn parts(secrets: &ConnectionTrafficSecrets) -> Option<(&'static aead::Algorithm, &[u8], &[u8])> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => Some((&AES_128_GCM, key.as_ref(), iv.as_ref())),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => Some((&AES_256_GCM, key.as_ref(), iv.as_ref())),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Some((&CHACHA20_POLY1305, key.as_ref(), iv.as_ref())),
        _ => None,
    }
}

/// A traffic secret of TLS 1.3, from which keys and the next secret follow.
pub(super) struct TrafficSecret {
    secret: hkdf::Prk,
    hash: hkdf::Algorithm,
    algorithm: &'static aead::Algorithm,
}

impl TrafficSecret {
    /// The secret behind these keys. Nothing for algorithms that are not offered here.
    pub(super) fn new(secret: &[u8], keys: &ConnectionTrafficSecrets) -> Option<Self> {
        let hash = if secret.len() == digest::SHA384_OUTPUT_LEN {
            hkdf::HKDF_SHA384
        } else {
            hkdf::HKDF_SHA256
        };
        Some(Self {
            secret: hkdf::Prk::new_less_safe(hash, secret),
            hash,
            algorithm: parts(keys)?.0,
        })
    }

    /// The key behind a KeyUpdate (RFC 8446 section 7.2).
    pub(super) fn update(&mut self) -> Protection {
        let next = self.expand(
            "traffic upd",
            self.hash.hmac_algorithm().digest_algorithm().output_len(),
        );
        self.secret = hkdf::Prk::new_less_safe(self.hash, &next);
        let key = UnboundKey::new(self.algorithm, &self.expand("key", self.algorithm.key_len()));
        let iv = self.expand("iv", aead::NONCE_LEN);
        Protection {
            key: LessSafeKey::new(key.expect("the key has the algorithm's length")),
            iv: iv[..].try_into().expect("as long as asked for"),
            sequence: 0,
            form: Form::Tls13,
        }
    }

    /// HKDF-Expand-Label without context (RFC 8446 section 7.1).
    fn expand(&self, label: &str, length: usize) -> Zeroizing<Vec<u8>> {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let label = format!("tls13 {label}");
        let label_length = u8::try_from(label.len()).expect("labels are short");
        let wanted = u16::try_from(length).expect("keys are short").to_be_bytes();
        let info = [&wanted[..], &[label_length], label.as_bytes(), &[0]];
        let mut output = Zeroizing::new(vec![0; length]);
        let expanded = self.secret.expand(&info, Length(length));
        let filled = expanded.and_then(|material| material.fill(&mut output));
        filled.expect("keys are shorter than what HKDF can give");
        output
    }
}

/// The client's verify_data of TLS 1.2 (RFC 5246 section 7.4.9): `transcript` hashed, under the master secret.
pub(super) fn verify_data(algorithm: hmac::Algorithm, master_secret: &[u8], transcript: &[u8]) -> Vec<u8> {
    let hash = digest::digest(algorithm.digest_algorithm(), transcript);
    let seed = [b"client finished", hash.as_ref()].concat();
    let key = hmac::Key::new(algorithm, master_secret);
    // P_hash (RFC 5246 section 5): one block of it is more than the twelve bytes that are needed.
    let first = hmac::sign(&key, &seed);
    let block = hmac::sign(&key, &[first.as_ref(), &seed].concat());
    block.as_ref()[..12].to_vec()
}
