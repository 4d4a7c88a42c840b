//! What becomes of a new connection, for every class of traffic of a whole cluster: read off the compiled tables, no packet sent.
//!
//! [`World`] has the tables of every node. [`World::reach`] walks a flow over them as `dataplane::pipeline` walks a first
//! packet, but takes every backend that a Service may choose instead of one. `places` are the ends that flows have, gathered
//! into groups that no table tells apart; `ports` likewise for ports. `diff`, `matrix` and `why` ask this and nothing else;
//! tests compare it with `trace`, which sends packets.

mod concerned;
mod held;
mod likeness;
mod places;
mod plain;
mod ports;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{DenyAction, Direction, EndpointIndex, Ip, NodeConfig, NodeState, OverlayMode, proto};
use weir_dataplane::policy::{Explained, Query, explain};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::{Backend, Candidates, Origin, hairpin};
use weir_dataplane::tables::{Owner, OwnerKind, Tables};
use weir_dataplane::verdict::DropReason;

pub use held::Held;
#[cfg(test)]
pub(crate) use places::is_served_on;
pub use places::{Group, Kind, Nodes, Pair, Place, groups, named};
pub use ports::{Span, push, ranges, traffic};

use self::plain::Plain;
use super::row::PolicySide;
use crate::compile::compile;
use crate::source::objects::{Meta, Node, Snapshot};

/// A new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub src: Ip,
    /// To whom.
    pub dst: Ip,
    /// IANA protocol number.
    pub proto: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
}

/// One way in which a connection can end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct End {
    /// `forward`, `host`, `reject` or `drop`, as `weir trace` says them.
    pub verdict: &'static str,
    /// Name of the drop reason.
    pub reason: Option<&'static str>,
    /// The backend that leads there, where a Service was asked for.
    pub backend: Option<SocketAddr>,
    /// The address that the destination sees, where it is not the sender's.
    pub snat: Option<IpAddr>,
}

impl End {
    /// Tells whether the connection is delivered.
    pub fn passes(&self) -> bool {
        matches!(self.verdict, "forward" | "host")
    }
}

/// All ways in which a connection can end: several where a Service has several backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Outcome {
    /// `svc/namespace/name`, where one was asked for.
    pub service: Option<String>,
    /// At least one.
    pub ends: BTreeSet<End>,
}

impl Outcome {
    /// The verdict where all ends agree, else `mixed`.
    pub fn verdict(&self) -> &'static str {
        let mut verdicts: Vec<&str> = self.ends.iter().map(|end| end.verdict).collect();
        verdicts.dedup();
        match self.ends.first() {
            Some(end) if verdicts.len() == 1 => end.verdict,
            _ => "mixed",
        }
    }

    /// Tells whether the connection is delivered, whichever way it takes.
    pub fn passes(&self) -> bool {
        self.ends.iter().all(End::passes)
    }

    /// `forward to 10.244.2.20:8080 from 10.0.0.10`, `drop POLICY_DENIED`; the ends apart by `or`.
    pub fn words(&self) -> String {
        let mut parts: Vec<(String, Vec<String>)> = Vec::new();
        for end in &self.ends {
            let mut how = end.verdict.to_owned();
            if let Some(reason) = end.reason {
                how.push_str(&format!(" {reason}"));
            }
            let from = end.snat.map(|snat| format!(" from {snat}")).unwrap_or_default();
            let to = end.backend.map(|backend| format!("{backend}{from}"));
            let how = if to.is_none() { how + &from } else { how };
            match parts.iter_mut().find(|(same, _)| *same == how) {
                Some((_, all)) => all.extend(to),
                None => parts.push((how, to.into_iter().collect())),
            }
        }
        let words = |(how, to): &(String, Vec<String>)| if to.is_empty() { how.clone() } else { format!("{how} to {}", to.join(", ")) };
        parts.iter().map(words).collect::<Vec<_>>().join(" or ")
    }
}

/// How a flow reaches a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Pod,
    Host,
    Tunnel(u32),
    Uplink,
}

