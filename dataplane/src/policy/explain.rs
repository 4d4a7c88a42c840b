//! Why a side of a flow is allowed or denied, in the words of the policies' author.
//!
//! Slow and plain: walks the rules of the `NodeState` one by one, without the compiled rows, so that it also checks them
//! (property test). Nothing of it runs while nobody asks.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::classes::rules_of;
use crate::model::{
    Action, Direction, EndpointIndex, Identity, Ip, NodeIndex, NodeState, OwnNodeEgress, Policy, PolicyKind, PortMatch, PortSpec, Protocol,
    Rule, Selection, SelectionIndex, Tier, proto,
};
use crate::runtime::Runtime;

/// One side of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The pod on this side, of this node.
    pub pod: EndpointIndex,
    /// Relative to that pod.
    pub direction: Direction,
    /// The other end, after the service choice.
    pub peer: Ip,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// A Service was asked for (E1.50).
    pub via_service: bool,
}

/// What policy says of one side, as `weir trace` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// A NetworkPolicy selects the pod in this direction.
    pub isolated: bool,
    /// The flow may pass this side.
    pub allowed: bool,
    /// The rules that admit.
    pub by: Vec<RuleName>,
    /// The policies that isolate.
    pub isolated_by: Vec<PolicyName>,
    /// The rule of a cluster-wide policy that denies.
    pub denied_by: Option<RuleName>,
    /// Where the side denies for want of a rule: the one that came closest.
    pub nearest: Option<Nearest>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its API.
    pub kind: PolicyKind,
    /// `metadata.namespace`.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// The policy's API.
    pub kind: PolicyKind,
    /// The policy's namespace.
    pub namespace: Option<String>,
    /// The policy's name.
    pub name: String,
    /// Position in the list of the direction.
    pub rule: usize,
}

/// A rule that would admit, were it not for one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// The policy's namespace.
    pub namespace: Option<String>,
    /// The policy's name.
    pub name: String,
    /// Position in the list; `None` where the policy has no rule for this direction.
    pub rule: Option<usize>,
    /// The first part that fails: peer, namespace, port, protocol, ipBlock, direction.
    pub fails: Cow<'static, str>,
    /// In words.
    pub detail: String,
}

/// `shop/web`, or the name alone of what is in no namespace.
fn full_name(f: &mut fmt::Formatter<'_>, namespace: Option<&str>, name: &str) -> fmt::Result {
    namespace.map_or(Ok(()), |namespace| write!(f, "{namespace}/"))?;
    f.write_str(name)
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        full_name(f, self.namespace.as_deref(), &self.name)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        full_name(f, self.namespace.as_deref(), &self.name)?;
        write!(f, " rule {}", self.rule)
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        full_name(f, self.namespace.as_deref(), &self.name)?;
        self.rule.map_or(Ok(()), |rule| write!(f, " rule {rule}"))?;
        write!(f, " fails on {}: {}", self.fails, self.detail)
    }
}

/// The other end as rules see it.
struct Peer<'a> {
    ip: Ip,
    identity: Option<(u32, &'a Identity)>,
    node: Option<NodeIndex>,
}

/// Explains one side of a flow.
pub fn explain(state: &NodeState, runtime: &Runtime, query: &Query) -> Explained {
    let pod = &state.endpoints[query.pod as usize];
    let is_self = pod.addresses.iter().any(|a| Ip::from(*a) == query.peer);
    let peer = Peer::find(state, runtime, query.peer);
    let destination = match query.direction {
        Direction::Ingress => Some(&*state.identities[pod.identity as usize]),
        Direction::Egress => peer.identity.map(|(_, identity)| identity),
    };
    let mut policies: Vec<&Policy> = state.policies.iter().filter(|p| selects(state, p.subject, pod.identity)).collect();
    policies.sort_by_key(|p| (p.tier, p.priority));
    let isolating: Vec<&Policy> = policies.iter().copied().filter(|p| p.tier == Tier::NetworkPolicy && acts(p, query.direction)).collect();
    let mut explained = Explained {
        isolated: !isolating.is_empty(),
        allowed: true,
        by: Vec::new(),
        isolated_by: isolating.iter().map(|p| p.full_name()).collect(),
        denied_by: None,
        nearest: None,
    };
    if is_self && !query.via_service {
        return explained;
    }
    let matching = |tier: Tier| {
        policies.iter().filter(move |p| p.tier == tier).flat_map(|p| {
            let rules = rules_of(p, query.direction).iter().enumerate();
            rules.filter(|(_, rule)| rule_matches(state, rule, &peer, destination, query)).map(|(n, rule)| (rule.action, p.rule_name(n)))
        })
    };
    match matching(Tier::Admin).next() {
        Some((Action::Allow, rule)) => {
            explained.by.push(rule);
            return explained;
        }
        Some((Action::Deny, rule)) => {
            explained.allowed = false;
            explained.denied_by = Some(rule);
            return explained;
        }
        Some((Action::Pass, _)) | None => {}
    }
    if explained.isolated {
        explained.by = matching(Tier::NetworkPolicy).map(|(_, rule)| rule).collect();
        let own_node = peer.node == Some(state.this_node)
            && (query.direction == Direction::Ingress || runtime.config.policy.own_node_egress == OwnNodeEgress::Allow);
        explained.allowed = !explained.by.is_empty() || own_node || is_self;
        if !explained.allowed {
            explained.nearest = nearest(state, &isolating, &peer, destination, query);
        }
        return explained;
    }
    match matching(Tier::Baseline).next() {
        Some((Action::Deny, rule)) => {
            explained.allowed = false;
            explained.denied_by = Some(rule);
        }
        Some((Action::Allow, rule)) => explained.by.push(rule),
        Some((Action::Pass, _)) | None => {}
    }
    explained
}

