//! Flows of the bench cluster and the packets of them, through the whole pipeline.
//!
//! Conditions, those of the goals: uniform random order of flows, UDP and TCP at random, the smallest frames, every packet in a
//! slot of its own of an arena of 16,384, so that its lines are cold when its turn comes, batches of 32. Filling the slots is not
//! measured. Slots are 2112 bytes apart: at a power of two all headers would share two sets of the first cache.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use weir_dataplane::conntrack::{ConnTable, TableConfig, Ticks, Tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::io::Packet;
use weir_dataplane::model::{Family, Ip, MacAddr, proto};
use weir_dataplane::nat::Rewrite;
use weir_dataplane::overlay::vxlan::{OVERHEAD_V4, Remote, Template, encap};
use weir_dataplane::parse::{Headers, Kind, parse_into};
use weir_dataplane::pipeline::{Cx, Local, process};
use weir_dataplane::service::Affinity;
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::vxlan::Vni;
use weir_dataplane::wire::{ethernet, ipv4, ipv6, tcp, udp};
use weir_xsk::Arena;

use crate::plan::{FLOWS_MAX, FRESH_MAX, Plan, Way, mix};
use crate::world;

/// Packets of a round: slots of the arena.
pub const SLOTS: u32 = 16_384;
/// Packets of a batch.
pub const BATCH: usize = 32;
/// Policy rules behind new connections.
pub const RULES: u32 = 10_000;
/// The secret of the connection table.
pub const KEY: u128 = 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978;
const SLOT_BYTES: u32 = 2112;
const HEADROOM: u32 = 256;
/// What the clock moves on by per packet, as at 25 Mpps.
const PACKET_NANOS: u64 = 40;

/// Bytes of the frames: the least that Ethernet carries (IEEE 802.3 §4.2.3.3, without checksum), the least that TCP over IPv6 needs.
pub const fn frame_bytes(family: Family) -> usize {
    match family {
        Family::V4 => 60,
        Family::V6 => 74,
    }
}

/// In which order the flows get their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Every flow is as likely as any other.
    Uniform,
    /// The n-th most frequent flow is 1/n as likely as the most frequent one.
    Zipf,
}

impl Order {
    /// Draws the number of a flow below `flows`.
    fn draw(self, random: &mut fastrand::Rng, flows: u32) -> u32 {
        match self {
            Self::Uniform => random.u32(..flows),
            Self::Zipf => {
                // The integral of 1/x, inverted; then scattered, so that frequent flows are no neighbours. The prime divides no
                // number of flows that is measured.
                let rank = (f64::from(flows) + 1.0).powf(random.f64()) as u64 - 1;
                (rank.min(u64::from(flows) - 1) * 2_654_435_761 % u64::from(flows)) as u32
            }
        }
    }
}

/// Well-formed packets of one protocol that become those of any flow by an edit of their header.
struct Stencil {
    bytes: Vec<u8>,
    headers: Headers,
}

impl Stencil {
    fn new(craft: &Craft) -> Self {
        let bytes = craft.frame();
        let mut headers = Headers::BLANK;
        assert_eq!(parse_into(&bytes, &mut headers), Ok(Kind::Ip));
        Self { bytes, headers }
    }
    /// For TCP, for UDP.
    fn pair(tuple: Tuple, flags: u8) -> [Self; 2] {
        [proto::TCP, proto::UDP].map(|number| Self::new(&craft(Tuple { proto: number, ..tuple }, flags)))
    }
}

/// What a packet is made like.
pub(crate) fn craft(tuple: Tuple, flags: u8) -> Craft {
    craft_of(tuple, flags, frame_bytes(tuple.src.family()))
}

/// The same in a frame of `len` bytes.
pub(crate) fn craft_of(tuple: Tuple, flags: u8, len: usize) -> Craft {
    let l3 = if tuple.is_v4() { ipv4::LEN } else { ipv6::LEN };
    let headers = ethernet::LEN + l3 + if tuple.proto == proto::TCP { tcp::LEN } else { udp::LEN };
    Craft { tcp_flags: flags, payload: vec![0x5a; len - headers], ..Craft::new(tuple) }
}

