//! ECDSA signatures, and their encoding.

use super::curve::{Curve, Scalar};

/// The two numbers of an ECDSA signature, big-endian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signature<C: Curve> {
    /// The x-coordinate of the nonce's point, modulo the order.
    pub r: C::Bytes,
    /// The other one.
    pub s: C::Bytes,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;

impl<C: Curve> Signature<C> {
    /// As `Ecdsa-Sig-Value` (RFC 3279, 2.2.3), which TLS carries.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let (r, s) = (number(self.r.as_ref()), number(self.s.as_ref()));
        let length = |number: &[u8]| number.len() + usize::from(number[0] >> 7);
        // At most 2 + 49 bytes for each number: one byte holds every length.
        let short = |length: usize| u8::try_from(length).expect("a signature is short");
        let mut der = Vec::with_capacity(6 + length(r) + length(s));
        der.extend([SEQUENCE, short(4 + length(r) + length(s))]);
        for number in [r, s] {
            der.extend([INTEGER, short(length(number))]);
            if number[0] >> 7 == 1 {
                der.push(0);
            }
            der.extend_from_slice(number);
        }
        der
    }

    /// Both numbers are in `1..ORDER`; no others make a signature (FIPS 186-5, 6.4.2).
    pub(super) fn is_legal(&self) -> bool {
        let legal = |number: &C::Bytes| Scalar::<C>::from_be_bytes(number.as_ref()).is_some();
        legal(&self.r) && legal(&self.s)
    }

    /// From `Ecdsa-Sig-Value`, in DER and nothing else: one encoding for each signature.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Signature<C>> {
        let (content, []) = element(der, SEQUENCE)? else {
            return None;
        };
        let (r, rest) = element(content, INTEGER)?;
        let (s, []) = element(rest, INTEGER)? else { return None };
        Some(Signature {
            r: fixed::<C>(r)?,
            s: fixed::<C>(s)?,
        })
    }
}

/// Without leading zeros, but for one when that is all there is.
fn number(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros.min(bytes.len() - 1)..]
}

/// The content of the element in front, which has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    match der {
        [found, length @ ..0x80, rest @ ..] if *found == tag => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

/// The content of an INTEGER that is positive and has no byte more than it needs.
fn fixed<C: Curve>(content: &[u8]) -> Option<C::Bytes> {
    let digits = match content {
        [0, rest @ ..] if rest.first().is_some_and(|&first| first >= 0x80) => rest,
        [1..0x80, ..] => content,
        _ => return None,
    };
    let mut bytes = C::BYTES;
    let size = bytes.as_ref().len();
    let at = size.checked_sub(digits.len())?;
    bytes.as_mut()[at..].copy_from_slice(digits);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};

    use super::*;
    use crate::crypto::multibuffer::curve::{P256, P384};

    #[test]
    fn what_aws_lc_writes_is_read_and_written_alike() {
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        for _ in 0..300 {
            let der = p256.sign(&SystemRandom::new(), b"message").unwrap();
            assert_eq!(
                Signature::<P256>::from_der(der.as_ref()).unwrap().to_der(),
                der.as_ref()
            );
            let der = p384.sign(&SystemRandom::new(), b"message").unwrap();
            assert_eq!(
                Signature::<P384>::from_der(der.as_ref()).unwrap().to_der(),
                der.as_ref()
            );
        }
    }

    #[test]
    fn small_numbers_are_short() {
        let mut signature = Signature::<P256> { r: [0; 32], s: [0; 32] };
        signature.r[31] = 1;
        signature.s[31] = 0x80;
        let der = [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80];
        assert_eq!(signature.to_der(), der);
        assert_eq!(Signature::from_der(&der), Some(signature));
    }

    #[test]
    fn other_encodings_are_refused() {
        let refused: [&[u8]; 10] = [
            &[],
            &[0x30, 0],
            &[0x30, 6, 2, 1, 1, 2, 1],
            &[0x30, 6, 2, 1, 1, 2, 1, 1, 0],
            &[0x30, 7, 2, 1, 1, 2, 1, 1, 0],
            &[0x30, 0x81, 6, 2, 1, 1, 2, 1, 1],
            &[0x30, 7, 2, 2, 0, 1, 2, 1, 1],
            &[0x30, 6, 2, 1, 0, 2, 1, 1],
            &[0x30, 6, 2, 1, 0x81, 2, 1, 1],
            &[0x31, 6, 2, 1, 1, 2, 1, 1],
        ];
        for der in refused {
            assert_eq!(Signature::<P256>::from_der(der), None, "{der:?}");
        }
        let mut long = vec![0x30, 38, 2, 33];
        long.extend([1; 33]);
        long.extend([2, 1, 1]);
        assert_eq!(Signature::<P256>::from_der(&long), None);
        assert!(Signature::<P384>::from_der(&long).is_some());
    }
}
