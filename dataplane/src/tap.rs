//! Frames as they came in and as they left, for `weir capture`: copied by a worker while somebody captures, and only then.
//!
//! Sits around the pipeline, in the worker. A frame is copied before the pipeline edits it and kept until its verdict is known;
//! what leaves by a chosen port is copied once more as it leaves. The daemon makes a [`Tap`] with all its memory and lends it to a
//! worker, which never allocates or waits: a frame for which no slot is free is counted as lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use weir_xsk::Arena;

use crate::capture::Direction;
use crate::events::{Event, Fate, Observer, is_decision};
use crate::flows::Watch;
use crate::io::{BATCH_MAX, Packet, PortId};
use crate::model::Ip;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// Captures that a worker serves at a time.
pub const TAPS_MAX: usize = 8;

/// Which frames are wanted: those that come in or leave by a chosen port, and those that are dropped on their way to a chosen pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The ports; none = all of them.
    pub ports: Vec<PortId>,
    /// Addresses of the chosen pods.
    pub addresses: Vec<Ip>,
}

impl Choice {
    fn has(&self, port: PortId) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// Tells whether a packet that was dropped was on its way to a chosen pod.
    fn missed(&self, fate: &Fate) -> bool {
        let tuple = fate.headers.map(|headers| headers.tuple);
        let destination = tuple.map(|tuple| fate.trail.backend.map_or(tuple.dst, |backend| backend.address));
        matches!(fate.verdict, Verdict::Drop(_)) && destination.is_some_and(|address| self.addresses.contains(&address))
    }
}

/// One copy of a frame.
pub struct Slot {
    /// Nanoseconds of the workers' clock.
    pub time: u64,
    /// Number of the packet: all its copies have it.
    pub packet: u64,
    /// Where it was seen.
    pub port: PortId,
    /// On its way in, or out.
    pub direction: Direction,
    /// Length of the frame, of which [`bytes`](Self::bytes) may have less.
    pub wire_len: u32,
    /// What became of it; in the first copy of a packet alone.
    pub fate: Option<Fate>,
    /// The tables that decided.
    pub tables: Option<Arc<Tables>>,
    bytes: Box<[u8]>,
    len: usize,
}

impl Slot {
    /// The frame, as far as it was copied.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// One capture at one worker.
pub struct Tap {
    choice: Choice,
    free: ArrayQueue<Box<Slot>>,
    taken: ArrayQueue<Box<Slot>>,
    lost: AtomicU64,
}

impl Tap {
    /// A tap with `slots` copies of up to `snaplen` bytes each.
    pub fn new(choice: Choice, slots: usize, snaplen: usize) -> Self {
        let free = ArrayQueue::new(slots.max(1));
        let slot = || Slot {
            time: 0,
            packet: 0,
            port: PortId(0),
            direction: Direction::In,
            wire_len: 0,
            fate: None,
            tables: None,
            bytes: vec![0; snaplen].into(),
            len: 0,
        };
        while free.push(Box::new(slot())).is_ok() {}
        Self { choice, free, taken: ArrayQueue::new(slots.max(1)), lost: AtomicU64::new(0) }
    }

    /// Takes the oldest copy out; [`give_back`](Self::give_back) it.
    pub fn take(&self) -> Option<Box<Slot>> {
        self.taken.pop()
    }

    /// Gives a slot back for another frame. Frees its tables here, not in the worker.
    pub fn give_back(&self, mut slot: Box<Slot>) {
        slot.tables = None;
        // There is room for all slots that there are.
        let _ = self.free.push(slot);
    }

    /// Frames for which there was no slot, so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn copy(&self, packet: &Packet, number: u64, port: PortId, direction: Direction, arena: &Arena, time: u64) -> Option<Box<Slot>> {
        let Some(mut slot) = self.free.pop() else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        slot.len = 0;
        for bytes in arena.buffers(&packet.frame) {
            let len = bytes.len().min(slot.bytes.len() - slot.len);
            let end = slot.len + len;
            slot.bytes[end - len..end].copy_from_slice(&bytes[..len]);
            slot.len = end;
        }
        (slot.time, slot.packet, slot.port, slot.direction) = (time, number, port, direction);
        slot.wire_len = packet.frame.total_len() as u32;
        slot.fate = None;
        Some(slot)
    }

    fn hand_over(&self, mut slot: Box<Slot>, fate: Option<Fate>, tables: &Arc<Tables>) {
        slot.fate = fate;
        slot.tables = Some(tables.clone());
        // As many places as slots.
        let _ = self.taken.push(slot);
    }
}

/// A worker's part of all captures.
pub struct Taps {
    taps: Vec<Arc<Tap>>,
    /// What became of the batch, by position; kept only while somebody captures.
    fates: Vec<Option<Fate>>,
    /// Copies of the batch as it came in: capture, position, copy.
    waiting: Vec<(usize, usize, Box<Slot>)>,
    /// Number of the next packet. Those of different workers are apart.
    next: u64,
}

