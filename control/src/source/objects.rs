//! Kubernetes objects as Weir sees them: only what it honours, typed, with the API server's defaults applied (E0).
//!
//! Stands between the loader, which makes these from files, and the compiler, which turns them into a node's state. An
//! object of these types is valid by itself: ports are in range, addresses parse, selectors have known operators. Where
//! Kubernetes tells null from empty, so do these types (`Option`); where it does not, a list is simply empty.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weir_dataplane::model::{Action, Family, MacAddr, PolicyKind, PortMatch, Protocol, Tier};

pub use super::selector::{Operator, Requirement, Selector};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Label of every namespace with its own name as value (E0.5).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Node label of its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Everything that was loaded, each kind in the order of the files. Names are unique within a kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// v1 Node.
    pub nodes: Vec<Node>,
    /// v1 Namespace; one that only other objects mention is here too, with its name label alone.
    pub namespaces: Vec<Namespace>,
    /// v1 Pod, finished and address-less ones included.
    pub pods: Vec<Pod>,
    /// v1 Service, headless and ExternalName ones included.
    pub services: Vec<Service>,
    /// discovery.k8s.io/v1 EndpointSlice, orphans included.
    pub slices: Vec<EndpointSlice>,
    /// networking.k8s.io/v1 NetworkPolicy.
    pub network_policies: Vec<NetworkPolicy>,
    /// ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1).
    pub cluster_policies: Vec<ClusterPolicy>,
    /// Objects of kinds that a dataplane has no business with, by `apiVersion kind`.
    pub foreign: BTreeMap<String, usize>,
    /// What is legal but surely not meant, one line each, ready to print.
    pub warnings: Vec<String>,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// v1 Node.
    Node(Node),
    /// v1 Namespace.
    Namespace(Namespace),
    /// v1 Pod.
    Pod(Pod),
    /// v1 Service.
    Service(Service),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// One of the cluster-wide kinds.
    ClusterPolicy(ClusterPolicy),
}

impl Object {
    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Node(o) => &o.meta,
            Self::Namespace(o) => &o.meta,
            Self::Pod(o) => &o.meta,
            Self::Service(o) => &o.meta,
            Self::EndpointSlice(o) => &o.meta,
            Self::NetworkPolicy(o) => &o.meta,
            Self::ClusterPolicy(o) => &o.meta,
        }
    }

    /// Its kind as the API spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "Node",
            Self::Namespace(_) => "Namespace",
            Self::Pod(_) => "Pod",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::NetworkPolicy(_) => "NetworkPolicy",
            Self::ClusterPolicy(o) => policy_kind(o.kind),
        }
    }
}

/// How the API spells the kind of a policy.
pub const fn policy_kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        PolicyKind::AdminNetworkPolicy => "AdminNetworkPolicy",
        PolicyKind::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
    }
}

/// Where an object stands in the files. No part of what the object says: any two compare equal.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The file as the user named it, `-` for stdin, empty for an object without a file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Origin {}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, `default` where a namespaced object states none; empty for cluster-wide kinds.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Where it was read.
    pub origin: Origin,
}

impl fmt::Display for Meta {
    /// `namespace/name`, or the name alone for cluster-wide kinds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name, labels, origin.
    pub meta: Meta,
    /// `status.addresses` of type InternalIP, then ExternalIP, in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    pub pod_cidrs: Vec<IpNet>,
    /// `VtepMAC` of the annotation `flannel.alpha.coreos.com/backend-data`.
    pub vtep_mac: Option<MacAddr>,
    /// It is being deleted, as `metadata.deletionTimestamp` or the cluster autoscaler's taint says (E2.37).
    pub leaving: bool,
}

impl Node {
    /// The node's zone, for topology hints (E2.23).
    pub fn zone(&self) -> Option<&str> {
        self.meta.labels.get(ZONE_LABEL).map(String::as_str).filter(|z| !z.is_empty())
    }
}

/// A namespace; its labels always hold [`NAMESPACE_NAME_LABEL`] (E0.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Name, labels, origin.
    pub meta: Meta,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name, namespace, labels, origin.
    pub meta: Meta,
    /// `spec.nodeName`; `None` until it is scheduled.
    pub node: Option<String>,
    /// `spec.hostNetwork` (E1.30).
    pub host_network: bool,
    /// Phase Succeeded or Failed: neither peer nor endpoint, its address may be another's (E1.39, E2.12).
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Condition Ready; without conditions: phase Running or no phase stated.
    pub ready: bool,
    /// `status.podIPs`, else `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// Ports of all containers and of init containers that keep running, in their order.
    pub ports: Vec<ContainerPort>,
}

impl Pod {
    /// The number of the container port called `name` with `protocol` (E1.27): the first such.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|p| p.protocol == protocol && p.name.as_deref() == Some(name)).map(|p| p.port)
    }
}

