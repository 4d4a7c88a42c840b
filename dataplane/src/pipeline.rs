//! The life of a packet. Read this file first.
//!
//! ```text
//!  rx ─► parse ─► decap ─► guard ─► conntrack ─┬─ known ──────────────────────────────────────────┬─► rewrite ─► exit
//!                   │                          └─ new ─► service ─► policy ─► masquerade ─► route ┘     │
//!                   └─► neighbours, echo                                                  encap, pod, host, answer
//! ```
//!
//! The first packet of a flow takes the whole way (`first::decide`); what was decided stays in the flow's entry and every later
//! packet only follows it (`established`). Stages are plain functions of other modules that know nothing of each other; their
//! order is here alone. Nothing is allocated, locked or logged, no clock is read and no random number drawn: time and randomness
//! are in [`Cx`]. Every frame ends in exactly one verdict, which is counted.
//!
//! There are two lanes. The general one is this file: it takes one packet after the other and can do everything. The hot one (`hot`)
//! does for clean packets of known flows what the general one would do, for about half the instructions. [`process`] lets it look at the
//! whole batch in stages, so that the memory of one packet arrives while others are worked on, chooses the backends of new flows
//! among them and asks for what these will need (`first::foresee`), and then takes the packets in order: those that the hot lane
//! cannot follow, it leaves untouched to the general one. Where somebody wants to hear of every packet, all take the general lane.

mod admit;
mod established;
mod exits;
mod first;
mod hot;
mod odd;
mod refusal;

use weir_xsk::Arena;

use crate::conntrack::{self, Baseline, ConnTable, Fragments, Hashed, Isa, Ticks};
use crate::counters::{Counters, Stage};
use crate::events::{Event, Hears, Observer, Trail, is_decision};
use crate::io::{BATCH_MAX, Packet};
use crate::model::{Ip, NodeIndex};
use crate::parse::{Headers, Parsed, parse};
use crate::route::ExitId;
use crate::service::Affinity;
use crate::tables::Tables;
use crate::verdict::Verdict;
use established::established;
pub use established::{is_orphaned_flow, is_stale_service_flow};
use first::Foreseen;
use refusal::{Limiter, Refusal};

/// Most entries of the connection table that a batch looks at for expiry.
const EXPIRE_MAX: u32 = 4 * BATCH_MAX as u32;
/// Fewer are not worth the call.
const EXPIRE_MIN: u32 = 16;
/// Within this time all entries that were ever used are looked at once, as long as batches come. By time and not by packets: 128
/// entries with each batch cost 16 ns a packet. By what was used and not by what the table holds: with a few flows in a large one
/// these few were looked at again and again, which was two fifths of what a worker cost.
const SWEEP_NANOS: u64 = 10_000_000_000;

/// What the packets of a batch meet.
pub struct Cx<'a> {
    /// Tables of the generation in force; read once per batch.
    pub tables: &'a Tables,
    /// Connections of the node.
    pub conns: &'a ConnTable,
    /// Remembered clients of services.
    pub affinity: &'a Affinity,
    /// Where the frames are.
    pub arena: &'a Arena,
    /// What this worker keeps.
    pub local: &'a mut Local,
    /// Nanoseconds of a monotonic clock.
    pub now: u64,
}

/// What a worker keeps between batches.
pub struct Local {
    /// Its handle on the connection table.
    pub conns: conntrack::Worker,
    /// Ports of fragmented packets.
    pub fragments: Fragments,
    /// What it counts.
    pub counters: Counters,
    /// Its randomness.
    pub random: fastrand::Rng,
    /// Packets that the hot lane followed, of those that were received.
    pub followed: u64,
    /// The last destination whose next hop is no known neighbour, for who can resolve it.
    pub unresolved: Option<Ip>,
    /// How many ICMP errors it may still send to each port.
    limiters: Vec<Limiter>,
    /// Up to when the connection table was swept, nanoseconds of the clock.
    swept: u64,
    /// The last batch had packets for the overlay: this one will have, too.
    encapsulates: bool,
    /// Taken out while a batch is worked on.
    room: Option<Box<Room>>,
}

