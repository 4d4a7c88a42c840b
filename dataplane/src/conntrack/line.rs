//! How a direction of a flow lies in its 64-byte line.
//!
//! | word | IPv4 | IPv6 |
//! |---|---|---|
//! | 0 | source, destination | source, upper half |
//! | 1 | translated ports, L3 delta | source, lower half |
//! | 2 | translated source, destination | destination, upper half |
//! | 3 | numbers of the TCP segment that went furthest | destination, lower half |
//! | 4 | ports, protocol, marks, L4 delta | the same |
//! | 5 | exit, generation | the same |
//! | 6 | packets (low 32 bits), last seen | the same |
//! | 7 | bytes, packets (high 8 bits) | the same |
//!
//! So an IPv4 packet needs its own line and no other. IPv6 leaves no room for translated addresses: a translated packet
//! takes them from the partner line, whose inverse they are; one that is not translated needs its own line only.
//!
//! Words 0 to 3 (of IPv4: 0 to 2), and of word 4 all but the state, `STEADY` and `LIVE`, never change while the flow lives.

use super::flow::{FirstPacket, FlowCounts, FlowDir, FlowInit, Leg, Ticks};
use super::state::FlowState;
use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::tcp::Numbers;
use super::tuple::Tuple;
use crate::model::Ip;

/// One direction of an entry.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Line {
    pub(super) words: [AtomicU64; 8],
}

/// What is asked about an entry rarely, and whether it is in use.
#[derive(Default)]
#[repr(C, align(16))]
pub(super) struct Cold {
    /// See [`status`].
    pub(super) status: AtomicU32,
    pub(super) owner: AtomicU32,
    pub(super) counter: AtomicU32,
    /// While free and first of a chunk: the next chunk.
    pub(super) created: AtomicU32,
}

#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
const _: () = assert!(size_of::<[Line; 2]>() == 128 && size_of::<Cold>() == 16);

/// The life of an entry: free, tentative, live, dead, free. In the two low bits; above them what the table's head says.
pub(super) mod status {
    pub(in super::super) const FREE: u32 = 0;
    pub(in super::super) const TENTATIVE: u32 = 1;
    pub(in super::super) const LIVE: u32 = 2;
    pub(in super::super) const DEAD: u32 = 3;
    pub(in super::super) const MASK: u32 = 3;
}

const PROTO_SHIFT: u32 = 32;
/// Readers may see the line.
pub(super) const LIVE: u64 = 1 << 40;
const V6: u64 = 1 << 41;
/// The state is one that packets of this direction leave as it is, but for some flags ([`FlowState::is_steady`]).
const STEADY: u64 = 1 << 42;
/// Packets leave with another tuple.
const NAT: u64 = 1 << 43;
const STATE_SHIFT: u32 = 44;
const STATE: u64 = 15 << STATE_SHIFT;
const L4_DELTA_SHIFT: u32 = 48;
/// Ports, protocol and family: what of word 4 belongs to the key.
const KEY: u64 = ((1 << 40) - 1) | V6;
/// Nothing but the key and `LIVE` is as low as this, and with the next bit nothing else but `STEADY`.
const MARKED_BITS: u32 = 42;
const _: () = assert!((KEY | LIVE).trailing_ones() == MARKED_BITS && STEADY == 1 << MARKED_BITS);

/// A state as it stands in word 4 of a direction.
const fn state_bits(state: FlowState, dir: FlowDir) -> u64 {
    (state as u64) << STATE_SHIFT | if state.is_steady(dir) { STEADY } else { 0 }
}

/// A tuple as a line holds it and the hash takes it. The hot lane makes one of a header without a [`Tuple`] in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    words: [u64; 4],
    word4: u64,
}

impl Key {
    /// No packet's.
    pub(crate) const BLANK: Self = Self { words: [0; 4], word4: 0 };