/// A port that a container says it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<String>,
    /// `protocol`, default TCP.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// The kinds of Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// A virtual address inside the cluster, or headless.
    #[default]
    ClusterIp,
    /// And a port on nodes.
    NodePort,
    /// And addresses of a load balancer.
    LoadBalancer,
    /// A DNS name only (E2.49).
    ExternalName,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Name, namespace, labels, origin.
    pub meta: Meta,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIP: None`: no frontend (E2.1).
    pub headless: bool,
    /// Label `service.kubernetes.io/service-proxy-name`: another proxy's business (E2.1).
    pub other_proxy: bool,
    /// `spec.clusterIPs`, else `spec.clusterIP`; empty for headless ones and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` (E2.45).
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none, of a LoadBalancer (E2.3).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` of a LoadBalancer; empty = everybody (E2.32).
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty = endpoints come from slices alone.
    pub selector: Labels,
    /// `spec.internalTrafficPolicy: Local` (E2.17).
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy: Local` of a Service that is reachable from outside (E2.18).
    pub external_local: bool,
    /// `spec.sessionAffinity: ClientIP` with its timeout (E2.34).
    pub affinity_timeout_secs: Option<u32>,
    /// `spec.healthCheckNodePort` of a LoadBalancer with external policy Local (E2.36).
    pub health_check_node_port: Option<u16>,
    /// `spec.publishNotReadyAddresses` (E2.11).
    pub publish_not_ready_addresses: bool,
    /// `spec.trafficDistribution`: what hints the control plane would give (E2.22).
    pub traffic_distribution: Option<TrafficDistribution>,
}

/// `spec.trafficDistribution` (E2.22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// PreferClose or PreferSameZone.
    SameZone,
    /// PreferSameNode.
    SameNode,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`, "" where it has none.
    pub name: String,
    /// `protocol`, default TCP.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `targetPort`, default [`ServicePort::port`].
    pub target: TargetPort,
    /// `nodePort`; never of a ClusterIP Service.
    pub node_port: Option<u16>,
}

/// Which port of a pod serves a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A container port's name, resolved on each pod (E2.9).
    Name(String),
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name, namespace, labels, origin.
    pub meta: Meta,
    /// Label `kubernetes.io/service-name`; `None` = of no Service (E2.8).
    pub service: Option<String>,
    /// Label `service.kubernetes.io/headless` (E2.1).
    pub headless: bool,
    /// `addressType`; `None` for FQDN, which is ignored (E2.8).
    pub family: Option<Family>,
    /// `endpoints`.
    pub endpoints: Vec<SliceEndpoint>,
    /// `ports` that have a number (E2.8).
    pub ports: Vec<SlicePort>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// `addresses[0]` (E2.8).
    pub address: IpAddr,
    /// `conditions.ready`, default true (E0.4).
    pub ready: bool,
    /// `conditions.serving`, default true (E0.4).
    pub serving: bool,
    /// `conditions.terminating`, default false (E0.4).
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<String>,
    /// `hints.forZones[].name` (E2.23).
    pub hint_zones: Vec<String>,
    /// `hints.forNodes[].name` (E2.23).
    pub hint_nodes: Vec<String>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// `name`, default "" (E0.4).
    pub name: String,
    /// `protocol`, default TCP (E0.4).
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
}

/// A NetworkPolicy, policyTypes already resolved (E0.1, E1.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Name, namespace, labels, origin.
    pub meta: Meta,
    /// Which pods of its namespace it acts on (E1.1, E1.2).
    pub pod_selector: Selector,
    /// `Some` isolates for ingress; `Some([])` admits nothing (E1.9). A section that policyTypes leaves out is `None`.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Egress likewise.
    pub egress: Option<Vec<PolicyRule>>,
}

/// A rule of a NetworkPolicy; its index is its public number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// `from` or `to`; empty = anybody (E1.10).
    pub peers: Vec<Peer>,
    /// `ports`; empty = every port and protocol (E1.11).
    pub ports: Vec<PortMatch>,
}

/// An item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods by labels; at least one of the two is `Some` (E1.16 to E1.19).
    Pods {
        /// `namespaceSelector`; `None` = the policy's own namespace.
        namespaces: Option<Selector>,
        /// `podSelector`; `None` = all pods of those namespaces.
        pods: Option<Selector>,
    },
    /// `ipBlock` (E1.22).
    Block {
        /// `cidr`.
        cidr: IpNet,
        /// `except`, strictly inside.
        except: Vec<IpNet>,
    },
}

/// A cluster-wide policy of any of the three APIs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Name, labels, origin.
    pub meta: Meta,
    /// Which API.
    pub kind: PolicyKind,
    /// Admin or Baseline.
    pub tier: Tier,
    /// Within the tier, low wins; 0 for BaselineAdminNetworkPolicy.
    pub priority: i32,
    /// The pods it acts on.
    pub subject: PodSelection,
    /// Rules for traffic to them, in order.
    pub ingress: Vec<ClusterRule>,
    /// Rules for traffic from them, in order.
    pub egress: Vec<ClusterRule>,
}

/// Pods by the labels of their namespace and their own; never those on the host network (E1.50).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSelection {
    /// `namespaces`, or `pods.namespaceSelector`.
    pub namespaces: Selector,
    /// `pods.podSelector`; empty = all pods.
    pub pods: Selector,
}

/// A rule of a cluster-wide policy; its index is its public number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRule {
    /// `name`.
    pub name: Option<String>,
    /// `action`; Accept of v1alpha2 is Allow.
    pub action: Action,
    /// `from` or `to`; never empty.
    pub peers: Vec<ClusterPeer>,
    /// `ports` or `protocols`; empty = every port and protocol.
    pub ports: Vec<PortMatch>,
}

/// An item of a cluster-wide rule's `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPeer {
    /// `namespaces` or `pods`.
    Pods(PodSelection),
    /// `nodes`: their addresses.
    Nodes(Selector),
    /// `networks`.
    Networks(Vec<IpNet>),
    /// No field that we know: Allow matches nothing by it, Deny and Pass match everything (E1.48).
    Unknown,
}
