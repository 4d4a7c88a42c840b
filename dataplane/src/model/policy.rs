//! Network policies with their selectors already resolved to identities, nodes and address blocks.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IdentityIndex, NamespaceIndex, NodeIndex, Protocol};

/// Index into `NodeState::selections`.
pub type SelectionIndex = u32;
/// Index into `NodeState::policies`.
pub type PolicyIndex = u32;

/// One policy object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Which API it came from.
    pub kind: PolicyKind,
    /// `metadata.namespace`; `None` for cluster-wide kinds.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// Where it stands in the order of evaluation (E1.45).
    pub tier: Tier,
    /// Within the tier, low first; 0 for NetworkPolicy.
    pub priority: i32,
    /// The pods it acts on.
    pub subject: SelectionIndex,
    /// Rules for traffic to the subject. For NetworkPolicy `Some` isolates, `Some([])` admits nothing (E1.7, E1.9).
    pub ingress: Option<Vec<Rule>>,
    /// Rules for traffic from the subject, likewise.
    pub egress: Option<Vec<Rule>>,
}

/// The API that a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2
    ClusterNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1
    AdminNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1
    BaselineAdminNetworkPolicy,
}

/// Order of evaluation (E1.45): Admin by priority, then NetworkPolicy, then Baseline, then allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// First match by priority and rule order.
    Admin,
    /// Isolation and additive rules.
    NetworkPolicy,
    /// Reached only where no NetworkPolicy isolates (E1.47).
    Baseline,
}

/// Direction relative to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Let pass, final. The only action of a NetworkPolicy rule.
    Allow,
    /// Refuse, final.
    Deny,
    /// Leave the tier.
    Pass,
}

/// One rule; its index in the policy's list is its public number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `name` of cluster-wide rules.
    pub name: Option<String>,
    /// What to do.
    pub action: Action,
    /// Who: any one must match. `None` = anybody, in or out of the cluster (E1.10). `Some([])` = nobody (fails closed, E1.48).
    pub peers: Option<Vec<SelectionIndex>>,
    /// Which ports: any one must match. `None` = every port and protocol, ICMP included (E1.11, E1.15).
    pub ports: Option<Vec<PortMatch>>,
}

/// One item of a rule's ports. Ports are destination ports (E1.14).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMatch {
    /// `None` = TCP, UDP and SCTP alike (named ports of cluster-wide policies).
    pub protocol: Option<Protocol>,
    /// Which.
    pub port: PortSpec,
}

/// Which ports an item matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortSpec {
    /// All ports of the protocol (E1.13).
    Any,
    /// `first..=last` (E1.28); a single port has both equal.
    Range(u16, u16),
    /// A container port's name, resolved on each destination pod (E1.27).
    Named(String),
}

/// A set of peers or subjects, with the words a person wrote, for explanations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Selection {
    /// Pods by labels; never pods on the host network (E1.30).
    Pods {
        /// Namespaces that the namespace part selects, sorted.
        namespaces: Vec<NamespaceIndex>,
        /// Identities that both parts select, sorted.
        identities: Vec<IdentityIndex>,
        /// The namespace selector as kubectl prints selectors (`team=db,env in (a,b)`); empty = all; `None` = the policy's own.
        namespace_text: Option<String>,
        /// The pod selector likewise; empty = all pods.
        pod_text: String,
    },
    /// Nodes by labels: their addresses.
    Nodes {
        /// Selected nodes, sorted.
        nodes: Vec<NodeIndex>,
        /// The selector's text.
        text: String,
    },
    /// An address block; matches pods, nodes and the world alike (E1.22 to E1.24).
    Block {
        /// What it covers.
        cidr: IpNet,
        /// Holes in it, sorted.
        except: Vec<IpNet>,
    },
}