    /// The key of a tuple.
    #[inline(always)]
    pub(crate) fn new(tuple: &Tuple) -> Self {
        let ports = u32::from(tuple.sport) | u32::from(tuple.dport) << 16;
        if tuple.is_v4() {
            Self::v4(u64::from(tuple.src.low32()) << 32 | u64::from(tuple.dst.low32()), ports, tuple.proto)
        } else {
            Self::v6(tuple.src.0, tuple.dst.0, ports, tuple.proto)
        }
    }
    /// IPv4: the source in the upper half of `addresses`, the destination in the lower; the source port in the lower half of
    /// `ports`, the destination's in the upper.
    #[inline(always)]
    pub(crate) const fn v4(addresses: u64, ports: u32, proto: u8) -> Self {
        Self { words: [addresses, 0, 0, 0], word4: ports as u64 | (proto as u64) << PROTO_SHIFT }
    }
    /// Makes this one an IPv4 tuple's, as [`v4`](Self::v4), and writes nothing that such a one does not need.
    #[inline(always)]
    pub(crate) const fn set_v4(&mut self, addresses: u64, ports: u32, proto: u8) {
        let key = Self::v4(addresses, ports, proto);
        (self.words[0], self.word4) = (key.words[0], key.word4);
    }
    /// The same without what [`set_v4`](Self::set_v4) has left of another.
    #[inline(always)]
    pub(crate) const fn tidy(&self) -> Self {
        if self.is_v6() { *self } else { Self { words: [self.words[0], 0, 0, 0], word4: self.word4 } }
    }
    /// IPv6; `ports` as for IPv4.
    #[inline(always)]
    pub(crate) const fn v6(src: u128, dst: u128, ports: u32, proto: u8) -> Self {
        let words = [(src >> 64) as u64, src as u64, (dst >> 64) as u64, dst as u64];
        Self { words, word4: ports as u64 | (proto as u64) << PROTO_SHIFT | V6 }
    }

    /// The key of what answers a packet of this one that was sent on to `dst`, of the same family, and `dport`.
    #[inline(always)]
    pub(crate) const fn answer(&self, dst: Ip, dport: u16) -> Self {
        let (ports, proto) = (dport as u32 | (self.word4 as u32) << 16, (self.word4 >> PROTO_SHIFT) as u8);
        if self.is_v6() {
            Self::v6(dst.0, self.addresses_v6()[0], ports, proto)
        } else {
            Self::v4((dst.low32() as u64) << 32 | self.words[0] >> 32, ports, proto)
        }
    }
    /// Decodes it.
    #[inline(always)]
    pub(crate) const fn tuple(&self) -> Tuple {
        let (src, dst) = if self.is_v6() {
            let [src, dst] = self.addresses_v6();
            (Ip(src), Ip(dst))
        } else {
            (Ip::v4((self.words[0] >> 32) as u32), Ip::v4(self.words[0] as u32))
        };
        Tuple { src, dst, sport: self.word4 as u16, dport: (self.word4 >> 16) as u16, proto: (self.word4 >> PROTO_SHIFT) as u8 }
    }
    /// Tells whether it is an IPv6 tuple's.
    #[inline(always)]
    pub(super) const fn is_v6(&self) -> bool {
        self.word4 & V6 != 0
    }
    /// Both addresses of an IPv4 tuple, as [`v4`](Self::v4) takes them; of an IPv6 one nothing of use.
    #[inline(always)]
    pub(super) const fn addresses_v4(&self) -> u64 {
        self.words[0]
    }
    /// Source and destination in one word each.
    #[inline(always)]
    pub(super) const fn addresses_v6(&self) -> [u128; 2] {
        let [s1, s0, d1, d0] = self.words;
        [(s1 as u128) << 64 | s0 as u128, (d1 as u128) << 64 | d0 as u128]
    }
    /// Ports and protocol, without a mark of the family.
    #[inline(always)]
    pub(super) const fn transport(&self) -> u64 {
        self.word4 & !V6
    }
}

impl Line {
    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn word4(&self) -> u64 {
        self.load(4)
    }

