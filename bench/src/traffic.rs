//! Flows of the bench cluster and the packets of them, through the whole pipeline.
//!
//! Conditions, those of the goals: uniform random order of flows, UDP and TCP at random, 60-byte frames, every packet in a slot
//! of its own of an arena of 16,384, so that its lines are cold when its turn comes, batches of 32. Filling the slots is not
//! measured. Slots are 2112 bytes apart: at a power of two all headers would share two sets of the first cache.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use weir_dataplane::conntrack::{ConnTable, TableConfig, Ticks, Tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::io::{Packet, PortId};
use weir_dataplane::model::{Ip, MacAddr, proto};
use weir_dataplane::nat::Rewrite;
use weir_dataplane::overlay::vxlan::{Remote, Template, encap};
use weir_dataplane::parse::{Headers, Kind, parse_into};
use weir_dataplane::pipeline::{Cx, Local, process};
use weir_dataplane::service::Affinity;
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::tcp;
use weir_dataplane::wire::vxlan::Vni;
use weir_xsk::Arena;

use crate::world;

/// Packets of a round: slots of the arena.
pub const SLOTS: u32 = 16_384;
/// Packets of a batch.
pub const BATCH: usize = 32;
/// Policy rules behind new connections.
pub const RULES: u32 = 10_000;
const SLOT_BYTES: u32 = 2112;
const HEADROOM: u32 = 256;
/// Bytes of an Ethernet frame without its checksum (IEEE 802.3 §4.2.3.3).
const FRAME_BYTES: usize = 60;
/// What the clock moves on by per batch, as at 25 Mpps.
const BATCH_NANOS: u64 = 40 * BATCH as u64;
const UPLINK: PortId = PortId(0);
const FIRST_POD_PORT: u16 = 2;

/// Source ports that each pod uses for a group of services.
const SPORTS: u32 = 60_000;
const SERVICES_PER_GROUP: u32 = 32;
/// The group of services that only new connections ask for.
const GROUP_OF_NEW: u32 = 3;
/// Most flows at a time.
pub const FLOWS_MAX: u32 = world::PODS * SPORTS * GROUP_OF_NEW;

