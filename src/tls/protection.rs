//! The protection of single records: one direction of one connection under one key. rustls has its own, and copies both ways; here
//! sealed bytes are written straight into the send buffer, and opened ones straight into the other side's.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, UnboundKey};
use aws_lc_rs::{aead, error::Unspecified};
use rustls::crypto::cipher::{Iv, Nonce};
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, SupportedCipherSuite};

use super::records::{ContentType, FRAGMENT_BYTES, HEADER_BYTES, Violation};

/// Of all our suites.
pub(super) const TAG_BYTES: usize = 16;
/// Blocks of a cipher.
const BLOCK_BYTES: usize = 16;
/// Blocks that a full record uses: its payload, content type and tag.
const FULL_RECORD_BLOCKS: u64 = (FRAGMENT_BYTES / BLOCK_BYTES + 2) as u64;
/// A record is longer than its payload by this at most: header, explicit nonce of TLS 1.2 or content type of TLS 1.3, tag.
pub(super) const EXPANSION_BYTES: usize = HEADER_BYTES + 8 + TAG_BYTES;

/// See the module.
pub(super) struct Protection {
    key: LessSafeKey,
    iv: Iv,
    form: Form,
    sequence: u64,
    /// Blocks that the key may still protect (draft-irtf-cfrg-aead-limits: what counts is their sum, whatever the records' size).
    blocks_left: u64,
}

/// What a record looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// RFC 8446 section 5.2: the content type is inside.
    Tls13,
    /// RFC 5288: eight bytes of the nonce come with the record.
    Tls12Gcm,
    /// RFC 7905.
    Tls12ChaCha,
}

impl Form {
    fn explicit_nonce_bytes(self) -> usize {
        match self {
            Form::Tls12Gcm => 8,
            Form::Tls13 | Form::Tls12ChaCha => 0,
        }
    }
}