    /// Writes a new flow's direction, not yet live; `back` is the key of the other one, the inverse of what its packets become, and
    /// `first` the packet that came this way. The caller owns the entry; publishing it in the index is the release.
    #[inline]
    pub(super) fn write(&self, dir: FlowDir, [key, back]: [&Key; 2], leg: &Leg, first: &FirstPacket, init: &FlowInit, now: Ticks) {
        let mut words = key.words;
        let to_ports = (back.word4 as u32).rotate_left(16);
        let addresses_differ = if key.is_v6() {
            let ([s1, s0, d1, d0], [bs1, bs0, bd1, bd0]) = (key.words, back.words);
            (s1 ^ bd1) | (s0 ^ bd0) | (d1 ^ bs1) | (d0 ^ bs0)
        } else {
            let to = back.words[0].rotate_left(32);
            words[1] = u64::from(to_ports) | u64::from(leg.l3_delta) << 32;
            words[2] = to;
            words[3] = first.numbers.bits();
            words[0] ^ to
        };
        let is_translated = addresses_differ | u64::from(key.word4 as u32 ^ to_ports) != 0;
        let word4 =
            key.word4 | if is_translated { NAT } else { 0 } | state_bits(init.state, dir) | u64::from(leg.l4_delta) << L4_DELTA_SHIFT;
        let [w0, w1, w2, w3] = words;
        let exit = u64::from(leg.exit) | u64::from(init.generation) << 32;
        let packets = u64::from(now.0) << 32 | u64::from(first.bytes != 0);
        let all = [w0, w1, w2, w3, word4, exit, packets, first.bytes.into()];
        for (place, word) in self.words.iter().zip(all) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Tells whether this is the direction with that key, whoever may see it.
    #[inline(always)]
    pub(super) fn has_key(&self, key: &Key) -> bool {
        (self.word4() ^ key.word4) & KEY | self.difference_of_addresses(key, key.is_v6()) == 0
    }
    /// Tells whether this is the direction with that key, and live. `is_v6` is the key's.
    #[inline(always)]
    pub(super) fn is(&self, key: &Key, is_v6: bool) -> bool {
        self.has::<MARKED_BITS>(key, LIVE, is_v6)
    }
    /// The same of a direction whose state is steady too.
    #[inline(always)]
    pub(super) fn is_steady(&self, key: &Key, is_v6: bool) -> bool {
        self.has::<{ MARKED_BITS + 1 }>(key, LIVE | STEADY, is_v6)
    }
    /// Tells whether these marks stand beside that key, which has none, in so many bits of word 4.
    #[inline(always)]
    fn has<const BITS: u32>(&self, key: &Key, marks: u64, is_v6: bool) -> bool {
        (self.word4() ^ key.word4 ^ marks) << (u64::BITS - BITS) | self.difference_of_addresses(key, is_v6) == 0
    }
    #[inline(always)]
    fn difference_of_addresses(&self, key: &Key, is_v6: bool) -> u64 {
        let first = self.load(0) ^ key.words[0];
        if is_v6 { first | (self.load(1) ^ key.words[1]) | (self.load(2) ^ key.words[2]) | (self.load(3) ^ key.words[3]) } else { first }
    }

    /// The key.
    #[inline(always)]
    pub(super) fn key(&self) -> Key {
        let word4 = self.word4() & KEY;
        let rest = if word4 & V6 == 0 { [0; 3] } else { [self.load(1), self.load(2), self.load(3)] };
        Key { words: [self.load(0), rest[0], rest[1], rest[2]], word4 }
    }
    /// The key, decoded.
    #[inline(always)]
    pub(super) fn tuple(&self) -> Tuple {
        self.key().tuple()
    }
    /// The tuple with which packets leave; `partner` is the other direction's line.
    #[inline(always)]
    pub(super) fn translated(&self, partner: &Self) -> Tuple {
        let word4 = self.word4();
        if word4 & V6 == 0 {
            let (ports, both) = (self.load(1), self.load(2));
            let (src, dst) = (Ip::v4((both >> 32) as u32), Ip::v4(both as u32));
            Tuple { src, dst, sport: ports as u16, dport: (ports >> 16) as u16, proto: (word4 >> 32) as u8 }
        } else if word4 & NAT == 0 {
            self.tuple()
        } else {
            partner.tuple().inverse()
        }
    }
    /// As [`translated`](Self::translated), for an IPv4 direction and as it lies: addresses, ports, L3 delta.
    #[inline(always)]
    pub(super) fn translated_v4(&self) -> (u64, u32, u16) {
        let ports = self.load(1);
        (self.load(2), ports as u32, (ports >> 32) as u16)
    }
    /// Likewise for an IPv6 direction: source and destination in two words each, ports.
    #[inline(always)]
    pub(super) fn translated_v6(&self, partner: &Self) -> ([u64; 4], u32) {
        if self.word4() & NAT == 0 {
            ([self.load(0), self.load(1), self.load(2), self.load(3)], self.word4() as u32)
        } else {
            ([partner.load(2), partner.load(3), partner.load(0), partner.load(1)], (partner.load(4) as u32).rotate_left(16))
        }
    }
    #[inline(always)]
    pub(super) fn l4_delta(&self) -> u16 {
        (self.word4() >> L4_DELTA_SHIFT) as u16
    }
    /// Exit and the generation that decided it.
    #[inline(always)]
    pub(super) fn exit(&self) -> (u32, u32) {
        let word5 = self.load(5);
        (word5 as u32, (word5 >> 32) as u32)
    }
    /// Exit, deltas, and the generation that decided them.
    #[inline(always)]
    pub(super) fn leg(&self) -> (Leg, u32) {
        let (word4, (exit, generation)) = (self.word4(), self.exit());
        let l3_delta = if word4 & V6 == 0 { (self.load(1) >> 32) as u16 } else { 0 };
        (Leg { exit, l3_delta, l4_delta: self.l4_delta() }, generation)
    }
    /// Exit and generation in one store.
    #[inline(always)]
    pub(super) fn set_exit(&self, exit: u32, generation: u32) {
        self.words[5].store(u64::from(exit) | u64::from(generation) << 32, Ordering::Relaxed);
    }

    /// Lets readers see the first line of a flow: nobody has found it yet, so nobody else writes the marks.
    pub(super) fn set_live_first(&self) {
        self.words[4].store(self.word4() | LIVE, Ordering::Release);
    }
    /// The same of the second, whose state may change meanwhile, by who found the first.
    pub(super) fn set_live(&self) {
        self.words[4].fetch_or(LIVE, Ordering::Release);
    }
    #[inline(always)]
    pub(super) fn state(&self) -> FlowState {
        FlowState::from_bits(self.word4() >> STATE_SHIFT)
    }
    /// Changes the state by `change`; the direction is the line's own. Gives the state after it.
    pub(super) fn update_state(&self, dir: FlowDir, change: impl Fn(FlowState) -> FlowState) -> FlowState {
        let mut word = self.words[4].load(Ordering::Relaxed);
        loop {
            let state = change(FlowState::from_bits(word >> STATE_SHIFT));
            let next = word & !(STATE | STEADY) | state_bits(state, dir);
            match self.words[4].compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return state,
                Err(now) => word = now,
            }
        }
    }

