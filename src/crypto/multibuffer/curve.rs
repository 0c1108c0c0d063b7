//! P-256 and P-384 as the batch takes them: numbers as 64-bit limbs, lowest first. Scalars and points exist only in their
//! legal range, so that what the library does with others never matters.

use std::fmt;

use zeroize::Zeroize;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::P256 {}
    impl Sealed for super::P384 {}
}

/// A curve of the batch.
pub trait Curve: sealed::Sealed + Copy + fmt::Debug + PartialEq + 'static {
    /// A number of the curve's size, lowest limb first.
    type Limbs: Copy + fmt::Debug + PartialEq + AsRef<[u64]> + AsMut<[u64]> + Zeroize;
    /// The same number as big-endian bytes.
    type Bytes: Copy + fmt::Debug + PartialEq + AsRef<[u8]> + AsMut<[u8]> + Zeroize;
    /// Zero.
    const LIMBS: Self::Limbs;
    /// Zero.
    const BYTES: Self::Bytes;
    /// The field's prime.
    const PRIME: Self::Limbs;
    /// The order of the group.
    const ORDER: Self::Limbs;
    /// `b` of `y² = x³ - 3x + b`.
    const B: Self::Limbs;
    /// The square of Montgomery's radix modulo the prime.
    const RADIX_SQUARED: Self::Limbs;
    /// `-1/PRIME` modulo 2⁶⁴.
    const MINUS_INVERSE: u64;
}

/// NIST P-256, also secp256r1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P256;

/// NIST P-384, also secp384r1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P384;

impl Curve for P256 {
    type Limbs = [u64; 4];
    type Bytes = [u8; 32];
    const LIMBS: [u64; 4] = [0; 4];
    const BYTES: [u8; 32] = [0; 32];
    const PRIME: [u64; 4] = [0xffff_ffff_ffff_ffff, 0x0000_0000_ffff_ffff, 0, 0xffff_ffff_0000_0001];
    const ORDER: [u64; 4] = [
        0xf3b9_cac2_fc63_2551,
        0xbce6_faad_a717_9e84,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_0000_0000,
    ];
    const B: [u64; 4] = [
        0x3bce_3c3e_27d2_604b,
        0x651d_06b0_cc53_b0f6,
        0xb3eb_bd55_7698_86bc,
        0x5ac6_35d8_aa3a_93e7,
    ];
    const RADIX_SQUARED: [u64; 4] = radix_squared(Self::PRIME);
    const MINUS_INVERSE: u64 = minus_inverse(Self::PRIME[0]);
}

impl Curve for P384 {
    type Limbs = [u64; 6];
    type Bytes = [u8; 48];
    const LIMBS: [u64; 6] = [0; 6];
    const BYTES: [u8; 48] = [0; 48];
    const PRIME: [u64; 6] = [
        0x0000_0000_ffff_ffff,
        0xffff_ffff_0000_0000,
        0xffff_ffff_ffff_fffe,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
    ];
    const ORDER: [u64; 6] = [
        0xecec_196a_ccc5_2973,
        0x581a_0db2_48b0_a77a,
        0xc763_4d81_f437_2ddf,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
    ];
    const B: [u64; 6] = [
        0x2a85_c8ed_d3ec_2aef,
        0xc656_398d_8a2e_d19d,
        0x0314_088f_5013_875a,
        0x181d_9c6e_fe81_4112,
        0x988e_056b_e3f8_2d19,
        0xb331_2fa7_e23e_e7e4,
    ];
    const RADIX_SQUARED: [u64; 6] = radix_squared(Self::PRIME);
    const MINUS_INVERSE: u64 = minus_inverse(Self::PRIME[0]);
}

/// A secret number in `1..ORDER`: a private key or a nonce. Wiped when dropped; not to be copied or shown.
pub struct Scalar<C: Curve>(C::Limbs);

