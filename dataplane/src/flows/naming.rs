//! Gives names to what fates refer to by number, by the tables that decided.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Encap, Flow, Outcome, PacketHead, Party, PodName, PolicySide, ServiceName};
use crate::events::Fate;
use crate::io::PortId;
use crate::model::{Direction, EndpointIndex, Ip, NodeIndex, NodeState, ServiceIndex};
use crate::parse::Headers;
use crate::policy::{Query, explain};
use crate::tables::{OwnerKind, Tables};
use crate::verdict::Verdict;

/// Cilium's reserved identities; those of pods begin above them.
const IDENTITY_HOST: u32 = 1;
const IDENTITY_WORLD: u32 = 2;
const IDENTITY_REMOTE_NODE: u32 = 6;
const IDENTITY_PODS: u32 = 256;

/// Explanations kept; beyond that they are made anew.
const EXPLAINED_MAX: usize = 65_536;

/// Names what happened under one generation of tables. A name is made when it is first asked for, and shared from then on.
#[derive(Debug)]
pub struct Namer {
    tables: Arc<Tables>,
    node: Arc<str>,
    ports: Names<str>,
    nodes: Names<str>,
    services: Names<ServiceName>,
    encaps: Names<Encap>,
    pods: Names<Party>,
    /// This node, another one, the world.
    reserved: [Arc<Party>; 3],
    /// What was explained before: a flow's packets, and those of flows alike, ask the same.
    explained: HashMap<Query, Arc<PolicySide>>,
}

/// Names by number.
#[derive(Debug)]
struct Names<T: ?Sized>(Vec<Option<Arc<T>>>);

impl<T: ?Sized> Names<T> {
    /// The name that was made before, else what `make` gives.
    fn of(&mut self, index: usize, make: impl FnOnce() -> Option<Arc<T>>) -> Option<Arc<T>> {
        if let Some(Some(known)) = self.0.get(index) {
            return Some(known.clone());
        }
        let name = make()?;
        self.0.resize(self.0.len().max(index + 1), None);
        self.0[index] = Some(name.clone());
        Some(name)
    }
}

impl Namer {
    /// Names by these tables.
    pub fn new(tables: Arc<Tables>) -> Self {
        let reserved =
            [(IDENTITY_HOST, "reserved:host"), (IDENTITY_REMOTE_NODE, "reserved:remote-node"), (IDENTITY_WORLD, "reserved:world")]
                .map(|(identity, label)| Arc::new(Party { identity, labels: vec![label.to_owned()], pod: None }));
        Self {
            node: tables.runtime.config.node.as_str().into(),
            tables,
            ports: Names(Vec::new()),
            nodes: Names(Vec::new()),
            services: Names(Vec::new()),
            encaps: Names(Vec::new()),
            pods: Names(Vec::new()),
            reserved,
            explained: HashMap::new(),
        }
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
        Flow {
            time,
            node: self.node.clone(),
            generation: self.generation(),
            outcome,
            reason: fate.reason(),
            in_port: self.port(fate.in_port),
            out_port: fate.out_port().map(|port| self.port(port)),
            state: fate.trail.state,
            packet: headers.map(PacketHead::from),
            after: fate.trail.after,
            source: headers.and_then(|h| self.party(h.tuple.src)),
            destination: headers.and_then(|h| self.party(destination(fate, h))),
            service: fate.trail.service.and_then(|index| self.service(index)),
            backend: fate.trail.backend.map(|b| SocketAddr::new(b.address.to_std(), b.port)),
            policy,
            encap: self.encap(fate),
            decap: fate.decap.and_then(|node| self.other_node(node)),
            mtu: fate.trail.mtu,
        }
    }

    /// The name of a port: of a pod's, the pod's.
    pub fn port(&mut self, port: PortId) -> Arc<str> {
        let known = || {
            let port = self.tables.runtime.ports.get(usize::from(port.0))?;
            Some(port.pod_name().unwrap_or_else(|| port.name.clone()).into())
        };
        self.ports.of(port.0.into(), known).unwrap_or_else(|| format!("port {}", port.0).into())
    }

    /// The name of a Service port.
    pub fn service(&mut self, index: ServiceIndex) -> Option<Arc<ServiceName>> {
        self.services.of(index as usize, || {
            let service = self.tables.state.services.get(index as usize)?;
            let port = Some(service.port_name.clone()).filter(|name| !name.is_empty());
            Some(ServiceName { namespace: service.namespace.clone(), name: service.name.clone(), port }.into())
        })
    }

    /// The overlay that a packet left in.
    pub fn encap(&mut self, fate: &Fate) -> Option<Arc<Encap>> {
        let to = fate.trail.encap.filter(|_| matches!(fate.verdict, Verdict::Encap(_)))?;
        self.encaps.of(to as usize, || {
            let state = &self.tables.state;
            let (this, node) = (state.nodes.get(state.this_node as usize)?, state.nodes.get(to as usize)?);
            let vtep = [true, false].into_iter().find_map(|v4| this.primary(v4).and(node.primary(v4)))?;
            Some(Encap { vni: self.tables.runtime.config.overlay.vni, vtep: vtep.to_string() }.into())
        })
    }

    /// The name of a node of the state.
    fn other_node(&mut self, index: NodeIndex) -> Option<Arc<str>> {
        self.nodes.of(index as usize, || Some(self.tables.state.nodes.get(index as usize)?.name.as_str().into()))
    }

    /// Who has an address: a pod with its labels, a node, or the world, with Cilium's reserved identities.
    fn party(&mut self, address: Ip) -> Option<Arc<Party>> {
        let [host, remote_node, world] = &self.reserved;
        Some(match self.tables.owner(address).kind {
            OwnerKind::LocalPod { endpoint, .. } | OwnerKind::RemotePod { endpoint, .. } => return self.pod(endpoint),
            OwnerKind::OwnNode => host.clone(),
            OwnerKind::OtherNode(_) => remote_node.clone(),
            OwnerKind::Nobody(_) => world.clone(),
        })
    }

    fn pod(&mut self, endpoint: EndpointIndex) -> Option<Arc<Party>> {
        self.pods.of(endpoint as usize, || {
            let state = &self.tables.state;
            let pod = state.endpoints.get(endpoint as usize)?;
            let labels = state.identities.get(pod.identity as usize).map(|identity| &identity.labels);
            let mut labels: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("k8s:{key}={value}")).collect();
            labels.push(format!("k8s:io.kubernetes.pod.namespace={}", pod.namespace));
            let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
            Some(Party { identity: IDENTITY_PODS + pod.identity, labels, pod: Some(name) }.into())
        })
    }

    /// What policy said of the side that denies, else of the side where a rule admits.
    pub fn policy(&mut self, fate: &Fate) -> Option<Arc<PolicySide>> {
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
        let query = Query { pod, direction, peer, protocol: seen.proto, port: seen.dport, via_service };
        if let Some(known) = self.explained.get(&query) {
            return Some(known.clone());
        }
        let side = Arc::new(PolicySide { direction, explained: explain(&self.tables.state, &self.tables.runtime, &query) });
        if self.explained.len() >= EXPLAINED_MAX {
            self.explained.clear();
        }
        self.explained.insert(query, side.clone());
        Some(side)
    }
}

/// Who a packet is for: after the service choice, or of a reply, before the source translation that it answers.
fn destination(fate: &Fate, headers: &Headers) -> Ip {
    let seen = fate.trail.seen(headers);
    if fate.is_reply() == Some(true) { seen.src } else { seen.dst }
}
