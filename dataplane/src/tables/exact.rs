//! Exact match by address: one cache line a slot, most often the first one that is looked at.
//!
//! Open addressing at a load of at most a quarter, so that a miss, as of everybody outside, ends at the first line too (a half made a
//! judgement 4 ns slower: nothing foresees how long a run is); immutable once built. The hash needs no key: who owns which address is the
//! cluster's business, and an address that nobody owns costs at most the longest run of those that are.

use crate::model::Ip;

/// Values by address. 256 to 512 bytes an address.
#[derive(Debug)]
pub(super) struct Exact<V> {
    /// A power of two, 2 at least.
    slots: Box<[Slot<V>]>,
    /// What is left of a hash after this many bits numbers a slot.
    shift: u32,
}

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Slot<V> {
    address: Ip,
    value: Option<V>,
}

impl<V: Clone> Exact<V> {
    /// Lays values out; of several for one address the last one counts.
    pub(super) fn build(entries: &[(Ip, V)]) -> Self {
        let blank = Slot { address: Ip::default(), value: None };
        let count = (4 * entries.len()).next_power_of_two().max(2);
        let mut exact = Self { slots: vec![blank; count].into(), shift: u64::BITS - count.trailing_zeros() };
        for (address, value) in entries {
            let mut at = exact.first(*address);
            while exact.slots[at].value.is_some() && exact.slots[at].address != *address {
                at = (at + 1) % exact.slots.len();
            }
            exact.slots[at] = Slot { address: *address, value: Some(value.clone()) };
        }
        exact
    }
}

impl<V> Exact<V> {
    /// The value of an address.
    #[inline]
    pub(super) fn get(&self, address: Ip) -> Option<&V> {
        let mut at = self.first(address);
        loop {
            let slot = &self.slots[at & (self.slots.len() - 1)];
            let value = slot.value.as_ref()?;
            if slot.address == address {
                return Some(value);
            }
            at += 1;
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ip, &V)> {
        self.slots.iter().filter_map(|slot| Some((slot.address, slot.value.as_ref()?)))
    }

    /// Where an address is looked for first: neighbours in number lie far apart (Knuth, TAOCP 6.4, multiplication by the golden ratio).
    #[inline(always)]
    fn first(&self, address: Ip) -> usize {
        const RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
        let folded = (address.0 as u64) ^ ((address.0 >> 64) as u64).wrapping_mul(RATIO);
        (folded.wrapping_mul(RATIO) >> self.shift) as usize
    }
}

#[cfg(test)]
mod tests {
    use hashbrown::HashMap;

    use super::*;

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let mut random = fastrand::Rng::with_seed(3);
        for count in [0, 1, 2, 3, 100, 5000] {
            let ip = |random: &mut fastrand::Rng| match random.u32(..3) {
                0 => Ip::v4(0x0af4_0000 + random.u32(..8000)),
                1 => Ip(0xfd00 << 112 | u128::from(random.u32(..8000))),
                _ => Ip(u128::from(random.u32(..4))),
            };
            let entries: Vec<(Ip, u32)> = (0..count).map(|n| (ip(&mut random), n)).collect();
            let (exact, map) = (Exact::build(&entries), entries.iter().copied().collect::<HashMap<_, _>>());
            for _ in 0..20_000 {
                let ip = ip(&mut random);
                assert_eq!(exact.get(ip), map.get(&ip), "{ip}");
            }
            assert_eq!(exact.iter().map(|(ip, n)| (ip, *n)).collect::<HashMap<_, _>>(), map);
        }
    }

    #[test]
    fn neighbours_are_spread() {
        for shift in [0, 2, 8, 16, 64, 96] {
            let entries: Vec<(Ip, ())> = (0..10_000).map(|n: u128| (Ip(0xfd00 << 112 | n << shift), ())).collect();
            let exact = Exact::build(&entries);
            let run = exact.slots.split(|slot| slot.value.is_none()).map(<[_]>::len).max();
            assert!(run.is_some_and(|run| run < 64), "{run:?} in a row at {shift}");
        }
    }
}
