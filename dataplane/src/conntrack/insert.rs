//! Insertion and removal: the writers' side of the protocol in the head of `table`.

use super::arch;
use super::expiry::EVICTABLE_MS;
use super::flow::*;
use super::index::{Places, Slot};
use super::line::{Key, status};
use super::sync::{MODEL, Ordering, fence_after_swap, spin_loop};
use super::table::{ConnTable, Hashed, Worker};
use super::tuple::Tuple;

/// How often an insertion begins anew after another worker was in its way; then [`InsertError::Busy`].
const ATTEMPTS: u32 = if MODEL { 2 } else { 16 };
/// Pauses before each: about as long as the rest of the other's insertion takes.
const PAUSES: u32 = if MODEL { 1 } else { 64 };

/// Why an insertion does not go on.
enum Stop {
    /// A live flow has one of the tuples.
    Lost(Hit),
    /// Another worker is inserting one of the tuples and goes first.
    Yield,
    /// No entry is free, or the index has no room.
    NoRoom,
}

const fn tentative(worker: usize) -> u32 {
    status::TENTATIVE | (worker as u32) << 2
}

impl ConnTable {
    /// Enters a flow under both tuples.
    ///
    /// # Errors
    /// See [`InsertError`]; nothing is entered then.
    pub fn insert(&self, worker: &mut Worker, original: &Tuple, reply: &Tuple, init: &FlowInit, now: Ticks) -> Result<Hit, InsertError> {
        let ends = [original, reply].map(|tuple| self.hashed(tuple));
        // Not needed for the protocol: a burst that opens a flow would otherwise use up an entry per packet.
        if let Some(hit) = ends.iter().find_map(|end| self.find(end)) {
            return Err(InsertError::Exists(hit));
        }
        self.enter(worker, ends.each_ref(), init, now)
    }

