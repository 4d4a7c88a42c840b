//! The same way for established flows with a hash map in place of the connection table.
//!
//! Stage by stage what the pipeline does to a request of a pod: parse, guard the source, look up, check generation, state, time
//! to live and length, translate, count the hop, encapsulate, renew and count the flow, count the verdict. The map is asked once
//! per packet, with the hash function that hashbrown comes with.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use hashbrown::DefaultHashBuilder;
use weir_dataplane::conntrack::{FlowDir, FlowState, Ticks, Tuple};
use weir_dataplane::counters::Counters;
use weir_dataplane::io::Packet;
use weir_dataplane::model::{MacAddr, proto};
use weir_dataplane::nat::{Rewrite, decrement_ttl};
use weir_dataplane::overlay::vxlan;
use weir_dataplane::parse::{HeaderFlags, Headers, Kind, parse_into};
use weir_dataplane::route::{Exit, ExitId};
use weir_dataplane::tables::{OwnerKind, Side, Tables};
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_xsk::Arena;

use crate::maps::FlowMap;
use crate::traffic::{BATCH, Traffic};

/// One direction of a flow.
pub struct Entry {
    rewrite: Rewrite,
    exit: ExitId,
    generation: u32,
    dir: FlowDir,
    state: AtomicU8,
    last_seen: AtomicU32,
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// States that the flows of the benches are in.
const STATES: [FlowState; 2] = [FlowState::Established, FlowState::Replied];

/// Flows by their tuples, and the packets' way past them.
pub struct MapPath<M> {
    flows: M,
    hasher: DefaultHashBuilder,
    counters: Counters,
}

impl<M: FlowMap<Entry>> MapPath<M> {
    /// Takes over all flows of `traffic`, in both directions.
    ///
    /// # Panics
    /// Where a flow has no way.
    pub fn new(traffic: &Traffic) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut flows = M::with_capacity(traffic.flows() as usize * 2);
        let tables = &traffic.tables;
        for index in 0..traffic.flows() {
            let (original, to) = (traffic.plan.tuple(index), traffic.translated(index));
            for (dir, from, to) in [(FlowDir::Original, original, to), (FlowDir::Reply, to.inverse(), original.inverse())] {
                let entry = Entry {
                    rewrite: Rewrite::compile(&from, &to),
                    exit: tables.routes.resolve(tables.owner(to.dst), to.dst).expect("a way"),
                    generation: tables.generation,
                    dir,
                    state: AtomicU8::new(u8::from(from.proto != proto::TCP)),
                    last_seen: AtomicU32::new(0),
                    packets: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                };
                flows.add(hasher.hash_one(from), from, entry);
            }
        }
        let mut counters = Counters::default();
        counters.fit_ports(tables.ports.count());
        Self { flows, hasher, counters }
    }

    /// Takes over all flows and proves the way.
    ///
    /// # Panics
    /// Where a packet leaves otherwise than it should.
    pub fn checked(traffic: &mut Traffic) -> Self {
        let mut path = Self::new(traffic);
        traffic.fill_requests();
        path.run(traffic);
        traffic.check_requests();
        path
    }

    /// Looks up one tuple after the other. Gives how many are there.
    pub fn lookup(&self, tuples: &[Tuple]) -> usize {
        let guard = self.flows.guard();
        tuples.iter().filter(|tuple| self.flows.find(&guard, self.hasher.hash_one(**tuple), tuple, |_| ()).is_some()).count()
    }

    /// As [`Traffic::run`].
    pub fn run(&mut self, traffic: &mut Traffic) -> std::time::Duration {
        let start = std::time::Instant::now();
        let now = traffic.ticks();
        let Traffic { tables, arena, packets, .. } = traffic;
        for batch in packets.chunks_mut(BATCH) {
            for packet in &*batch {
                arena.prefetch(&packet.frame);
                arena.prefetch_headroom(&packet.frame);
            }
            let guard = self.flows.guard();
            for packet in batch {
                self.counters.rx(packet.in_port, packet.frame.len());
                packet.verdict = request(&self.flows, &guard, &self.hasher, tables, arena, packet, now).unwrap_or_else(Verdict::Drop);
                self.counters.verdict(packet.verdict, packet.in_port, packet.frame.len());
            }
            self.counters.batches += 1;
        }
        start.elapsed()
    }
}

