//! The ports of fragmented datagrams: learnt from the first fragment, given to those after it.
//!
//! Before conntrack: a later fragment carries no ports, so without this it has no tuple. One table per worker: all fragments
//! of a datagram have the same addresses and no ports that a NIC could hash, so they come by one queue. A later fragment
//! that overtakes its first one is not known here and is dropped with `FirstFragmentNotFound`; nothing is queued or reassembled.

use super::flow::Ticks;
use super::hash::Hasher;
use super::line::Key;
use super::tuple::Tuple;

/// How long ports are remembered: Linux's reassembly time (`net.ipv4.ipfrag_time`); RFC 791 §3.2 lets 15 s suffice, RFC 8200
/// §4.5 has 60 s for those who reassemble.
const LIFETIME_MS: u32 = 30_000;
/// Datagrams that may be kept at one place of the hash; of more, the oldest is forgotten.
const WAYS: usize = 8;

/// Datagrams of which the first fragment was seen. Fixed at `max` entries of 64 bytes, rounded up to a multiple of eight.
pub struct Fragments {
    hasher: Hasher,
    datagrams: Box<[Datagram]>,
}

#[derive(Clone, Copy, Default)]
struct Datagram {
    /// With the ports that the first fragment had. Protocol 0 and no address: unused.
    tuple: Tuple,
    id: u32,
    seen: Ticks,
}

const _: () = assert!(size_of::<Datagram>() == 64);

impl Datagram {
    fn is(&self, tuple: &Tuple, id: u32) -> bool {
        (self.tuple.src, self.tuple.dst, self.tuple.proto, self.id) == (tuple.src, tuple.dst, tuple.proto, id)
    }
}

impl Fragments {
    /// Makes an empty table under a secret key.
    pub fn new(max: u32, key: u128) -> Self {
        let count = (max as usize).max(1).next_multiple_of(WAYS);
        Self { hasher: Hasher::new(key), datagrams: vec![Datagram::default(); count].into_boxed_slice() }
    }

    /// Remembers the ports of a first fragment; `id` is its IP identification.
    pub fn learn(&mut self, tuple: &Tuple, id: u32, now: Ticks) {
        let place = self.place(tuple, id);
        let ways = &mut self.datagrams[place..place + WAYS];
        let known = ways.iter().position(|datagram| datagram.is(tuple, id));
        let oldest = || (0..WAYS).max_by_key(|way| if ways[*way].tuple.proto == 0 { u32::MAX } else { now.since(ways[*way].seen) });
        if let Some(way) = known.or_else(oldest) {
            ways[way] = Datagram { tuple: *tuple, id, seen: now };
        }
    }

    /// Completes the tuple of a later fragment; its own ports are ignored. `None` where the first fragment was not seen within
    /// 30 s.
    pub fn complete(&self, tuple: &Tuple, id: u32, now: Ticks) -> Option<Tuple> {
        let place = self.place(tuple, id);
        let datagram = self.datagrams[place..place + WAYS].iter().find(|datagram| datagram.is(tuple, id))?;
        (now.since(datagram.seen) < LIFETIME_MS).then_some(datagram.tuple)
    }

    fn place(&self, tuple: &Tuple, id: u32) -> usize {
        let hash = self.hasher.hash(&Key::new(&Tuple { sport: id as u16, dport: (id >> 16) as u16, ..*tuple }));
        (((hash >> 32) * (self.datagrams.len() / WAYS) as u64) >> 32) as usize * WAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ip, proto};

    const FIRST: Tuple = Tuple { src: Ip::v4(1), dst: Ip::v4(2), sport: 1000, dport: 53, proto: proto::UDP };
    const LATER: Tuple = Tuple { sport: 0, dport: 0, ..FIRST };

    #[test]
    fn a_later_fragment_gets_the_ports_of_its_first_for_half_a_minute() {
        let mut fragments = Fragments::new(64, 1);
        assert_eq!(fragments.complete(&LATER, 7, Ticks(0)), None);
        fragments.learn(&FIRST, 7, Ticks(0));
        assert_eq!(fragments.complete(&LATER, 7, Ticks(29_999)), Some(FIRST));
        assert_eq!(fragments.complete(&LATER, 7, Ticks(30_000)), None);
        for (other, id) in [(LATER, 8), (LATER.inverse(), 7), (Tuple { proto: proto::TCP, ..LATER }, 7)] {
            assert_eq!(fragments.complete(&other, id, Ticks(0)), None);
        }
    }

    #[test]
    fn an_identification_that_is_used_again_gives_the_new_ports() {
        let mut fragments = Fragments::new(64, 1);
        fragments.learn(&FIRST, 7, Ticks(0));
        let next = Tuple { sport: 2000, ..FIRST };
        fragments.learn(&next, 7, Ticks(1));
        assert_eq!(fragments.complete(&LATER, 7, Ticks(1)), Some(next));
    }

    #[test]
    fn a_flood_of_first_fragments_forgets_the_oldest_and_grows_nothing() {
        let mut fragments = Fragments::new(64, 1);
        for id in 0..100_000 {
            fragments.learn(&FIRST, id, Ticks(id));
            assert_eq!(fragments.complete(&LATER, id, Ticks(id)), Some(FIRST));
        }
        let kept = (0..100_000).filter(|id| fragments.complete(&LATER, *id, Ticks(100_000)).is_some()).count();
        assert_eq!(kept, 64);
        assert!((99_984..100_000).filter(|id| fragments.complete(&LATER, *id, Ticks(100_000)).is_some()).count() >= 12);
    }
}
