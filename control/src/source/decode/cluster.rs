//! The cluster-wide policies: ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1).

use weir_dataplane::model::{Action, PolicyKind, PortMatch, PortSpec, Protocol, Tier};
use weir_dataplane::yaml::Node;

use crate::source::objects::{ClusterPeer, ClusterPolicy, ClusterRule, Meta, PodSelection};
use crate::source::read::{At, twice};
use crate::source::syntax;

/// Highest priority number of the API.
const PRIORITY_MAX: i64 = 1000;
/// Longest rule name, in characters.
const RULE_NAME_CHARS_MAX: usize = 100;
/// Most items of `networks` in both versions.
const NETWORKS_MAX: usize = 25;

/// Kinds of peers that are no pods, and so have no named ports.
const POD_LESS: [&str; 3] = ["nodes", "networks", "domainNames"];

pub(super) fn policy(at: &At<'_>, meta: Meta, kind: PolicyKind) -> ClusterPolicy {
    let tier = if kind == PolicyKind::BaselineAdminNetworkPolicy { Tier::Baseline } else { Tier::Admin };
    let mut policy =
        ClusterPolicy { meta, kind, tier, priority: 0, subject: PodSelection::default(), ingress: Vec::new(), egress: Vec::new() };
    if kind == PolicyKind::BaselineAdminNetworkPolicy && policy.meta.name != "default" && !policy.meta.name.is_empty() {
        at.fault_of("metadata.name", "must be \"default\": there is one baseline policy");
    }
    let Some(spec) = at.map("spec") else {
        if at.field("spec").is_none() {
            at.fault_of("spec", "is required");
        }
        return policy;
    };
    if kind == PolicyKind::ClusterNetworkPolicy {
        require(&spec, "tier");
        policy.tier = spec.word("tier", &[("Admin", Tier::Admin), ("Baseline", Tier::Baseline)]).unwrap_or(Tier::Admin);
    }
    if kind != PolicyKind::BaselineAdminNetworkPolicy {
        require(&spec, "priority");
        policy.priority = spec.int("priority", 0..=PRIORITY_MAX).unwrap_or(0) as i32;
    }
    require(&spec, "subject");
    if let Some(subject) = spec.map("subject") {
        match one_of(&subject, &["namespaces", "pods"]) {
            Some(_) => policy.subject = pods(&subject).unwrap_or_default(),
            None => subject.fault("must have namespaces or pods"),
        }
    }
    policy.ingress = rules(&spec, "ingress", kind);
    policy.egress = rules(&spec, "egress", kind);
    policy
}

fn require(at: &At<'_>, key: &str) {
    if at.field(key).is_none() {
        at.fault_of(key, "is required");
    }
}

