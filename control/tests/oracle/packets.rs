//! Real packets through the real pipeline, against what the plain evaluators make of them.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use weir_control::sim::fate::{Fate, Fates};
use weir_control::sim::node::SimNode;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::io::mem::MemIo;
use weir_dataplane::io::{BATCH_MAX, Batch, PacketIo, PortId};
use weir_dataplane::model::{NodeConfig, OverlayMode, Protocol};
use weir_dataplane::parse::{Parsed, parse};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::verdict::{DropReason, Verdict};

use crate::cluster::pick;
use crate::compare::Court;
use crate::policy::Flow;
use crate::question::{Pool, Question};
use crate::service::Answer;
use crate::who::Who;

/// Bytes of VXLAN over IPv4 before the inner frame (RFC 7348 §5).
const WRAPPING: usize = 50;

/// The first packet of a connection, as it arrives at a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) from: IpAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) sport: u16,
    overlay: OverlayMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Pod,
    Host,
    Uplink,
}

/// What came of the packets.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    pub(crate) delivered: u64,
    /// The first packet that ended otherwise than the objects say, and how.
    pub(crate) difference: Option<(Arrival, String)>,
}

/// Sends `count` packets to a node, each opening a connection of its own.
pub(crate) fn send(court: &Court, node: usize, count: u16, random: &mut Rng) -> Tally {
    let pool = Pool::new(&court.snapshot);
    let overlay = pick(random, &[OverlayMode::Vxlan, OverlayMode::Native]);
    let mut arrivals: Vec<Arrival> = Vec::new();
    for sport in 1024..1024 + count {
        arrivals.extend(arrival(&pool, sport, overlay, random));
    }
    run(court, node, &arrivals, random.u64(..))
}

/// Sends one packet to a node of that name.
pub(crate) fn send_alone(court: &Court, name: &str, arrival: &Arrival) -> Option<String> {
    let node = court.snapshot.nodes.iter().position(|n| n.meta.name == name)?;
    run(court, node, std::slice::from_ref(arrival), 1).difference.map(|(_, wrong)| wrong)
}

fn run(court: &Court, node: usize, arrivals: &[Arrival], seed: u64) -> Tally {
    let mut config = NodeConfig { node: court.snapshot.nodes[node].meta.name.clone(), ..court.config.clone() };
    config.tables.connections = 4096;
    config.overlay.mode = arrivals.first().map_or(OverlayMode::Vxlan, |a| a.overlay);
    let new_node = || SimNode::new(&court.tables[node].state, config.clone(), seed).unwrap();
    let new_io = || MemIo::new(BATCH_MAX as u32, 2048).unwrap();
    // One is watched, one is not: they must not differ.
    let (mut watched, mut alone) = (new_node(), new_node());
    let (mut io, mut io_alone) = (new_io(), new_io());
    let mut tally = Tally::default();
    let entering: Vec<_> = arrivals.iter().filter_map(|a| Some((a, enter(court, node, watched.runtime(), a)?))).collect();
    for (round, arrivals) in entering.chunks(BATCH_MAX).enumerate() {
        for (arrival, (port, _)) in arrivals {
            let frame = arrival.frame();
            assert!(io.push(*port, &frame) && io_alone.push(*port, &frame));
        }
        // Time enough for the limits of answers to recover.
        let now = (round as u64 + 1) * 10_000_000_000;
        let (mut batch, mut batch_alone, mut fates) = (Batch::new(), Batch::new(), Fates::default());
        io.rx(&mut batch).unwrap();
        io_alone.rx(&mut batch_alone).unwrap();
        watched.process(&io, now, &mut batch, &mut fates);
        alone.process(&io_alone, now, &mut batch_alone, &mut ());
        for (index, (packet, other)) in batch.iter().zip(&batch_alone).enumerate() {
            let (bytes, bytes_alone) = (io.arena().bytes(&packet.frame), io_alone.arena().bytes(&other.frame));
            let fate = fates.of(index).expect("every packet is told of");
            tally.packets += 1;
            tally.delivered += u64::from(matches!(fate.verdict, Verdict::Forward(_) | Verdict::Encap(_) | Verdict::Host(_)));
            let (arrival, (_, sender)) = arrivals[index];
            let mut wrong = judge(court, node, arrival, sender, fate, bytes);
            if packet.verdict != other.verdict || bytes != bytes_alone {
                wrong = Some("an observer makes a difference".into());
            }
            if let Some(wrong) = wrong {
                tally.difference = Some((*arrival, format!("{wrong}; got {:?}, {:?}", fate.verdict, fate.trail)));
                return tally;
            }
        }
        batch.drain(..).for_each(|packet| io.free(packet.frame));
        batch_alone.drain(..).for_each(|packet| io_alone.free(packet.frame));
    }
    tally
}

impl Arrival {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let (src, dst) = (self.from.into(), self.to.ip().into());
        Craft::new(Tuple { src, dst, sport: self.sport, dport: self.to.port(), proto: self.protocol.number() }).frame()
    }
}

/// Any packet to a Service or to anybody.
pub(crate) fn arrival(pool: &Pool, sport: u16, overlay: OverlayMode, random: &mut Rng) -> Option<Arrival> {
    if random.bool() {
        let Question::Service { from, to, protocol, .. } = pool.service(random) else { return None };
        return Some(Arrival { from, to, protocol, sport, overlay });
    }
    let flow = pool.flow(random);
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == flow.protocol)?;
    Some(Arrival { from: flow.from, to: SocketAddr::new(flow.to, flow.port), protocol, sport, overlay })
}