impl Taps {
    /// Nobody captures yet. `worker` tells this one's packets from those of others.
    pub fn new(worker: u16) -> Self {
        Self {
            taps: Vec::with_capacity(TAPS_MAX),
            fates: vec![None; BATCH_MAX],
            waiting: Vec::with_capacity(TAPS_MAX * BATCH_MAX),
            next: u64::from(worker) << 48,
        }
    }

    /// Tells whether nobody captures.
    pub fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// Begins a capture; `false` where there are [`TAPS_MAX`] already.
    pub fn insert(&mut self, tap: Arc<Tap>) -> bool {
        let room = self.taps.len() < TAPS_MAX;
        if room {
            self.taps.push(tap);
        }
        room
    }

    /// Ends a capture. Its maker still has it, so nothing is freed here.
    pub fn remove(&mut self, tap: &Arc<Tap>) {
        self.taps.retain(|other| !Arc::ptr_eq(other, tap));
    }

    /// Copies what came in by chosen ports, before anything is edited. `now` is the workers' clock, nanoseconds.
    pub fn before(&mut self, batch: &[Packet], arena: &Arena, now: u64) {
        for (which, tap) in self.taps.iter().enumerate() {
            for (index, packet) in batch.iter().enumerate().filter(|(_, packet)| tap.choice.has(packet.in_port)) {
                if let Some(slot) = tap.copy(packet, self.next + index as u64, packet.in_port, Direction::In, arena, now) {
                    self.waiting.push((which, index, slot));
                }
            }
        }
    }

    /// The observer that the pipeline tells what becomes of the batch. With `all`, `watch` hears of every packet, else of
    /// decisions.
    pub fn observer<'a>(&'a mut self, watch: Watch<'a, true>, all: bool) -> impl Observer + 'a {
        self.fates.fill(None);
        Tapped { fates: &mut self.fates, watch, all }
    }

    /// Hands the copies over with what became of them, and copies what leaves by chosen ports or was dropped before it could.
    pub fn after(&mut self, batch: &[Packet], arena: &Arena, tables: &Arc<Tables>, now: u64) {
        let told = |which: usize, index: usize, waiting: &[(usize, usize, Box<Slot>)]| {
            waiting.iter().any(|(tap, at, _)| (*tap, *at) == (which, index))
        };
        for (which, tap) in self.taps.iter().enumerate() {
            for (index, packet) in batch.iter().enumerate() {
                let Some(fate) = self.fates[index] else { continue };
                let number = self.next + index as u64;
                let told = told(which, index, &self.waiting);
                if let Some(port) = fate.out_port().filter(|port| tap.choice.has(*port))
                    && let Some(slot) = tap.copy(packet, number, port, Direction::Out, arena, now)
                {
                    tap.hand_over(slot, (!told).then_some(fate), tables);
                }
                if !told
                    && tap.choice.missed(&fate)
                    && let Some(slot) = tap.copy(packet, number, fate.in_port, Direction::In, arena, now)
                {
                    tap.hand_over(slot, Some(fate), tables);
                }
            }
        }
        for (which, index, slot) in self.waiting.drain(..) {
            self.taps[which].hand_over(slot, self.fates[index], tables);
        }
        self.next += batch.len() as u64;
    }
}

/// Keeps what became of each packet of a batch, and tells the flow events' own observer what it wants to hear.
struct Tapped<'a> {
    fates: &'a mut [Option<Fate>],
    watch: Watch<'a, true>,
    all: bool,
}

