//! One made-up connection's first packet across the cluster, every node simulated.
//!
//! The packet enters where its source is, goes through that node's real pipeline, and the frame that leaves by the uplink
//! enters the node that it is for. Both sides' policies are judged on the backend that a Service chose, also where the
//! first side denies already. `start` decides where the packet enters, `steps` how what happened is told.

mod start;
mod steps;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::io::mem::MemIo;
use weir_dataplane::io::{Batch, PacketIo, PortId};
use weir_dataplane::model::{Direction, Family, Ip, MacAddr, NodeConfig, NodeState, proto};
use weir_dataplane::policy::{Explained, Query, explain};
use weir_dataplane::service::Candidates;
use weir_dataplane::tables::OwnerKind;
use weir_dataplane::verdict::Verdict;

use crate::compile::compile;
use crate::sim::fate::{Fate, Fates};
use crate::sim::node::SimNode;
use crate::sim::place::Place;
use crate::sim::row::{Encap, Namer, ServiceName, endpoint_of, protocol};
use crate::source::objects::Snapshot;

use self::start::{default_port, pod_node, start};
pub use self::steps::Step;
use self::steps::Walk;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who opens the connection.
    pub from: Place,
    /// To whom.
    pub to: Place,
    /// IANA protocol number.
    pub proto: u8,
    /// Destination port; where it is missing, the first one that a Service has for the protocol, else 80.
    pub port: Option<u16>,
    /// Source port.
    pub sport: u16,
    /// Only this family; where it is missing, that of the destination's first address that the source has too.
    pub family: Option<Family>,
    /// Seed of all chance.
    pub seed: u64,
}

/// What is answered: the JSON of `weir trace`.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// `forward`, `drop`, `reject` or `host`.
    pub verdict: &'static str,
    /// Name of the drop reason.
    pub reason: Option<&'static str>,
    /// Its number.
    pub reason_code: Option<u8>,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// The packet as it was sent.
    pub packet: Sent,
    /// The Service that was asked for, be it at another node's NodePort.
    pub service: Option<Arc<ServiceName>>,
    /// Every backend that could be chosen, sorted.
    pub backends: Vec<String>,
    /// The one chosen.
    pub backend: Option<String>,
    /// The address that the destination sees, where it is not the sender's.
    pub snat: Option<String>,
    /// The overlay between the nodes.
    pub encap: Option<Arc<Encap>>,
    /// The source's side; `null` where the source is no pod.
    pub egress: Option<Explained>,
    /// The destination's side; `null` where the destination is no pod.
    pub ingress: Option<Explained>,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// What the decision looked at.
    pub depends_on: Vec<String>,
}

/// The made-up packet.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// Source.
    pub src: String,
    /// Destination.
    pub dst: String,
    /// Protocol's name.
    pub proto: String,
}

/// Longest way of a packet: more nodes than this are a loop.
const HOPS_MAX: usize = 4;
/// Frames of one simulated node at a time, and the bytes of each.
const FRAMES: u32 = 4;
const FRAME_BYTES: u32 = 2048;
/// Enough for all questions that one asker puts: a table that is nearly full has no place for one connection in 10,000.
const CONNECTIONS: u32 = 8192;

/// Asks one snapshot many questions; its nodes are made as they are needed, and remember their connections.
pub struct Tracer<'a> {
    snapshot: &'a Snapshot,
    config: &'a NodeConfig,
    seed: u64,
    nodes: BTreeMap<String, SimNode>,
}

impl<'a> Tracer<'a> {
    /// Asks `snapshot`. `config` holds the operator's choices for all nodes; its node is where a source outside the cluster comes
    /// in, unless its destination is on another one.
    pub fn new(snapshot: &'a Snapshot, config: &'a NodeConfig, seed: u64) -> Self {
        Self { snapshot, config, seed, nodes: BTreeMap::new() }
    }

    /// Puts another snapshot in force on every node; open connections stay.
    #[cfg(test)]
    pub(crate) fn publish(&mut self, snapshot: &'a Snapshot) {
        self.snapshot = snapshot;
        for (name, node) in &mut self.nodes {
            let mut config = self.config.clone();
            config.node = name.clone();
            node.publish(&compile(snapshot, name, &config).unwrap());
        }
    }

    /// Follows the first packet of the connection that `question` describes.
    ///
    /// # Errors
    /// As [`trace`].
    pub fn trace(&mut self, question: &Question) -> Result<Answer, String> {
        follow(self, question)
    }

    fn node(&mut self, name: &str) -> Result<&mut SimNode, String> {
        if !self.nodes.contains_key(name) {
            let mut config = self.config.clone();
            config.node = name.into();
            config.tables.connections = config.tables.connections.min(CONNECTIONS);
            let state = compile(self.snapshot, name, &config).map_err(|error| error.to_string())?;
            let node = SimNode::new(&state, config, self.seed).map_err(|error| error.to_string())?;
            self.nodes.insert(name.into(), node);
        }
        self.nodes.get_mut(name).ok_or_else(|| format!("no node {name}"))
    }
}