impl Local {
    /// A worker that has seen nothing yet. `fragments` = datagrams whose fragments are followed at a time; `seed` starts its
    /// randomness.
    pub fn new(conns: conntrack::Worker, fragments: u32, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            conns,
            fragments: Fragments::new(fragments, random.u128(..)),
            counters: Counters::default(),
            random,
            followed: 0,
            unresolved: None,
            limiters: Vec::new(),
            swept: 0,
            encapsulates: false,
            room: Some(Box::new(Room::of(BATCH_MAX))),
        }
    }
}

/// What the stages leave for each other; place `n` is of the `n`th packet of the batch.
struct Room {
    arrivals: Vec<hot::Arrival>,
    /// Of an arrival that the index does not know.
    foreseen: Vec<Foreseen>,
}

impl Room {
    fn of(packets: usize) -> Self {
        Self { arrivals: vec![hot::Arrival::BLANK; packets], foreseen: vec![Foreseen::BLANK; packets] }
    }
}

/// Who sent a frame, as the port where it came in proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The pod of the port; one of its addresses is the source.
    Pod,
    /// The node's own stack.
    Host,
    /// The underlay, not encapsulated.
    Uplink,
    /// A remote node, through the overlay; the source is its own or one of its pods'.
    Tunnel(NodeIndex),
}

/// An IP packet that was let in.
#[derive(Clone, Copy, Debug)]
struct Inbound<'a> {
    headers: Headers,
    /// Its tuple as the connection table looks for it.
    hashed: Hashed,
    sender: Sender,
    /// Where it is of a flow that the index did not know.
    foreseen: Option<&'a Foreseen>,
}

/// What is kept of a flow's direction under the tables of one generation.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Number of the [`ExitId`] by which its packets leave.
    exit: u16,
    /// Number of the exit that leads back to where they come from: the general lane has let a packet of this direction pass that
    /// came by that port or, of a tunnel, from that VTEP. The guards ask for nothing else that could differ from packet to packet
    /// but the link header.
    from: u16,
}

impl Way {
    /// In place of a number: not resolved, not proven, or too large to be kept. No exit has this number.
    const NONE: u16 = u16::MAX;
    /// Nothing is known.
    const UNKNOWN: Self = Self { exit: Self::NONE, from: Self::NONE };

    fn new(exit: ExitId, from: Option<ExitId>) -> Self {
        let number = |exit: ExitId| u16::try_from(exit.0).unwrap_or(Self::NONE);
        Self { exit: number(exit), from: from.map_or(Self::NONE, number) }
    }
    /// As the connection table keeps it.
    const fn bits(self) -> u32 {
        self.exit as u32 | (self.from as u32) << 16
    }
    #[inline(always)]
    const fn from_bits(bits: u32) -> Self {
        Self { exit: bits as u16, from: (bits >> 16) as u16 }
    }
    fn exit(self) -> Option<ExitId> {
        (self.exit != Self::NONE).then_some(ExitId(self.exit.into()))
    }
}

/// Takes a batch from arrival to verdict: edits the frames in place and sets [`Packet::verdict`] of each.
///
/// An empty batch is good for the upkeep of the tables and should come now and then when nothing else does.
pub fn process<O: Observer>(cx: &mut Cx<'_>, batch: &mut [Packet], observer: &mut O) {
    match cx.conns.modern() {
        Some(isa) => process_with(cx, batch, observer, isa),
        None => process_with(cx, batch, observer, Baseline),
    }
}

