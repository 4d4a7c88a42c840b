//! Who owns an address: pod, node, nobody; and how policies class it.

use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::Ranges;
use super::exact::Exact;
use crate::io::PortId;
use crate::model::{EndpointIndex, Ip, NodeIndex, NodeState, OwnNodeEgress, Selection, SelectionIndex};
use crate::policy::{ClassId, Classes, SubjectId};
use crate::runtime::{PortKind, Runtime};

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who has it.
    pub kind: OwnerKind,
    /// How policies see it as a peer.
    pub class: ClassId,
    /// How the pod that has it is seen by itself through a Service (E1.50); else as `class`.
    pub own_class: ClassId,
    /// It lies in a pod CIDR of the cluster, or a pod has it.
    pub in_cluster: bool,
    /// It lies in the range of ClusterIPs.
    pub in_services: bool,
    /// Pods keep their own address towards it (`masquerade.exceptCIDRs`).
    pub keeps_source: bool,
}

/// The owners of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerKind {
    /// A pod of this node.
    LocalPod {
        /// Which.
        endpoint: EndpointIndex,
        /// Its port, once attached.
        port: Option<PortId>,
        /// What policies can tell of it.
        subject: SubjectId,
    },
    /// A pod of another node.
    RemotePod {
        /// Which.
        endpoint: EndpointIndex,
        /// Its node.
        node: NodeIndex,
    },
    /// This node.
    OwnNode,
    /// Another node.
    OtherNode(NodeIndex),
    /// Nobody that we know; inside the pod CIDR of this node, if any.
    Nobody(Option<NodeIndex>),
}

impl Owner {
    /// Of no address.
    pub(crate) const BLANK: Self =
        Self { kind: OwnerKind::Nobody(None), class: 0, own_class: 0, in_cluster: false, in_services: false, keeps_source: false };

    /// The local pod's endpoint.
    pub fn local_pod(&self) -> Option<EndpointIndex> {
        match self.kind {
            OwnerKind::LocalPod { endpoint, .. } => Some(endpoint),
            _ => None,
        }
    }
}

/// All owners. Pods and nodes are found by one hash probe, everybody else by their range. Fixed per generation.
#[derive(Debug)]
pub struct Addresses {
    exact: Exact<Owner>,
    ranges: Ranges<Owner>,
}

/// What a prefix says of the addresses in it.
enum Effect {
    Block(SelectionIndex),
    Hole(SelectionIndex),
    PodsOf(NodeIndex),
    Cluster,
    Services,
    KeepsSource,
}

/// What covers a range.
#[derive(Clone, Default, PartialEq)]
struct Region {
    /// Blocks, sorted.
    blocks: Vec<SelectionIndex>,
    node: Option<NodeIndex>,
    in_cluster: bool,
    in_services: bool,
    keeps_source: bool,
}

impl Region {
    fn change(&mut self, effect: &Effect) {
        match *effect {
            Effect::Block(block) => {
                if let Err(at) = self.blocks.binary_search(&block) {
                    self.blocks.insert(at, block);
                }
            }
            Effect::Hole(block) => self.blocks.retain(|b| *b != block),
            Effect::PodsOf(node) => self.node = Some(node),
            Effect::Cluster => self.in_cluster = true,
            Effect::Services => self.in_services = true,
            Effect::KeepsSource => self.keeps_source = true,
        }
    }
    fn owner(&self, kind: OwnerKind, class: ClassId, own_class: ClassId) -> Owner {
        let Self { in_cluster, in_services, keeps_source, .. } = *self;
        Owner { kind, class, own_class, in_cluster, in_services, keeps_source }
    }
}