    /// The same for who has just found no flow by the original tuple: takes an entry before it looks for others with either.
    pub(crate) fn enter(&self, worker: &mut Worker, ends: [&Hashed; 2], init: &FlowInit, now: Ticks) -> Result<Hit, InsertError> {
        if !self.charge(init.owner) {
            // Of its own flows, as of all: those without a reply make room.
            self.evict_oldest(worker, now, |flow, age| self.owner_of(flow) == init.owner && age >= EVICTABLE_MS);
            if !self.charge(init.owner) {
                return Err(InsertError::ShareExceeded);
            }
        }
        if worker.pressed {
            self.evict_chosen(worker, now);
        }
        let error = match self.attempt(worker, ends, init, now) {
            Ok(hit) => return Ok(hit),
            Err(Stop::Yield) => match self.attempt_again(worker, ends, init, now) {
                Ok(hit) => return Ok(hit),
                Err(error) => error,
            },
            Err(Stop::Lost(hit)) => InsertError::Exists(hit),
            Err(Stop::NoRoom) => InsertError::Full,
        };
        self.discharge(init.owner);
        if error == InsertError::Full {
            let refused = &self.epochs.slots()[worker.slot].refused;
            refused.store(refused.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.evict_oldest(worker, now, |_, _| true);
        }
        Err(error)
    }

    /// Takes an entry, writes it and brings it to life.
    #[inline(always)]
    fn attempt(&self, worker: &mut Worker, ends: [&Hashed; 2], init: &FlowInit, now: Ticks) -> Result<Hit, Stop> {
        let entry = self.free.take(&self.cold, &mut worker.lists.magazine).ok_or(Stop::NoRoom)?;
        self.prefetch_free(worker);
        self.write(entry, ends, init, now);
        self.count(init.counter);
        if let Err(stop) = self.publish(worker.slot, entry, ends) {
            self.uncount(entry);
            self.unlink(entry, ends.map(|end| end.hash));
            worker.lists.pending.push(&self.cold, entry, status::DEAD);
            return Err(stop);
        }
        let balance = &self.epochs.slots()[worker.slot].balance;
        balance.store(balance.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        Ok(Hit { entry: EntryId(entry), dir: FlowDir::Original })
    }
    /// The same after another worker was in the way.
    #[cold]
    fn attempt_again(&self, worker: &mut Worker, ends: [&Hashed; 2], init: &FlowInit, now: Ticks) -> Result<Hit, InsertError> {
        for _ in 1..ATTEMPTS {
            (0..PAUSES).for_each(|_| spin_loop());
            match self.attempt(worker, ends, init, now) {
                Ok(hit) => return Ok(hit),
                Err(Stop::Yield) => {}
                Err(Stop::Lost(hit)) => return Err(InsertError::Exists(hit)),
                Err(Stop::NoRoom) => return Err(InsertError::Full),
            }
        }
        Err(InsertError::Busy)
    }

    /// Hashes the reply's key of a flow that is about to be entered, and asks for the index lines that this will need.
    #[inline]
    pub(crate) fn prepare(&self, key: Key) -> Hashed {
        let reply = Hashed { key, hash: self.hash_key(&key) };
        self.index.places(reply.hash).prefetch();
        reply
    }
    /// Asks for the memory of the entry that will be taken next.
    #[inline(always)]
    fn prefetch_free(&self, worker: &Worker) {
        if let Some(entry) = worker.lists.magazine.next() {
            arch::prefetch(&self.cold, entry as usize);
            self.prefetch_lines(entry);
        }
    }

    fn write(&self, entry: u32, ends: [&Hashed; 2], init: &FlowInit, now: Ticks) {
        let cold = &self.cold[entry as usize];
        cold.owner.store(init.owner, Ordering::Relaxed);
        cold.counter.store(init.counter, Ordering::Relaxed);
        cold.created.store(now.0, Ordering::Relaxed);
        let [original, reply] = ends.map(|end| &end.key);
        let lines = [FlowDir::Original, FlowDir::Reply].map(|dir| self.line_of(entry, dir));
        lines[0].write(FlowDir::Original, [original, reply], &init.original, &init.first, init, now);
        lines[1].write(FlowDir::Reply, [reply, original], &init.reply, &FirstPacket::NONE, init, now);
    }

    /// Brings a written entry to life. On failure it is dead, though not unlinked.
    fn publish(&self, me: usize, entry: u32, ends: [&Hashed; 2]) -> Result<(), Stop> {
        let status = &self.cold[entry as usize].status;
        status.store(tentative(me), Ordering::Relaxed);
        let outcome = self.contest(me, entry, ends).and_then(|()| {
            // The only point where a flow comes into being. Fails where a lower worker killed it.
            let live = status.compare_exchange(tentative(me), status::LIVE, Ordering::AcqRel, Ordering::Acquire);
            live.map(drop).map_err(|_| Stop::Yield)
        });
        match outcome {
            Ok(()) => {
                self.line_of(entry, FlowDir::Reply).set_live_first();
                self.line_of(entry, FlowDir::Original).set_live();
            }
            Err(_) => status.store(status::DEAD, Ordering::Release),
        }
        outcome
    }

    /// Publishes both index words, then looks for others with either tuple.
    fn contest(&self, me: usize, entry: u32, ends: [&Hashed; 2]) -> Result<(), Stop> {
        let [original, reply] = ends;
        let places = ends.map(|end| self.index.places(end.hash));
        // A flow from an address and port to themselves has one tuple only.
        let placed = (original.key == reply.key || places[1].place(Slot::new(entry, FlowDir::Reply)))
            && places[0].place(Slot::new(entry, FlowDir::Original));
        if !placed {
            return Err(Stop::NoRoom);
        }
        // Of two that come here with the same tuple, the later one sees the other's word.
        fence_after_swap();
        match self.other(me, entry, places[0], original).or_else(|| self.other(me, entry, places[1], reply)) {
            Some(stop) => Err(stop),
            None => Ok(()),
        }
    }

    /// Looks for other entries with a tuple that this `entry` has.
    #[inline(always)]
    fn other(&self, me: usize, entry: u32, places: Places<'_>, end: &Hashed) -> Option<Stop> {
        places.find(|slot| if slot.entry() == entry { None } else { self.meet(me, end, slot) })
    }

    /// Settles who goes on where another entry has the same tuple, and not only its tag.
    #[inline(never)]
    fn meet(&self, me: usize, Hashed { key, hash }: &Hashed, slot: Slot) -> Option<Stop> {
        if !self.line(slot).has_key(key) {
            return None;
        }
        let status = &self.cold[slot.entry() as usize].status;
        let mut now = status.load(Ordering::Acquire);
        loop {
            match now & status::MASK {
                status::LIVE => return Some(Stop::Lost(Hit { entry: EntryId(slot.entry()), dir: slot.dir() })),
                status::TENTATIVE if (now >> 2) < me as u32 => return Some(Stop::Yield),
                status::TENTATIVE => match status.compare_exchange(now, status::DEAD, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => now = status::DEAD,
                    Err(other) => now = other,
                },
                _ => {
                    // Its owner is about to unlink it; a reader must not meet it before the new one.
                    self.index.places(*hash).unlink(slot);
                    return None;
                }
            }
        }
    }

    fn unlink(&self, entry: u32, hashes: [u64; 2]) {
        self.index.places(hashes[0]).unlink(Slot::new(entry, FlowDir::Original));
        self.index.places(hashes[1]).unlink(Slot::new(entry, FlowDir::Reply));
    }

    fn hashes_of(&self, entry: u32) -> [u64; 2] {
        [FlowDir::Original, FlowDir::Reply].map(|dir| self.hash_key(&self.line_of(entry, dir).key()))
    }
    /// Asks for the index lines that the removal of a flow will need.
    pub(super) fn prefetch_index(&self, entry: u32) {
        for hash in self.hashes_of(entry) {
            self.index.places(hash).prefetch();
        }
    }

    /// Removes a flow that was found since the worker's last quiescent point. Tells whether it was still there: of several
    /// that remove the same flow, one is told so.
    pub fn remove(&self, worker: &mut Worker, entry: EntryId) -> bool {
        let cold = &self.cold[entry.0 as usize];
        // The only point where a flow ends.
        if cold.status.compare_exchange(status::LIVE, status::DEAD, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.unlink(entry.0, self.hashes_of(entry.0));
        self.discharge(cold.owner.load(Ordering::Relaxed));
        self.uncount(entry.0);
        let balance = &self.epochs.slots()[worker.slot].balance;
        balance.store(balance.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        worker.lists.pending.push(&self.cold, entry.0, status::DEAD);
        true
    }

    fn count(&self, counter: u32) {
        if let Some(count) = self.counters.get(counter as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Takes a flow off its counter. Of several that do so for one flow, one does.
    pub(super) fn uncount(&self, entry: u32) {
        if self.counters.is_empty() {
            return;
        }
        let counter = self.cold[entry as usize].counter.swap(NOT_COUNTED, Ordering::Relaxed);
        if let Some(count) = self.counters.get(counter as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn owner_of(&self, entry: u32) -> u32 {
        self.cold[entry as usize].owner.load(Ordering::Relaxed)
    }
    /// Charges a flow to its owner's share. Tells whether there was room.
    fn charge(&self, owner: u32) -> bool {
        let Some(count) = self.owners.get(owner as usize) else { return true };
        if count.fetch_add(1, Ordering::Relaxed) < self.share() {
            return true;
        }
        count.fetch_sub(1, Ordering::Relaxed);
        false
    }
    fn discharge(&self, owner: u32) {
        if let Some(count) = self.owners.get(owner as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