/// A worker of our node and the packets that it gets. Several share the node ([`Traffic::beside`]).
pub struct Traffic {
    /// Which flows there are.
    pub plan: Plan,
    /// In which order they get packets.
    pub order: Order,
    /// The tables of the node.
    pub tables: Arc<Tables>,
    /// Its connections.
    pub conns: Arc<ConnTable>,
    /// What the worker keeps.
    pub local: Local,
    /// The frames' memory.
    pub arena: Arena,
    /// One packet per slot.
    pub packets: Vec<Packet>,
    /// The clock, nanoseconds.
    pub now: u64,
    affinity: Arc<Affinity>,
    random: fastrand::Rng,
    flows: u32,
    /// Of the flows, those whose number modulo the second is the first.
    share: (u32, u32),
    /// Which of its service's backends each flow has.
    backends: Arc<[u8]>,
    tunnels: Vec<Template>,
    /// Which flow each packet is of.
    pub(crate) sent: Vec<u32>,
    fresh: u32,
}

impl Traffic {
    /// The main rows' flows in the bench cluster.
    ///
    /// # Panics
    /// As [`with`](Self::with).
    pub fn new(flows: u32) -> Self {
        Self::with(Plan::MAIN, flows, Arc::new(world::tables(RULES)), KEY)
    }

    /// Opens `flows` flows to the end: TCP by three packets, UDP by a packet and its answer. `key` is the connection table's.
    ///
    /// # Panics
    /// Where memory is short, or the pipeline does not do what it should.
    pub fn with(plan: Plan, flows: u32, tables: Arc<Tables>, key: u128) -> Self {
        assert!(flows <= FLOWS_MAX, "at most {FLOWS_MAX} flows");
        // A ninth more than is used, and what new connections take for a round.
        let config = TableConfig { max: flows + flows / 8 + 4 * SLOTS, key, workers: 2, owners: 256, share: u32::MAX };
        let conns = Arc::new(ConnTable::new(&config).expect("memory for the connections"));
        let mut traffic = Self::worker(plan, flows, tables, conns, Arc::new(Affinity::new(64, 1)), vec![0; flows as usize].into(), (0, 1));
        traffic.open();
        traffic
    }

    fn worker(
        plan: Plan,
        flows: u32,
        tables: Arc<Tables>,
        conns: Arc<ConnTable>,
        affinity: Arc<Affinity>,
        backends: Arc<[u8]>,
        share: (u32, u32),
    ) -> Self {
        let (arena, frames) = Arena::heap(SLOTS, SLOT_BYTES, HEADROOM).expect("memory for the frames");
        let blank = |frame| Packet { frame, in_port: world::UPLINK, verdict: Verdict::Drop(DropReason::InvalidPacket) };
        Self {
            plan,
            order: Order::Uniform,
            tables,
            local: Local::new(conns.worker().expect("a worker's place"), 4096, 1),
            conns,
            arena,
            packets: frames.into_iter().map(blank).collect(),
            now: 1_000_000_000_000,
            affinity,
            random: fastrand::Rng::with_seed(7),
            flows,
            share,
            backends,
            tunnels: (1..=world::REMOTE_NODES).map(|node| Template::new(&remote(node, 0))).collect(),
            sent: vec![0; SLOTS as usize],
            fresh: 0,
        }
    }

    /// Another worker of the same node, with an arena of its own. From now on this one gets the even flows and the other the odd ones.
    ///
    /// # Panics
    /// Where there is one already.
    pub fn beside(&mut self) -> Self {
        self.share = (0, 2);
        let (tables, conns, affinity) = (self.tables.clone(), self.conns.clone(), self.affinity.clone());
        let other = Self::worker(self.plan, self.flows, tables, conns, affinity, self.backends.clone(), (1, 2));
        Self { now: self.now, ..other }
    }
    /// Gets all flows, as before another was beside it.
    pub fn alone(&mut self) {
        self.share = (0, 1);
    }

    fn open(&mut self) {
        let mut first = 0;
        while first < self.flows {
            let count = SLOTS.min(self.flows - first);
            // What does not fill the round repeats its flows.
            for (slot, sent) in self.sent.iter_mut().enumerate() {
                *sent = first + slot as u32 % count;
            }
            self.write_requests(tcp::SYN);
            self.run();
            for slot in 0..count as usize {
                let index = self.sent[slot];
                let choice = self.backend_in(slot, index);
                Arc::get_mut(&mut self.backends).expect("nobody shares them yet")[index as usize] = choice;
            }
            self.write_replies(tcp::SYN | tcp::ACK);
            self.run();
            self.write_requests(tcp::ACK);
            self.run();
            first += count;
        }
        let drops = &self.local.counters.drops;
        assert_eq!(self.local.counters.drop, 0, "{:?}", drops.iter().enumerate().filter(|(_, n)| **n > 0).collect::<Vec<_>>());
        assert_eq!(self.conns.used(), self.flows);
    }