impl Observer for Tapped<'_> {
    fn packet(&mut self, event: &Event<'_>) {
        if let Some(fate) = self.fates.get_mut(event.index) {
            *fate = Some(Fate::from(event));
        }
        if self.all || is_decision(event.verdict, event.trail.state) {
            self.watch.packet(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{CtState, Trail};
    use crate::flows::{Ledger, ring};
    use crate::io::Batch;
    use crate::model::{NodeConfig, NodeState};
    use crate::runtime::Runtime;
    use crate::service::Backend;
    use crate::verdict::DropReason;

    const NOW: u64 = 7;

    /// A batch of one frame that comes in by port 1, ends as `verdict` after its first byte was edited, and what `choice` gives of
    /// it: port, direction, first byte, verdict.
    fn through(taps: &mut Taps, verdict: Verdict, trail: Trail) {
        let (arena, mut free) = Arena::heap(1, 256, 64).unwrap();
        let mut frame = free.pop().unwrap();
        assert!(arena.fill(&mut frame, &[1, 2, 3, 4]));
        let mut batch: Batch = vec![Packet { frame, in_port: PortId(1), verdict }];
        taps.before(&batch, &arena, NOW);
        arena.bytes_mut(&mut batch[0].frame)[0] = 9;
        let state = Arc::new(NodeState::default());
        let runtime = Arc::new(Runtime::offline(&state, NodeConfig::offline("node-a")));
        let tables = Arc::new(Tables::compile_shared(state, runtime, 1, None));
        let ((mut notes, _), mut ledger) = (ring(1), Ledger::default());
        let watch = Watch::<true> { ring: &mut notes, ledger: &mut ledger, tables: &tables, now: NOW };
        taps.observer(watch, false).packet(&Event { index: 0, in_port: PortId(1), decap: None, headers: None, verdict, trail: &trail });
        taps.after(&batch, &arena, &tables, NOW);
    }

    fn taken(tap: &Tap) -> Vec<(u16, Direction, u8, Option<Verdict>)> {
        let slots = std::iter::from_fn(|| tap.take());
        let seen = slots.map(|slot| {
            let seen = (slot.port.0, slot.direction, slot.bytes()[0], slot.fate.map(|fate| fate.verdict));
            assert_eq!((slot.bytes().len(), slot.wire_len, slot.time), (3, 4, NOW));
            tap.give_back(slot);
            seen
        });
        let mut seen: Vec<_> = seen.collect();
        seen.sort_by_key(|(port, ..)| *port);
        seen
    }

    fn with_tap(choice: Choice, slots: usize) -> (Taps, Arc<Tap>) {
        let (mut taps, tap) = (Taps::new(0), Arc::new(Tap::new(choice, slots, 3)));
        assert!(taps.insert(tap.clone()));
        (taps, tap)
    }

    #[test]
    fn a_frame_is_seen_as_it_came_in_with_its_verdict_and_as_it_left() {
        let forward = Verdict::Forward(PortId(2));
        for (ports, expected) in [
            (vec![], vec![(1, Direction::In, 1, Some(forward)), (2, Direction::Out, 9, None)]),
            (vec![PortId(1)], vec![(1, Direction::In, 1, Some(forward))]),
            // Nobody else tells what became of it.
            (vec![PortId(2)], vec![(2, Direction::Out, 9, Some(forward))]),
            (vec![PortId(3)], vec![]),
        ] {
            let (mut taps, tap) = with_tap(Choice { ports: ports.clone(), addresses: Vec::new() }, 4);
            through(&mut taps, forward, Trail::default());
            assert_eq!(taken(&tap), expected, "{ports:?}");
        }
    }

    #[test]
    fn what_was_dropped_on_its_way_to_a_chosen_pod_is_seen() {
        let pod = Ip::from(std::net::IpAddr::from([10, 244, 1, 5]));
        let (mut taps, tap) = with_tap(Choice { ports: vec![PortId(3)], addresses: vec![pod] }, 4);
        let drop = Verdict::Drop(DropReason::PolicyDenied);
        let to = |address| Trail { state: CtState::New, backend: Some(Backend { address, port: 80 }), ..Trail::default() };
        through(&mut taps, drop, to(pod));
        // Without headers nobody knows where it went.
        assert_eq!(taken(&tap), []);
        let fate = Fate { in_port: PortId(1), decap: None, headers: Some(crate::parse::Headers::BLANK), verdict: drop, trail: to(pod) };
        assert!(tap.choice.missed(&fate));
        assert!(!tap.choice.missed(&Fate { trail: to(Ip::from(std::net::IpAddr::from([10, 244, 1, 6]))), ..fate }));
        assert!(!tap.choice.missed(&Fate { verdict: Verdict::Forward(PortId(2)), ..fate }));
    }

    #[test]
    fn without_a_free_slot_a_frame_is_lost_and_counted_and_slots_come_back() {
        let (mut taps, tap) = with_tap(Choice::default(), 1);
        let drop = Verdict::Drop(DropReason::TtlExceeded);
        through(&mut taps, drop, Trail::default());
        through(&mut taps, drop, Trail::default());
        assert_eq!((taken(&tap).len(), tap.lost()), (1, 1));
        through(&mut taps, drop, Trail::default());
        assert_eq!((taken(&tap).len(), tap.lost()), (1, 1));
        taps.remove(&tap);
        through(&mut taps, drop, Trail::default());
        assert_eq!((taken(&tap).len(), tap.lost()), (0, 1));
    }

    #[test]
    fn copies_of_a_packet_share_its_number_and_packets_of_two_workers_do_not() {
        let numbers = |worker| {
            let tap = Arc::new(Tap::new(Choice::default(), 4, 3));
            let mut taps = Taps::new(worker);
            assert!(taps.insert(tap.clone()));
            through(&mut taps, Verdict::Forward(PortId(2)), Trail::default());
            through(&mut taps, Verdict::Drop(DropReason::TtlExceeded), Trail::default());
            std::iter::from_fn(|| tap.take()).map(|slot| slot.packet).collect::<Vec<_>>()
        };
        let (first, second) = (numbers(0), numbers(1));
        assert_eq!(first, [0, 0, 1]);
        assert!(second.iter().all(|number| !first.contains(number)));
    }
}
