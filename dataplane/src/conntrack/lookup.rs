//! The table as a batch reads it: looked up in stages, and a direction of a live flow read and written where it lies.
//!
//! [`ConnTable::flow`](super::ConnTable::flow) decodes a line into values that any stage can use; the hot lane of the pipeline
//! takes from the line only what it writes into the packet, in the form in which both have it.

use super::arch::{self, Isa};
use super::flow::{EntryId, Hit, Ticks};
use super::hash::Hasher;
use super::index::{self, Bucket, Slot};
use super::line::{Key, Line};
use super::tcp::Numbers;

/// What a lookup has found so far: after the first stage the number of a bucket, after the others a [`Slot`], or 0.
#[derive(Clone, Copy)]
pub(crate) struct Probe(u32);

impl Probe {
    /// Nothing was found.
    pub(crate) const NONE: Self = Self(0);
    /// Tells whether the index may know the tuple, as far as was looked.
    pub(crate) const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// A connection table taken apart, so that a loop over packets has its arrays at hand.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a, I> {
    isa: I,
    hasher: &'a Hasher,
    buckets: &'a [Bucket],
    lines: &'a [Line],
}

impl<'a, I: Isa> Lookup<'a, I> {
    #[inline(always)]
    pub(super) fn new(isa: I, hasher: &'a Hasher, buckets: &'a [Bucket], lines: &'a [Line]) -> Self {
        Self { isa, hasher, buckets, lines }
    }
    /// Hashes a key.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        self.isa.hash(self.hasher, key)
    }
    /// First stage, right after hashing: asks for the first index line.
    #[inline(always)]
    pub(crate) fn prefetch_bucket(&self, hash: u64) -> Probe {
        let bucket = index::first(self.buckets.len(), hash);
        arch::prefetch(self.buckets, bucket);
        Probe(bucket as u32)
    }
    /// Second stage: asks for the entry's line if the first index line has the tag (92 %), else for the second index line. Tells
    /// whether a third stage is needed.
    #[inline(always)]
    pub(crate) fn prefetch_entry(&self, is_v6: bool, hash: u64, probe: &mut Probe) -> bool {
        let Some(slot) = index::hint(self.isa, &self.buckets[probe.0 as usize], hash) else {
            arch::prefetch(self.buckets, index::second(self.buckets.len(), hash));
            *probe = Probe::NONE;
            return true;
        };
        *probe = self.prefetch_line(is_v6, slot);
        false
    }
    /// Third stage, for those without a line after the second: asks for the entry's line if the second index line has the tag.
    #[inline(always)]
    pub(crate) fn prefetch_second(&self, is_v6: bool, hash: u64, probe: &mut Probe) {
        if probe.0 == 0 {
            let bucket = &self.buckets[index::second(self.buckets.len(), hash)];
            if let Some(slot) = index::hint(self.isa, bucket, hash) {
                *probe = self.prefetch_line(is_v6, slot);
            }
        }
    }
    #[inline(always)]
    fn prefetch_line(&self, is_v6: bool, slot: Slot) -> Probe {
        arch::prefetch(self.lines, slot.0 as usize);
        // Translated addresses have no room in a line of IPv6.
        if is_v6 {
            arch::prefetch(self.lines, slot.partner().0 as usize);
        }
        Probe(slot.0)
    }
    /// Last stage: the flow, where the probe was right.
    #[inline(always)]
    pub(crate) fn hit(&self, probe: Probe, key: &Key) -> Option<Hit> {
        // Line 0 is nobody's and never live.
        let slot = Slot(probe.0);
        self.lines[probe.0 as usize].is(key, key.is_v6()).then_some(Hit { entry: EntryId(slot.entry()), dir: slot.dir() })
    }
    /// The same for who follows the flow in place, if its state is steady: a packet of this direction leaves it as it is, unless it
    /// has one of [`UNSTEADY_FLAGS`](super::FlowState::UNSTEADY_FLAGS). `is_v6` is the key's.
    #[inline(always)]
    pub(crate) fn direction(&self, probe: Probe, key: &Key, is_v6: bool) -> Option<Direction<'a>> {
        let line = &self.lines[probe.0 as usize];
        line.is_steady(key, is_v6).then_some(Direction { line })
    }
    /// The other direction of what was found by the same probe.
    #[inline(always)]
    pub(crate) fn partner(&self, probe: Probe) -> Direction<'a> {
        Direction { line: &self.lines[Slot(probe.0).partner().0 as usize] }
    }
}

/// A direction that was found by its key. Good until the worker's next quiescent point.
pub(crate) struct Direction<'a> {
    line: &'a Line,
}

impl Direction<'_> {
    /// As in [`Leg::exit`](super::Leg), and the generation that decided it.
    #[inline(always)]
    pub(crate) fn exit(&self) -> (u32, u32) {
        self.line.exit()
    }
    /// An IPv4 packet's source and destination afterwards, source and destination port, and the delta of the header's checksum.
    #[inline(always)]
    pub(crate) fn translated_v4(&self) -> (u64, u32, u16) {
        self.line.translated_v4()
    }
    /// An IPv6 packet's source and destination afterwards, in two words each, and the ports. `partner` is the other direction.
    #[inline(always)]
    pub(crate) fn translated_v6(&self, partner: &Self) -> ([u64; 4], u32) {
        self.line.translated_v6(partner.line)
    }
    /// The delta of the transport checksum.
    #[inline(always)]
    pub(crate) fn l4_delta(&self) -> u16 {
        self.line.l4_delta()
    }
    /// Keeps the numbers of a TCP segment over IPv4, if none before it went further; of another protocol, what stands in their place.
    #[inline(always)]
    pub(crate) fn note_numbers(&self, numbers: u64) {
        self.line.note_numbers(Numbers::from_bits(numbers));
    }
    /// Counts a packet and renews the flow.
    #[inline(always)]
    pub(crate) fn count(&self, bytes: u32, now: Ticks) {
        self.line.count(bytes, now);
    }
}
