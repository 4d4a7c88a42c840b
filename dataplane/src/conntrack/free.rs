//! Which entries are free: a stack of chunks shared by all workers, and a worker's own chain, its magazine.
//!
//! Chains are linked by numbers through the entries' status words; nothing is allocated. Entries that were never used are
//! handed out in ranges, so an empty table touches no memory.

use std::ops::Range;

use super::line::{Cold, status};
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Entries linked one after the other.
#[derive(Clone, Copy, Default)]
pub(super) struct Chain {
    head: u32,
    tail: u32,
    count: u32,
}

const fn link(code: u32, next: u32) -> u32 {
    code | next << 2
}

impl Chain {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Puts an entry in front, with `code` as its status.
    pub(super) fn push(&mut self, cold: &[Cold], entry: u32, code: u32) {
        // Release: who sees the link sees that the entry is not live.
        cold[entry as usize].status.store(link(code, self.head), Ordering::Release);
        if self.is_empty() {
            self.tail = entry;
        }
        self.head = entry;
        self.count += 1;
    }
    fn pop(&mut self, cold: &[Cold]) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let entry = self.head;
        self.head = cold[entry as usize].status.load(Ordering::Relaxed) >> 2;
        self.count -= 1;
        Some(entry)
    }
    /// Puts all of `other` in front, in constant time.
    pub(super) fn splice(&mut self, cold: &[Cold], other: Self) {
        if other.is_empty() {
            return;
        }
        let tail = &cold[other.tail as usize].status;
        tail.store(link(tail.load(Ordering::Relaxed) & status::MASK, self.head), Ordering::Relaxed);
        if self.is_empty() {
            self.tail = other.tail;
        }
        self.head = other.head;
        self.count += other.count;
    }
}

/// Free entries of all workers.
pub(super) struct FreeStack {
    /// {count of changes 32, first entry of the top chunk 32}: the count keeps a chunk that left and came back from looking
    /// unchanged.
    top: AtomicU64,
    /// The lowest entry that was never used.
    fresh: AtomicU32,
    max: u32,
    /// Entries that change hands at once.
    chunk: u32,
}

/// Free entries of one worker.
#[derive(Default)]
pub(super) struct Magazine {
    chain: Chain,
    fresh: Range<u32>,
}

impl Magazine {
    /// The entry that will be taken next, if it is here already.
    #[inline]
    pub(super) fn next(&self) -> Option<u32> {
        let chained = (!self.chain.is_empty()).then_some(self.chain.head);
        chained.or_else(|| (!self.fresh.is_empty()).then_some(self.fresh.start))
    }
}

impl FreeStack {
    pub(super) fn new(max: u32, workers: u32) -> Self {
        // Entries in one worker's magazine are out of the others' reach: at most an eighth of all, and never more than 64
        // each.
        let chunk = (max / (16 * workers.max(1))).clamp(1, 32);
        Self { top: AtomicU64::new(0), fresh: AtomicU32::new(1), max, chunk }
    }
    /// One more than the highest entry that was ever handed out.
    pub(super) fn high_water(&self) -> u32 {
        self.fresh.load(Ordering::Relaxed).min(self.max + 1)
    }

    /// Takes a free entry.
    pub(super) fn take(&self, cold: &[Cold], magazine: &mut Magazine) -> Option<u32> {
        if let Some(entry) = magazine.chain.pop(cold).or_else(|| magazine.fresh.next()) {
            return Some(entry);
        }
        if let Some(chain) = self.pop(cold) {
            magazine.chain = chain;
            return magazine.chain.pop(cold);
        }
        let start = self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |start| {
            (start <= self.max).then(|| start.saturating_add(self.chunk).min(self.max + 1))
        });
        magazine.fresh = start.map_or(0..0, |start| start..start.saturating_add(self.chunk).min(self.max + 1));
        magazine.fresh.next()
    }
    /// Gives back entries that nobody can see; what is beyond two chunks goes to the others.
    pub(super) fn give(&self, cold: &[Cold], magazine: &mut Magazine, chain: Chain) {
        magazine.chain.splice(cold, chain);
        while magazine.chain.count > 2 * self.chunk {
            let mut chunk = Chain::default();
            for _ in 0..self.chunk {
                if let Some(entry) = magazine.chain.pop(cold) {
                    chunk.push(cold, entry, status::FREE);
                }
            }
            self.push(cold, &chunk);
        }
    }

    fn push(&self, cold: &[Cold], chunk: &Chain) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            cold[chunk.head as usize].created.store(top as u32, Ordering::Relaxed);
            let next = (top >> 32).wrapping_add(1) << 32 | u64::from(chunk.head);
            match self.top.compare_exchange_weak(top, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }
    fn pop(&self, cold: &[Cold]) -> Option<Chain> {
        let mut top = self.top.load(Ordering::Acquire);
        while top as u32 != 0 {
            let head = top as u32;
            let below = cold[head as usize].created.load(Ordering::Relaxed);
            let next = (top >> 32).wrapping_add(1) << 32 | u64::from(below);
            match self.top.compare_exchange_weak(top, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Chain { head, tail: 0, count: self.chunk }.with_tail(cold)),
                Err(now) => top = now,
            }
        }
        None
    }
}

impl Chain {
    /// Finds the last entry of a chunk.
    fn with_tail(mut self, cold: &[Cold]) -> Self {
        self.tail = self.head;
        for _ in 1..self.count {
            self.tail = cold[self.tail as usize].status.load(Ordering::Relaxed) >> 2;
        }
        self
    }
}