/// Follows the first packet of the connection that `question` describes. `config` holds the operator's choices for all nodes;
/// its node is where a source outside the cluster comes in, unless its destination is on another one.
///
/// # Errors
/// Where the question cannot be put: no such place, no address in common, no memory.
pub fn trace(snapshot: &Snapshot, config: &NodeConfig, question: &Question) -> Result<Answer, String> {
    follow(&mut Tracer::new(snapshot, config, question.seed), question)
}

fn follow(cluster: &mut Tracer<'_>, question: &Question) -> Result<Answer, String> {
    let node = cluster.config.node.clone();
    let state = cluster.node(&node)?.state().clone();
    let start = start(cluster, &state, question)?;
    let dport = match question.proto {
        proto::TCP | proto::UDP | proto::SCTP => question.port.unwrap_or_else(|| default_port(&state, start.destination, question.proto)),
        _ => question.sport,
    };
    let tuple = Tuple { src: start.source.into(), dst: start.destination.into(), sport: question.sport, dport, proto: question.proto };
    let has_ports = matches!(question.proto, proto::TCP | proto::UDP | proto::SCTP);
    let end = |ip: IpAddr, port| if has_ports { SocketAddr::new(ip, port).to_string() } else { ip.to_string() };
    let packet =
        Sent { src: end(start.source, question.sport), dst: end(start.destination, dport), proto: protocol(question.proto).into_owned() };
    let mut walk = Walk { steps: Vec::new(), depends_on: Vec::new(), encap: None, snat: None };

    let mut craft = Craft::new(tuple);
    craft.src_mac = MacAddr::from_ip(start.source);
    craft.dst_mac = MacAddr::GATEWAY;
    let (mut node, mut port, mut frame) = (start.node.clone(), start.port, craft.frame());
    let mut chosen: Option<Chosen> = None;
    let mut last;
    let mut hops = 0;
    loop {
        hops += 1;
        let (fate, sent) = pass(cluster.node(&node)?, port, &frame)?;
        let sim = cluster.node(&node)?;
        if let Some(index) = fate.trail.service.filter(|_| chosen.is_none()) {
            let (candidates, masquerade) = fate.headers.map(|h| candidates(sim, &h.tuple)).unwrap_or_default();
            let service = Namer::new(sim.tables().clone()).service(index);
            let backend = fate.trail.backend.map(|b| (b.address, b.port));
            chosen = Some(Chosen { node: node.clone(), service, backend, candidates, masquerade });
        }
        let count = chosen.as_ref().filter(|chosen| chosen.node == node).map_or(0, |chosen| chosen.candidates.len());
        walk.tell(sim, port, &fate, count);
        walk.encap = walk.encap.or_else(|| Namer::new(sim.tables().clone()).encap(&fate));
        if let Some(after) = fate.trail.after.filter(|after| after.src != tuple.src) {
            walk.snat = Some(after.src);
        }
        let next = next_node(sim, &fate);
        last = fate;
        let (Some(next), Some(sent)) = (next, sent) else { break };
        if hops == HOPS_MAX {
            return Err(format!("the packet is still on its way after {hops} nodes; last on {node}"));
        }
        port = cluster.node(&next)?.runtime().uplink().unwrap_or(PortId(0));
        (node, frame) = (next, sent);
    }

    // Policy sees the flow after the service choice and before source translation (E1.25); the destination's node sees the
    // translated source of what came over the wire. What another node chooses the source's own does not see.
    let backend = chosen.as_ref().and_then(|chosen| chosen.backend);
    let seen = backend.map_or(tuple, |(dst, dport)| Tuple { dst, dport, ..tuple });
    let via_service = chosen.is_some();
    let chooses = chosen.as_ref().map_or(&start.node, |chosen| &chosen.node).clone();
    let left_as = if chooses == start.node { seen } else { tuple };
    let egress = judge(cluster, &state, tuple.src, Direction::Egress, left_as.dst, &left_as, via_service && chooses == start.node)?;
    let hidden = chosen.as_ref().is_some_and(|chosen| chosen.masquerade);
    let arrives_as = match walk.snat.or_else(|| hidden.then(|| own_address(cluster, &chooses, &seen)).flatten()) {
        Some(address) if pod_node(&state, seen.dst).is_some_and(|on| on != chooses) => address,
        _ => seen.src,
    };
    let ingress = judge(cluster, &state, seen.dst, Direction::Ingress, arrives_as, &seen, via_service)?;

    let reason = last.reason();
    Ok(Answer {
        verdict: match last.verdict {
            Verdict::Forward(_) | Verdict::Encap(_) => "forward",
            Verdict::Reply(Some(_)) => "reject",
            // The dataplane itself answers for the node's addresses.
            Verdict::Host(_) | Verdict::Reply(None) => "host",
            Verdict::Drop(_) => "drop",
        },
        reason: reason.map(|r| r.name()),
        reason_code: reason.map(|r| r.code()),
        family: seen.src.family(),
        packet,
        backend: backend.map(|(address, port)| SocketAddr::new(address.to_std(), port).to_string()),
        service: chosen.as_ref().and_then(|chosen| chosen.service.clone()),
        backends: chosen.map(|chosen| chosen.candidates).unwrap_or_default(),
        snat: walk.snat.map(|ip| ip.to_string()),
        encap: walk.encap,
        egress,
        ingress,
        steps: walk.steps,
        depends_on: walk.depends_on,
    })
}

