//! Both judges side by side: the compiled tables of every node, and the plain evaluators.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use weir_control::compile::compile;
use weir_control::source::load_text;
use weir_control::source::objects::Snapshot;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{Direction, NodeConfig, OwnNodeEgress};
use weir_dataplane::policy::{Query, explain};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::Candidates;
use weir_dataplane::tables::Tables;

use crate::policy::{Flow, Policies};
use crate::question::Question;
use crate::service::{Answer, Proxy};
use crate::who::Who;

/// A cluster that both judges know.
pub(crate) struct Court {
    pub(crate) snapshot: Snapshot,
    pub(crate) config: NodeConfig,
    /// In the order of the snapshot's nodes.
    pub(crate) tables: Vec<Tables>,
    /// Index of each node.
    nodes: HashMap<String, usize>,
}

impl Court {
    /// Loads and compiles the objects for every node. Tables of the generation before are used again where they can be.
    ///
    /// # Errors
    /// What the loader or the compiler says.
    pub(crate) fn new(objects: &[Value], config: &NodeConfig, before: Option<&Self>) -> Result<Self, String> {
        let text = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let snapshot = load_text("objects.json", &text).map_err(|faults| faults.to_string())?;
        let mut tables = Vec::new();
        let mut nodes = HashMap::new();
        for (index, node) in snapshot.nodes.iter().enumerate() {
            let config = NodeConfig { node: node.meta.name.clone(), ..config.clone() };
            let state = compile(&snapshot, &node.meta.name, &config).map_err(|error| error.to_string())?;
            let runtime = Runtime::offline(&state, config);
            let before = before.and_then(|b| b.tables.get(*b.nodes.get(&node.meta.name)?));
            let generation = before.map_or(1, |b| b.generation + 1);
            tables.push(Tables::compile_shared(state.into(), runtime.into(), generation, before));
            nodes.insert(node.meta.name.clone(), index);
        }
        Ok(Self { snapshot, config: config.clone(), tables, nodes })
    }

