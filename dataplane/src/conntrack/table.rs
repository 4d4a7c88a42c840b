//! The connection table: found by either tuple, shared by all workers.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::flow::*;
use super::state::FlowState;
use super::tuple::Tuple;

/// How large a table is made, and with which key.
#[derive(Clone, Copy, Debug)]
pub struct TableConfig {
    /// Most flows that it holds.
    pub max: u32,
    /// Key of the hash; secret and new at every boot, or peers could choose tuples that collide.
    pub key: u128,
    /// Most workers that use it at the same time.
    pub workers: u32,
    /// Owners with a share of their own: `FlowInit::owner` is below this.
    pub owners: u32,
    /// Most flows per owner.
    pub share: u32,
}

/// Connections of this node.
pub struct ConnTable {
    config: TableConfig,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    index: HashMap<Tuple, Hit>,
    flows: HashMap<u32, Flow>,
    owners: HashMap<u32, u32>,
    free: Vec<u32>,
}

struct Flow {
    tuples: [Tuple; 2],
    legs: [Leg; 2],
    generations: [u32; 2],
    state: FlowState,
    owner: u32,
    cause: u32,
    created: Ticks,
    last_seen: Ticks,
    counts: [FlowCounts; 2],
}

/// One thread's handle on a table: its free entries, its epoch, its clock hand.
pub struct Worker(());

/// A handle for threads that only read, as for dumps.
pub struct Reader(());

impl ConnTable {
    /// Makes an empty table.
    ///
    /// # Errors
    /// What mmap says.
    pub fn new(config: &TableConfig) -> io::Result<Self> {
        let inner = Inner { free: (1..=config.max).rev().collect(), ..Inner::default() };
        Ok(Self { config: *config, inner: Mutex::new(inner) })
    }
    /// Gives a handle to a worker; `None` once `TableConfig::workers` are in use.
    pub fn worker(&self) -> Option<Worker> {
        Some(Worker(()))
    }
    /// Gives a handle to a reader; `None` when too many are in use.
    pub fn reader(&self) -> Option<Reader> {
        Some(Reader(()))
    }
    /// Most flows.
    pub fn max(&self) -> u32 {
        self.config.max
    }
    /// Flows held now.
    pub fn used(&self) -> u32 {
        self.lock().flows.len() as u32
    }