    /// Which backend a translated request goes to.
    fn backend_in(&self, slot: usize, index: u32) -> u8 {
        let bytes = self.arena.bytes(&self.packets[slot].frame);
        let inner = if self.plan.way == Way::Overlay { OVERHEAD_V4 } else { 0 };
        let mut headers = Headers::BLANK;
        assert_eq!(parse_into(&bytes[inner..], &mut headers), Ok(Kind::Ip));
        let dst = headers.tuple.dst;
        (0..world::BACKENDS as u8).find(|choice| self.plan.translated(index, (*choice).into()).dst == dst).expect("a backend")
    }

    /// The number of the backend that a flow has, among those of its service.
    fn choice(&self, index: u32) -> u32 {
        self.backends[index as usize].into()
    }
    /// Where a flow's backend is.
    pub(crate) fn backend(&self, index: u32) -> std::net::Ipv4Addr {
        self.plan.backend(index, self.choice(index)).0
    }
    /// The tuple with which a request of the flow reaches its backend.
    pub fn translated(&self, index: u32) -> Tuple {
        self.plan.translated(index, self.choice(index))
    }

    /// How many flows there are.
    pub fn flows(&self) -> u32 {
        self.flows
    }

    fn choose(&mut self) {
        let (part, of) = self.share;
        for sent in &mut self.sent {
            *sent = self.order.draw(&mut self.random, self.flows / of) * of + part;
        }
    }

    /// Fills all slots with requests of known flows.
    pub fn fill_requests(&mut self) {
        self.choose();
        self.write_requests(tcp::ACK);
    }

    /// Fills all slots with answers to known flows, as they come from the backends.
    pub fn fill_replies(&mut self) {
        self.choose();
        self.write_replies(tcp::ACK);
    }

    /// Fills all slots with first packets of flows that nobody has seen.
    pub fn fill_first_packets(&mut self) {
        self.fill_mix(100);
    }

    /// Fills `percent` of the slots with first packets, the others with requests of known flows.
    pub fn fill_mix(&mut self, percent: u32) {
        self.choose();
        for slot in 0..self.sent.len() {
            if self.random.u32(..100) < percent {
                self.sent[slot] = self.next_fresh();
            }
        }
        self.write_requests(tcp::ACK);
    }

    /// Fills all slots with SYNs of flows that nobody has seen.
    pub fn fill_syns(&mut self) {
        for slot in 0..self.sent.len() {
            self.sent[slot] = loop {
                let index = self.next_fresh();
                if self.plan.tuple(index).proto == proto::TCP {
                    break index;
                }
            };
        }
        self.write_requests(tcp::ACK);
    }

    /// Fills all slots with first packets of these flows.
    ///
    /// # Panics
    /// Unless there is one for each slot.
    pub fn fill_first_of(&mut self, flows: &[u32]) {
        self.sent.copy_from_slice(flows);
        self.write_requests(tcp::ACK);
    }

    fn next_fresh(&mut self) -> u32 {
        self.fresh = (self.fresh + 1) % FRESH_MAX;
        FLOWS_MAX + self.fresh
    }

    /// Ends the flows of first packets that are still there.
    pub fn forget_first_packets(&mut self) {
        for index in self.sent.iter().filter(|index| **index >= FLOWS_MAX) {
            let tuple = self.plan.tuple(*index);
            if let Some(hit) = self.conns.lookup(self.conns.hash(&tuple), &tuple) {
                self.conns.remove(&mut self.local.conns, hit.entry);
            }
        }
        for _ in 0..4 {
            self.conns.quiescent(&mut self.local.conns);
        }
    }

    /// Numbers of new flows, enough for a round, whose hashes under `key` begin with the same 7 bits: they meet in 1/128 of the index.
    pub fn colliding(&self, key: u128) -> Vec<u32> {
        let table = ConnTable::new(&TableConfig { max: 1, key, workers: 1, owners: 0, share: 0 }).expect("memory for one connection");
        let fits = |index: &u32| table.hash(&self.plan.tuple(*index)) >> 57 == 0;
        (FLOWS_MAX..FLOWS_MAX + FRESH_MAX).filter(fits).take(SLOTS as usize).collect()
    }