impl Protection {
    /// With a key, and the number of records it has protected.
    ///
    /// # Errors
    /// A suite that we do not have.
    pub(super) fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
        suite: SupportedCipherSuite,
    ) -> Result<Protection, Error> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (algorithm, key, iv, tls12) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv, Form::Tls12Gcm),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv, Form::Tls12Gcm),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv, Form::Tls12ChaCha),
            _ => return Err(Error::General("a suite that is not ours".into())),
        };
        let (form, common) = match suite {
            SupportedCipherSuite::Tls13(suite) => (Form::Tls13, &suite.common),
            SupportedCipherSuite::Tls12(suite) => (tls12, &suite.common),
        };
        let key = UnboundKey::new(algorithm, key.as_ref());
        let key = key.map_err(|Unspecified| Error::General("a key of another length".into()))?;
        let records = common.confidentiality_limit.saturating_sub(sequence);
        Ok(Protection {
            key: LessSafeKey::new(key),
            iv,
            form,
            sequence,
            blocks_left: records.saturating_mul(FULL_RECORD_BLOCKS),
        })
    }

    /// The key has to be renewed: another full record, and a short one to say so, may be too much.
    pub(super) fn is_worn(&self) -> bool {
        self.blocks_left < 2 * FULL_RECORD_BLOCKS
    }

    #[cfg(test)]
    pub(super) fn blocks_left(&self) -> u64 {
        self.blocks_left
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.blocks_left = FULL_RECORD_BLOCKS;
    }

    /// Writes a record with `plain`, of at most [`FRAGMENT_BYTES`], to the front of `space`, which is longer than `plain` by
    /// [`EXPANSION_BYTES`] at least. Returns the record's length.
    ///
    /// # Errors
    /// None for lengths as above.
    pub(super) fn seal(&mut self, content: ContentType, plain: &[u8], space: &mut [u8]) -> Result<usize, Unspecified> {
        let (outer, inner): (_, &[u8]) = match self.form {
            Form::Tls13 => (ContentType::DATA, &[content.0]),
            Form::Tls12Gcm | Form::Tls12ChaCha => (content, &[]),
        };
        let explicit = self.form.explicit_nonce_bytes();
        let length = explicit + plain.len() + inner.len() + TAG_BYTES;
        let nonce = Nonce::new(&self.iv, self.sequence).0;
        let aad = self.aad(content, plain.len(), length);
        let (header, body) = space[..HEADER_BYTES + length].split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&record_header(outer, length));
        let (explicit_nonce, body) = body.split_at_mut(explicit);
        explicit_nonce.copy_from_slice(&nonce[NONCE_LEN - explicit..]);
        let (sealed, rest) = body.split_at_mut(plain.len());
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_out_of_place_scatter(nonce, aad, plain, sealed, inner, rest)?;
        self.sequence += 1;
        self.blocks_left = self
            .blocks_left
            .saturating_sub((plain.len().div_ceil(BLOCK_BYTES) + 2) as u64);
        Ok(HEADER_BYTES + length)
    }

    /// Opens `record`, which is whole, to the front of `out`, which is as long at least. Returns what it carries and how long that
    /// is.
    ///
    /// # Errors
    /// The record is not the peer's, or breaks a rule. What is in `out` then says nothing.
    pub(super) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<(ContentType, usize), Violation> {
        let (header, body) = record.split_at(HEADER_BYTES);
        let outer = ContentType(header[0]);
        let explicit = self.form.explicit_nonce_bytes();
        let inner = usize::from(self.form == Form::Tls13);
        if inner == 1 && outer != ContentType::DATA {
            return Err(Violation {
                alert: AlertDescription::UnexpectedMessage,
                why: "it is not protected",
            });
        }
        let undecryptable = Violation {
            alert: AlertDescription::BadRecordMac,
            why: "it does not decrypt",
        };
        let Some(length) = body.len().checked_sub(explicit + TAG_BYTES) else {
            return Err(undecryptable);
        };
        if length > FRAGMENT_BYTES + inner {
            return Err(Violation::TOO_LONG);
        }
        let mut nonce = Nonce::new(&self.iv, self.sequence).0;
        nonce[NONCE_LEN - explicit..].copy_from_slice(&body[..explicit]);
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let aad = self.aad(outer, length, body.len());
        let (sealed, tag) = body[explicit..].split_at(length);
        let opened = self
            .key
            .open_separate_gather(nonce, aad, sealed, tag, &mut out[..length]);
        if opened.is_err() {
            return Err(undecryptable);
        }
        self.sequence += 1;
        if inner == 0 {
            return Ok((outer, length));
        }
        // The last byte that is no padding.
        match out[..length].iter().rposition(|&byte| byte != 0) {
            Some(end) => Ok((ContentType(out[end]), end)),
            None => Err(Violation {
                alert: AlertDescription::UnexpectedMessage,
                why: "it is nothing but padding",
            }),
        }
    }

    /// What is authenticated with a record: in TLS 1.3 its header, in TLS 1.2 its place in order and what it carries.
    fn aad(&self, content: ContentType, plain_bytes: usize, body_bytes: usize) -> Aad<AadBytes> {
        let mut bytes = [0; 13];
        let length = match self.form {
            Form::Tls13 => {
                bytes[..5].copy_from_slice(&record_header(ContentType::DATA, body_bytes));
                5
            }
            Form::Tls12Gcm | Form::Tls12ChaCha => {
                bytes[..8].copy_from_slice(&self.sequence.to_be_bytes());
                bytes[8..].copy_from_slice(&record_header(content, plain_bytes));
                13
            }
        };
        Aad::from(AadBytes { bytes, length })
    }
}

struct AadBytes {
    bytes: [u8; 13],
    length: usize,
}

impl AsRef<[u8]> for AadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn record_header(content: ContentType, length: usize) -> [u8; HEADER_BYTES] {
    let [.., high, low] = length.to_be_bytes();
    [content.0, 3, 3, high, low]
}