/// The NetworkPolicies that isolate a pod in a direction.
pub fn isolating(state: &NodeState, pod: EndpointIndex, direction: Direction) -> Vec<PolicyName> {
    let identity = state.endpoints[pod as usize].identity;
    let policies = state.policies.iter().filter(|p| p.tier == Tier::NetworkPolicy && acts(p, direction));
    policies.filter(|p| selects(state, p.subject, identity)).map(Policy::full_name).collect()
}

impl Policy {
    /// What it is called.
    pub fn full_name(&self) -> PolicyName {
        PolicyName { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
    fn rule_name(&self, rule: usize) -> RuleName {
        RuleName { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone(), rule }
    }
}

impl<'a> Peer<'a> {
    /// A node's address is the node's even where a pod claims it.
    fn find(state: &'a NodeState, runtime: &Runtime, ip: Ip) -> Self {
        let has = |addresses: &[IpAddr]| addresses.iter().any(|a| Ip::from(*a) == ip);
        let mut node = state.nodes.iter().rposition(|n| has(&n.addresses)).map(|n| n as NodeIndex);
        if node.is_none() && has(&runtime.underlay.addresses) && !state.nodes.is_empty() {
            node = Some(state.this_node);
        }
        let pod = state.endpoints.iter().rfind(|e| !e.host_network && has(&e.addresses)).filter(|_| node.is_none());
        Self { ip, identity: pod.map(|e| (e.identity, &*state.identities[e.identity as usize])), node }
    }
}

fn acts(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.ingress.is_some(),
        Direction::Egress => policy.egress.is_some(),
    }
}

fn selects(state: &NodeState, selection: SelectionIndex, identity: u32) -> bool {
    matches!(&state.selections[selection as usize], Selection::Pods { identities, .. } if identities.contains(&identity))
}

fn rule_matches(state: &NodeState, rule: &Rule, peer: &Peer<'_>, destination: Option<&Identity>, query: &Query) -> bool {
    rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|s| peer_matches(state, *s, peer)))
        && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|p| port_matches(p, destination, query)))
}

fn peer_matches(state: &NodeState, selection: SelectionIndex, peer: &Peer<'_>) -> bool {
    match &state.selections[selection as usize] {
        Selection::Pods { identities, .. } => peer.identity.is_some_and(|(index, _)| identities.contains(&index)),
        Selection::Nodes { nodes, .. } => peer.node.is_some_and(|n| nodes.contains(&n)),
        Selection::Block { cidr, except } => {
            let address = peer.ip.to_std();
            cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
        }
    }
}

fn port_matches(item: &PortMatch, destination: Option<&Identity>, query: &Query) -> bool {
    protocol_matches(item, query)
        && match &item.port {
            PortSpec::Any => true,
            PortSpec::Range(first, last) => (*first..=*last).contains(&query.port),
            PortSpec::Named(name) => destination.is_some_and(|identity| {
                identity.named_ports.iter().any(|p| p.name == *name && p.protocol.number() == query.protocol && p.port == query.port)
            }),
        }
}

fn protocol_matches(item: &PortMatch, query: &Query) -> bool {
    match item.protocol {
        Some(protocol) => protocol.number() == query.protocol,
        None => [proto::TCP, proto::UDP, proto::SCTP].contains(&query.protocol),
    }
}

/// How close a rule came: by how much of it matches, then by how much of its peers. More is closer.
type Closeness = (u8, u8);

const NO_RULE: Closeness = (0, 0);

/// The rule of which least fails.
fn nearest(state: &NodeState, isolating: &[&Policy], peer: &Peer<'_>, destination: Option<&Identity>, query: &Query) -> Option<Nearest> {
    let mut best: Option<(Closeness, Nearest)> = None;
    for policy in isolating {
        let rules = rules_of(policy, query.direction);
        let name = |rule, (closeness, fails, detail): (Closeness, &'static str, String)| {
            (closeness, Nearest { namespace: policy.namespace.clone(), name: policy.name.clone(), rule, fails: fails.into(), detail })
        };
        let mut failures: Vec<(Closeness, Nearest)> =
            rules.iter().enumerate().map(|(n, rule)| name(Some(n), failure(state, rule, peer, destination, query))).collect();
        if rules.is_empty() {
            let direction = match query.direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            };
            failures.push(name(None, (NO_RULE, "direction", format!("the policy has no {direction} rule"))));
        }
        for (closeness, failed) in failures {
            if best.as_ref().is_none_or(|(closest, _)| closeness > *closest) {
                best = Some((closeness, failed));
            }
        }
    }
    best.map(|(_, nearest)| nearest)
}