/// What a walk found.
struct Walked {
    outcome: Outcome,
    /// The last port up to which every table that was asked says the same.
    until: u16,
}

/// Longest way of a flow, in nodes.
const HOPS_MAX: usize = 4;

/// The tables of every node of one snapshot.
pub struct World {
    snapshot: Snapshot,
    /// What is compiled for a node: without Services where all are the same on every node.
    bare: Snapshot,
    config: NodeConfig,
    /// Each node's tables, made when a flow first comes there: questions about a large cluster meet few of its nodes.
    nodes: Vec<OnceLock<Tables>>,
    /// The tables of a node that had all pods and no address: what policies say, wherever a pod is.
    everywhere: Tables,
    /// The node of each pod's and each node's address, and whether it is the node itself.
    homes: HashMap<Ip, (usize, bool)>,
    /// The endpoint that has each pod's address.
    pods: HashMap<Ip, EndpointIndex>,
    /// Ports at which a Service may answer, by address and protocol, sorted.
    frontends: HashMap<(Ip, u8), Vec<u16>>,
    /// NodePorts by protocol, sorted.
    node_ports: HashMap<u8, Vec<u16>>,
    /// Backends of all Services that answer at an address.
    behind: HashMap<Ip, Vec<Ip>>,
    /// What needs no node's own tables.
    plain: Plain,
    /// Where flows from outside to outside come in.
    default: usize,
}

