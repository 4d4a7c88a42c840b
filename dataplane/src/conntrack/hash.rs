//! The keyed hash of tuples: AES rounds under a secret of this boot.
//!
//! Three rounds: two leave structure that fills buckets unevenly, and a CRC is linear, so that anyone can make collisions.
//! An attacker who does not know the key cannot choose tuples that meet in a bucket, even knowing when some did.

use super::arch;
#[cfg(test)]
use super::arch::Isa;
use super::line::Key;

/// A keyed hash function.
pub(crate) struct Hasher {
    keys: [u128; 10],
    aes: bool,
}

impl Hasher {
    /// Spreads the key over the rounds and chooses the instructions, once.
    pub(super) fn new(key: u128) -> Self {
        let mut state = key;
        let keys = std::array::from_fn(|n| {
            // Distinct round keys; the odd constant is the fraction of the golden ratio, 128 bits of it.
            for _ in 0..4 {
                state = aes_round_portable(state, key ^ (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            }
            state
        });
        Self { keys, aes: arch::has_aes() }
    }

    /// Hashes one tuple.
    #[inline]
    pub(super) fn hash(&self, key: &Key) -> u64 {
        if self.aes {
            self.with(key, |state, key| {
                #[allow(unsafe_code)]
                // SAFETY: `aes` holds what `has_aes` said on this machine.
                unsafe {
                    arch::aes_round(state, key)
                }
            })
        } else {
            self.portable(*key)
        }
    }

    // By value: for a reference every key would be written to memory first.
    #[inline(never)]
    fn portable(&self, key: Key) -> u64 {
        self.with(&key, aes_round_portable)
    }

    #[inline(always)]
    pub(super) fn with(&self, key: &Key, round: impl Fn(u128, u128) -> u128) -> u64 {
        let keys = &self.keys;
        let ports = u128::from(key.transport()) << 64;
        let mut state = if key.is_v6() {
            // Two rounds each and side by side: after one, a difference in one address could be undone by the other.
            let [src, dst] = key.addresses_v6();
            let src = round(round(src ^ keys[4], keys[5]), keys[6]);
            let dst = round(round(dst ^ keys[7], keys[8]), keys[9]);
            src ^ dst ^ ports
        } else {
            ports | u128::from(key.addresses_v4())
        };
        state ^= keys[0];
        state = round(state, keys[1]);
        state = round(state, keys[2]);
        state = round(state, keys[3]);
        state as u64
    }
}

/// One AES round in plain arithmetic; what [`arch::aes_round`] does in one instruction.
pub(super) fn aes_round_portable(state: u128, key: u128) -> u128 {
    let bytes = state.to_le_bytes();
    let mut out = 0;
    for column in 0..4 {
        // ShiftRows: row r of a column comes from the column r further on.
        let mut word = 0;
        for row in 0..4 {
            word ^= COLUMN[bytes[(column + row) % 4 * 4 + row] as usize].rotate_left(8 * row as u32);
        }
        out |= u128::from(word) << (32 * column);
    }
    out ^ key
}

/// SubBytes and MixColumns of a byte in row 0: its column is (2s, s, s, 3s).
static COLUMN: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let s = substitute(byte as u8);
        let double = times(s, 2);
        table[byte] = u32::from_le_bytes([double, s, s, double ^ s]);
        byte += 1;
    }
    table
};

/// Multiplies in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197 §4.2).
const fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

/// The S-box (FIPS 197 §5.1.1): the inverse, which is the 254th power, then an affine map.
const fn substitute(byte: u8) -> u8 {
    let mut inverse = 1;
    let mut count = 0;
    while count < 254 {
        inverse = times(inverse, byte);
        count += 1;
    }
    let s = inverse;
    s ^ s.rotate_left(1) ^ s.rotate_left(2) ^ s.rotate_left(3) ^ s.rotate_left(4) ^ 0x63
}

#[cfg(test)]
mod tests {
    use super::super::tuple::Tuple;
    use super::*;
    use crate::model::Ip;

    #[test]
    fn the_portable_round_is_the_one_of_the_processor() {
        assert_eq!((substitute(0), substitute(0x53), substitute(0xff)), (0x63, 0xed, 0x16), "FIPS 197 figure 7");
        if !arch::has_aes() {
            return;
        }
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let (state, key) = (rng.u128(..), rng.u128(..));
            #[allow(unsafe_code)]
            // SAFETY: `has_aes` was asked.
            let fast = unsafe { arch::aes_round(state, key) };
            assert_eq!(fast, aes_round_portable(state, key));
        }
    }

    #[test]
    fn both_ways_of_hashing_agree_for_both_families() {
        let mut rng = fastrand::Rng::with_seed(2);
        let fast = Hasher::new(rng.u128(..));
        let slow = Hasher { keys: fast.keys, aes: false };
        for n in 0..10_000 {
            let ip = |rng: &mut fastrand::Rng| if n % 2 == 0 { Ip::v4(rng.u32(..)) } else { Ip(rng.u128(..) | 1 << 127) };
            let (src, dst) = (ip(&mut rng), ip(&mut rng));
            let tuple = Tuple { src, dst, sport: rng.u16(..), dport: rng.u16(..), proto: rng.u8(..) };
            let key = Key::new(&tuple);
            assert_eq!(fast.hash(&key), slow.hash(&key));
            if let Some(modern) = arch::Modern::detect() {
                assert_eq!(modern.hash(&fast, &key), slow.hash(&key));
            }
        }
    }
}
