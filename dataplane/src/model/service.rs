//! Services as one node sees them: endpoint sets are already filtered for this node (topology, readiness, locality).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Family, Protocol};

/// Index into `NodeState::services`.
pub type ServiceIndex = u32;

/// One port of one Service in one family. The default one is reached nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `ports[].name`, "" where it has none.
    pub port_name: String,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// Families are independent (E2.2).
    pub family: Family,
    /// Where it is reached.
    pub frontends: Vec<Frontend>,
    /// Every endpoint that is in one of the two sets or merely serves, sorted by address and port.
    pub backends: Vec<Backend>,
    /// Indices in `backends` of those usable under Cluster policy: topology hints and the fallback to terminating ones
    /// are applied (E2.10, E2.23 to E2.25).
    pub cluster: Vec<u32>,
    /// Indices of those usable under Local policy: on this node (E2.10 applied to them alone).
    pub local: Vec<u32>,
    /// Usable endpoints exist somewhere in the cluster: tells "drop, none local" from "refuse, none at all" (E2.13, E2.14).
    pub any_usable: bool,
    /// `internalTrafficPolicy: Local`: for ClusterIPs.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`: for the other frontends.
    pub external_local: bool,
    /// ClientIP affinity: seconds of idleness after which it is forgotten (E2.34).
    pub affinity_timeout_secs: Option<u32>,
    /// `loadBalancerSourceRanges` of this family; empty = everybody (E2.32), also where it names blocks of the other family
    /// alone.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort` of a LoadBalancer with external policy Local (E2.36).
    pub health_check_port: Option<u16>,
    /// Distinct local addresses that are ready and not terminating: what the health check answers (E2.36).
    pub local_ready: u32,
}

/// An address and port where a Service is reached. (address, protocol, port) is unique in a `NodeState` (E2.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontend {
    /// The address; for NodePorts each node address that serves them.
    pub address: IpAddr,
    /// The port, host order.
    pub port: u16,
    /// What kind of address it is.
    pub kind: FrontendKind,
}

/// The kinds of addresses that a Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs` (E2.45).
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP.
    LoadBalancer,
    /// A node's address and `ports[].nodePort`.
    NodePort,
}

/// An endpoint that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port, host order.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
    /// Serving: a UDP entry towards it is good (E2.39).
    pub serving: bool,
}