impl World {
    /// Prepares `snapshot`. `config` holds the operator's choices for all nodes.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn new(snapshot: &Snapshot, config: &NodeConfig) -> Result<Self, String> {
        let first = &snapshot.nodes.first().ok_or("the snapshot has no Node")?.meta.name;
        let named = snapshot.nodes.iter().find(|node| node.meta.name == config.node).map_or(first, |node| &node.meta.name);
        let state = compile(snapshot, named, config).map_err(|error| error.to_string())?;
        // What compiles for one node compiles for all, but where a Service has a node's address for its own.
        let theirs: HashSet<&IpAddr> = snapshot.services.iter().flat_map(|s| s.external_ips.iter().chain(&s.load_balancer_ips)).collect();
        for node in snapshot.nodes.iter().filter(|node| node.addresses.iter().any(|address| theirs.contains(address))) {
            compile(snapshot, &node.meta.name, config).map_err(|error| error.to_string())?;
        }
        // All pods on a node of no address that sorts behind all others: nodes and pods keep their numbers, also nodes that only
        // pods mention.
        let nowhere = "\u{10ffff}";
        let mut gathered = snapshot.clone();
        gathered.pods.iter_mut().for_each(|pod| pod.node = Some(nowhere.into()));
        let there: HashSet<&str> = snapshot.nodes.iter().map(|node| node.meta.name.as_str()).collect();
        let mentioned = state.nodes.iter().map(|node| node.name.as_str()).filter(|name| !there.contains(name));
        for name in mentioned.chain([nowhere]) {
            gathered.nodes.push(Node { meta: Meta { name: name.into(), ..Meta::default() }, ..Node::default() });
        }
        let everywhere = compile(&gathered, nowhere, config).map_err(|error| error.to_string())?;
        let everywhere = Tables::compile(&everywhere, &Runtime::offline(&everywhere, config.clone()), 1);
        let (mut homes, mut pods) = (HashMap::new(), HashMap::new());
        for (index, endpoint) in (0..).zip(&state.endpoints).filter(|(_, endpoint)| !endpoint.host_network) {
            homes.extend(endpoint.addresses.iter().map(|a| (Ip::from(*a), (endpoint.node as usize, false))));
            pods.extend(endpoint.addresses.iter().map(|a| (Ip::from(*a), index)));
        }
        for (index, node) in state.nodes.iter().enumerate() {
            homes.extend(node.addresses.iter().map(|a| (Ip::from(*a), (index, true))));
        }
        let default = state.this_node as usize;
        let nodes: Vec<OnceLock<Tables>> = state.nodes.iter().map(|_| OnceLock::new()).collect();
        let mut frontends: HashMap<(Ip, u8), Vec<u16>> = HashMap::new();
        let mut behind: HashMap<Ip, Vec<Ip>> = HashMap::new();
        for service in &state.services {
            for frontend in &service.frontends {
                behind.entry(frontend.address.into()).or_default().extend(service.backends.iter().map(|b| Ip::from(b.address)));
                frontends.entry((frontend.address.into(), service.protocol.number())).or_default().push(frontend.port);
            }
        }
        let mut node_ports: HashMap<u8, Vec<u16>> = HashMap::new();
        for port in snapshot.services.iter().flat_map(|service| &service.ports) {
            node_ports.entry(port.protocol.number()).or_default().extend(port.node_port);
        }
        frontends.values_mut().chain(node_ports.values_mut()).for_each(|ports| ports.sort_unstable());
        let (snapshot, config) = (snapshot.clone(), config.clone());
        let plain = Plain::new(&snapshot, &config, &state);
        let mut bare = snapshot.clone();
        if plain.services_are_alike() {
            (bare.services, bare.slices) = Default::default();
        }
        let world = Self { snapshot, bare, config, nodes, everywhere, homes, pods, frontends, node_ports, behind, plain, default };
        world.nodes[default].get_or_init(|| world.tables_of(state));
        Ok(world)
    }

    fn tables_of(&self, mut state: NodeState) -> Tables {
        let shared = self.plain.services_are_alike().then_some(&self.everywhere);
        if let Some(everywhere) = shared {
            (state.services, state.cluster_ips) = (everywhere.state.services.clone(), everywhere.state.cluster_ips.clone());
        }
        // One name for all: tables share what was compiled with the same configuration.
        let runtime = Runtime::offline(&state, self.config.clone());
        Tables::compile_shared(Arc::new(state), Arc::new(runtime), 1, shared)
    }

    /// The tables of a node.
    pub fn node(&self, at: usize) -> &Tables {
        self.nodes[at].get_or_init(|| {
            let name = self.state().nodes.get(at).map_or("", |node| &node.name);
            // A node that only pods mention is no object that could be compiled: it has no address and receives nothing.
            self.tables_of(compile(&self.bare, name, &self.config).unwrap_or_default())
        })
    }

    /// The tables of the node of a pod's or a node's address.
    pub fn home(&self, ip: Ip) -> Option<&Tables> {
        self.homes.get(&ip).map(|(node, _)| self.node(*node))
    }

    /// The state of the node that stands for the cluster where nodes do not differ.
    pub fn state(&self) -> &NodeState {
        self.nodes[self.default].get().map_or(&self.everywhere.state, |tables| &tables.state)
    }

    /// What becomes of a flow.
    pub fn reach(&self, flow: &Flow) -> Outcome {
        self.reach_until(flow).0
    }

    /// What becomes of a flow, and the last port up to which it is the same, from the flow's on: nothing that was looked at on the
    /// way says otherwise before.
    pub fn reach_until(&self, flow: &Flow) -> (Outcome, u16) {
        let mut walked = Walked { outcome: Outcome::default(), until: u16::MAX };
        let (at, sender) = self.start(flow);
        self.walk(at, sender, flow, None, None, HOPS_MAX, &mut walked);
        (walked.outcome, walked.until)
    }

    /// Tells whether some Service answers at a flow's address and port.
    pub fn serves(&self, flow: &Flow) -> bool {
        self.everywhere.services.service_at(flow.dst, flow.proto, flow.port).is_some()
    }

    /// Protocols and ports at which Services answer at an address.
    pub fn served(&self, address: Ip) -> impl Iterator<Item = Span> + '_ {
        [proto::TCP, proto::UDP, proto::SCTP].into_iter().flat_map(move |proto| {
            let ports = self.frontends.get(&(address, proto)).into_iter().flatten();
            ports.map(move |port| Span { proto, first: *port, last: *port })
        })
    }

    /// The one port of a Service at an address and its backends, where they are the same for every pod.
    pub fn backends(&self, address: Ip) -> Option<(Span, &[Backend])> {
        let mut served = self.served(address).filter(|_| self.plain.is_virtual(address));
        let (Some(span), None) = (served.next(), served.next()) else { return None };
        let tuple = Tuple { src: address, dst: address, sport: 50_000, dport: span.first, proto: span.proto };
        match self.everywhere.services.candidates(&tuple, Origin::Pod, true) {
            Candidates::Backends { backends, .. } => Some((span, backends)),
            _ => None,
        }
    }

    /// The last port up to which the same Service, or none, answers at the flow's address, and it is the overlay's or not.
    fn served_until(&self, flow: &Flow) -> u16 {
        let before = |port: u16| if port == flow.port { port } else { port - 1 };
        let next = |ports: &[u16]| ports.get(ports.partition_point(|port| *port < flow.port)).map(|port| before(*port));
        let at_node = matches!(self.homes.get(&flow.dst), Some((_, true)));
        let node_ports = self.node_ports.get(&flow.proto).filter(|_| at_node).and_then(|ports| next(ports));
        let frontends = self.frontends.get(&(flow.dst, flow.proto)).and_then(|ports| next(ports));
        let overlay = (flow.proto == proto::UDP).then(|| next(&[self.config.overlay.port])).flatten();
        node_ports.into_iter().chain(frontends).chain(overlay).min().unwrap_or(u16::MAX)
    }

    fn start(&self, flow: &Flow) -> (usize, Sender) {
        match self.homes.get(&flow.src) {
            Some((node, true)) => (*node, Sender::Host),
            Some((node, false)) => (*node, Sender::Pod),
            None => (self.homes.get(&flow.dst).map_or(self.default, |(node, _)| *node), Sender::Uplink),
        }
    }

    /// One node's part of the way; mirrors `pipeline::first_packet`.
    #[allow(clippy::too_many_arguments)]
    fn walk(
        &self,
        at: usize,
        sender: Sender,
        flow: &Flow,
        backend: Option<SocketAddr>,
        snat: Option<IpAddr>,
        hops: usize,
        walked: &mut Walked,
    ) {
        if sender == Sender::Pod
            && let Some(departed) = self.depart(at, flow)
        {
            *walked = departed;
            return;
        }
        let tables = self.node(at);
        let end = |verdict, reason: Option<DropReason>| End { verdict, reason: reason.map(DropReason::name), backend, snat };
        let loops = if hops == 0 { Err(DropReason::OtherHost) } else { Ok(()) };
        if backend.is_none() {
            walked.until = walked.until.min(self.served_until(flow));
        }
        if let Err(reason) = admit(tables, sender, flow).and(loops) {
            walked.outcome.ends.insert(end("drop", Some(reason)));
            return;
        }
        let tuple = Tuple { src: flow.src, dst: flow.dst, sport: 50_000, dport: flow.port, proto: flow.proto };
        let name = |outcome: &mut Outcome, index: u32| {
            let service = tables.state.services.get(index as usize).map(|s| format!("svc/{}/{}", s.namespace, s.name));
            outcome.service = outcome.service.take().or(service);
        };
        match tables.services.candidates(&tuple, tables.origin(flow.src), tables.owner(flow.dst).in_services) {
            Candidates::NotService => self.onward(at, sender, flow, false, false, &end("forward", None), hops, walked),
            Candidates::Refuse(reason, service) => {
                service.into_iter().for_each(|index| name(&mut walked.outcome, index));
                walked.outcome.ends.insert(end("reject", Some(reason)));
            }
            Candidates::Drop(reason, service) => {
                service.into_iter().for_each(|index| name(&mut walked.outcome, index));
                walked.outcome.ends.insert(end("drop", Some(reason)));
            }
            Candidates::Backends { backends, masquerade, service } => {
                name(&mut walked.outcome, service);
                for chosen in backends {
                    let seen = Flow { dst: chosen.address, port: chosen.port, ..*flow };
                    let masquerade = masquerade || hairpin(flow.src, chosen);
                    let backend = backend.or(Some(SocketAddr::new(chosen.address.to_std(), chosen.port)));
                    self.onward(at, sender, &seen, true, masquerade, &End { backend, ..end("forward", None) }, hops, walked);
                }
            }
        }
    }

    /// What follows the service choice: policy, route, masquerade, the next node.
    #[allow(clippy::too_many_arguments)]
    fn onward(
        &self,
        at: usize,
        sender: Sender,
        seen: &Flow,
        via_service: bool,
        masquerade: bool,
        so_far: &End,
        hops: usize,
        walked: &mut Walked,
    ) {
        let tables = self.node(at);
        let (source, destination) = (tables.owner(seen.src), tables.owner(seen.dst));
        let ours = matches!(destination.kind, OwnerKind::LocalPod { .. } | OwnerKind::OwnNode);
        // A backend's port is its own, whichever port of the frontend was asked for.
        let own_port = so_far.backend.is_none();
        if own_port {
            let sides = [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)];
            let until = sides.map(|(pod, way, other)| tables.judged_until(pod, way, other, seen.proto, seen.port, via_service));
            walked.until = walked.until.min(until[0]).min(until[1]);
        }
        let mut ends = |verdict, reason: Option<DropReason>| {
            walked.outcome.ends.insert(End { verdict, reason: reason.map(DropReason::name), ..so_far.clone() });
        };
        if !via_service && sender == Sender::Uplink && destination.kind == OwnerKind::OwnNode {
            return ends("host", None);
        }
        if !via_service && matches!(sender, Sender::Uplink | Sender::Tunnel(_)) && !ours {
            return ends("drop", Some(DropReason::OtherHost));
        }
        for (pod, direction, other) in [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)] {
            if let Some(reason) = tables.judge_owners(pod, direction, other, seen.proto, seen.port, via_service).reason {
                let silent = tables.runtime.config.policy.deny_action == DenyAction::Drop;
                return ends(if silent { "drop" } else { "reject" }, Some(reason));
            }
        }
        if let Err(reason) = tables.routes.resolve(destination, seen.dst) {
            return ends("drop", Some(reason));
        }
        let outside = !destination.in_cluster && destination.kind != OwnerKind::OwnNode;
        let leaves = match sender {
            Sender::Pod => outside && !destination.keeps_source,
            Sender::Host => outside && via_service,
            Sender::Uplink | Sender::Tunnel(_) => false,
        };
        let is_node_itself = source.kind == OwnerKind::OwnNode && destination.in_cluster;
        let own = match leaves || masquerade && !is_node_itself {
            true => match tables.own_address(seen.src.is_v4()) {
                Some(own) => Some(own),
                None => return ends("drop", Some(DropReason::NoMappingForMasquerade)),
            },
            false => None,
        };
        let snat = own.filter(|own| *own != seen.src).map(Ip::to_std).or(so_far.snat);
        let onward = Flow { src: own.unwrap_or(seen.src), ..*seen };
        let overlay = tables.runtime.config.overlay.mode == OverlayMode::Vxlan;
        let (next, sender) = match destination.kind {
            OwnerKind::LocalPod { .. } | OwnerKind::Nobody(None) => {
                walked.outcome.ends.insert(End { snat, ..so_far.clone() });
                return;
            }
            OwnerKind::OwnNode => {
                walked.outcome.ends.insert(End { verdict: "host", snat, ..so_far.clone() });
                return;
            }
            OwnerKind::RemotePod { node, .. } | OwnerKind::Nobody(Some(node)) if overlay => (node, Sender::Tunnel(at as u32)),
            OwnerKind::RemotePod { node, .. } | OwnerKind::Nobody(Some(node)) | OwnerKind::OtherNode(node) => (node, Sender::Uplink),
        };
        if let Some((judged, until)) = self.arrival(at, next as usize, &onward) {
            if own_port {
                walked.until = walked.until.min(until);
            }
            let silent = tables.runtime.config.policy.deny_action == DenyAction::Drop;
            let verdict = if judged.is_none() {
                "forward"
            } else if silent {
                "drop"
            } else {
                "reject"
            };
            walked.outcome.ends.insert(End { verdict, reason: judged.map(DropReason::name), snat, ..so_far.clone() });
            return;
        }
        self.walk(next as usize, sender, &onward, so_far.backend, snat, hops - 1, walked);
    }

    /// The whole way of a pod's flow to a pod, or to a Service whose backends are pods and the same for all clients: policies alone
    /// decide, and the tables of all pods have them; no node's own are made for it. `None` where there is more to look at.
    fn depart(&self, at: usize, flow: &Flow) -> Option<Walked> {
        let everywhere = &self.everywhere;
        let tuple = Tuple { src: flow.src, dst: flow.dst, sport: 50_000, dport: flow.port, proto: flow.proto };
        let source = everywhere.owner(flow.src);
        let mut walked = Walked { outcome: Outcome::default(), until: self.served_until(flow) };
        let own_port = [Backend { address: flow.dst, port: flow.port }];
        let (backends, service) = match self.plain.is_virtual(flow.dst) {
            false => (&own_port[..], None),
            true => match everywhere.services.candidates(&tuple, everywhere.origin(flow.src), everywhere.owner(flow.dst).in_services) {
                Candidates::Backends { backends, service, .. } => (backends, Some(service)),
                _ => return None,
            },
        };
        let silent = self.config.policy.deny_action == DenyAction::Drop;
        for chosen in backends {
            let (to, false) = *self.homes.get(&chosen.address)? else { return None };
            let destination = everywhere.owner(chosen.address);
            if !destination.in_cluster || !self.plain.is_pod(at, to, chosen.address, destination) {
                return None;
            }
            let via_service = service.is_some();
            let sides = [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)];
            let judged = |(pod, way, other): (&Owner, _, &Owner)| {
                everywhere.judge_owners(pod, way, other, flow.proto, chosen.port, via_service).reason
            };
            let reason = sides.into_iter().find_map(judged);
            if !via_service {
                let until = sides.map(|(pod, way, other)| everywhere.judged_until(pod, way, other, flow.proto, flow.port, false));
                walked.until = walked.until.min(until[0]).min(until[1]);
            }
            let verdict = if reason.is_none() {
                "forward"
            } else if silent {
                "drop"
            } else {
                "reject"
            };
            // What comes back to its sender does so from its node.
            let own = || self.state().nodes.get(at).and_then(|node| node.primary(flow.src.is_v4()));
            let snat = if via_service && hairpin(flow.src, chosen) && reason.is_none() { Some(own()?) } else { None };
            let backend = via_service.then(|| SocketAddr::new(chosen.address.to_std(), chosen.port));
            walked.outcome.ends.insert(End { verdict, reason: reason.map(DropReason::name), backend, snat });
        }
        let named = service.and_then(|index| everywhere.state.services.get(index as usize));
        walked.outcome.service = named.map(|s| format!("svc/{}/{}", s.namespace, s.name));
        Some(walked)
    }

    /// What the node of a pod says of a flow that another node sends it: policies alone decide, and they are the same in the tables
    /// of all pods, and up to which port it says so. `None` where there is more to look at.
    fn arrival(&self, from: usize, to: usize, flow: &Flow) -> Option<(Option<DropReason>, u16)> {
        let everywhere = &self.everywhere;
        let sent_there = self.homes.get(&flow.dst) == Some(&(to, false));
        let sent_by = self.homes.get(&flow.src).is_some_and(|(node, _)| *node == from);
        let plain = sent_there && sent_by && !everywhere.owner(flow.dst).in_services;
        if !plain || self.serves(flow) || everywhere.services.is_cluster_ip(flow.dst) {
            return None;
        }
        let (source, destination) = (everywhere.owner(flow.src), everywhere.owner(flow.dst));
        let reason = everywhere.judge_owners(destination, Direction::Ingress, source, flow.proto, flow.port, false).reason;
        Some((reason, everywhere.judged_until(destination, Direction::Ingress, source, flow.proto, flow.port, false)))
    }

    /// What policy says of both ends of a flow that takes `end`: egress of the source, ingress of the destination; `None` for what
    /// is no pod.
    pub fn sides(&self, flow: &Flow, end: &End, via_service: bool) -> [Option<PolicySide>; 2] {
        let (dst, port) = end.backend.map_or((flow.dst, flow.port), |b| (b.ip().into(), b.port()));
        let away = self.homes.get(&dst).map(|(node, _)| node) != self.homes.get(&flow.src).map(|(node, _)| node);
        let arrives_as = end.snat.filter(|_| away).map_or(flow.src, Ip::from);
        let side = |pod: Ip, direction, peer: Ip| {
            let Some((node, false)) = self.homes.get(&pod) else { return None };
            // Only its own node is more to a pod than others.
            let own = self.homes.get(&peer) == Some(&(*node, true));
            let tables = if own { self.node(*node) } else { self.nodes[*node].get().unwrap_or(&self.everywhere) };
            let query = Query { pod: *self.pods.get(&pod)?, direction, peer, protocol: flow.proto, port, via_service };
            let explained: Explained = explain(&tables.state, &tables.runtime, &query);
            Some(PolicySide { direction, explained })
        };
        [side(flow.src, Direction::Egress, dst), side(dst, Direction::Ingress, arrives_as)]
    }

    /// Why a flow ends as it does, in the words of policies and drop reasons.
    pub fn why(&self, flow: &Flow, outcome: &Outcome) -> String {
        let mut reasons: Vec<String> = Vec::new();
        for end in &outcome.ends {
            let sides = self.sides(flow, end, outcome.service.is_some());
            let denied = matches!(end.reason, Some("POLICY_DENIED" | "POLICY_DENY"));
            let told = sides.iter().flatten().filter(|s| if denied { !s.explained.allowed } else { !s.explained.by.is_empty() });
            let mut words: Vec<String> = told.map(PolicySide::words).collect();
            if words.is_empty() {
                let reason = DropReason::ALL.iter().find(|r| Some(r.name()) == end.reason);
                words.push(reason.map_or("no policy isolates either end".into(), |r| r.words().to_owned()));
            }
            let words = words.join("; ");
            if !reasons.contains(&words) {
                reasons.push(words);
            }
        }
        reasons.join(" or ")
    }
}