    /// Hashes a tuple under the table's key.
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        u64::from(tuple.sport)
    }
    /// Asks for the index lines of a hash: first stage, right after hashing.
    pub fn prefetch_buckets(&self, _hash: u64) {}
    /// Asks for the entry line of a hash: second stage, once the index lines are there.
    pub fn prefetch_entry(&self, _hash: u64) {}
    /// Finds a flow by a tuple of either direction.
    pub fn lookup(&self, _hash: u64, tuple: &Tuple) -> Option<Hit> {
        self.lock().index.get(tuple).copied()
    }
    /// The direction of a flow that was found.
    pub fn flow(&self, hit: Hit) -> FlowView {
        self.lock().flows[&hit.entry.0].view(hit.dir)
    }
    /// What is known of a flow besides.
    pub fn details(&self, entry: EntryId, _now: Ticks) -> FlowDetails {
        let inner = self.lock();
        let flow = &inner.flows[&entry.0];
        FlowDetails {
            owner: flow.owner,
            cause: flow.cause,
            created: flow.created,
            last_seen: flow.last_seen,
            remaining_ms: 0,
            counts: flow.counts,
        }
    }

    /// Enters a flow under both tuples.
    ///
    /// # Errors
    /// See [`InsertError`]; nothing is entered then.
    pub fn insert(&self, _worker: &mut Worker, original: &Tuple, reply: &Tuple, init: &FlowInit, now: Ticks) -> Result<Hit, InsertError> {
        let mut inner = self.lock();
        if let Some(hit) = inner.index.get(original).or_else(|| inner.index.get(reply)) {
            return Err(InsertError::Exists(*hit));
        }
        if init.owner != NO_OWNER && inner.owners.get(&init.owner).is_some_and(|count| *count >= self.config.share) {
            return Err(InsertError::ShareExceeded);
        }
        let entry = EntryId(inner.free.pop().ok_or(InsertError::Full)?);
        *inner.owners.entry(init.owner).or_default() += 1;
        inner.index.insert(*reply, Hit { entry, dir: FlowDir::Reply });
        inner.index.insert(*original, Hit { entry, dir: FlowDir::Original });
        let flow = Flow {
            tuples: [*original, *reply],
            legs: [init.original, init.reply],
            generations: [init.generation; 2],
            state: init.state,
            owner: init.owner,
            cause: init.cause,
            created: now,
            last_seen: now,
            counts: Default::default(),
        };
        inner.flows.insert(entry.0, flow);
        Ok(Hit { entry, dir: FlowDir::Original })
    }
    /// Removes a flow. Tells whether it was still there.
    pub fn remove(&self, _worker: &mut Worker, entry: EntryId) -> bool {
        let mut inner = self.lock();
        let Some(flow) = inner.flows.remove(&entry.0) else { return false };
        for tuple in flow.tuples {
            inner.index.remove(&tuple);
        }
        if let Some(count) = inner.owners.get_mut(&flow.owner) {
            *count -= 1;
        }
        inner.free.push(entry.0);
        true
    }
    /// Replaces exit and generation of one direction in one step: no reader sees a new exit under an old generation.
    pub fn set_exit(&self, hit: Hit, exit: u32, generation: u32) {
        if let Some(flow) = self.lock().flows.get_mut(&hit.entry.0) {
            flow.legs[hit.dir as usize].exit = exit;
            flow.generations[hit.dir as usize] = generation;
        }
    }
    /// Counts a packet of a flow and renews it.
    pub fn touch(&self, hit: Hit, bytes: u32, now: Ticks) {
        if let Some(flow) = self.lock().flows.get_mut(&hit.entry.0) {
            flow.last_seen = now;
            flow.counts[hit.dir as usize].packets += 1;
            flow.counts[hit.dir as usize].bytes += u64::from(bytes);
        }
    }
    /// Moves the state of a flow on by one packet: TCP flags, or the type of the first SCTP chunk, else 0. `view` is what
    /// [`flow`](Self::flow) gave for this packet. Writes only where the state changes. Gives the state after it.
    pub fn advance(&self, hit: Hit, view: &FlowView, flags: u8) -> FlowState {
        let state = view.state.after(view.tuple.proto, hit.dir, flags);
        if state != view.state
            && let Some(flow) = self.lock().flows.get_mut(&hit.entry.0)
        {
            flow.state = state;
        }
        state
    }
    /// Moves the worker's clock hand over `budget` entries and removes those whose time is over. Gives how many.
    pub fn expire(&self, _worker: &mut Worker, _now: Ticks, _budget: u32) -> u32 {
        0
    }
    /// Says that the worker holds no [`Hit`] any more. Once per batch; entries removed before can then be reused.
    pub fn quiescent(&self, _worker: &mut Worker) {}
    /// Says that the worker will not touch the table until its next [`quiescent`](Self::quiescent): before it sleeps.
    pub fn park(&self, _worker: &mut Worker) {}

    /// Reads up to `count` entries from number `from` on and calls `each` for every flow. Gives the number to go on with, or
    /// `None` at the end.
    pub fn dump(&self, _reader: &mut Reader, from: u32, count: u32, now: Ticks, mut each: impl FnMut(&FlowRecord)) -> Option<u32> {
        for entry in from..from.saturating_add(count).min(self.max() + 1) {
            let record = {
                let inner = self.lock();
                inner.flows.get(&entry).map(|flow| (flow.view(FlowDir::Original), flow.view(FlowDir::Reply)))
            };
            if let Some((original, reply)) = record {
                let entry = EntryId(entry);
                each(&FlowRecord { entry, original, reply, details: self.details(entry, now) });
            }
        }
        from.checked_add(count).filter(|next| *next <= self.max())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    fn view(&self, dir: FlowDir) -> FlowView {
        let (tuple, to) = (self.tuples[dir as usize], self.tuples[dir.other() as usize].inverse());
        FlowView {
            tuple,
            to,
            leg: self.legs[dir as usize],
            generation: self.generations[dir as usize],
            state: self.state,
            nat_src: (tuple.src, tuple.sport) != (to.src, to.sport),
            nat_dst: (tuple.dst, tuple.dport) != (to.dst, to.dport),
        }
    }
}
