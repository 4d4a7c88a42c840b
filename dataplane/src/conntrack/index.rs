//! The index: from a hash to the entries that may have it.
//!
//! Buckets of one cache line, eight words each: {tag 32, slot 32}. One atomic word publishes or removes a tuple. A tuple has
//! two candidate buckets; it goes into the first while that holds fewer than six, else into the emptier one, and never moves
//! afterwards, so a reader that looks at both has seen all. At its limit of flows the index is filled to 0.6; then 0.4 % of
//! the buckets are full, and one tuple in 60,000 finds both of its own so: that insertion is refused as in a full table.

use std::io;

use super::arch::{self, Isa};
use super::flow::FlowDir;
use super::slab::Slab;
use super::sync::{AtomicU64, MODEL, Ordering};

/// Words of a bucket.
pub(super) const WAYS: usize = if MODEL { 2 } else { 8 };
/// From so many words on, the second bucket is looked at when placing.
const CROWDED: usize = WAYS * 3 / 4;

/// A cache line of index words.
#[derive(Default)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    pub(super) ways: [AtomicU64; WAYS],
}

#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
const _: () = assert!(size_of::<Bucket>() == 64);

/// Takes the lowest bit out of `mask`: the word of a bucket that it stands for.
#[inline(always)]
fn next_way<'a>(bucket: &'a Bucket, mask: &mut u32) -> Option<&'a AtomicU64> {
    if *mask == 0 {
        return None;
    }
    let way = &bucket.ways[mask.trailing_zeros() as usize % WAYS];
    *mask &= *mask - 1;
    Some(way)
}

/// A mask without its lowest `count` bits that are set: something is left where there are more.
#[inline(always)]
fn without_lowest(mask: u32, count: usize) -> u32 {
    (0..count).fold(mask, |mask, _| mask & mask.wrapping_sub(1))
}

/// Entry and direction in 32 bits: the number of the direction's line. 0 is none, as entry 0 does not exist.
///
/// Every other entry has its lines swapped: traffic that goes mostly one way would otherwise use half of the cache's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    pub(super) const fn new(entry: u32, dir: FlowDir) -> Self {
        Self(entry << 1 | (dir as u32 ^ entry & 1))
    }
    pub(super) const fn entry(self) -> u32 {
        self.0 >> 1
    }
    pub(super) const fn dir(self) -> FlowDir {
        if (self.0 ^ self.entry()) & 1 == 0 { FlowDir::Original } else { FlowDir::Reply }
    }
    /// The other direction of the entry.
    pub(super) const fn partner(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// Where a tuple may be.
pub(super) struct Index {
    pub(super) buckets: Slab<Bucket>,
}

const fn tag(hash: u64) -> u32 {
    hash as u32
}
/// The first candidate of so many buckets: the hash's upper half scaled to their number, which need not be a power of two.
#[inline(always)]
pub(super) const fn first(count: usize, hash: u64) -> usize {
    (((hash >> 32) * count as u64) >> 32) as usize
}
/// The other candidate. All bits of the hash take part, so tuples that share the first rarely share this one.
#[inline(always)]
pub(super) const fn second(count: usize, hash: u64) -> usize {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (((mixed >> 32) * count as u64) >> 32) as usize;
    if place != first(count, hash) {
        place
    } else if place + 1 == count {
        0
    } else {
        place + 1
    }
}
/// The first slot in a bucket whose tag is that of the hash. It may be another's, or none, by now; who follows it compares the key.
#[inline(always)]
pub(super) fn hint(isa: impl Isa, bucket: &Bucket, hash: u64) -> Option<Slot> {
    let mask = isa.tag_mask(bucket, tag(hash));
    (mask != 0).then(|| Slot(bucket.ways[mask.trailing_zeros() as usize % WAYS].load(Ordering::Acquire) as u32))
}

impl Index {
    /// Makes an index for two tuples of each of `max` flows at load 0.6.
    pub(super) fn new(max: u32) -> io::Result<Self> {
        let words = u64::from(max) * 2;
        let count = if MODEL { 2 } else { (words * 10).div_ceil(6 * WAYS as u64).max(4) };
        Ok(Self { buckets: Slab::new(count as usize)? })
    }

    const fn word(hash: u64, slot: Slot) -> u64 {
        (tag(hash) as u64) << 32 | slot.0 as u64
    }
    #[inline(always)]
    fn first(&self, hash: u64) -> usize {
        first(self.buckets.len(), hash)
    }
    #[inline(always)]
    fn second(&self, hash: u64) -> usize {
        second(self.buckets.len(), hash)
    }
    /// Both candidates.
    #[inline(always)]
    pub(super) fn places(&self, hash: u64) -> Places<'_> {
        Places { hash, buckets: [self.first(hash), self.second(hash)].map(|at| &self.buckets[at]) }
    }

    /// As [`Places::find`].
    #[inline(always)]
    pub(super) fn find<T>(&self, hash: u64, each: impl FnMut(Slot) -> Option<T>) -> Option<T> {
        self.places(hash).find(each)
    }

    /// Buckets by the number of words that they hold.
    #[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
    pub(super) fn histogram(&self) -> [usize; WAYS + 1] {
        let mut counts = [0; WAYS + 1];
        for bucket in self.buckets.iter() {
            counts[bucket.ways.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count()] += 1;
        }
        counts
    }
}

