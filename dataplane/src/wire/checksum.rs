//! The Internet checksum (RFC 1071), its incremental update (RFC 1624) and the CRC32c of SCTP.
//!
//! Sums are ones' complement sums of 16-bit words in network order, held in host order. A [`Delta`] is what an edit adds
//! to such a sum: it is computed once for a flow and added to every packet.

use crate::model::Ip;

/// Folds a sum of 16-bit words to 16 bits (RFC 1071 §2).
#[inline]
pub const fn fold(sum: u64) -> u16 {
    // One end-around carry at each width is enough: a sum that overflowed is below the largest number.
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let sum = sum + carry as u32;
    let (sum, carry) = (sum as u16).overflowing_add((sum >> 16) as u16);
    sum + carry as u16
}

/// Adds up the bytes as 16-bit words in network order; an odd last byte counts as the high one of its word.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    // Words of 32 bits give the same folded sum, since 2^16 = 1 modulo 2^16 - 1; and in whatever byte order they are added up, it
    // is the folded sum in that order (RFC 1071 §2(B)). Swapping each word would take longer than adding it.
    let (words, rest) = bytes.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    u64::from(u16::from_be(fold(total))) + u64::from(u32::from_be_bytes(last))
}

/// Tells whether an IPv4 header without options has the right checksum. Byte order does not matter to that (RFC 1071 §2(B)).
#[inline]
pub fn is_header_intact(header: &[u8; 20]) -> bool {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, rest @ ..] = *header;
    let (sum, first) = u64::from_ne_bytes([a, b, c, d, e, f, g, h]).overflowing_add(u64::from_ne_bytes([i, j, k, l, m, n, o, p]));
    let (sum, second) = sum.carrying_add(u32::from_ne_bytes(rest).into(), first);
    // Folded it would be 0xffff if it is a multiple of that and not 0, as 2^16 - 1 divides 2^64 - 1. A multiple, times the inverse
    // modulo 2^64, is its quotient; anything else is more than any quotient.
    const QUOTIENT_MAX: u64 = u64::MAX / 0xffff;
    const INVERSE: u64 = QUOTIENT_MAX.wrapping_neg();
    const { assert!(INVERSE.wrapping_mul(0xffff) == 1) };
    sum.wrapping_add(u64::from(second)).wrapping_mul(INVERSE).wrapping_sub(1) < QUOTIENT_MAX
}

/// The sum of an address as a pseudo header or an IPv4 header contains it.
#[inline]
pub const fn sum_ip(ip: Ip) -> u64 {
    if ip.is_v4() { ip.low32() as u64 } else { sum_v6(ip.0) }
}

/// The sum of an IPv6 address.
#[inline]
pub(crate) const fn sum_v6(bits: u128) -> u64 {
    (bits >> 96) as u64 + (bits >> 64 & 0xffff_ffff) as u64 + (bits >> 32 & 0xffff_ffff) as u64 + (bits & 0xffff_ffff) as u64
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). The same words for both families.
#[inline]
pub const fn pseudo(src: Ip, dst: Ip, proto: u8, len: u32) -> u64 {
    sum_ip(src) + sum_ip(dst) + proto as u64 + len as u64
}

/// The checksum field for `bytes`, whose own field must be zero, after `start` (a pseudo header's sum or 0).
#[inline]
pub fn full(bytes: &[u8], start: u64) -> u16 {
    !fold(sum(bytes) + start)
}

/// What an edit adds to a ones' complement sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// An edit of nothing.
    pub const NONE: Self = Self(0);

    /// Also replaces the 16-bit word `old` by `new`.
    #[inline]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }
    /// Also replaces the address `old` by `new` of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn ip(self, old: Ip, new: Ip) -> Self {
        if old.0 == new.0 {
            return self;
        }
        if new.is_v4() {
            return Self(self.0 + !old.low32() as u64 + new.low32() as u64);
        }
        Self(self.0 + sum_v6(!old.0) + sum_v6(new.0))
    }
    /// Both edits.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
    /// The delta in 16 bits, for storing beside a flow.
    #[inline]
    pub const fn folded(self) -> u16 {
        fold(self.0)
    }
}

/// The checksum field after an edit of which `delta` is the folded [`Delta`] (RFC 1624 §3, equation 3).
#[inline]
pub const fn update(field: u16, delta: u16) -> u16 {
    // One end-around carry is enough: a sum that overflowed is at most 0xfffe.
    let (sum, carry) = (!field).overflowing_add(delta);
    !(sum + carry as u16)
}
