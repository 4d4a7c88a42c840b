//! When an entry that was removed may be used again: once no thread can still hold what it read before.
//!
//! Quiescent states, as in DPDK's `rte_rcu_qsbr`: each thread owns a slot with the epoch that it saw when it last held
//! nothing. Who removes entries draws the next epoch number afterwards, as a token, and waits until every slot that is not
//! offline has reached it. A thread pays one load and one store per batch, and nothing per packet.

use std::sync::{Mutex, PoisonError};

use super::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// The slot's thread holds nothing and reads nothing.
const OFFLINE: u64 = u64::MAX;

/// The epochs of all threads of a table; `S` is what a thread leaves behind for the next in its slot.
pub(super) struct Epochs<S> {
    global: AtomicU64,
    slots: Box<[EpochSlot<S>]>,
}

/// A thread's share. Two cache lines, as neighbours are fetched in pairs.
#[repr(align(128))]
pub(super) struct EpochSlot<S> {
    seen: AtomicU64,
    claimed: AtomicU32,
    /// Entries inserted minus entries removed by this slot, modulo 2^32; written by its thread only.
    pub(super) balance: AtomicU32,
    /// Insertions refused because the table was full; written by its thread only.
    pub(super) refused: AtomicU64,
    left: Mutex<Option<S>>,
}

impl<S> Epochs<S> {
    pub(super) fn new(slots: usize) -> Self {
        let slot = |_| EpochSlot {
            seen: AtomicU64::new(OFFLINE),
            claimed: AtomicU32::new(0),
            balance: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            left: Mutex::new(None),
        };
        Self { global: AtomicU64::new(1), slots: (0..slots).map(slot).collect() }
    }
    pub(super) fn slots(&self) -> &[EpochSlot<S>] {
        &self.slots
    }

    /// Claims a free slot in `range`, offline, and gives what its last owner left.
    pub(super) fn claim(&self, range: std::ops::Range<usize>) -> Option<(usize, Option<S>)> {
        range
            .into_iter()
            .find(|slot| self.slots[*slot].claimed.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok())
            .map(|slot| (slot, self.slots[slot].left.lock().unwrap_or_else(PoisonError::into_inner).take()))
    }
    /// Gives a slot back.
    pub(super) fn release(&self, slot: usize, left: Option<S>) {
        self.park(slot);
        *self.slots[slot].left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        self.slots[slot].claimed.store(0, Ordering::Release);
    }

    /// Says that the thread holds nothing now, and goes on reading.
    #[inline]
    pub(super) fn quiescent(&self, slot: usize) {
        let seen = &self.slots[slot].seen;
        let was_offline = seen.load(Ordering::Relaxed) == OFFLINE;
        // Acquire: what was unlinked before that number was drawn is not seen any more. Release: all reads so far are over.
        seen.store(self.global.load(Ordering::Acquire), Ordering::Release);
        if was_offline {
            // Either `reached` sees this slot, or this thread sees what was unlinked before `reached` looked.
            fence(Ordering::SeqCst);
        }
    }
    /// Says that the thread holds nothing and reads nothing until its next [`quiescent`](Self::quiescent).
    pub(super) fn park(&self, slot: usize) {
        self.slots[slot].seen.store(OFFLINE, Ordering::Release);
    }

    /// Draws a token for all that this thread has unlinked so far.
    pub(super) fn token(&self) -> u64 {
        self.global.fetch_add(1, Ordering::AcqRel) + 1
    }
    /// Tells whether nobody can hold any more what was unlinked before `token` was drawn.
    pub(super) fn reached(&self, token: u64) -> bool {
        fence(Ordering::SeqCst);
        self.slots.iter().all(|slot| slot.seen.load(Ordering::Acquire) >= token)
    }
}