/// The two buckets of a tuple.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    hash: u64,
    buckets: [&'a Bucket; 2],
}

impl Places<'_> {
    const fn tag(self) -> u32 {
        tag(self.hash)
    }

    /// Asks for both.
    #[inline(always)]
    pub(super) fn prefetch(self) {
        self.buckets.into_iter().for_each(|bucket| arch::prefetch(std::slice::from_ref(bucket), 0));
    }

    /// Calls `each` for every slot with the tag of the hash until it gives something.
    #[inline(always)]
    pub(super) fn find<T>(self, mut each: impl FnMut(Slot) -> Option<T>) -> Option<T> {
        let [first, second] = self.buckets;
        self.find_in(first, &mut each).or_else(|| self.find_in(second, &mut each))
    }
    #[inline(always)]
    fn find_in<T>(self, bucket: &Bucket, each: &mut impl FnMut(Slot) -> Option<T>) -> Option<T> {
        let mut mask = arch::tag_mask(bucket, self.tag());
        while let Some(way) = next_way(bucket, &mut mask) {
            let word = way.load(Ordering::Acquire);
            if word != 0
                && (word >> 32) as u32 == self.tag()
                && let Some(found) = each(Slot(word as u32))
            {
                return Some(found);
            }
        }
        None
    }

    /// Publishes a slot. Tells whether there was room.
    #[inline(always)]
    pub(super) fn place(self, slot: Slot) -> bool {
        // Empty words have tag 0. So may others, one in 2^32: the swap tells.
        let [first, second] = self.buckets;
        let empty = |bucket: &Bucket| arch::tag_mask(bucket, 0);
        let in_first = empty(first);
        // A checker is spared the search for the hard case, two workers that put one tuple into different buckets.
        let is_roomy = if MODEL { slot.entry().is_multiple_of(2) } else { without_lowest(in_first, WAYS - CROWDED) != 0 };
        if is_roomy && self.place_in(first, in_first, slot) {
            return true;
        }
        let in_second = empty(second);
        let prefers_first = !MODEL && in_first.count_ones() >= in_second.count_ones();
        let (better, other) =
            if prefers_first { ((first, in_first), (second, in_second)) } else { ((second, in_second), (first, in_first)) };
        self.place_in(better.0, better.1, slot) || self.place_in(other.0, other.1, slot)
    }
    #[inline(always)]
    fn place_in(self, bucket: &Bucket, mut empty: u32, slot: Slot) -> bool {
        let word = Index::word(self.hash, slot);
        while let Some(way) = next_way(bucket, &mut empty) {
            if way.load(Ordering::Relaxed) == 0 && way.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
        false
    }

    /// Removes a slot, unless another thread has done so.
    pub(super) fn unlink(self, slot: Slot) {
        let wanted = Index::word(self.hash, slot);
        for bucket in self.buckets {
            let mut mask = arch::tag_mask(bucket, self.tag());
            while let Some(word) = next_way(bucket, &mut mask) {
                if word.load(Ordering::Relaxed) == wanted && word.compare_exchange(wanted, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_by_instructions_as_by_a_loop() {
        let bucket = Bucket::default();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..1000 {
            for word in &bucket.ways {
                word.store(u64::from(rng.u32(0..3)) << 32 | u64::from(rng.u32(0..3)), Ordering::Relaxed);
            }
            for tag in 0..3 {
                let expected = arch::tag_mask_portable(&bucket, tag);
                assert_eq!(arch::tag_mask(&bucket, tag), expected);
                if let Some(modern) = arch::Modern::detect() {
                    assert_eq!(modern.tag_mask(&bucket, tag), expected);
                }
            }
        }
    }
}
