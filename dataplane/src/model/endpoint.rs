//! Nodes, pods and what selectors can tell of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{MacAddr, Protocol};

/// Index into `NodeState::nodes`.
pub type NodeIndex = u32;
/// Index into `NodeState::endpoints`.
pub type EndpointIndex = u32;
/// Index into `NodeState::identities`.
pub type IdentityIndex = u32;
/// Index into `NodeState::namespaces`.
pub type NamespaceIndex = u32;

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Addresses of type InternalIP, then ExternalIP, in the order of `status.addresses`; the first of each family is
    /// the node's primary one: VTEP, masquerade source, source of ICMP errors.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`: which pod addresses are behind this node's VTEP.
    pub pod_cidrs: Vec<IpNet>,
    /// Inner MAC of the node's VTEP: flannel's `backend-data` annotation, else [`MacAddr::from_ip`] of the primary address.
    pub vtep_mac: MacAddr,
}

impl Node {
    /// The primary address of the family of `of`.
    pub fn primary(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == v4)
    }
}

/// A pod: the address as policy peer and service backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The node it runs on.
    pub node: NodeIndex,
    /// `status.podIPs`; those of the node for a pod on the host network.
    pub addresses: Vec<IpAddr>,
    /// On the host network: seen as its node, never matched by pod selectors (E1.30).
    pub host_network: bool,
    /// What selectors see of it.
    pub identity: IdentityIndex,
}

/// What selectors and port names can tell of a pod. Pods alike in all of this are one identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Namespace of the pods.
    pub namespace: NamespaceIndex,
    /// Labels of the pods.
    pub labels: BTreeMap<String, String>,
    /// Container ports that have a name, over all containers (E1.27), sorted.
    pub named_ports: Vec<NamedPort>,
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// `ports[].name`.
    pub name: String,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// `ports[].containerPort`.
    pub port: u16,
}