/// The Service that the packet asked for, on the node that chose a backend.
struct Chosen {
    node: String,
    service: Option<Arc<ServiceName>>,
    backend: Option<(Ip, u16)>,
    /// Every backend that it could choose.
    candidates: Vec<String>,
    /// The client is hidden behind that node.
    masquerade: bool,
}

fn own_address(cluster: &Tracer<'_>, node: &str, seen: &Tuple) -> Option<Ip> {
    let state = cluster.nodes.get(node)?.state();
    state.nodes.get(state.this_node as usize)?.primary(seen.is_v4()).map(Ip::from)
}

/// Every backend that `node` may choose for the flow, sorted, and whether its source becomes the node.
fn candidates(node: &SimNode, tuple: &Tuple) -> (Vec<String>, bool) {
    let tables = node.tables();
    let in_services = tables.owner(tuple.dst).in_services;
    match tables.services.candidates(tuple, tables.origin(tuple.src), in_services) {
        Candidates::Backends { backends, masquerade, .. } => {
            let mut backends: Vec<SocketAddr> = backends.iter().map(|b| SocketAddr::new(b.address.to_std(), b.port)).collect();
            backends.sort_unstable();
            backends.dedup();
            (backends.iter().map(ToString::to_string).collect(), masquerade)
        }
        _ => (Vec::new(), false),
    }
}

/// Sends one frame through a node. Gives its fate and, where it leaves, the frame.
fn pass(node: &mut SimNode, port: PortId, bytes: &[u8]) -> Result<(Fate, Option<Vec<u8>>), String> {
    let mut io = MemIo::new(FRAMES, FRAME_BYTES).map_err(|error| error.to_string())?;
    let mut batch = Batch::new();
    if !io.push(port, bytes) {
        return Err("the packet does not fit a frame".into());
    }
    io.rx(&mut batch).map_err(|error| error.to_string())?;
    let mut fates = Fates::default();
    node.process(&io, 0, &mut batch, &mut fates);
    let fate = fates.of(0).copied().ok_or("the pipeline lost the packet")?;
    let sent = fate.out_port().and(batch.first()).map(|packet| io.arena().bytes(&packet.frame).to_vec());
    Ok((fate, sent))
}

/// The node that a frame on the wire is for; `None` where it does not leave this one, or leaves the cluster.
fn next_node(node: &SimNode, fate: &Fate) -> Option<String> {
    let state = node.state();
    let name = |index: u32| state.nodes.get(index as usize).map(|n| n.name.clone());
    match fate.verdict {
        Verdict::Encap(_) => name(fate.trail.encap?),
        Verdict::Forward(port) if Some(port) == node.runtime().uplink() => match node.tables().owner(fate.trail.after?.dst).kind {
            OwnerKind::RemotePod { node, .. } | OwnerKind::OtherNode(node) | OwnerKind::Nobody(Some(node)) => name(node),
            _ => None,
        },
        _ => None,
    }
}

/// Explains the side of the pod at `pod`, on its own node; `None` where it is no pod.
fn judge(
    cluster: &mut Tracer<'_>,
    state: &NodeState,
    pod: Ip,
    direction: Direction,
    peer: Ip,
    seen: &Tuple,
    via_service: bool,
) -> Result<Option<Explained>, String> {
    let Some(node) = pod_node(state, pod) else { return Ok(None) };
    let sim = cluster.node(&node)?;
    let Some(endpoint) = endpoint_of(sim.state(), pod.to_std()) else { return Ok(None) };
    let port = if matches!(seen.proto, proto::TCP | proto::UDP | proto::SCTP) { seen.dport } else { 0 };
    let query = Query { pod: endpoint, direction, peer, protocol: seen.proto, port, via_service };
    Ok(Some(explain(sim.state(), sim.runtime(), &query)))
}
