//! The connection table: found by either tuple, shared by all workers, lock-free.
//!
//! Both directions of a flow come by different ports and, after translation, by different queues; no hash of a NIC brings
//! them to one worker. So there is one table per node. The protocol:
//!
//! 1. An entry is free, tentative, live, dead and free again; its status word says which, and one compare-and-swap of that
//!    word is the only point where a flow comes into being (tentative to live) or ends (live to dead).
//! 2. Insertion writes both lines, publishes both index words, fences, and only then looks at all places where either tuple
//!    may be (`insert`). Of two workers that insert the same tuple, the one whose fence is later sees the other's word.
//! 3. Who meets a live entry with its tuple gives up and reports it. Who meets a dead one unlinks it. Who meets a tentative
//!    one gives up if that worker's number is lower, else kills it (tentative to dead), so the other cannot go live any more.
//! 4. Hence no two live entries share a tuple; nobody waits; the lowest worker always gets through.
//! 5. Readers follow index words to lines and skip those without the `LIVE` mark, which is set after the status: a flow that
//!    is found by one tuple is decided for both. They write nothing but the flow's own counters and never retry.
//! 6. Removal marks dead, unlinks both words, and keeps the entry until every thread has passed a quiescent point
//!    (`epoch`); an entry's key and decision therefore never change under a reader's eyes.
//!
//! `loom` tries all interleavings of these steps on a table of two buckets; `shuttle` and a differential test against a map
//! drive large ones.

use std::io;
use std::sync::Arc;

use super::arch::{self, Baseline, Isa, Modern};
use super::epoch::Epochs;
use super::flow::*;
use super::free::{Chain, FreeStack, Magazine};
use super::hash::Hasher;
use super::index::{Index, Slot};
use super::line::{Cold, Key, Line, status};
use super::lookup::{Lookup, Probe};
use super::slab::Slab;
use super::state::FlowState;
use super::sync::{AtomicU32, Ordering};
use super::tcp::{self, Fit, Numbers};
use super::tuple::Tuple;

/// How large a table is made, and with which key.
#[derive(Clone, Copy, Debug)]
pub struct TableConfig {
    /// Most flows that it holds: 1 to [`ConnTable::MAX`].
    pub max: u32,
    /// Key of the hash; secret and new at every boot, or peers could choose tuples that collide.
    pub key: u128,
    /// Most workers that use it at the same time.
    pub workers: u32,
    /// Owners with a share of their own: those with `FlowInit::owner` below this.
    pub owners: u32,
    /// Most flows per owner.
    pub share: u32,
}

/// Connections of this node, found by either tuple. Lock-free, shared by all workers.
///
/// Fixed at `max` entries of 128 bytes, one 64-byte line per direction, with 16 bytes beside each for what is asked rarely
/// and 27 bytes of index at load 0.6: 1 Mi flows take 171 MiB. A lookup touches one index line and one entry line, in 8 % of
/// cases two index lines. When full, [`insert`](Self::insert) fails with [`InsertError::Full`]; flows that saw no reply make
/// room, established ones are never evicted.
pub struct ConnTable {
    config: TableConfig,
    hasher: Hasher,
    modern: Option<Modern>,
    pub(super) index: Index,
    pub(super) lines: Slab<Line>,
    pub(super) cold: Slab<Cold>,
    pub(super) owners: Slab<AtomicU32>,
    /// Empty where nothing is counted.
    pub(super) counters: Box<[AtomicU32]>,
    pub(super) free: FreeStack,
    pub(super) epochs: Arc<Epochs<Lists>>,
    /// Blocks of entries that some worker has begun to sweep.
    pub(super) hand: AtomicU32,
}

/// Entries that a worker has taken from the common stock or not yet given back.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) magazine: Magazine,
    /// Removed since `waiting` was closed.
    pub(super) pending: Chain,
    /// Removed before `token` was drawn.
    pub(super) waiting: Chain,
    token: u64,
}