/// A fixed scramble, so that service and protocol of neighbouring flows have nothing to do with each other.
const fn mix(index: u32) -> u64 {
    let x = (index as u64 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

fn service_of(index: u32) -> u32 {
    index / world::PODS / SPORTS * SERVICES_PER_GROUP + mix(index) as u32 % SERVICES_PER_GROUP
}

/// The tuple with which the client of a flow sends.
pub fn tuple(index: u32) -> Tuple {
    Tuple {
        src: Ip::v4(world::pod(index % world::PODS).into()),
        dst: Ip::v4(world::service(service_of(index)).into()),
        sport: 1024 + (index / world::PODS % SPORTS) as u16,
        dport: world::SERVICE_PORT,
        proto: if mix(index) >> 16 & 1 == 0 { proto::TCP } else { proto::UDP },
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
}

/// What a packet is made like.
fn craft(tuple: Tuple, flags: u8) -> Craft {
    let header_bytes = if tuple.proto == proto::TCP { 54 } else { 42 };
    Craft { tcp_flags: flags, payload: vec![0x5a; FRAME_BYTES - header_bytes], ..Craft::new(tuple) }
}

/// Our node and all flows of a run.
pub struct Traffic {
    /// The tables of the node.
    pub tables: Tables,
    /// Its connections.
    pub conns: ConnTable,
    /// What the worker keeps.
    pub local: Local,
    /// The frames' memory.
    pub arena: Arena,
    /// One packet per slot.
    pub packets: Vec<Packet>,
    /// The clock, nanoseconds.
    pub now: u64,
    affinity: Affinity,
    random: fastrand::Rng,
    flows: u32,
    /// Which of its service's backends each flow has.
    backends: Vec<u8>,
    tunnels: Vec<Template>,
    /// Which flow each packet is of.
    sent: Vec<u32>,
    fresh: u32,
}

impl Traffic {
    /// Opens `flows` flows to the end: TCP by three packets, UDP by a packet and its answer.
    ///
    /// # Panics
    /// Where memory is short, or the pipeline does not do what it should.
    pub fn new(flows: u32) -> Self {
        assert!(flows <= FLOWS_MAX, "at most {FLOWS_MAX} flows");
        // A ninth more than is used, and what new connections take for a round.
        let config = TableConfig {
            max: flows + flows / 8 + 4 * SLOTS,
            key: 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978,
            workers: 1,
            owners: 128,
            share: u32::MAX,
        };
        let conns = ConnTable::new(&config).expect("memory for the connections");
        let local = Local::new(conns.worker().expect("a worker's place"), 64, 1);
        let (arena, frames) = Arena::heap(SLOTS, SLOT_BYTES, HEADROOM).expect("memory for the frames");
        let packets =
            frames.into_iter().map(|frame| Packet { frame, in_port: UPLINK, verdict: Verdict::Drop(DropReason::InvalidPacket) }).collect();
        let mut traffic = Self {
            tables: world::tables(RULES),
            conns,
            local,
            arena,
            packets,
            now: 1_000_000_000_000,
            affinity: Affinity::new(64, 1),
            random: fastrand::Rng::with_seed(7),
            flows,
            backends: vec![0; flows as usize],
            tunnels: (0..world::REMOTE_NODES).map(|node| Template::new(&remote(node + 1))).collect(),
            sent: vec![0; SLOTS as usize],
            fresh: 0,
        };
        traffic.open();
        traffic
    }

    fn open(&mut self) {
        let mut first = 0;
        while first < self.flows {
            let count = SLOTS.min(self.flows - first);
            // What does not fill the round repeats its flows.
            for slot in 0..SLOTS as usize {
                self.sent[slot] = first + slot as u32 % count;
            }
            self.write_requests(tcp::SYN);
            self.run();
            for slot in 0..count as usize {
                let index = self.sent[slot];
                self.backends[index as usize] = self.backend_in(slot, index);
            }
            self.write_replies(tcp::SYN | tcp::ACK);
            self.run();
            self.write_requests(tcp::ACK);
            self.run();
            first += count;
        }
        assert_eq!(
            self.local.counters.drop,
            0,
            "{:?}",
            self.local.counters.drops.iter().enumerate().filter(|(_, n)| **n > 0).collect::<Vec<_>>()
        );
        assert_eq!(self.conns.used(), self.flows);
    }

    /// Which backend an encapsulated request goes to.
    fn backend_in(&self, slot: usize, index: u32) -> u8 {
        let bytes = self.arena.bytes(&self.packets[slot].frame);
        let at = 50 + 14 + 16;
        let address = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let base = u32::from(world::backend(0));
        let (node, host) = ((address - base) >> 16, (address - base) & 0xffff);
        let number = host * world::REMOTE_NODES + node;
        (number - service_of(index) * world::BACKENDS) as u8
    }

    /// The number of the backend that a flow has, among all.
    fn backend_of(&self, index: u32) -> u32 {
        service_of(index) * world::BACKENDS + u32::from(self.backends[index as usize])
    }

    /// The tuple with which a request of the flow reaches its backend.
    pub fn translated(&self, index: u32) -> Tuple {
        let address: Ipv4Addr = world::backend(self.backend_of(index));
        Tuple { dst: Ip::v4(address.into()), dport: world::BACKEND_PORT, ..tuple(index) }
    }

    /// How many flows there are.
    pub fn flows(&self) -> u32 {
        self.flows
    }

    fn choose(&mut self) {
        for sent in &mut self.sent {
            *sent = self.random.u32(..self.flows);
        }
    }

    /// Fills all slots with requests of random flows.
    pub fn fill_requests(&mut self) {
        self.choose();
        self.write_requests(tcp::ACK);
    }

    /// Fills all slots with answers to random flows, as they come from the remote nodes.
    pub fn fill_replies(&mut self) {
        self.choose();
        self.write_replies(tcp::ACK);
    }

    /// Fills all slots with first packets of flows that nobody has seen.
    pub fn fill_first_packets(&mut self) {
        for sent in &mut self.sent {
            *sent = FLOWS_MAX + self.fresh;
            self.fresh = (self.fresh + 1) % (world::PODS * SPORTS);
        }
        self.write_requests(tcp::SYN);
    }

    /// Ends the flows that [`fill_first_packets`](Self::fill_first_packets) began.
    pub fn forget_first_packets(&mut self) {
        for index in &self.sent {
            let tuple = tuple(*index);
            let hit = self.conns.lookup(self.conns.hash(&tuple), &tuple).expect("a flow that was just opened");
            assert!(self.conns.remove(&mut self.local.conns, hit.entry));
        }
        for _ in 0..4 {
            self.conns.quiescent(&mut self.local.conns);
        }
    }

    fn write_requests(&mut self, flags: u8) {
        let stencils = [proto::TCP, proto::UDP].map(|number| Stencil::new(&craft(Tuple { proto: number, ..tuple(0) }, flags)));
        for (packet, index) in self.packets.iter_mut().zip(&self.sent) {
            let to = tuple(*index);
            let stencil = &stencils[usize::from(to.proto == proto::UDP)];
            packet.in_port = PortId(FIRST_POD_PORT + (index % world::PODS) as u16);
            write(&self.arena, packet, stencil, &to);
            let macs = self.arena.bytes_mut(&mut packet.frame);
            macs[..6].copy_from_slice(&MacAddr::GATEWAY.0);
            macs[6..12].copy_from_slice(&world::pod_mac(index % world::PODS).0);
        }
    }

    fn write_replies(&mut self, flags: u8) {
        let stencils =
            [proto::TCP, proto::UDP].map(|number| Stencil::new(&craft(Tuple { proto: number, ..self.translated(0).inverse() }, flags)));
        for slot in 0..self.packets.len() {
            let index = self.sent[slot];
            let to = self.translated(index).inverse();
            let stencil = &stencils[usize::from(to.proto == proto::UDP)];
            let node = self.backend_of(index) % world::REMOTE_NODES;
            let packet = &mut self.packets[slot];
            packet.in_port = UPLINK;
            write(&self.arena, packet, stencil, &to);
            assert!(encap(&self.arena, &mut packet.frame, &self.tunnels[node as usize], 0, mix(index)));
        }
    }

    /// Sends all packets through the pipeline, batch by batch. Gives the time that it took.
    #[inline(never)]
    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        for batch in self.packets.chunks_mut(BATCH) {
            let mut cx = Cx {
                tables: &self.tables,
                conns: &self.conns,
                affinity: &self.affinity,
                arena: &self.arena,
                local: &mut self.local,
                now: self.now,
            };
            process(&mut cx, batch, &mut ());
            self.now += BATCH_NANOS;
        }
        start.elapsed()
    }

    /// Compares every byte of every request, as it leaves, with one made from scratch.
    ///
    /// # Panics
    /// At the first difference, and at any verdict but `Encap`.
    pub fn check_requests(&self) {
        for (packet, index) in self.packets.iter().zip(&self.sent) {
            assert_eq!(packet.verdict, Verdict::Encap(UPLINK));
            let node = self.backend_of(*index) % world::REMOTE_NODES + 1;
            let inner = Craft {
                ttl: 63,
                src_mac: MacAddr::from_ip(world::node(0).into()),
                dst_mac: MacAddr::from_ip(world::node(node).into()),
                ..craft(self.translated(*index), tcp::ACK)
            };
            let bytes = self.arena.bytes(&packet.frame);
            let sport = u16::from_be_bytes([bytes[34], bytes[35]]);
            assert!(sport >= 0xc000, "RFC 7348 §5");
            let outer =
                Tuple { src: Ip::v4(world::node(0).into()), dst: Ip::v4(world::node(node).into()), sport, dport: 8472, proto: proto::UDP };
            let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner.frame()].concat();
            let mut expected =
                Craft { src_mac: world::uplink_mac(), dst_mac: MacAddr::from_ip(world::node(node).into()), payload, ..Craft::new(outer) }
                    .frame();
            expected[40..42].fill(0);
            assert_eq!(bytes, expected, "flow {index}");
        }
    }

    /// Likewise for answers: they must arrive at their pod from the service.
    ///
    /// # Panics
    /// As [`check_requests`](Self::check_requests), with `Forward`.
    pub fn check_replies(&self) {
        for (packet, index) in self.packets.iter().zip(&self.sent) {
            let pod = index % world::PODS;
            assert_eq!(packet.verdict, Verdict::Forward(PortId(FIRST_POD_PORT + pod as u16)));
            let expected =
                Craft { ttl: 63, src_mac: MacAddr::GATEWAY, dst_mac: world::pod_mac(pod), ..craft(tuple(*index).inverse(), tcp::ACK) };
            assert_eq!(self.arena.bytes(&packet.frame), expected.frame(), "flow {index}");
        }
    }

    /// Milliseconds of the clock, as the connection table counts them.
    pub fn ticks(&self) -> Ticks {
        Ticks::from_nanos(self.now)
    }
}

fn write(arena: &Arena, packet: &mut Packet, stencil: &Stencil, to: &Tuple) {
    assert!(arena.fill(&mut packet.frame, &stencil.bytes));
    let rewrite = Rewrite::compile(&stencil.headers.tuple, to);
    rewrite.apply(arena.bytes_mut(&mut packet.frame), &stencil.headers).expect("a stencil is well formed");
}

/// A remote node's way to us.
fn remote(node: u32) -> Remote {
    Remote {
        src_mac: MacAddr::from_ip(world::node(node).into()),
        dst_mac: world::uplink_mac(),
        src: Ip::v4(world::node(node).into()),
        dst: Ip::v4(world::node(0).into()),
        port: 8472,
        vni: Vni::try_from(1).expect("24 bits"),
        vtep_src: MacAddr::from_ip(world::node(node).into()),
        vtep_dst: MacAddr::from_ip(world::node(0).into()),
    }
}