    fn policies(&self) -> Policies<'_> {
        Policies { snapshot: &self.snapshot, own_node_egress_is_free: self.config.policy.own_node_egress == OwnNodeEgress::Allow }
    }

    /// The plain evaluator of a node's Services.
    pub(crate) fn proxy(&self, node: usize) -> Proxy<'_> {
        let config = &self.config;
        let stated = Some(config.cluster.pod_cidrs.clone()).filter(|c| !c.is_empty());
        let of_nodes = || self.snapshot.nodes.iter().flat_map(|n| n.pod_cidrs.clone()).collect::<Vec<_>>();
        Proxy {
            snapshot: &self.snapshot,
            node: &self.snapshot.nodes[node].meta.name,
            pod_cidrs: stated.or_else(|| Some(of_nodes()).filter(|c| !c.is_empty())),
            masquerade_all: config.masquerade.all,
            node_port_cidrs: config.services.node_port_cidrs.clone(),
            service_cidrs: config.cluster.service_cidrs.clone(),
            external_cluster_ip: config.services.external_cluster_ip,
        }
    }

    /// The node whose tables judge the pod that has an address.
    pub(crate) fn node_of(&self, address: IpAddr) -> Option<usize> {
        self.nodes.get(Who::at(&self.snapshot, address).pod()?.node.as_deref()?).copied()
    }

    /// Puts the question to both and gives what they agree on.
    ///
    /// # Errors
    /// What each says, where they differ.
    pub(crate) fn ask(&self, question: &Question) -> Result<Agreed, Difference> {
        match question {
            Question::Side(flow, direction) => self.side(flow, *direction),
            Question::Service { node, from, to, protocol } => {
                let expected = self.proxy(*node).ask(*from, *to, *protocol);
                let got = self.candidates(*node, *from, *to, protocol.number());
                match (&expected, &got) {
                    (Answer::Open, _) => Ok(Agreed::Open),
                    (Answer::Forward { .. }, _) if expected == got => Ok(Agreed::Goes),
                    _ if expected == got => Ok(Agreed::Stops),
                    _ => Err(Difference { expected: format!("{expected:?}"), got: format!("{got:?}") }),
                }
            }
        }
    }

    fn side(&self, flow: &Flow, direction: Direction) -> Result<Agreed, Difference> {
        let (own, peer) = if direction == Direction::Egress { (flow.from, flow.to) } else { (flow.to, flow.from) };
        let Some(node) = self.node_of(own) else { return Ok(Agreed::Open) };
        let expected = self.policies().side(flow, direction);
        let got = self.tables[node].judge(own.into(), direction, peer.into(), flow.protocol, flow.port, flow.via_service);
        match (expected.allowed, got.allowed) {
            (true, true) => Ok(Agreed::Goes),
            (false, false) => Ok(Agreed::Stops),
            _ => Err(Difference { expected: format!("{expected:?}"), got: format!("{got:?}") }),
        }
    }

    /// Checks the explanation of one side against the fast verdict and the plain one.
    pub(crate) fn misexplained(&self, flow: &Flow, direction: Direction) -> Option<Difference> {
        let (own, peer) = if direction == Direction::Egress { (flow.from, flow.to) } else { (flow.to, flow.from) };
        let node = self.node_of(own)?;
        let tables = &self.tables[node];
        let expected = self.policies().side(flow, direction);
        let judged = tables.judge(own.into(), direction, peer.into(), flow.protocol, flow.port, flow.via_service);
        let query = Query {
            pod: tables.owner(own.into()).local_pod()?,
            direction,
            peer: peer.into(),
            protocol: flow.protocol,
            port: flow.port,
            via_service: flow.via_service,
        };
        let said = explain(&tables.state, &tables.runtime, &query);
        // What is free by itself, its own node or itself, needs no rule to admit it.
        let who = Who::at(&self.snapshot, own).pod()?;
        let other = Who::at(&self.snapshot, peer);
        let is_free = who.addresses.contains(&peer) || who.node.as_deref().is_some_and(|node| other.is_node(node));
        let fits = [
            (said.allowed == judged.allowed, "allowed as the tables say"),
            (said.isolated == expected.isolated, "isolated as the objects say"),
            (said.isolated != said.isolated_by.is_empty(), "isolated by somebody"),
            (said.allowed || said.by.is_empty(), "nobody admits what is denied"),
            (!said.allowed || said.denied_by.is_none(), "nobody denies what is allowed"),
            (!(said.allowed && said.isolated && said.by.is_empty()) || is_free, "admitted by somebody"),
            (said.nearest.is_none() || !said.allowed, "nearest only where denied"),
            (said.allowed || said.denied_by.is_some() || said.nearest.is_some(), "a denial has a cause"),
        ];
        let wrong: Vec<&str> = fits.iter().filter(|(holds, _)| !holds).map(|(_, what)| *what).collect();
        (!wrong.is_empty()).then(|| Difference { expected: wrong.join(", "), got: format!("{said:?}") })
    }

    fn candidates(&self, node: usize, from: IpAddr, to: SocketAddr, protocol: u8) -> Answer {
        let tables = &self.tables[node];
        let tuple = Tuple { src: from.into(), dst: to.ip().into(), sport: 40_000, dport: to.port(), proto: protocol };
        match tables.services.candidates(&tuple, tables.origin(tuple.src), tables.owner(tuple.dst).in_services) {
            Candidates::NotService => Answer::Pass,
            Candidates::Refuse(..) => Answer::Reject,
            Candidates::Drop(..) => Answer::Drop,
            Candidates::Backends { backends, masquerade, .. } => {
                let endpoints: BTreeSet<_> = backends.iter().map(|b| SocketAddr::new(b.address.to_std(), b.port)).collect();
                assert_eq!(endpoints.len(), backends.len(), "a backend stands twice");
                Answer::Forward { endpoints, masquerade }
            }
        }
    }

    /// Tells whether policies deny a packet at an end that is a pod of this node.
    pub(crate) fn denied_at(&self, node: usize, flow: &Flow) -> bool {
        [(flow.from, Direction::Egress), (flow.to, Direction::Ingress)]
            .iter()
            .any(|(own, direction)| self.node_of(*own) == Some(node) && !self.policies().side(flow, *direction).allowed)
    }
}

/// What both judges say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreed {
    /// Allowed, or forwarded to an endpoint.
    Goes,
    /// Denied, or no endpoint gets it.
    Stops,
    /// There is nothing to agree on.
    Open,
}

/// What each judge says.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) expected: String,
    pub(crate) got: String,
}