/// The port by which a packet enters a node; `None` where it never would.
pub(crate) fn enter(court: &Court, node: usize, runtime: &Runtime, arrival: &Arrival) -> Option<(PortId, Sender)> {
    let Arrival { from, to, protocol, .. } = *arrival;
    let this = &court.snapshot.nodes[node].meta.name;
    let (port, sender) = match Who::at(&court.snapshot, from) {
        Who::Pod(pod) if pod.node.as_ref() == Some(this) => (runtime.pod(&pod.meta.namespace, &pod.meta.name)?, Sender::Pod),
        Who::Node(owner) if owner.meta.name == *this => (runtime.host()?, Sender::Host),
        _ => (runtime.uplink()?, Sender::Uplink),
    };
    // What goes on inside the node, or never on a wire, is no business of the pipeline's. Nor is the overlay's own port here.
    let inside = sender == Sender::Host
        && Who::at(&court.snapshot, to.ip()).is_node(this)
        && court.proxy(node).ask(from, to, protocol) == Answer::Pass;
    let overlay = protocol == Protocol::Udp && to.port() == runtime.config.overlay.port;
    (!inside && !overlay && !is_odd(from) && !is_odd(to.ip())).then_some((port, sender))
}

fn is_odd(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast() || a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(a) => a.is_unicast_link_local() || a.segments()[0] == 0,
    };
    special || address.is_multicast() || address.is_loopback() || address.is_unspecified()
}

/// Says what is wrong with a packet's end.
pub(crate) fn judge(court: &Court, node: usize, arrival: &Arrival, sender: Sender, fate: &Fate, bytes: &[u8]) -> Option<String> {
    let proxy = court.proxy(node);
    let (snapshot, this) = (&court.snapshot, &court.snapshot.nodes[node]);
    let drops = |why: &str| (!matches!(fate.verdict, Verdict::Drop(_))).then(|| format!("it should be dropped: {why}"));
    let (destination, masquerade, via_service) = match proxy.ask(arrival.from, arrival.to, arrival.protocol) {
        Answer::Open => return None,
        Answer::Drop => return drops("a Service says so"),
        Answer::Reject => {
            let refused = matches!(fate.verdict, Verdict::Reply(Some(_)) | Verdict::Drop(DropReason::RateLimited));
            return (!refused).then(|| "it should be refused with an answer".into());
        }
        Answer::Pass => (arrival.to, false, false),
        Answer::Forward { endpoints, masquerade } => {
            let Some(backend) = fate.trail.backend else { return Some("a Service should forward it".into()) };
            let backend = SocketAddr::new(backend.address.to_std(), backend.port);
            if !endpoints.contains(&backend) {
                return Some(format!("{backend} is none of {endpoints:?}"));
            }
            (backend, masquerade || backend.ip() == arrival.from, true)
        }
    };
    let flow =
        Flow { from: arrival.from, to: destination.ip(), protocol: arrival.protocol.number(), port: destination.port(), via_service };
    let owner = Who::at(snapshot, destination.ip());
    let to_this_node = owner.is_node(&this.meta.name);
    let to_local_pod = owner.pod().is_some_and(|p| p.node.as_ref() == Some(&this.meta.name));
    if sender == Sender::Uplink && !via_service && !to_this_node && !to_local_pod {
        return drops("it is for another host");
    }
    if court.denied_at(node, &flow) {
        return drops("policies say so");
    }
    let is_known = owner.pod().is_some_and(|p| court.node_of(p.addresses[0]).is_some()) || matches!(owner, Who::Node(_));
    let unroutable = [DropReason::StaleOrUnroutableIp, DropReason::FibLookupFailed, DropReason::NoTunnelEndpoint];
    let own = this.addresses.iter().find(|a| a.is_ipv4() == destination.is_ipv4());
    match fate.verdict {
        // A pod on no node of the snapshot, or nobody's address.
        Verdict::Drop(reason) if !is_known && unroutable.contains(&reason) => return None,
        // A node without an address of the family cannot lend it.
        Verdict::Drop(DropReason::NoMappingForMasquerade) if own.is_none() => return None,
        _ => {}
    }
    let inner = match fate.verdict {
        Verdict::Forward(_) | Verdict::Host(_) => bytes,
        Verdict::Encap(_) => bytes.get(WRAPPING..).unwrap_or_default(),
        _ => return Some(format!("it should reach {destination}")),
    };
    let Ok(Parsed::Ip(headers)) = parse(inner) else { return Some("what was sent is no packet".into()) };
    let sent = headers.tuple;
    if (sent.dst.to_std(), sent.dport) != (destination.ip(), destination.port()) {
        return Some(format!("it should go to {destination}, not {}:{}", sent.dst, sent.dport));
    }
    let in_cidrs = proxy.pod_cidrs.iter().flatten().any(|c| c.contains(&destination.ip()));
    let outside = owner.pod().is_none() && !in_cidrs && !to_this_node;
    let leaves = match sender {
        Sender::Pod => outside,
        Sender::Host => outside && via_service,
        Sender::Uplink => false,
    };
    let source = sent.src.to_std();
    let right = if leaves || masquerade {
        // The node has its own address already; which of them does not matter.
        own == Some(&source) || sender == Sender::Host && source == arrival.from
    } else {
        source == arrival.from && sent.sport == arrival.sport
    };
    (!right).then(|| {
        format!("it should {}be masqueraded; its source is {source}:{}", if leaves || masquerade { "" } else { "not " }, sent.sport)
    })
}