/// One thread's handle on a table: its free entries, its epoch, its clock hand. Dropping it gives the place to another.
pub struct Worker {
    epochs: Arc<Epochs<Lists>>,
    pub(super) slot: usize,
    pub(super) lists: Lists,
    pub(super) sweep: std::ops::Range<u32>,
    batches: u32,
    /// The table is nearly full: flows without a reply die early.
    pub(super) pressed: bool,
    /// The flows that will make room for the next ones while the table is nearly full.
    pub(super) chosen: [Option<EntryId>; 2],
    /// Where in the table the last of them was looked for, in 2^-32 of it.
    pub(super) sample: u32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.epochs.release(self.slot, Some(std::mem::take(&mut self.lists)));
    }
}

impl Worker {
    /// Tells whether the table was nearly full when last looked at.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }
}

/// A handle for threads that only read, as for dumps.
pub struct Reader {
    epochs: Arc<Epochs<Lists>>,
    pub(super) slot: usize,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.epochs.release(self.slot, None);
    }
}

/// Threads that dump at the same time.
const READERS_MAX: usize = 4;
/// Batches between two looks at how full the table is.
const PRESSURE_BATCHES: u32 = 16;

/// A tuple as it is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed {
    pub(super) key: Key,
    /// Of the key, under the secret of the table.
    pub(crate) hash: u64,
}

impl Hashed {
    /// No packet's.
    pub(crate) const BLANK: Self = Self { key: Key::BLANK, hash: 0 };
}

impl ConnTable {
    /// The largest table: 2^30 - 1 flows, as a slot of the index has 31 bits for entry and direction and a status 30.
    pub const MAX: u32 = (1 << 30) - 1;