impl Addresses {
    /// Collects all owners. `subject_of` gives the subject of each local endpoint.
    pub fn compile(state: &NodeState, runtime: &Runtime, classes: &mut Classes, subject_of: &HashMap<EndpointIndex, SubjectId>) -> Self {
        let regions = Ranges::build(&prefixes(state, runtime, classes), &Region::default(), Region::change);
        let mut exact = Vec::new();
        let ports: HashMap<(&str, &str), PortId> = runtime
            .ports
            .iter()
            .enumerate()
            .filter_map(|(index, port)| match &port.kind {
                PortKind::Pod { namespace, name } => Some(((namespace.as_str(), name.as_str()), PortId(index as u16))),
                _ => None,
            })
            .collect();
        for (index, endpoint) in state.endpoints.iter().enumerate().filter(|(_, e)| !e.host_network) {
            let identity = &state.identities[endpoint.identity as usize];
            for address in &endpoint.addresses {
                let ip = Ip::from(*address);
                let region = regions.find(ip);
                let (class, own_class) = classes.pod(endpoint.identity, &identity.named_ports, &region.blocks);
                let index = index as EndpointIndex;
                let kind = if endpoint.node == state.this_node {
                    let port = ports.get(&(endpoint.namespace.as_str(), endpoint.name.as_str())).copied();
                    OwnerKind::LocalPod { endpoint: index, port, subject: subject_of.get(&index).copied().unwrap_or(0) }
                } else {
                    OwnerKind::RemotePod { endpoint: index, node: endpoint.node }
                };
                exact.push((ip, Owner { in_cluster: true, ..region.owner(kind, class, own_class) }));
            }
        }
        let exempt_egress = runtime.config.policy.own_node_egress == OwnNodeEgress::Allow;
        let mut add_node = |node: NodeIndex, address: IpAddr| {
            let ip = Ip::from(address);
            let region = regions.find(ip);
            let own = node == state.this_node;
            let class = classes.node(node, &region.blocks, (own, own && exempt_egress));
            let kind = if own { OwnerKind::OwnNode } else { OwnerKind::OtherNode(node) };
            exact.push((ip, region.owner(kind, class, class)));
        };
        if (state.this_node as usize) < state.nodes.len() {
            runtime.underlay.addresses.iter().for_each(|address| add_node(state.this_node, *address));
        }
        for (index, node) in state.nodes.iter().enumerate() {
            node.addresses.iter().for_each(|address| add_node(index as NodeIndex, *address));
        }
        let ranges = regions.map(|region| {
            let class = classes.outside(&region.blocks);
            region.owner(OwnerKind::Nobody(region.node), class, class)
        });
        Self { exact: Exact::build(&exact), ranges }
    }

    /// Addresses of pods that have another owner in `later`, or none: the pod is gone, is another one, or has another port. A pod
    /// whose labels changed is the same.
    pub(super) fn reassigned(&self, state: &NodeState, later: &Self, later_state: &NodeState) -> HashSet<Ip> {
        let stays = |ip: Ip, old: &Owner| {
            let Some((pod, old_port)) = holder(old, state) else { return true };
            let new = later.exact.get(ip).and_then(|owner| holder(owner, later_state));
            new.is_some_and(|(other, port)| other == pod && (old_port.is_none() || old_port == port))
        };
        self.exact.iter().filter(|(ip, owner)| !stays(*ip, owner)).map(|(ip, _)| ip).collect()
    }

    /// What is known of an address.
    #[inline]
    pub fn owner(&self, ip: Ip) -> &Owner {
        self.exact.get(ip).unwrap_or_else(|| self.ranges.find(ip))
    }
}

/// The pod that has an address: namespace, name and node; and its port here.
fn holder<'a>(owner: &Owner, state: &'a NodeState) -> Option<([&'a str; 3], Option<PortId>)> {
    let (endpoint, port) = match owner.kind {
        OwnerKind::LocalPod { endpoint, port, .. } => (endpoint, port),
        OwnerKind::RemotePod { endpoint, .. } => (endpoint, None),
        OwnerKind::OwnNode | OwnerKind::OtherNode(_) | OwnerKind::Nobody(_) => return None,
    };
    let pod = state.endpoints.get(endpoint as usize)?;
    let node = state.nodes.get(pod.node as usize).map_or("", |node| node.name.as_str());
    Some(([pod.namespace.as_str(), pod.name.as_str(), node], port))
}

/// Every prefix that says something, holes of a block after the block itself.
fn prefixes(state: &NodeState, runtime: &Runtime, classes: &Classes) -> Vec<(IpNet, Effect)> {
    let mut prefixes = Vec::new();
    for selection in classes.blocks() {
        if let Selection::Block { cidr, except } = &state.selections[*selection as usize]
            && !except.iter().any(|hole| hole.contains(cidr))
        {
            prefixes.push((*cidr, Effect::Block(*selection)));
            prefixes.extend(except.iter().map(|hole| (*hole, Effect::Hole(*selection))));
        }
    }
    for (index, node) in state.nodes.iter().enumerate() {
        prefixes.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, Effect::PodsOf(index as NodeIndex))));
        prefixes.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, Effect::Cluster)));
    }
    prefixes.extend(state.cluster.pod_cidrs.iter().flatten().map(|cidr| (*cidr, Effect::Cluster)));
    prefixes.extend(state.cluster.service_cidrs.iter().map(|cidr| (*cidr, Effect::Services)));
    prefixes.extend(runtime.config.masquerade.except_cidrs.iter().map(|cidr| (*cidr, Effect::KeepsSource)));
    prefixes
}
