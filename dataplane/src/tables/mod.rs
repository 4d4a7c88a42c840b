//! The lookup tables of one generation: immutable, published whole, read once per batch.
//!
//! [`Tables::compile`] turns the desired state and the node's own state into what the stages look up. The parts are shared
//! (`Arc`), so that a generation in which only services or only the underlay changed keeps the others.

mod addresses;
mod exact;
mod gates;
mod ports;
mod ranges;

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

pub use addresses::{Addresses, Owner, OwnerKind};
pub(crate) use gates::{Gate, LinkFamily, TunnelEnd};
pub use ports::{PortEntry, Ports, Side};
pub use ranges::Ranges;

use crate::model::{Direction, EndpointIndex, Ip, MacAddr, NodeState};
use crate::policy::{ClassId, Classes, Judgement, Policies, SubjectId};
use crate::route::Routes;
use crate::runtime::Runtime;
use crate::service::{COUNTERS, Origin, Services};

/// Everything that a packet is looked up in.
#[derive(Debug)]
pub struct Tables {
    /// The number of this snapshot; what flows remember of an older one is checked again.
    pub generation: u32,
    /// The desired state that this was compiled from, for names and explanations.
    pub state: Arc<NodeState>,
    /// The node that this was compiled for.
    pub runtime: Arc<Runtime>,
    /// The attached ports.
    pub ports: Arc<Ports>,
    /// Who owns an address.
    pub addresses: Arc<Addresses>,
    /// Which flows policies allow.
    pub policies: Arc<Policies>,
    /// Services and their backends.
    pub services: Arc<Services>,
    /// Ways out of the node.
    pub routes: Arc<Routes>,
    /// Addresses that were a pod's in the generation before and are no more, or another's: what flows of older generations
    /// were allowed holds for nobody now.
    pub reassigned: HashSet<Ip>,
}

impl Tables {
    /// Compiles everything.
    pub fn compile(state: &NodeState, runtime: &Runtime, generation: u32) -> Self {
        Self::compile_shared(Arc::new(state.clone()), Arc::new(runtime.clone()), generation, None)
    }

    /// Compiles what changed since `before` and shares the rest. For connection tables that count no flow yet.
    pub fn compile_shared(state: Arc<NodeState>, runtime: Arc<Runtime>, generation: u32, before: Option<&Self>) -> Self {
        Self::compile_next(state, runtime, generation, before, &|counter| (counter < COUNTERS).then_some(0))
    }

    /// Compiles what changed since `before` and shares the rest. `counted` as [`Services::compile`] asks for it.
    pub fn compile_next(
        state: Arc<NodeState>,
        runtime: Arc<Runtime>,
        generation: u32,
        before: Option<&Self>,
        counted: &dyn Fn(u32) -> Option<u32>,
    ) -> Self {
        let same_nodes = before.filter(|b| b.state.this_node == state.this_node && b.state.nodes == state.nodes);
        let same_policy = same_nodes.filter(|b| {
            (&b.state.cluster, &b.state.endpoints, &b.state.identities) == (&state.cluster, &state.endpoints, &state.identities)
                && (&b.state.selections, &b.state.policies) == (&state.selections, &state.policies)
                && (&b.runtime.config, &b.runtime.ports) == (&runtime.config, &runtime.ports)
                && b.runtime.underlay.addresses == runtime.underlay.addresses
        });
        let same_services = before.filter(|b| {
            (&b.state.services, &b.state.cluster_ips) == (&state.services, &state.cluster_ips) && b.runtime.config == runtime.config
        });
        let same_routes = same_nodes.filter(|b| b.runtime == runtime);
        let (addresses, policies) = match same_policy {
            Some(b) => (b.addresses.clone(), b.policies.clone()),
            None => compile_policy(&state, &runtime),
        };
        let services = match same_services {
            Some(b) => b.services.clone(),
            None => Arc::new(Services::compile(&state, &runtime.config, before.map(|b| &*b.services), counted)),
        };
        let routes = match same_routes {
            Some(b) => b.routes.clone(),
            None => Arc::new(Routes::compile(&state, &runtime)),
        };
        let ports = Arc::new(Ports::compile(&state, &runtime));
        let reassigned = match before {
            Some(b) if !Arc::ptr_eq(&b.addresses, &addresses) => b.addresses.reassigned(&b.state, &addresses, &state),
            _ => HashSet::new(),
        };
        Self { generation, state, runtime, ports, addresses, policies, services, routes, reassigned }
    }

