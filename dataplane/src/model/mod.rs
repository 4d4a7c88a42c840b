//! The desired state of one node, as plain data.
//!
//! `control` compiles Kubernetes objects into a [`NodeState`]; `tables` compiles a `NodeState` into lookup tables. This
//! module is the border between the two: it names no Kubernetes type, does no I/O and imports nothing else of Weir.
//! Everything is serde, because control and daemon are two processes.
//!
//! Objects refer to each other by index into the vectors of the same `NodeState` (`NodeIndex`, `EndpointIndex`, …), never
//! by pointer or name. The compiler sorts every vector by name, so that the same objects give the same bytes.

mod config;
mod endpoint;
mod ip;
mod policy;
mod service;

pub use config::*;
pub use endpoint::*;
pub use ip::*;
pub use policy::*;
pub use service::*;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Everything one node's dataplane must know of the cluster. What is behind an [`Arc`] can be shared by states that follow one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Index in `nodes` of the node that this state is for.
    pub this_node: NodeIndex,
    /// This node is being deleted: load balancers should look for another one (E2.37).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Address ranges of the whole cluster.
    pub cluster: Cluster,
    /// All nodes, this one included.
    pub nodes: Vec<Node>,
    /// Names of all namespaces, sorted.
    pub namespaces: Vec<String>,
    /// Distinct (namespace, labels, named ports) of pods: what a selector can tell apart.
    pub identities: Arc<Vec<Arc<Identity>>>,
    /// All pods with an address that are not finished (E1.39, E1.40), those on the host network included.
    pub endpoints: Arc<Vec<Endpoint>>,
    /// Peers and subjects of policies, each distinct one once.
    pub selections: Vec<Selection>,
    /// Policies that have a subject among this node's pods, in order of evaluation.
    pub policies: Vec<Policy>,
    /// One entry per Service port and family, sorted by (namespace, name, port, family).
    pub services: Vec<Arc<Service>>,
    /// Addresses that belong to a Service although the port asked for does not exist: a packet to them that no frontend
    /// matches is refused (E2.4).
    pub cluster_ips: Vec<std::net::IpAddr>,
}

/// Address ranges of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Where pods live; `None` where there is no way to tell (then nobody counts as off-cluster, E2.27).
    pub pod_cidrs: Option<Vec<ipnet::IpNet>>,
    /// Where ClusterIPs live; an unallocated address inside is dropped (E2.4).
    pub service_cidrs: Vec<ipnet::IpNet>,
}
