//! The clock hand: finds flows whose time is over, a few entries per batch. No timer per flow.

use super::arch;
use super::expiry::{EVICTABLE_MS, timeout_ms};
use super::flow::*;
use super::line::{Line, status};
use super::sync::{MODEL, Ordering};
use super::table::{ConnTable, Worker};

/// Entries that a worker takes from the common hand at once.
const BLOCK: u32 = if MODEL { 1 } else { 256 };
/// How far ahead of the hand lines are asked for.
const AHEAD: u32 = 16;
/// Entries looked at for one to evict, of which the oldest without a reply goes ...
const SAMPLE: u32 = 4;
/// ... and at most, where none of those may go.
const SAMPLE_MAX: u32 = 16;
/// From one sample to the next, as a part of the table in 2^-32: the golden ratio, by which any run of samples is spread evenly.
/// Flows that came together, as those before a flood, lie together.
const STEP: u32 = 0x9e37_79b9;

impl ConnTable {
    /// Milliseconds since a flow's last packet in either direction, and how many it may have.
    pub(super) fn age_and_timeout(&self, entry: u32, now: Ticks) -> (u32, u32) {
        let original = self.line_of(entry, FlowDir::Original);
        (now.since(original.last_seen()).min(self.reply_age(entry, now)), timeout_of(original))
    }
    fn reply_age(&self, entry: u32, now: Ticks) -> u32 {
        now.since(self.line_of(entry, FlowDir::Reply).last_seen())
    }

    /// Moves the worker's clock hand over `budget` entries and removes those whose time is over; while the table is nearly
    /// full also those that wait for a reply since a second or more. Gives how many.
    pub fn expire(&self, worker: &mut Worker, now: Ticks, budget: u32) -> u32 {
        let mut removed = 0;
        for _ in 0..budget {
            let Some(entry) = self.next_in_sweep(worker) else { break };
            if !self.is_live(entry) {
                continue;
            }
            // The reply's line is not read before the other's time is over.
            let original = self.line_of(entry, FlowDir::Original);
            let (age, timeout) = (now.since(original.last_seen()), timeout_of(original));
            let evictable = worker.pressed && age >= EVICTABLE_MS && original.state().is_unreplied();
            if evictable || age >= timeout && self.reply_age(entry, now) >= timeout {
                removed += u32::from(self.remove(worker, EntryId(entry)));
            }
        }
        removed
    }

    /// The oldest without a reply of a few entries from all over the table that `may` go, if there is any; `may` is given entry and
    /// age.
    fn oldest_unreplied(&self, worker: &mut Worker, now: Ticks, may: impl Fn(u32, u32) -> bool) -> Option<EntryId> {
        let mut oldest = None;
        for seen in 0..SAMPLE_MAX {
            if seen >= SAMPLE && oldest.is_some() {
                break;
            }
            let entry = self.next_sample(worker)?;
            if let Some(age) = self.unreplied_since(entry, now)
                && may(entry, age)
            {
                oldest = oldest.max(Some((age, entry)));
            }
        }
        oldest.map(|(_, entry)| EntryId(entry))
    }
    /// Removes a flow without a reply that `may` go, if a few samples find one.
    pub(super) fn evict_oldest(&self, worker: &mut Worker, now: Ticks, may: impl Fn(u32, u32) -> bool) {
        if let Some(entry) = self.oldest_unreplied(worker, now, may) {
            self.remove(worker, entry);
        }
    }
    /// Chooses a flow without a reply, and removes the one that was chosen two calls before if it still has none: what a removal
    /// needs comes from memory meanwhile, first the reply's line, then by its key the index.
    pub(super) fn evict_chosen(&self, worker: &mut Worker, now: Ticks) {
        let chosen = self.oldest_unreplied(worker, now, |_, _| true);
        let [before, removable] = worker.chosen;
        worker.chosen = [chosen, before];
        if let Some(EntryId(entry)) = chosen {
            self.prefetch_line(entry, FlowDir::Reply);
        }
        if let Some(EntryId(entry)) = before {
            self.prefetch_index(entry);
        }
        if let Some(EntryId(entry)) = removable
            && self.unreplied_since(entry, now).is_some()
        {
            self.remove(worker, EntryId(entry));
        }
    }

    /// Milliseconds since the last packet of a flow that nobody has replied to: its reply's line has seen none.
    fn unreplied_since(&self, entry: u32, now: Ticks) -> Option<u32> {
        let original = self.line_of(entry, FlowDir::Original);
        (self.is_live(entry) && original.state().is_unreplied()).then(|| now.since(original.last_seen()))
    }
    /// An entry from elsewhere in the table; those of the next call are asked for.
    fn next_sample(&self, worker: &mut Worker) -> Option<u32> {
        let entries = self.extent();
        let at = |place: u32| ((u64::from(place) * u64::from(entries)) >> 32) as u32 + 1;
        worker.sample = worker.sample.wrapping_add(STEP);
        let ahead = at(worker.sample.wrapping_add(STEP.wrapping_mul(SAMPLE)));
        (entries > 0).then(|| {
            arch::prefetch(&self.cold, ahead as usize);
            self.prefetch_line(ahead, FlowDir::Original);
            at(worker.sample)
        })
    }

    fn is_live(&self, entry: u32) -> bool {
        self.cold[entry as usize].status.load(Ordering::Acquire) & status::MASK == status::LIVE
    }

    /// The next entry under the hand, which all workers move together: each takes blocks of its own.
    fn next_in_sweep(&self, worker: &mut Worker) -> Option<u32> {
        if worker.sweep.is_empty() {
            let extent = self.extent();
            if extent == 0 {
                return None;
            }
            let start = self.hand.fetch_add(1, Ordering::Relaxed) % extent.div_ceil(BLOCK) * BLOCK + 1;
            worker.sweep = start..(start + BLOCK).min(extent + 1);
        }
        let entry = worker.sweep.next()?;
        if entry + AHEAD <= self.max() {
            self.prefetch_line(entry + AHEAD, FlowDir::Original);
        }
        Some(entry)
    }
}

/// Milliseconds that a flow may rest, by its original line.
fn timeout_of(original: &Line) -> u32 {
    let tuple = original.tuple();
    timeout_ms(original.state(), tuple.proto, tuple.dport)
}