    /// Makes an empty table.
    ///
    /// # Errors
    /// What mmap says; `InvalidInput` where `max` is out of range.
    pub fn new(config: &TableConfig) -> io::Result<Self> {
        if !(1..=Self::MAX).contains(&config.max) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a table of {} connections: 1 to {}", config.max, Self::MAX)));
        }
        let entries = config.max as usize + 1;
        Ok(Self {
            config: *config,
            hasher: Hasher::new(config.key),
            modern: Modern::detect(),
            index: Index::new(config.max)?,
            lines: Slab::new(entries * 2)?,
            cold: Slab::new(entries)?,
            owners: Slab::new(config.owners as usize)?,
            counters: Box::default(),
            free: FreeStack::new(config.max, config.workers),
            epochs: Arc::new(Epochs::new(config.workers as usize + READERS_MAX)),
            hand: AtomicU32::new(0),
        })
    }
    /// Gives the table `count` counters of open flows, 4 bytes each.
    #[must_use]
    pub fn with_counters(self, count: u32) -> Self {
        Self { counters: (0..count).map(|_| AtomicU32::new(0)).collect(), ..self }
    }
    /// Does without the instructions that not every processor has. For tests, which hold both ways together.
    #[must_use]
    pub fn with_baseline(self) -> Self {
        Self { modern: None, ..self }
    }
    /// Gives a handle to a worker; `None` once `TableConfig::workers` are in use.
    pub fn worker(&self) -> Option<Worker> {
        let (slot, left) = self.epochs.claim(0..self.config.workers as usize)?;
        self.epochs.quiescent(slot);
        let lists = left.unwrap_or_default();
        // Workers look in different places.
        let sample = (slot as u32) << 24;
        Some(Worker { epochs: Arc::clone(&self.epochs), slot, lists, sweep: 0..0, batches: 0, pressed: false, chosen: [None; 2], sample })
    }
    /// Gives a handle to a reader; `None` when four are in use.
    pub fn reader(&self) -> Option<Reader> {
        let (slot, _) = self.epochs.claim(self.config.workers as usize..self.epochs.slots().len())?;
        Some(Reader { epochs: Arc::clone(&self.epochs), slot })
    }

    /// Most flows.
    pub fn max(&self) -> u32 {
        self.config.max
    }
    /// Entries that were ever used: those which [`expire`](Self::expire) goes round.
    pub fn extent(&self) -> u32 {
        self.free.high_water() - 1
    }
    /// Flows held now. Reads one line per worker.
    pub fn used(&self) -> u32 {
        let sum = self.epochs.slots().iter().fold(0u32, |sum, slot| sum.wrapping_add(slot.balance.load(Ordering::Relaxed)));
        // The parts are not read at one instant.
        if sum as i32 > 0 { sum.min(self.config.max) } else { 0 }
    }
    /// Insertions that were refused because the table was full, since it was made.
    pub fn refused(&self) -> u64 {
        self.epochs.slots().iter().map(|slot| slot.refused.load(Ordering::Relaxed)).sum()
    }
    /// Flows that are charged to an owner now.
    pub fn owned(&self, owner: u32) -> u32 {
        self.owners.get(owner as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
    /// How many counters there are.
    pub fn counters(&self) -> u32 {
        self.counters.len() as u32
    }
    /// Flows that are counted at a counter now: those in the table whose connection is not over yet.
    /// `None` where there is no such counter.
    pub fn counted(&self, counter: u32) -> Option<u32> {
        self.counters.get(counter as usize).map(|count| count.load(Ordering::Relaxed))
    }
    pub(super) fn share(&self) -> u32 {
        self.config.share
    }

    /// Hashes a tuple under the table's key.
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        self.hash_key(&Key::new(tuple))
    }
    /// A tuple with its hash, for who needs it more than once.
    #[inline]
    pub(crate) fn hashed(&self, tuple: &Tuple) -> Hashed {
        let key = Key::new(tuple);
        Hashed { key, hash: self.hash_key(&key) }
    }
    /// The same of a key and its hash.
    #[inline(always)]
    pub(crate) const fn hashed_key(key: &Key, hash: u64) -> Hashed {
        Hashed { key: key.tidy(), hash }
    }
    /// The hash for who has the key already.
    #[inline(always)]
    pub(crate) fn hash_key(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }
    /// The instructions to look for many flows with; `None` where it must be the [`Baseline`](arch::Baseline).
    #[inline(always)]
    pub(crate) fn modern(&self) -> Option<Modern> {
        self.modern
    }
    /// The table for who looks for many flows, stage by stage.
    #[inline(always)]
    pub(crate) fn lookup_with<I: Isa>(&self, isa: I) -> Lookup<'_, I> {
        Lookup::new(isa, &self.hasher, &self.index.buckets, &self.lines)
    }
    /// Finds a flow by a tuple of either direction, for a packet alone.
    #[inline]
    pub fn lookup(&self, hash: u64, tuple: &Tuple) -> Option<Hit> {
        self.find(&Hashed { key: Key::new(tuple), hash })
    }
    /// The same for who has hashed it.
    #[inline]
    pub(crate) fn find(&self, Hashed { key, hash }: &Hashed) -> Option<Hit> {
        self.index.find(*hash, |slot| self.line(slot).is(key, key.is_v6()).then(|| Hit { entry: EntryId(slot.entry()), dir: slot.dir() }))
    }
    /// Hashes and finds a batch, stage by stage.
    ///
    /// # Panics
    /// Unless all three slices have one length, of at most 64.
    pub fn lookup_batch(&self, tuples: &[Tuple], hashes: &mut [u64], hits: &mut [Option<Hit>]) {
        assert!(tuples.len() <= 64 && tuples.len() == hashes.len() && tuples.len() == hits.len());
        match self.modern {
            Some(isa) => isa.run(|| self.lookup_batch_with(isa, tuples, hashes, hits)),
            None => self.lookup_batch_with(Baseline, tuples, hashes, hits),
        }
    }
    #[inline(always)]
    fn lookup_batch_with(&self, isa: impl Isa, tuples: &[Tuple], hashes: &mut [u64], hits: &mut [Option<Hit>]) {
        let lookup = self.lookup_with(isa);
        let mut probes = [Probe::NONE; 64];
        for ((tuple, hash), probe) in tuples.iter().zip(hashes.iter_mut()).zip(&mut probes) {
            *hash = lookup.hash(&Key::new(tuple));
            *probe = lookup.prefetch_bucket(*hash);
        }
        // Of an IPv6 flow too only the line of the tuple itself is looked at here.
        for (hash, probe) in hashes.iter().zip(&mut probes) {
            lookup.prefetch_entry(false, *hash, probe);
        }
        for (hash, probe) in hashes.iter().zip(&mut probes) {
            lookup.prefetch_second(false, *hash, probe);
        }
        for (((tuple, hash), probe), hit) in tuples.iter().zip(&*hashes).zip(&probes).zip(hits) {
            let key = Key::new(tuple);
            *hit = lookup.hit(*probe, &key).or_else(|| self.find(&Hashed { key, hash: *hash }));
        }
    }

    /// Asks for both lines of an entry.
    #[inline(always)]
    pub(super) fn prefetch_lines(&self, entry: u32) {
        for dir in [FlowDir::Original, FlowDir::Reply] {
            self.prefetch_line(entry, dir);
        }
    }
    #[inline(always)]
    pub(super) fn prefetch_line(&self, entry: u32, dir: FlowDir) {
        arch::prefetch(&self.lines, Slot::new(entry, dir).0 as usize);
    }
    #[inline(always)]
    pub(super) fn line(&self, slot: Slot) -> &Line {
        &self.lines[slot.0 as usize]
    }
    #[inline(always)]
    pub(super) fn line_of(&self, entry: u32, dir: FlowDir) -> &Line {
        self.line(Slot::new(entry, dir))
    }

    /// The direction of a flow that was found.
    #[inline]
    pub fn flow(&self, hit: Hit) -> FlowView {
        let (line, partner) = (self.line_of(hit.entry.0, hit.dir), self.line_of(hit.entry.0, hit.dir.other()));
        let (tuple, to, (leg, generation)) = (line.tuple(), line.translated(partner), line.leg());
        let (nat_src, nat_dst) = ((tuple.src, tuple.sport) != (to.src, to.sport), (tuple.dst, tuple.dport) != (to.dst, to.dport));
        FlowView { tuple, to, leg, generation, state: line.state(), nat_src, nat_dst }
    }
    /// What is known of a flow besides.
    pub fn details(&self, entry: EntryId, now: Ticks) -> FlowDetails {
        let cold = &self.cold[entry.0 as usize];
        let lines = [FlowDir::Original, FlowDir::Reply].map(|dir| self.line_of(entry.0, dir));
        let (age, timeout) = self.age_and_timeout(entry.0, now);
        let [original, reply] = lines.map(Line::last_seen);
        FlowDetails {
            owner: cold.owner.load(Ordering::Relaxed),
            counter: cold.counter.load(Ordering::Relaxed),
            created: Ticks(cold.created.load(Ordering::Relaxed)),
            last_seen: if reply.since(original) > 0 { reply } else { original },
            remaining_ms: timeout.saturating_sub(age),
            counts: lines.map(Line::counts),
        }
    }
    /// Replaces exit and generation of one direction in one step: no reader sees a new exit under an old generation.
    #[inline]
    pub fn set_exit(&self, hit: Hit, exit: u32, generation: u32) {
        self.line_of(hit.entry.0, hit.dir).set_exit(exit, generation);
    }
    /// Counts a packet of a flow and renews it.
    #[inline]
    pub fn touch(&self, hit: Hit, bytes: u32, now: Ticks) {
        self.line_of(hit.entry.0, hit.dir).count(bytes, now);
    }
    /// Judges a TCP segment over IPv4 by its numbers. `view` is what [`flow`](Self::flow) gave for it.
    pub fn fit(&self, hit: Hit, view: &FlowView, flags: u8, numbers: Numbers) -> Fit {
        let [own, peer] = [hit.dir, hit.dir.other()].map(|dir| self.line_of(hit.entry.0, dir).numbers());
        tcp::fit(view.state, hit.dir, flags, numbers, own, peer)
    }
    /// Keeps the numbers of such a segment, which belongs to the flow, if none before it went further; a SYN that opens is where its
    /// direction starts. `state` is the one before it.
    pub fn note_numbers(&self, hit: Hit, state: FlowState, flags: u8, numbers: Numbers) {
        let line = self.line_of(hit.entry.0, hit.dir);
        match state {
            FlowState::SynSent | FlowState::SynRecv if flags & tcp::SYN != 0 => line.set_numbers(numbers),
            // Late, of an earlier connection of the same ports: the answer to the SYN is held to the SYN's number.
            FlowState::SynSent => {}
            FlowState::Established if flags & tcp::SYN != 0 => {}
            _ => line.note_numbers(numbers),
        }
    }
    /// Moves the state of a flow on by one packet: TCP flags, or the type of the first SCTP chunk, else 0. `view` is what
    /// [`flow`](Self::flow) gave for this packet. Writes only where the state changes. Gives the state after it.
    #[inline]
    pub fn advance(&self, hit: Hit, view: &FlowView, flags: u8) -> FlowState {
        if view.state.after(view.tuple.proto, hit.dir, flags) == view.state {
            return view.state;
        }
        self.change_state(hit, view.tuple.proto, flags)
    }
    /// The original line's state is the true one; the reply's is a copy, so that a packet needs its own line only.
    #[cold]
    fn change_state(&self, hit: Hit, proto: u8, flags: u8) -> FlowState {
        let (truth, copy) = (self.line_of(hit.entry.0, FlowDir::Original), self.line_of(hit.entry.0, FlowDir::Reply));
        let mut state = truth.update_state(FlowDir::Original, |state| state.after(proto, hit.dir, flags));
        loop {
            copy.update_state(FlowDir::Reply, |_| state);
            // A later change may have written its copy before this one did; who writes last finds the truth newer, as each
            // write of the copy acquires the ones before it.
            let now = truth.state();
            if now == state {
                if state.is_over() {
                    self.uncount(hit.entry.0);
                }
                return state;
            }
            state = now;
        }
    }

    /// Says that the worker holds no [`Hit`] any more. Once per batch; entries removed before can then be reused.
    #[inline]
    pub fn quiescent(&self, worker: &mut Worker) {
        self.epochs.quiescent(worker.slot);
        let lists = &mut worker.lists;
        if !lists.waiting.is_empty() && self.epochs.reached(lists.token) {
            let chain = std::mem::take(&mut lists.waiting);
            self.free.give(&self.cold, &mut lists.magazine, chain);
        }
        if lists.waiting.is_empty() && !lists.pending.is_empty() {
            lists.waiting = std::mem::take(&mut lists.pending);
            lists.token = self.epochs.token();
        }
        worker.batches = worker.batches.wrapping_add(1);
        if worker.batches.is_multiple_of(PRESSURE_BATCHES) {
            worker.pressed = self.used() > self.config.max - self.config.max / 16;
        }
    }
    /// Says that the worker will not touch the table until its next [`quiescent`](Self::quiescent): before it sleeps.
    pub fn park(&self, worker: &mut Worker) {
        self.epochs.park(worker.slot);
    }

    /// Reads up to `count` entries from number `from` (0 first) and calls `each` for every flow. Gives the number to go on
    /// with, or `None` at the end. Removed entries are not reused meanwhile, so a long dump goes in pieces.
    pub fn dump(&self, reader: &mut Reader, from: u32, count: u32, now: Ticks, mut each: impl FnMut(&FlowRecord)) -> Option<u32> {
        let (from, end) = (from.max(1), self.free.high_water());
        let next = from.saturating_add(count).min(end);
        self.epochs.quiescent(reader.slot);
        for entry in from..next {
            if self.cold[entry as usize].status.load(Ordering::Acquire) & status::MASK == status::LIVE {
                let id = EntryId(entry);
                let view = |dir| self.flow(Hit { entry: id, dir });
                let (original, reply) = (view(FlowDir::Original), view(FlowDir::Reply));
                each(&FlowRecord { entry: id, original, reply, details: self.details(id, now) });
            }
        }
        self.epochs.park(reader.slot);
        (next < end).then_some(next)
    }
}