impl<C: Curve> Scalar<C> {
    /// From big-endian bytes of the curve's size.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Option<Scalar<C>> {
        let mut scalar = Scalar::<C>(C::LIMBS);
        if bytes.len() != C::BYTES.as_ref().len() {
            return None;
        }
        read_be(scalar.0.as_mut(), bytes);
        scalar.is_legal().then_some(scalar)
    }

    /// Uniform in `1..ORDER`: what is outside is thrown away and drawn again, because reducing it would favour small
    /// numbers, and a nonce with a bias gives the key away.
    #[must_use]
    pub fn random() -> Scalar<C> {
        let mut bytes = C::BYTES;
        loop {
            crate::crypto::random(bytes.as_mut());
            let scalar = Self::from_be_bytes(bytes.as_ref());
            bytes.zeroize();
            if let Some(scalar) = scalar {
                return scalar;
            }
        }
    }

    /// From limbs, which are wiped.
    pub(in crate::crypto) fn from_limbs(mut limbs: C::Limbs) -> Option<Scalar<C>> {
        let scalar = Scalar(limbs);
        limbs.zeroize();
        scalar.is_legal().then_some(scalar)
    }

    pub(in crate::crypto) fn limbs(&self) -> &C::Limbs {
        &self.0
    }

    /// Looks at every limb whatever the number is.
    fn is_legal(&self) -> bool {
        let any = self.0.as_ref().iter().fold(0, |any, limb| any | limb);
        (any != 0) & is_below(self.0.as_ref(), C::ORDER.as_ref())
    }
}

impl<C: Curve> Drop for Scalar<C> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A point of the curve other than infinity: a public key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point<C: Curve> {
    pub(in crate::crypto) x: C::Limbs,
    pub(in crate::crypto) y: C::Limbs,
}

impl<C: Curve> Point<C> {
    /// From SEC 1's uncompressed encoding. Refuses other encodings, coordinates that are not below the prime, and what
    /// is not on the curve. Both curves have cofactor 1: every such point is in the group.
    #[must_use]
    pub fn from_uncompressed(bytes: &[u8]) -> Option<Point<C>> {
        let size = C::BYTES.as_ref().len();
        let [4, coordinates @ ..] = bytes else { return None };
        if coordinates.len() != 2 * size {
            return None;
        }
        let (x, y) = coordinates.split_at(size);
        let mut point = Point::<C> {
            x: C::LIMBS,
            y: C::LIMBS,
        };
        read_be(point.x.as_mut(), x);
        read_be(point.y.as_mut(), y);
        let below = |coordinate: &C::Limbs| is_below(coordinate.as_ref(), C::PRIME.as_ref());
        (below(&point.x) && below(&point.y) && point.is_on_curve()).then_some(point)
    }

    /// Writes SEC 1's uncompressed encoding to the front of `out` and returns that part.
    ///
    /// # Panics
    /// `out` is shorter than 65 bytes for P-256, or 97 for P-384.
    pub fn write_uncompressed<'a>(&self, out: &'a mut [u8]) -> &'a [u8] {
        let size = C::BYTES.as_ref().len();
        let out = &mut out[..=2 * size];
        out[0] = 4;
        write_be(&mut out[1..=size], self.x.as_ref());
        write_be(&mut out[1 + size..], self.y.as_ref());
        out
    }

    /// `y² = x³ - 3x + b`. Factors of the radix are the same on both sides.
    fn is_on_curve(&self) -> bool {
        let x = multiply::<C>(&self.x, &C::RADIX_SQUARED);
        let y = multiply::<C>(&self.y, &C::RADIX_SQUARED);
        let b = multiply::<C>(&C::B, &C::RADIX_SQUARED);
        let mut right = multiply::<C>(&multiply::<C>(&x, &x), &x);
        for _ in 0..3 {
            right = subtract::<C>(&right, &x);
        }
        // b - (-right) = right + b
        let minus_right = subtract::<C>(&C::LIMBS, &right);
        multiply::<C>(&y, &y) == subtract::<C>(&b, &minus_right)
    }
}

/// The number that ECDSA signs: the digest's leftmost bits, modulo the order (FIPS 186-5, 6.4.1). The library refuses numbers
/// that are not below the order.
pub(super) fn digest_number<C: Curve>(digest: &[u8]) -> C::Bytes {
    let mut bytes = C::BYTES;
    let size = bytes.as_ref().len();
    let used = digest.len().min(size);
    bytes.as_mut()[size - used..].copy_from_slice(&digest[..used]);
    let mut number = C::LIMBS;
    read_be(number.as_mut(), bytes.as_ref());
    if !is_below(number.as_ref(), C::ORDER.as_ref()) {
        // Both orders are above half of 2^bits: once is enough.
        take_away(number.as_mut(), C::ORDER.as_ref());
        write_be(bytes.as_mut(), number.as_ref());
    }
    bytes
}