/// Which one of `keys` the map has; a fault if it has several.
fn one_of<'k>(at: &At<'_>, keys: &[&'k str]) -> Option<&'k str> {
    let mut stated = keys.iter().copied().filter(|key| at.field(key).is_some());
    let first = stated.next();
    if stated.next().is_some() {
        at.fault(format!("must have only one of {}", keys.join(", ")));
    }
    first
}

/// Rules per direction, and items of their lists, at most.
fn items_max(kind: PolicyKind) -> usize {
    if kind == PolicyKind::ClusterNetworkPolicy { 25 } else { 100 }
}

fn rules(spec: &At<'_>, direction: &str, kind: PolicyKind) -> Vec<ClusterRule> {
    spec.count(direction, 0..=items_max(kind));
    spec.list(direction, |item| rule(&item, direction == "egress", kind)).unwrap_or_default()
}

fn rule(at: &At<'_>, egress: bool, kind: PolicyKind) -> Option<ClusterRule> {
    if !at.is_map() {
        return None;
    }
    let (peers_key, ports_key) =
        (if egress { "to" } else { "from" }, if kind == PolicyKind::ClusterNetworkPolicy { "protocols" } else { "ports" });
    require(at, "action");
    let action = match kind {
        PolicyKind::ClusterNetworkPolicy => at.word("action", &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)]),
        PolicyKind::BaselineAdminNetworkPolicy => at.word("action", &[("Allow", Action::Allow), ("Deny", Action::Deny)]),
        _ => at.word("action", &[("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)]),
    };
    let name = at.str("name").map(str::to_owned);
    if name.as_ref().is_some_and(|n| n.chars().count() > RULE_NAME_CHARS_MAX) {
        at.fault_of("name", format!("is longer than {RULE_NAME_CHARS_MAX} characters"));
    }
    require(at, peers_key);
    at.count(peers_key, 1..=items_max(kind));
    at.count(ports_key, 1..=items_max(kind));
    let peers = at.list(peers_key, |item| peer(&item, egress)).unwrap_or_default();
    let ports = at.list(ports_key, |item| if kind == PolicyKind::ClusterNetworkPolicy { protocol(&item) } else { port(&item) });
    let ports = ports.unwrap_or_default();
    let without_pods = |peer: &Node<'_>| POD_LESS.iter().any(|key| peer.field(key).is_some());
    if ports.iter().any(|p| matches!(p.port, PortSpec::Named(_)))
        && at.field(peers_key).is_some_and(|peers| peers.node.list().iter().any(without_pods))
    {
        at.fault_of(ports_key, "a named port cannot go with nodes or networks: they have no named ports");
    }
    Some(ClusterRule { name, action: action?, peers, ports })
}

fn peer(at: &At<'_>, egress: bool) -> Option<ClusterPeer> {
    if !at.is_map() {
        return None;
    }
    let known: &[&str] = if egress { &["namespaces", "pods", "nodes", "networks"] } else { &["namespaces", "pods"] };
    if !egress && at.field("nodes").is_some_and(|nodes| nodes.node.map().is_empty()) {
        // One with labels is refused with all fields that are; an empty one means every node.
        at.fault_of("nodes", "is not supported: nodes are peers of egress rules only");
    }
    match one_of(at, known) {
        Some("nodes") => at.selector("nodes").map(ClusterPeer::Nodes),
        Some("networks") => {
            at.count("networks", 1..=NETWORKS_MAX);
            let networks = at.list("networks", |item| item.parse(syntax::block))?;
            if let Some(network) = twice(&networks) {
                at.fault_of("networks", format!("{network} stands twice"));
            }
            Some(ClusterPeer::Networks(networks))
        }
        Some(_) => pods(at).map(ClusterPeer::Pods),
        None => {
            at.warn(
                "a peer without a field that is known here: Allow and Accept match nothing by it, Deny and Pass match everything (E1.48)",
            );
            Some(ClusterPeer::Unknown)
        }
    }
}

/// `namespaces` or `pods` of a subject or peer.
fn pods(at: &At<'_>) -> Option<PodSelection> {
    if let Some(namespaces) = at.selector("namespaces") {
        return Some(PodSelection { namespaces, ..PodSelection::default() });
    }
    let pods = at.map("pods")?;
    require(&pods, "podSelector");
    let selector = |key| pods.selector(key).unwrap_or_default();
    Some(PodSelection { namespaces: selector("namespaceSelector"), pods: selector("podSelector") })
}

/// An item of `ports` (v1alpha1).
fn port(at: &At<'_>) -> Option<PortMatch> {
    match at.is_map().then(|| one_of(at, &["portNumber", "portRange", "namedPort"]))? {
        Some("portNumber") => {
            let number = at.map("portNumber")?;
            require(&number, "port");
            let port = number.port("port", false)?;
            Some(PortMatch { protocol: Some(number.protocol()), port: PortSpec::Range(port, port) })
        }
        Some("portRange") => {
            let range = at.map("portRange")?;
            Some(PortMatch { protocol: Some(range.protocol()), port: bounds(&range, true)? })
        }
        Some(key) => at.field(key)?.parse(syntax::port_name).map(|name| PortMatch { protocol: None, port: PortSpec::Named(name) }),
        None => {
            at.fault("must have portNumber, portRange or namedPort");
            None
        }
    }
}

/// An item of `protocols` (v1alpha2).
fn protocol(at: &At<'_>) -> Option<PortMatch> {
    let key = at.is_map().then(|| one_of(at, &["tcp", "udp", "sctp", "destinationNamedPort"]))?;
    let protocol = match key {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("sctp") => Protocol::Sctp,
        Some(key) => {
            return at.field(key)?.parse(syntax::port_name).map(|name| PortMatch { protocol: None, port: PortSpec::Named(name) });
        }
        None => {
            at.fault("must have tcp, udp, sctp or destinationNamedPort");
            return None;
        }
    };
    let transport = at.map(key?)?;
    require(&transport, "destinationPort");
    let destination = transport.map("destinationPort")?;
    let port = match one_of(&destination, &["number", "range"]) {
        Some("number") => destination.port("number", false).map(|port| PortSpec::Range(port, port)),
        Some(key) => destination.map(key).and_then(|range| bounds(&range, false)),
        None => {
            destination.fault("must have number or range");
            None
        }
    };
    Some(PortMatch { protocol: Some(protocol), port: port? })
}

/// `start` and `end` of a range; v1alpha1 also takes a range of one port.
fn bounds(at: &At<'_>, one: bool) -> Option<PortSpec> {
    require(at, "start");
    require(at, "end");
    let (start, end) = (at.port("start", false), at.port("end", false));
    let (start, end) = (start?, end?);
    if end < start || (end == start && !one) {
        at.fault_of("end", format!("must be above start ({start})"));
        return None;
    }
    Some(PortSpec::Range(start, end))
}