    /// Counts a packet. Plain loads and stores: a lock prefix would cost 9 ns, and two workers that see the same direction
    /// at the same time may lose a count to each other, nothing else.
    #[inline(always)]
    pub(super) fn count(&self, bytes: u32, now: Ticks) {
        let packets = (self.load(6) as u32).wrapping_add(1);
        if packets == 0 {
            self.carry_packets();
        }
        self.words[6].store(u64::from(now.0) << 32 | u64::from(packets), Ordering::Relaxed);
        self.words[7].store(self.load(7).wrapping_add(u64::from(bytes)), Ordering::Relaxed);
    }
    #[cold]
    fn carry_packets(&self) {
        self.words[7].store(self.load(7).wrapping_add(1 << 56), Ordering::Relaxed);
    }
    /// Keeps the numbers of an IPv4 segment, where none before it went further. Of a protocol without such numbers, what stands in
    /// their place: nobody asks for it.
    #[inline(always)]
    pub(super) fn note_numbers(&self, numbers: Numbers) {
        let before = self.numbers();
        // No branch: in a datagram it could not be foreseen, and the line is written anyway. As words, which are chosen in one step.
        let bits = std::hint::select_unpredictable(numbers.is_as_far_as(before), numbers.bits(), before.bits());
        self.words[3].store(bits, Ordering::Relaxed);
    }
    #[inline(always)]
    pub(super) fn set_numbers(&self, numbers: Numbers) {
        self.words[3].store(numbers.bits(), Ordering::Relaxed);
    }
    #[inline(always)]
    pub(super) fn numbers(&self) -> Numbers {
        Numbers::from_bits(self.load(3))
    }
    pub(super) fn last_seen(&self) -> Ticks {
        Ticks((self.load(6) >> 32) as u32)
    }
    pub(super) fn counts(&self) -> FlowCounts {
        let (low, bytes) = (self.load(6), self.load(7));
        FlowCounts { packets: low & 0xffff_ffff | bytes >> 56 << 32, bytes: bytes & ((1 << 56) - 1) }
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_beyond_32_bits_and_bytes_beside_them() {
        let line = Line::default();
        line.words[6].store(u64::from(u32::MAX), Ordering::Relaxed);
        line.count(60, Ticks(7));
        line.count(40, Ticks(8));
        assert_eq!((line.counts(), line.last_seen()), (FlowCounts { packets: (1 << 32) + 1, bytes: 100 }, Ticks(8)));
    }
}