    /// What is known of an address.
    pub fn owner(&self, ip: Ip) -> &Owner {
        self.addresses.owner(ip)
    }

    /// This node's primary address of a family: masquerade source, source of ICMP errors.
    pub fn own_address(&self, v4: bool) -> Option<Ip> {
        self.state.nodes.get(self.state.this_node as usize)?.primary(v4).map(Ip::from)
    }

    /// The inner MAC of this node's VTEP.
    pub fn vtep_mac(&self) -> MacAddr {
        self.state.nodes.get(self.state.this_node as usize).map(|n| n.vtep_mac).unwrap_or_default()
    }

    /// How services see the source of a flow (E2.17 to E2.21).
    pub fn origin(&self, source: Ip) -> Origin {
        self.origin_of(self.owner(source))
    }

    /// The same for a source whose owner is known.
    pub fn origin_of(&self, owner: &Owner) -> Origin {
        match owner.kind {
            OwnerKind::OwnNode => Origin::Node { detector: self.state.cluster.pod_cidrs.is_some() },
            _ if self.state.cluster.pod_cidrs.is_none() => Origin::Unknown,
            _ if owner.in_cluster => Origin::Pod,
            _ => Origin::External,
        }
    }

    /// Judges one side of a new flow: `pod` is an address of a pod of this node, `peer` the other end after the service choice and
    /// before source translation (E1.25), `via_service` tells that a Service was asked for. Everything is allowed of addresses
    /// that are no local pod's.
    pub fn judge(&self, pod: Ip, direction: Direction, peer: Ip, proto: u8, dport: u16, via_service: bool) -> Judgement {
        self.judge_owners(self.owner(pod), direction, self.owner(peer), proto, dport, via_service)
    }

    /// The same for two ends whose owners are known.
    #[inline(always)]
    pub fn judge_owners(&self, pod: &Owner, direction: Direction, other: &Owner, proto: u8, dport: u16, via_service: bool) -> Judgement {
        match judged_as(pod, other, via_service) {
            None => Judgement::ALLOWED,
            Some((subject, class)) => self.policies.judge(subject, direction, class, proto, dport),
        }
    }

    /// The last port up to which [`judge_owners`](Self::judge_owners) says the same, from `dport` on.
    pub fn judged_until(&self, pod: &Owner, direction: Direction, other: &Owner, proto: u8, dport: u16, via_service: bool) -> u16 {
        let judged = judged_as(pod, other, via_service);
        judged.map_or(u16::MAX, |(subject, class)| self.policies.judged_until(subject, direction, class, proto, dport))
    }
}

/// What policies see of a pod of this node and the other end; `None` where they are not asked.
fn judged_as(pod: &Owner, other: &Owner, via_service: bool) -> Option<(SubjectId, ClassId)> {
    let OwnerKind::LocalPod { endpoint, subject, .. } = pod.kind else { return None };
    let class = match other.local_pod() {
        // E1.34: a pod cannot block itself; through a Service only the cluster-wide tiers can (E1.50).
        Some(own) if own == endpoint && !via_service => return None,
        Some(own) if own == endpoint => other.own_class,
        _ => other.class,
    };
    Some((subject, class))
}

