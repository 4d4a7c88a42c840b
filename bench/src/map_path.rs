//! The same way for established flows with a hash map in place of the connection table.
//!
//! Stage by stage what the pipeline does to a request of a pod: parse, guard the source, look up, check generation, state, time
//! to live and length, translate, count the hop, encapsulate, renew and count the flow, count the verdict. The map is hashbrown's,
//! asked once per packet with a hash that is computed once, because the outer source port needs it too.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
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

use crate::traffic::{BATCH, Traffic, tuple};

/// One direction of a flow.
struct Entry {
    key: Tuple,
    rewrite: Rewrite,
    exit: ExitId,
    generation: u32,
    last_seen: Ticks,
    state: FlowState,
    dir: FlowDir,
    packets: u64,
    bytes: u64,
}

/// Flows by their tuples, and the packets' way past them.
pub struct MapPath {
    flows: HashTable<Entry>,
    hasher: DefaultHashBuilder,
    counters: Counters,
}

impl MapPath {
    /// Takes over all flows of `traffic`, in both directions.
    ///
    /// # Panics
    /// Where a flow has no way.
    pub fn new(traffic: &Traffic) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut flows = HashTable::with_capacity(traffic.flows() as usize * 2);
        let tables = &traffic.tables;
        for index in 0..traffic.flows() {
            let (original, to) = (tuple(index), traffic.translated(index));
            for (dir, from, to) in [(FlowDir::Original, original, to), (FlowDir::Reply, to.inverse(), original.inverse())] {
                let exit = tables.routes.resolve(tables.owner(to.dst), to.dst).expect("a way");
                let state = if from.proto == proto::TCP { FlowState::Established } else { FlowState::Replied };
                let entry = Entry {
                    key: from,
                    rewrite: Rewrite::compile(&from, &to),
                    exit,
                    generation: tables.generation,
                    last_seen: Ticks(0),
                    state,
                    dir,
                    packets: 0,
                    bytes: 0,
                };
                flows.insert_unique(hasher.hash_one(from), entry, |entry| hasher.hash_one(entry.key));
            }
        }
        let mut counters = Counters::default();
        counters.fit_ports(tables.ports.count());
        Self { flows, hasher, counters }
    }

    /// Looks up one tuple after the other. Gives how many are there.
    pub fn lookup(&self, tuples: &[Tuple]) -> usize {
        tuples.iter().filter(|tuple| self.flows.find(self.hasher.hash_one(**tuple), |entry| entry.key == **tuple).is_some()).count()
    }

    /// As [`Traffic::run`].
    pub fn run(&mut self, traffic: &mut Traffic) -> std::time::Duration {
        let start = std::time::Instant::now();
        let now = traffic.ticks();
        let Traffic { tables, arena, packets, .. } = traffic;
        for batch in packets.chunks_mut(BATCH) {
            for packet in &*batch {
                arena.prefetch(&packet.frame);
            }
            for packet in batch {
                self.counters.rx(packet.in_port, packet.frame.len());
                packet.verdict = self.request(tables, arena, packet, now).unwrap_or_else(Verdict::Drop);
                self.counters.verdict(packet.verdict, packet.in_port, packet.frame.len());
            }
            self.counters.batches += 1;
        }
        start.elapsed()
    }

    #[inline]
    fn request(&mut self, tables: &Tables, arena: &Arena, packet: &mut Packet, now: Ticks) -> Result<Verdict, DropReason> {
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
        let hash = self.hasher.hash_one(headers.tuple);
        let flow = self.flows.find_mut(hash, |entry| entry.key == headers.tuple).ok_or(DropReason::InvalidConntrack)?;
        if flow.state.is_reopened_by(headers.tuple.proto, headers.tcp_flags) || flow.generation != tables.generation {
            return Err(DropReason::InvalidConntrack);
        }
        let Exit::Vxlan { port, tunnel, mtu } = tables.routes.exit(flow.exit) else { return Err(DropReason::NoTunnelEndpoint) };
        if headers.ttl <= 1 || headers.l3_total > u32::from(mtu) {
            return Err(DropReason::TtlExceeded);
        }
        let bytes = arena.bytes_mut(&mut packet.frame);
        flow.rewrite.apply(bytes, &headers)?;
        if !decrement_ttl(bytes, &headers)
            || !vxlan::encap(arena, &mut packet.frame, &tables.routes.tunnel(tunnel).template, headers.tos, hash)
        {
            return Err(DropReason::InvalidPacket);
        }
        flow.state = flow.state.after(headers.tuple.proto, flow.dir, headers.tcp_flags);
        flow.last_seen = now;
        flow.packets += 1;
        flow.bytes += u64::from(headers.l3_total);
        Ok(Verdict::Encap(port))
    }
}
