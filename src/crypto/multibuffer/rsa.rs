//! RSA keys as the batch takes them, and the two paddings of TLS.

use aws_lc_rs::digest;
pub use ringlock_hsm::scheme::Hash;
use x509_parser::der_parser::asn1_rs::{FromDer, Integer, OctetString, Sequence};
use zeroize::Zeroize;

use super::curve::read_be;
use super::library::{RSA_BYTES_MAX, RSA_LIMBS_MAX};

/// The limbs of the largest prime.
const PRIME_LIMBS_MAX: usize = RSA_LIMBS_MAX / 2;

/// A private key of 2048, 3072 or 4096 bits with exponent 65537. Wiped when dropped; not to be copied or shown.
pub struct RsaKey(Box<Numbers>);

pub(super) struct Numbers {
    pub(super) bits: usize,
    pub(super) modulus: [u64; RSA_LIMBS_MAX],
    pub(super) p: [u64; PRIME_LIMBS_MAX],
    pub(super) q: [u64; PRIME_LIMBS_MAX],
    pub(super) dp: [u64; PRIME_LIMBS_MAX],
    pub(super) dq: [u64; PRIME_LIMBS_MAX],
    pub(super) q_inverse: [u64; PRIME_LIMBS_MAX],
}

impl RsaKey {
    /// From `RSAPrivateKey` (RFC 8017, A.1.2), alone or in PKCS#8. Nothing when it is another key, or one that the batch does
    /// not take: another size or exponent, or primes of unequal length. That the numbers fit each other is for whoever
    /// loaded the key to see; if they do not, no signature passes its verification.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<RsaKey> {
        let (_, outer) = Sequence::from_der(der).ok()?;
        let (rest, _version) = Integer::from_der(&outer.content).ok()?;
        match Sequence::from_der(rest) {
            // PKCS#8: an algorithm, which the numbers inside tell well enough, and the key as a string.
            Ok((rest, _algorithm)) => {
                let (_, key) = OctetString::from_der(rest).ok()?;
                let (_, inner) = Sequence::from_der(key.as_cow().as_ref()).ok()?;
                let (rest, _version) = Integer::from_der(&inner.content).ok()?;
                Self::from_numbers(rest)
            }
            Err(_) => Self::from_numbers(rest),
        }
    }

    /// `n`, `e`, `d`, `p`, `q`, `dp`, `dq` and `1/q mod p`, as DER writes them.
    fn from_numbers(mut rest: &[u8]) -> Option<RsaKey> {
        let mut next = || {
            let (after, number) = x509_parser::der_parser::asn1_rs::Any::from_der(rest).ok()?;
            rest = after;
            let bytes = number.data;
            (number.header.tag() == x509_parser::der_parser::asn1_rs::Tag::Integer)
                .then(|| &bytes[bytes.iter().take_while(|&&byte| byte == 0).count()..])
        };
        let (modulus, exponent, _d) = (next()?, next()?, next()?);
        let bits = modulus.len() * 8;
        let half = modulus.len() / 2;
        let whole = modulus.first().is_some_and(|&first| first >= 0x80);
        if ![2048, 3072, 4096].contains(&bits) || !whole || exponent != [1, 0, 1] {
            return None;
        }
        let mut key = RsaKey(Box::new(Numbers {
            bits,
            modulus: [0; RSA_LIMBS_MAX],
            p: [0; PRIME_LIMBS_MAX],
            q: [0; PRIME_LIMBS_MAX],
            dp: [0; PRIME_LIMBS_MAX],
            dq: [0; PRIME_LIMBS_MAX],
            q_inverse: [0; PRIME_LIMBS_MAX],
        }));
        let numbers = &mut *key.0;
        read_be(&mut numbers.modulus, modulus);
        let (p, q) = (next()?, next()?);
        let prime = |bytes: &[u8]| bytes.len() == half && bytes[0] >= 0x80 && bytes[half - 1] & 1 == 1;
        if !prime(p) || !prime(q) {
            return None;
        }
        read_be(&mut numbers.p, p);
        read_be(&mut numbers.q, q);
        for number in [&mut numbers.dp, &mut numbers.dq, &mut numbers.q_inverse] {
            let bytes = next()?;
            if bytes.len() > half {
                return None;
            }
            read_be(number, bytes);
        }
        Some(key)
    }

    /// The size of the modulus: 2048, 3072 or 4096.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.0.bits
    }

    pub(super) fn numbers(&self) -> &Numbers {
        &self.0
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        for number in [
            &mut self.p,
            &mut self.q,
            &mut self.dp,
            &mut self.dq,
            &mut self.q_inverse,
        ] {
            number.zeroize();
        }
    }
}

/// A padded block, ready for the private operation.
pub struct Block {
    bytes: [u8; RSA_BYTES_MAX],
    length: usize,
}

impl Block {
    /// EMSA-PKCS1-v1_5 (RFC 8017, 9.2) of `message` for a key of `bits`.
    #[must_use]
    pub fn pkcs1(bits: usize, hash: Hash, message: &[u8]) -> Block {
        let mut block = Block::new(bits);
        let digest = digest::digest(hash.algorithm(), message);
        let info = hash.digest_info();
        let bytes = &mut block.bytes[..block.length];
        let (padding, end) = bytes.split_at_mut(block.length - info.len() - digest.as_ref().len());
        padding.fill(0xff);
        padding[0] = 0;
        padding[1] = 1;
        padding[padding.len() - 1] = 0;
        end[..info.len()].copy_from_slice(&info);
        end[info.len()..].copy_from_slice(digest.as_ref());
        block
    }

    /// EMSA-PSS (RFC 8017, 9.1.1) of `message` for a key of `bits`, with a random salt as long as the digest, as TLS 1.3
    /// has it.
    #[must_use]
    pub fn pss(bits: usize, hash: Hash, message: &[u8]) -> Block {
        let algorithm = hash.algorithm();
        let size = algorithm.output_len();
        let mut block = Block::new(bits);
        let (masked, end) = block.bytes[..block.length].split_at_mut(block.length - size - 1);
        let (padding, salt) = masked.split_at_mut(masked.len() - size);
        crate::crypto::random(salt);
        let mut context = digest::Context::new(algorithm);
        context.update(&[0; 8]);
        context.update(digest::digest(algorithm, message).as_ref());
        context.update(salt);
        let seed = context.finish();
        padding[padding.len() - 1] = 1;
        for (number, chunk) in masked.chunks_mut(size).enumerate() {
            let mut context = digest::Context::new(algorithm);
            context.update(seed.as_ref());
            context.update(&u32::try_from(number).expect("a block has few chunks").to_be_bytes());
            for (byte, mask) in chunk.iter_mut().zip(context.finish().as_ref()) {
                *byte ^= mask;
            }
        }
        // One bit less than the modulus has, so that the number is below it.
        masked[0] &= 0x7f;
        end[..size].copy_from_slice(seed.as_ref());
        end[size] = 0xbc;
        block
    }

    fn new(bits: usize) -> Block {
        assert!(
            (2048..=RSA_BYTES_MAX * 8).contains(&bits),
            "keys of the batch have 2048 to 4096 bits"
        );
        Block {
            bytes: [0; RSA_BYTES_MAX],
            length: bits / 8,
        }
    }

    /// As long as the modulus.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