pub(super) fn read_be(limbs: &mut [u64], bytes: &[u8]) {
    for (limb, chunk) in limbs.iter_mut().zip(bytes.rchunks(8)) {
        *limb = chunk.iter().fold(0, |limb, &byte| limb << 8 | u64::from(byte));
    }
}

fn write_be(bytes: &mut [u8], limbs: &[u64]) {
    for (chunk, limb) in bytes.rchunks_exact_mut(8).zip(limbs) {
        chunk.copy_from_slice(&limb.to_be_bytes());
    }
}

/// `a -= b` modulo 2^bits; true when it went below zero. Without branches on the numbers.
fn take_away(a: &mut [u64], b: &[u64]) -> bool {
    let mut borrow = false;
    for (a, &b) in a.iter_mut().zip(b) {
        let (difference, under) = a.overflowing_sub(b);
        let (difference, again) = difference.overflowing_sub(u64::from(borrow));
        *a = difference;
        borrow = under | again;
    }
    borrow
}

/// `a < b`. Without branches on the numbers.
fn is_below(a: &[u64], b: &[u64]) -> bool {
    let mut borrow = false;
    for (&a, &b) in a.iter().zip(b) {
        let (difference, under) = a.overflowing_sub(b);
        let (_, again) = difference.overflowing_sub(u64::from(borrow));
        borrow = under | again;
    }
    borrow
}

/// `a - b` modulo the prime, of numbers below it. For public numbers only.
fn subtract<C: Curve>(a: &C::Limbs, b: &C::Limbs) -> C::Limbs {
    let mut difference = *a;
    if take_away(difference.as_mut(), b.as_ref()) {
        // Below zero: what is missing to the prime comes off zero.
        let mut prime = C::PRIME;
        let mut missing = *b;
        take_away(missing.as_mut(), a.as_ref());
        take_away(prime.as_mut(), missing.as_ref());
        difference = prime;
    }
    difference
}

/// Montgomery's product `a·b/radix` modulo the prime, of numbers below it. For public numbers only.
fn multiply<C: Curve>(a: &C::Limbs, b: &C::Limbs) -> C::Limbs {
    let mut sum = C::LIMBS;
    // The limb above `sum`; 0 or 1 after each round.
    let mut above = 0;
    for &digit in a.as_ref() {
        let carry = add_product(sum.as_mut(), b.as_ref(), digit);
        let (top, over) = carry.overflowing_add(above);
        let quotient = sum.as_ref()[0].wrapping_mul(C::MINUS_INVERSE);
        let carry = add_product(sum.as_mut(), C::PRIME.as_ref(), quotient);
        // The lowest limb is zero by the choice of the quotient: shift it out.
        sum.as_mut().rotate_left(1);
        let (top, again) = top.overflowing_add(carry);
        if let Some(last) = sum.as_mut().last_mut() {
            *last = top;
        }
        above = u64::from(over) + u64::from(again);
    }
    if above != 0 || !is_below(sum.as_ref(), C::PRIME.as_ref()) {
        take_away(sum.as_mut(), C::PRIME.as_ref());
    }
    sum
}

/// `sum += factor·digit`, and what is carried out of it.
fn add_product(sum: &mut [u64], factor: &[u64], digit: u64) -> u64 {
    let mut carry = 0;
    for (sum, &factor) in sum.iter_mut().zip(factor) {
        let wide = u128::from(factor) * u128::from(digit) + u128::from(*sum) + u128::from(carry);
        #[allow(clippy::cast_possible_truncation, reason = "the two halves of the number")]
        {
            *sum = wide as u64;
            carry = (wide >> 64) as u64;
        }
    }
    carry
}

/// `2^(2·bits)` modulo the prime, by doubling.
const fn radix_squared<const L: usize>(prime: [u64; L]) -> [u64; L] {
    let mut number = [0; L];
    number[0] = 1;
    let mut doublings = 0;
    while doublings < 2 * 64 * L {
        let mut doubled = [0u64; L];
        let mut reduced = [0; L];
        let (mut carry, mut borrow) = (0, false);
        let mut at = 0;
        while at < L {
            doubled[at] = number[at] << 1 | carry;
            carry = number[at] >> 63;
            let (difference, under) = doubled[at].overflowing_sub(prime[at]);
            let (difference, again) = difference.overflowing_sub(borrow as u64);
            reduced[at] = difference;
            borrow = under | again;
            at += 1;
        }
        number = if carry == 1 || !borrow { reduced } else { doubled };
        doublings += 1;
    }
    number
}