/// [`process`] by a set of instructions.
fn process_with<O: Observer>(cx: &mut Cx<'_>, batch: &mut [Packet], observer: &mut O, isa: impl Isa) {
    let ports = cx.tables.ports.count();
    cx.local.counters.fit_ports(ports);
    if cx.local.limiters.len() < ports {
        cx.local.limiters.resize(ports, Limiter::default());
    }
    let mut room =
        cx.local.room.take().filter(|room| room.arrivals.len() >= batch.len()).unwrap_or_else(|| Box::new(Room::of(batch.len())));
    let Room { arrivals, foreseen } = &mut *room;
    let lane = hot::Lane::new(cx, isa);
    let counters = &mut cx.local.counters;
    if isa.run(|| hot::look(&lane, counters, batch, &mut arrivals[..batch.len()], observer)) {
        first::foresee(cx, &arrivals[..batch.len()], foreseen);
    }
    let mut followed = [0; 3];
    let mut index = 0;
    while index < batch.len() {
        if O::HEARS != Hears::Everything && arrivals[index].may_be_known() {
            let ports = &mut cx.local.counters.ports;
            index += isa.run(|| hot::follow_run(&lane, ports, &mut batch[index..], &arrivals[index..], &mut followed));
        }
        if let Some(packet) = batch.get_mut(index) {
            packet.verdict = general(cx, packet, &arrivals[index], &foreseen[index], index, observer);
            cx.local.counters.verdict(packet.verdict, packet.in_port, packet.frame.total_len());
            index += 1;
        }
    }
    observer.stage(Stage::Apply, batch.len());
    let [plain, encap, host] = followed;
    cx.local.encapsulates = encap > 0;
    cx.local.followed += plain + encap + host;
    cx.local.counters.verdicts(plain, encap, host);
    cx.local.counters.batches += 1;
    cx.local.room = Some(room);
    expire(cx, EXPIRE_MAX);
    cx.conns.quiescent(&mut cx.local.conns);
    observer.stage(Stage::Expire, batch.len());
}

/// The general lane: takes a packet from arrival to verdict and tells who listens.
#[inline(never)]
fn general<O: Observer>(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    arrival: &hot::Arrival,
    foreseen: &Foreseen,
    index: usize,
    observer: &mut O,
) -> Verdict {
    let mut inbound = Inbound { headers: Headers::BLANK, hashed: Hashed::BLANK, sender: Sender::Uplink, foreseen: None };
    let mut trail = Trail::default();
    let admitted = admit::admit(cx, packet, arrival, foreseen, &mut inbound);
    let verdict = match admitted {
        Ok(()) => {
            let outcome = forward::<O>(cx, packet, &inbound, &mut trail);
            outcome.unwrap_or_else(|refusal| refusal::answer(cx, packet, &inbound, refusal))
        }
        Err(ended) => ended,
    };
    if O::HEARS == Hears::Everything || O::HEARS == Hears::Decisions && is_decision(verdict, trail.state) {
        let (headers, decap) = match (admitted, verdict) {
            (Ok(()), _) => (Some(inbound.headers), if let Sender::Tunnel(node) = inbound.sender { Some(node) } else { None }),
            // It ended before its headers were known for good.
            (Err(_), Verdict::Drop(_)) => match parse(cx.arena.bytes(&packet.frame)) {
                Ok(Parsed::Ip(headers)) => (Some(headers), None),
                _ => (None, None),
            },
            (Err(_), _) => (None, None),
        };
        observer.packet(&Event { index, in_port: packet.in_port, decap, headers: headers.as_ref(), verdict, trail: &trail });
    }
    verdict
}

/// Ends flows whose time is over, as far as the clock hand is due; looks at `most` entries at most.
pub fn expire(cx: &mut Cx<'_>, most: u32) {
    let entries = cx.conns.extent();
    let elapsed = cx.now.saturating_sub(cx.local.swept).min(SWEEP_NANOS);
    // Below 10^10 * 2^30, which fits.
    let due = (elapsed * u64::from(entries) / SWEEP_NANOS) as u32;
    let budget = due.min(most);
    if budget >= EXPIRE_MIN.min(entries.max(1)) {
        cx.conns.expire(&mut cx.local.conns, Ticks::from_nanos(cx.now), budget);
        // What is beyond the budget stays due.
        let covered = u64::from(budget) * SWEEP_NANOS / u64::from(entries);
        cx.local.swept = (cx.now - elapsed).saturating_add(covered).min(cx.now);
    }
}

/// Sends an IP packet where its flow goes.
#[inline(always)]
fn forward<O: Observer>(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, trail: &mut Trail) -> Result<Verdict, Refusal> {
    if odd::is_odd(&inbound.headers) {
        return odd::forward::<O>(cx, packet, inbound, trail);
    }
    match cx.conns.find(&inbound.hashed) {
        Some(hit) => established::<O>(cx, packet, inbound, hit, trail),
        // Nobody has a flow with the gateway.
        None if admit::is_gateway(inbound.headers.tuple.dst) => odd::forward::<O>(cx, packet, inbound, trail),
        None => first::decide(cx, packet, inbound, trail),
    }
}
