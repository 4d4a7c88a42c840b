//! What becomes of a new connection, for every class of traffic of a whole cluster: read off the compiled tables, no packet sent.
//!
//! [`World`] has the tables of every node. [`World::reach`] walks a flow over them as `dataplane::pipeline` walks a first
//! packet, but takes every backend that a Service may choose instead of one. `places` are the ends that flows have, gathered
//! into groups that no table tells apart; `ports` likewise for ports. `diff`, `matrix` and `why` ask this and nothing else;
//! tests compare it with `trace`, which sends packets.

mod concerned;
mod explained;
mod held;
mod likeness;
mod places;
mod plain;
mod ports;
#[cfg(test)]
pub(crate) mod tests;
mod walk;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{EndpointIndex, Ip, NodeConfig, NodeState, proto};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::{Backend, Candidates, Origin};
use weir_dataplane::tables::Tables;

pub use held::Held;
#[cfg(test)]
pub(crate) use places::is_served_on;
pub use places::{Group, Kind, Nodes, Pair, Place, groups, named};
pub use ports::{Span, push, ranges, traffic};

use self::plain::Plain;
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
    memo: explained::Memo,
    /// Flows that were asked about.
    #[cfg(test)]
    pub(crate) asked: std::sync::atomic::AtomicUsize,
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
        for (index, endpoint) in (0..).zip(&*state.endpoints).filter(|(_, endpoint)| !endpoint.host_network) {
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
        let memo = explained::Memo::default();
        let world = Self {
            #[cfg(test)]
            asked: Default::default(),
            memo,
            snapshot,
            bare,
            config,
            nodes,
            everywhere,
            homes,
            pods,
            frontends,
            node_ports,
            behind,
            plain,
            default,
        };
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
}
