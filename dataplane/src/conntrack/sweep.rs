//! The clock hand: finds flows whose time is over, a few entries per batch. No timer per flow.

use super::expiry::{EVICTABLE_MS, timeout_ms};
use super::flow::*;
use super::line::status;
use super::sync::{MODEL, Ordering};
use super::table::{ConnTable, Worker};

/// Entries that a worker takes from the common hand at once.
const BLOCK: u32 = if MODEL { 1 } else { 256 };
/// Entries looked at for one to evict: the oldest of so many without a reply goes.
const SAMPLE: u32 = 8;
/// How far ahead lines are asked for.
const AHEAD: u32 = 8;

impl ConnTable {
    /// Milliseconds since a flow's last packet in either direction, and how many it may have.
    pub(super) fn age_and_timeout(&self, entry: u32, now: Ticks) -> (u32, u32) {
        let (original, reply) = (self.line_of(entry, FlowDir::Original), self.line_of(entry, FlowDir::Reply));
        let age = now.since(original.last_seen()).min(now.since(reply.last_seen()));
        let tuple = original.tuple();
        (age, timeout_ms(original.state(), tuple.proto, tuple.dport))
    }

    /// Moves the worker's clock hand over `budget` entries and removes those whose time is over; while the table is nearly
    /// full also those that wait for a reply since a second or more. Gives how many. 4 to 9 ns an entry.
    pub fn expire(&self, worker: &mut Worker, now: Ticks, budget: u32) -> u32 {
        let mut removed = 0;
        for _ in 0..budget {
            let Some(entry) = self.next_in_sweep(worker) else { break };
            if !self.is_live(entry) {
                continue;
            }
            let (age, timeout) = self.age_and_timeout(entry, now);
            let evictable = worker.pressed && age >= EVICTABLE_MS && self.line_of(entry, FlowDir::Original).state().is_unreplied();
            if age >= timeout || evictable {
                removed += u32::from(self.remove(worker, EntryId(entry)));
            }
        }
        removed
    }

    /// Removes the oldest without a reply of the next few entries that `may` go, if there is any; `may` is given entry and age.
    pub(super) fn evict_one(&self, worker: &mut Worker, now: Ticks, may: impl Fn(u32, u32) -> bool) {
        let mut oldest = None;
        for _ in 0..SAMPLE {
            let Some(entry) = self.next_in_sweep(worker) else { break };
            if self.is_live(entry) && self.line_of(entry, FlowDir::Original).state().is_unreplied() {
                let age = self.age_and_timeout(entry, now).0;
                if may(entry, age) {
                    oldest = oldest.max(Some((age, entry)));
                }
            }
        }
        if let Some((_, entry)) = oldest {
            self.remove(worker, EntryId(entry));
        }
    }

    fn is_live(&self, entry: u32) -> bool {
        self.cold[entry as usize].status.load(Ordering::Acquire) & status::MASK == status::LIVE
    }

    /// The next entry under the hand, which all workers move together: each takes blocks of its own.
    fn next_in_sweep(&self, worker: &mut Worker) -> Option<u32> {
        if worker.sweep.is_empty() {
            let end = self.free.high_water();
            if end <= 1 {
                return None;
            }
            let blocks = (end - 1).div_ceil(BLOCK);
            let start = self.hand.fetch_add(1, Ordering::Relaxed) % blocks * BLOCK + 1;
            worker.sweep = start..(start + BLOCK).min(end);
        }
        let entry = worker.sweep.next()?;
        if entry + AHEAD <= self.max() {
            self.prefetch_lines(entry + AHEAD);
        }
        Some(entry)
    }
}
