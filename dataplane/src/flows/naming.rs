//! Gives names to what fates refer to by number, by the tables that decided.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Encap, Flow, Outcome, PacketHead, Party, PodName, PolicySide, ServiceName};
use crate::events::Fate;
use crate::io::PortId;
use crate::model::{Direction, EndpointIndex, Ip, NodeState, ServiceIndex};
use crate::parse::Headers;
use crate::policy::{Explained, Query, explain};
use crate::tables::{OwnerKind, Tables};
use crate::verdict::Verdict;

/// Cilium's reserved identities; those of pods begin above them.
const IDENTITY_HOST: u32 = 1;
const IDENTITY_WORLD: u32 = 2;
const IDENTITY_REMOTE_NODE: u32 = 6;
const IDENTITY_PODS: u32 = 256;

/// Explanations kept; beyond that they are made anew.
const EXPLAINED_MAX: usize = 65_536;

/// Names what happened under one generation of tables.
#[derive(Debug)]
pub struct Namer {
    tables: Arc<Tables>,
    /// What was explained before: a flow's packets, and those of flows alike, ask the same.
    explained: HashMap<(EndpointIndex, Direction, Ip, u8, u16, bool), Explained>,
}

impl Namer {
    /// Names by these tables.
    pub fn new(tables: Arc<Tables>) -> Self {
        Self { tables, explained: HashMap::new() }
    }

    /// The state that names come from.
    pub fn state(&self) -> &NodeState {
        &self.tables.state
    }

    /// The name of this node.
    pub fn node(&self) -> &str {
        &self.tables.runtime.config.node
    }

    /// The number of the tables.
    pub fn generation(&self) -> u32 {
        self.tables.generation
    }

    /// All that there is to say of a packet. `time` is nanoseconds since 1970.
    pub fn flow(&mut self, time: u64, fate: &Fate) -> Flow {
        let policy = self.policy(fate);
        let outcome = match fate.verdict {
            Verdict::Forward(_) => Outcome::Forward,
            Verdict::Encap(_) => Outcome::Encap,
            Verdict::Host(_) => Outcome::Host,
            Verdict::Reply(None) => Outcome::Reply,
            Verdict::Reply(Some(_)) => Outcome::Reject,
            Verdict::Drop(_) => Outcome::Drop,
        };
        let headers = fate.headers.as_ref();
        let decap = fate.decap.and_then(|node| self.state().nodes.get(node as usize)).map(|node| node.name.clone());
        Flow {
            time,
            node: self.node().to_owned(),
            generation: self.generation(),
            outcome,
            reason: fate.reason(),
            in_port: self.port(fate.in_port),
            out_port: fate.out_port().map(|port| self.port(port)),
            state: fate.trail.state,
            packet: headers.map(PacketHead::from),
            after: fate.trail.after,
            source: headers.map(|h| self.party(h.tuple.src)),
            destination: headers.map(|h| self.party(destination(fate, h))),
            service: fate.trail.service.and_then(|index| self.service(index)),
            backend: fate.trail.backend.map(|b| SocketAddr::new(b.address.to_std(), b.port)),
            policy,
            encap: self.encap(fate),
            decap,
            mtu: fate.trail.mtu,
        }
    }

    /// The name of a port: of a pod's, the pod's.
    pub fn port(&self, port: PortId) -> String {
        let known = self.tables.runtime.ports.get(usize::from(port.0));
        known.map_or_else(|| format!("port {}", port.0), |p| p.pod_name().unwrap_or_else(|| p.name.clone()))
    }

    /// The name of a Service port.
    pub fn service(&self, index: ServiceIndex) -> Option<ServiceName> {
        let service = self.state().services.get(index as usize)?;
        let port = Some(service.port_name.clone()).filter(|name| !name.is_empty());
        Some(ServiceName { namespace: service.namespace.clone(), name: service.name.clone(), port })
    }

    /// The overlay that a packet left in.
    pub fn encap(&self, fate: &Fate) -> Option<Encap> {
        let state = self.state();
        let (this, node) = (state.nodes.get(state.this_node as usize)?, state.nodes.get(fate.trail.encap? as usize)?);
        let vtep = [true, false].into_iter().find_map(|v4| this.primary(v4).and(node.primary(v4)))?;
        matches!(fate.verdict, Verdict::Encap(_)).then(|| Encap { vni: self.tables.runtime.config.overlay.vni, vtep: vtep.to_string() })
    }

    /// Who has an address: a pod with its labels, a node, or the world, with Cilium's reserved identities.
    fn party(&self, address: Ip) -> Party {
        let reserved = |identity, label: &str| Party { identity, labels: vec![label.to_owned()], pod: None };
        match self.tables.owner(address).kind {
            OwnerKind::LocalPod { endpoint, .. } | OwnerKind::RemotePod { endpoint, .. } => self.pod(endpoint),
            OwnerKind::OwnNode => reserved(IDENTITY_HOST, "reserved:host"),
            OwnerKind::OtherNode(_) => reserved(IDENTITY_REMOTE_NODE, "reserved:remote-node"),
            OwnerKind::Nobody(_) => reserved(IDENTITY_WORLD, "reserved:world"),
        }
    }

    fn pod(&self, endpoint: EndpointIndex) -> Party {
        let state = self.state();
        let pod = &state.endpoints[endpoint as usize];
        let labels = state.identities.get(pod.identity as usize).map(|identity| &identity.labels);
        let mut labels: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("k8s:{key}={value}")).collect();
        labels.push(format!("k8s:io.kubernetes.pod.namespace={}", pod.namespace));
        let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        Party { identity: IDENTITY_PODS + pod.identity, labels, pod: Some(name) }
    }

    /// What policy said of the side that denies, else of the side where a rule admits.
    pub fn policy(&mut self, fate: &Fate) -> Option<PolicySide> {
        let sides = [(Direction::Egress, fate.trail.egress), (Direction::Ingress, fate.trail.ingress)];
        let judged = || sides.into_iter().filter_map(|(direction, judgement)| Some((direction, judgement?)));
        let (direction, _) = judged().find(|(_, j)| !j.allowed).or_else(|| judged().rfind(|(_, j)| j.rule.is_some()))?;
        let headers = fate.headers.as_ref()?;
        let seen = fate.trail.seen(headers);
        let (pod, peer) = match direction {
            Direction::Egress => (seen.src, seen.dst),
            Direction::Ingress => (seen.dst, seen.src),
        };
        let pod = self.tables.owner(pod).local_pod()?;
        let via_service = fate.trail.service.is_some();
        let key = (pod, direction, peer, seen.proto, seen.dport, via_service);
        if let Some(explained) = self.explained.get(&key) {
            return Some(PolicySide { direction, explained: explained.clone() });
        }
        let query = Query { pod, direction, peer, protocol: seen.proto, port: seen.dport, via_service };
        let explained = explain(&self.tables.state, &self.tables.runtime, &query);
        if self.explained.len() >= EXPLAINED_MAX {
            self.explained.clear();
        }
        self.explained.insert(key, explained.clone());
        Some(PolicySide { direction, explained })
    }
}

/// Who a packet is for: after the service choice, or of a reply, before the source translation that it answers.
fn destination(fate: &Fate, headers: &Headers) -> Ip {
    let seen = fate.trail.seen(headers);
    if fate.is_reply() == Some(true) { seen.src } else { seen.dst }
}