/// `-1/odd` modulo 2⁶⁴, by Newton's iteration: each step doubles the number of right bits, from the three of `odd` itself.
const fn minus_inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut bits = 3;
    while bits < 64 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::agreement::{self, PrivateKey};

    use super::*;
    use crate::crypto::multibuffer::self_check::hex;

    fn points_agree_with_aws_lc<C: Curve>(algorithm: &'static agreement::Algorithm) {
        for _ in 0..50 {
            let key = PrivateKey::generate(algorithm).unwrap().compute_public_key().unwrap();
            let bytes = key.as_ref();
            let point = Point::<C>::from_uncompressed(bytes).expect("aws-lc's points are on the curve");
            let mut out = [0; 97];
            assert_eq!(point.write_uncompressed(&mut out), bytes);
            for at in 0..bytes.len() {
                let mut wrong = bytes.to_vec();
                wrong[at] ^= 1;
                assert_eq!(Point::<C>::from_uncompressed(&wrong), None, "byte {at} changed");
            }
            assert_eq!(Point::<C>::from_uncompressed(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(Point::<C>::from_uncompressed(&[]), None);
        assert_eq!(Point::<C>::from_uncompressed(&[0]), None, "infinity");
    }

    #[test]
    fn points_are_those_of_aws_lc() {
        points_agree_with_aws_lc::<P256>(&agreement::ECDH_P256);
        points_agree_with_aws_lc::<P384>(&agreement::ECDH_P384);
    }

    /// `x + p` encodes the same field element once more where it fits: x = 5 is on P-256, and 5 + p is below 2²⁵⁶.
    #[test]
    fn a_coordinate_that_is_not_reduced_is_refused() {
        let y = "459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc";
        let x = "0000000000000000000000000000000000000000000000000000000000000005";
        let x_and_prime = "ffffffff00000001000000000000000000000001000000000000000000000004";
        let point = |x: &str| Point::<P256>::from_uncompressed(&hex::<65>(&format!("04{x}{y}")));
        assert!(point(x).is_some());
        assert!(point(x_and_prime).is_none());
    }

    fn scalars_are_in_range<C: Curve>() {
        let bytes = |limbs: C::Limbs| {
            let mut bytes = C::BYTES;
            write_be(bytes.as_mut(), limbs.as_ref());
            bytes
        };
        let legal = |limbs: C::Limbs| Scalar::<C>::from_be_bytes(bytes(limbs).as_ref()).is_some();
        let mut last = C::ORDER;
        last.as_mut()[0] -= 1;
        let mut one = C::LIMBS;
        one.as_mut()[0] = 1;
        let mut most = C::LIMBS;
        most.as_mut().fill(u64::MAX);
        assert!(legal(one) && legal(last));
        assert!(!legal(C::LIMBS) && !legal(C::ORDER) && !legal(most));
        assert!(Scalar::<C>::from_be_bytes(&bytes(one).as_ref()[1..]).is_none());
        let drawn: Vec<_> = (0..64).map(|_| Scalar::<C>::random()).collect();
        for (at, scalar) in drawn.iter().enumerate() {
            assert!(scalar.is_legal());
            assert!(drawn[..at].iter().all(|other| other.0 != scalar.0), "drawn twice");
        }
    }

    #[test]
    fn scalars_are_from_one_to_the_order() {
        scalars_are_in_range::<P256>();
        scalars_are_in_range::<P384>();
    }

    #[test]
    fn a_digest_is_cut_filled_up_and_reduced() {
        assert_eq!(digest_number::<P256>(&[7; 48]), [7; 32]);
        assert_eq!(digest_number::<P384>(&[7; 32])[..16], [0; 16]);
        assert_eq!(digest_number::<P384>(&[7; 32])[16..], [7; 32]);
        let mut order = [0; 32];
        write_be(&mut order, &P256::ORDER);
        assert_eq!(digest_number::<P256>(&order), [0; 32]);
        order[31] += 9;
        assert_eq!(digest_number::<P256>(&order)[31], 9);
    }
}