#[inline]
fn request<M: FlowMap<Entry>>(
    flows: &M,
    guard: &M::Guard<'_>,
    hasher: &DefaultHashBuilder,
    tables: &Tables,
    arena: &Arena,
    packet: &mut Packet,
    now: Ticks,
) -> Result<Verdict, DropReason> {
    let port = tables.ports.get(packet.in_port).ok_or(DropReason::PortUnavailable)?;
    let mut headers = Headers::BLANK;
    if parse_into(arena.bytes(&packet.frame), &mut headers)? != Kind::Ip {
        return Err(DropReason::NeighbourIgnored);
    }
    let Side::Pod(Some(own)) = &port.side else { return Err(DropReason::EndpointNotReady) };
    if headers.has(HeaderFlags::VLAN.with(HeaderFlags::MULTICAST_DST).with(HeaderFlags::NDP)) || headers.dst_mac != MacAddr::GATEWAY {
        return Err(DropReason::OtherHost);
    }
    if !own.contains(&headers.tuple.src) || port.mac.is_some_and(|mac| mac != headers.src_mac) {
        return Err(DropReason::InvalidSourceIp);
    }
    let overlay = headers.tuple.proto == proto::UDP && headers.tuple.dport == tables.runtime.config.overlay.port;
    if overlay && matches!(tables.owner(headers.tuple.dst).kind, OwnerKind::OwnNode | OwnerKind::OtherNode(_)) {
        return Err(DropReason::EncapsulationProhibited);
    }
    if packet.frame.len() > headers.frame_len() {
        let _fits = arena.set_len(&mut packet.frame, headers.frame_len());
    }
    if headers.has(HeaderFlags::ICMP_ERROR.with(HeaderFlags::FRAGMENT)) {
        return Err(DropReason::FirstFragmentNotFound);
    }
    let hash = hasher.hash_one(headers.tuple);
    let follow = |flow: &Entry| follow(flow, hash, tables, arena, packet, &headers, now);
    flows.find(guard, hash, &headers.tuple, follow).ok_or(DropReason::InvalidConntrack)?
}

#[inline(always)]
fn follow(
    flow: &Entry,
    hash: u64,
    tables: &Tables,
    arena: &Arena,
    packet: &mut Packet,
    headers: &Headers,
    now: Ticks,
) -> Result<Verdict, DropReason> {
    let state = STATES[usize::from(flow.state.load(Relaxed) & 1)];
    if state.is_reopened_by(headers.tuple.proto, headers.tcp_flags) || flow.generation != tables.generation {
        return Err(DropReason::InvalidConntrack);
    }
    let Exit::Vxlan { port, tunnel, mtu } = tables.routes.exit(flow.exit) else { return Err(DropReason::NoTunnelEndpoint) };
    if headers.ttl <= 1 || headers.l3_total > u32::from(mtu) {
        return Err(DropReason::TtlExceeded);
    }
    let bytes = arena.bytes_mut(&mut packet.frame);
    flow.rewrite.apply(bytes, headers)?;
    if !decrement_ttl(bytes, headers) || !vxlan::encap(arena, &mut packet.frame, &tables.routes.tunnel(tunnel).template, headers.tos, hash)
    {
        return Err(DropReason::InvalidPacket);
    }
    let after = state.after(headers.tuple.proto, flow.dir, headers.tcp_flags);
    flow.state.store(u8::from(after == STATES[1]), Relaxed);
    flow.last_seen.store(now.0, Relaxed);
    // As a thread that alone writes them counts: no locked instruction.
    flow.packets.store(flow.packets.load(Relaxed) + 1, Relaxed);
    flow.bytes.store(flow.bytes.load(Relaxed) + u64::from(headers.l3_total), Relaxed);
    Ok(Verdict::Encap(port))
}