/// The first part of a rule that fails. Closest is a rule with another port, then one for this very port and another peer, then
/// one with another protocol, then one for any port and another peer, then one in which both fail.
fn failure(
    state: &NodeState,
    rule: &Rule,
    peer: &Peer<'_>,
    destination: Option<&Identity>,
    query: &Query,
) -> (Closeness, &'static str, String) {
    let ports = rule.ports.as_deref();
    if let Some(peers) = &rule.peers
        && !peers.iter().any(|s| peer_matches(state, *s, peer))
    {
        let parts = match ports {
            None => 2,
            Some(ports) if ports.iter().any(|p| port_matches(p, destination, query)) => 4,
            Some(_) => 1,
        };
        let failures = peers.iter().map(|s| peer_failure(state, *s, peer));
        let (closeness, fails, detail) = failures.max_by_key(|(c, _, _)| *c).unwrap_or((0, "peer", "the rule names nobody".into()));
        return ((parts, closeness), fails, detail);
    }
    let ports = ports.unwrap_or_default();
    let same_protocol: Vec<&PortMatch> = ports.iter().filter(|p| protocol_matches(p, query)).collect();
    if same_protocol.is_empty() {
        let wanted: Vec<&str> = ports.iter().map(|p| protocol_name(p.protocol)).collect();
        return ((3, 0), "protocol", format!("{} is not {}", number_name(query.protocol), one_of(&wanted)));
    }
    let wanted: Vec<String> = same_protocol.iter().map(|p| port_text(p, destination)).collect();
    ((5, 0), "port", format!("{} is not {}", query.port, one_of(&wanted)))
}

/// How a selection fails to match the peer.
fn peer_failure(state: &NodeState, selection: SelectionIndex, peer: &Peer<'_>) -> (u8, &'static str, String) {
    match &state.selections[selection as usize] {
        Selection::Block { cidr, except } => {
            let address = peer.ip.to_std();
            match except.iter().find(|hole| hole.contains(&address)) {
                Some(hole) => (3, "ipBlock", format!("{address} is in {hole}, an exception of {cidr}")),
                None => (1, "ipBlock", format!("{address} is not in {cidr}")),
            }
        }
        Selection::Nodes { text, .. } => (1, "peer", format!("{} is no node with {}", peer.ip, words(text))),
        Selection::Pods { namespaces, namespace_text, pod_text, .. } => {
            let Some((_, identity)) = peer.identity else {
                return (1, "peer", format!("{} is no pod's address", peer.ip));
            };
            let namespace = state.namespaces.get(identity.namespace as usize).map_or("", String::as_str);
            if namespaces.contains(&identity.namespace) {
                let detail = format!("the pod has {}, not {}", labels(&identity.labels), words(pod_text));
                return (3, "peer", detail);
            }
            let detail = match namespace_text {
                None => format!("namespace {namespace} is not the policy's own"),
                Some(text) if namespaces.is_empty() => format!("no namespace has {}", words(text)),
                Some(text) => format!("namespace {namespace} does not have {}", words(text)),
            };
            (2, "namespace", detail)
        }
    }
}

fn words(selector: &str) -> String {
    match selector {
        "" => "any label".into(),
        text if text.contains(',') => format!("the labels {text}"),
        text => format!("the label {text}"),
    }
}

fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "no labels".into();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn one_of(wanted: &[impl AsRef<str>]) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for text in wanted.iter().map(AsRef::as_ref) {
        if !distinct.contains(&text) {
            distinct.push(text);
        }
    }
    distinct.join(" or ")
}

fn protocol_name(protocol: Option<Protocol>) -> &'static str {
    protocol.map_or("TCP, UDP or SCTP", |p| number_name(p.number()))
}

fn number_name(protocol: u8) -> &'static str {
    match protocol {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        proto::ICMP => "ICMP",
        proto::ICMPV6 => "ICMPv6",
        _ => "this protocol",
    }
}

fn port_text(item: &PortMatch, destination: Option<&Identity>) -> String {
    match &item.port {
        PortSpec::Any => "any".into(),
        PortSpec::Range(first, last) if first == last => first.to_string(),
        PortSpec::Range(first, last) => format!("in {first}-{last}"),
        PortSpec::Named(name) => {
            let ports = destination.into_iter().flat_map(|d| &d.named_ports).filter(|p| p.name == *name);
            match ports.map(|p| p.port).next() {
                Some(port) => format!("{port} ({name})"),
                None => format!("{name}, which the destination does not name"),
            }
        }
    }
}