/// What a node refuses before it looks at services and policies.
fn admit(tables: &Tables, sender: Sender, flow: &Flow) -> Result<(), DropReason> {
    let (source, destination) = (tables.owner(flow.src).kind, tables.owner(flow.dst).kind);
    let overlay = flow.proto == proto::UDP && flow.port == tables.runtime.config.overlay.port;
    match sender {
        Sender::Pod if overlay && matches!(destination, OwnerKind::OwnNode | OwnerKind::OtherNode(_)) => {
            Err(DropReason::EncapsulationProhibited)
        }
        Sender::Pod | Sender::Host => Ok(()),
        Sender::Tunnel(from) => match source {
            OwnerKind::RemotePod { node, .. } | OwnerKind::OtherNode(node) | OwnerKind::Nobody(Some(node)) if node == from => Ok(()),
            _ => Err(DropReason::InvalidSourceIp),
        },
        // What claims to be an overlay packet must come from a node and hold one.
        Sender::Uplink if overlay && destination == OwnerKind::OwnNode => Err(match source {
            OwnerKind::OtherNode(_) => DropReason::InvalidPacket,
            _ => DropReason::UnknownVtep,
        }),
        Sender::Uplink => match source {
            OwnerKind::LocalPod { .. } | OwnerKind::OwnNode => Err(DropReason::InvalidSourceIp),
            _ => Ok(()),
        },
    }
}