    fn write_requests(&mut self, flags: u8) {
        let first = Stencil::pair(self.plan.tuple(0), tcp::SYN);
        let known = Stencil::pair(self.plan.tuple(0), flags);
        for (packet, index) in self.packets.iter_mut().zip(&self.sent) {
            let to = self.plan.tuple(*index);
            let stencils = if *index >= FLOWS_MAX { &first } else { &known };
            let client = Plan::client(*index);
            packet.in_port = world::pod_port(client);
            write(&self.arena, packet, stencils, &to);
            set_macs(self.arena.bytes_mut(&mut packet.frame), MacAddr::GATEWAY, world::pod_mac(client));
        }
    }

    fn write_replies(&mut self, flags: u8) {
        let stencils = Stencil::pair(self.translated(self.sent[0]).inverse(), flags);
        for slot in 0..self.packets.len() {
            let index = self.sent[slot];
            let (to, backend) = (self.translated(index).inverse(), self.backend(index));
            let packet = &mut self.packets[slot];
            write(&self.arena, packet, &stencils, &to);
            if self.plan.way == Way::Overlay {
                packet.in_port = world::UPLINK;
                let tunnel = &self.tunnels[world::node_of(backend) as usize - 1];
                assert!(encap(&self.arena, &mut packet.frame, tunnel, 0, mix(index)));
            } else {
                packet.in_port = world::pod_port(backend);
                set_macs(self.arena.bytes_mut(&mut packet.frame), MacAddr::GATEWAY, world::pod_mac(backend));
            }
        }
    }

    /// Sends all packets through the pipeline, batch by batch. Gives the time that it took.
    pub fn run(&mut self) -> Duration {
        self.run_in(BATCH)
    }

    /// A round of known flows here and one of another worker, on two threads that begin together. Gives the mean of their times.
    ///
    /// # Panics
    /// Where a round does.
    pub fn run_both(&mut self, other: &mut Self) -> Duration {
        let start = Barrier::new(2);
        let turn = |traffic: &mut Self| {
            traffic.fill_requests();
            start.wait();
            traffic.run()
        };
        thread::scope(|scope| {
            let theirs = scope.spawn(|| turn(other));
            let ours = turn(self);
            (ours + theirs.join().expect("a worker")) / 2
        })
    }

    /// The same in batches of another size.
    #[inline(never)]
    pub fn run_in(&mut self, batch: usize) -> Duration {
        let start = Instant::now();
        for batch in self.packets.chunks_mut(batch) {
            let mut cx = Cx {
                tables: &self.tables,
                conns: &self.conns,
                affinity: &self.affinity,
                arena: &self.arena,
                local: &mut self.local,
                now: self.now,
            };
            // As ports do with what they receive.
            batch.iter().for_each(|packet| self.arena.prefetch(&packet.frame));
            process(&mut cx, batch, &mut ());
            self.now += PACKET_NANOS * batch.len() as u64;
        }
        start.elapsed()
    }

    /// Milliseconds of the clock, as the connection table counts them.
    pub fn ticks(&self) -> Ticks {
        Ticks::from_nanos(self.now)
    }
}

fn write(arena: &Arena, packet: &mut Packet, stencils: &[Stencil; 2], to: &Tuple) {
    let stencil = &stencils[usize::from(to.proto == proto::UDP)];
    assert!(arena.fill(&mut packet.frame, &stencil.bytes));
    let rewrite = Rewrite::compile(&stencil.headers.tuple, to);
    rewrite.apply(arena.bytes_mut(&mut packet.frame), &stencil.headers).expect("a stencil is well formed");
}

fn set_macs(frame: &mut [u8], dst: MacAddr, src: MacAddr) {
    frame[..6].copy_from_slice(&dst.0);
    frame[6..12].copy_from_slice(&src.0);
}

/// The way from a node to another. Node 0 is ours.
pub(crate) fn remote(from: u32, to: u32) -> Remote {
    let mac = |node| MacAddr::from_ip(world::node(node).into());
    let uplink = |node| if node == 0 { world::uplink_mac() } else { mac(node) };
    Remote {
        src_mac: uplink(from),
        dst_mac: uplink(to),
        src: Ip::v4(world::node(from).into()),
        dst: Ip::v4(world::node(to).into()),
        port: 8472,
        vni: Vni::try_from(1).expect("24 bits"),
        vtep_src: mac(from),
        vtep_dst: mac(to),
    }
}