fn compile_policy(state: &NodeState, runtime: &Runtime) -> (Arc<Addresses>, Arc<Policies>) {
    let mut classes = Classes::new(state);
    let local: Vec<EndpointIndex> = (0..state.endpoints.len() as EndpointIndex)
        .filter(|index| {
            let endpoint = &state.endpoints[*index as usize];
            endpoint.node == state.this_node && !endpoint.host_network
        })
        .collect();
    let identities: Vec<_> = local.iter().map(|index| state.endpoints[*index as usize].identity).collect();
    let subjects = crate::policy::subjects(state, &identities);
    let subject_of: HashMap<_, _> = local.into_iter().zip(subjects.ids.iter().copied()).collect();
    let addresses = Addresses::compile(state, runtime, &mut classes, &subject_of);
    let policies = Policies::compile(state, &classes, &subjects);
    (Arc::new(addresses), Arc::new(policies))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Identity, Node, NodeConfig};

    #[test]
    fn an_address_is_reassigned_when_its_pod_goes_moves_or_gets_another_port_and_not_when_its_labels_change() {
        let pod = |name: &str, node| Endpoint {
            namespace: "n".into(),
            name: name.into(),
            node,
            addresses: vec![[10, 0, 0, 9].into()],
            host_network: false,
            identity: 0,
        };
        let identity = |app: &str| Identity { namespace: 0, labels: [("app".into(), app.into())].into(), named_ports: Vec::new() };
        let node = |name: &str| Node { name: name.into(), ..Node::default() };
        let state = |endpoints: Vec<Endpoint>, app: &str| {
            let (nodes, identities) = (vec![node("a"), node("b")], vec![Arc::new(identity(app))].into());
            let endpoints = endpoints.into();
            Arc::new(NodeState { nodes, namespaces: vec!["n".into()], identities, endpoints, ..NodeState::default() })
        };
        let with_port = Arc::new(Runtime::offline(&state(vec![pod("p", 0)], ""), NodeConfig::offline("a")));
        let bare = Arc::new(Runtime::offline(&state(vec![], ""), NodeConfig::offline("a")));
        let old = |runtime: &Arc<Runtime>| Tables::compile_shared(state(vec![pod("p", 0)], "x"), runtime.clone(), 1, None);
        let reassigned = |before: &Tables, endpoints, app: &str, runtime: &Arc<Runtime>| {
            let now = Tables::compile_shared(state(endpoints, app), runtime.clone(), 2, Some(before));
            now.reassigned.contains(&Ip::v4(0x0a00_0009))
        };
        assert!(!reassigned(&old(&with_port), vec![pod("p", 0)], "y", &with_port), "labels");
        assert!(!reassigned(&old(&bare), vec![pod("p", 0)], "x", &with_port), "its first port");
        assert!(reassigned(&old(&with_port), vec![pod("p", 0)], "x", &bare), "its port is gone");
        assert!(reassigned(&old(&with_port), vec![pod("q", 0)], "x", &with_port), "another pod");
        assert!(reassigned(&old(&with_port), vec![pod("p", 1)], "x", &with_port), "on another node");
        assert!(reassigned(&old(&with_port), vec![], "x", &with_port), "gone");
    }

    #[test]
    fn a_generation_shares_what_did_not_change() {
        let state = Arc::new(NodeState::default());
        let runtime = Arc::new(Runtime::offline(&state, NodeConfig::offline("n")));
        let first = Tables::compile_shared(state.clone(), runtime.clone(), 1, None);
        let services = Arc::new(NodeState { cluster_ips: vec![[10, 96, 0, 1].into()], ..NodeState::default() });
        let second = Tables::compile_shared(services.clone(), runtime.clone(), 2, Some(&first));
        assert!(Arc::ptr_eq(&first.policies, &second.policies) && Arc::ptr_eq(&first.routes, &second.routes));
        assert!(!Arc::ptr_eq(&first.services, &second.services));
        let mut underlay = (*runtime).clone();
        underlay.underlay.mtu = 9000;
        let third = Tables::compile_shared(services, Arc::new(underlay), 3, Some(&second));
        assert!(Arc::ptr_eq(&third.policies, &second.policies) && Arc::ptr_eq(&third.services, &second.services));
        assert!(!Arc::ptr_eq(&third.routes, &second.routes));
    }
}
