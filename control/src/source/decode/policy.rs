//! networking.k8s.io/v1 NetworkPolicy.

use ipnet::IpNet;
use weir_dataplane::model::{Direction, PortMatch, PortSpec, Protocol};
use weir_dataplane::yaml::Value;

use super::{PolicyPort, policy_port};
use crate::source::objects::{Meta, NetworkPolicy, Peer, PolicyRule};
use crate::source::read::At;
use crate::source::syntax;

pub(super) fn policy(at: &At<'_>, meta: Meta) -> NetworkPolicy {
    let mut policy = NetworkPolicy { meta, ..NetworkPolicy::default() };
    let Some(spec) = at.map("spec") else {
        // An empty one: every pod of the namespace is isolated for ingress (E0.1, E1.2).
        if at.field("spec").is_none() {
            at.warn("has no spec: it selects every pod of its namespace and admits nothing");
            policy.ingress = Some(Vec::new());
        }
        return policy;
    };
    policy.pod_selector = spec.selector("podSelector").unwrap_or_default();
    let ingress = spec.list("ingress", |item| rule(&item, "from")).unwrap_or_default();
    let egress = spec.list("egress", |item| rule(&item, "to")).unwrap_or_default();
    let types = types(&spec);
    let isolates = |direction| match direction {
        // E0.1: Ingress always, Egress if it has rules.
        Direction::Ingress => types.is_empty() || types.contains(&Direction::Ingress),
        Direction::Egress if types.is_empty() => !egress.is_empty(),
        Direction::Egress => types.contains(&Direction::Egress),
    };
    let (for_ingress, for_egress) = (isolates(Direction::Ingress), isolates(Direction::Egress));
    policy.ingress = for_ingress.then_some(ingress);
    policy.egress = for_egress.then_some(egress);
    policy
}

fn types(spec: &At<'_>) -> Vec<Direction> {
    let words = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];
    let types = spec.list("policyTypes", |item| {
        let text = item.text()?;
        let known = words.iter().find(|(word, _)| *word == text).map(|(_, direction)| *direction);
        if known.is_none() {
            item.fault(format!("{text:?} is not one of Ingress, Egress"));
        }
        known
    });
    if spec.field("policyTypes").is_some_and(|t| t.node.list().len() > words.len()) {
        spec.fault_of("policyTypes", "has more than two items");
    }
    types.unwrap_or_default()
}

fn rule(at: &At<'_>, peers: &str) -> Option<PolicyRule> {
    // `ingress: [null]` is an empty rule: everything.
    if at.node.value == Value::Null {
        return Some(PolicyRule::default());
    }
    if !at.is_map() {
        return None;
    }
    let peers = at.list(peers, |item| peer(&item));
    let ports = at.list("ports", |item| port(&item));
    Some(PolicyRule { peers: peers.unwrap_or_default(), ports: ports.unwrap_or_default() })
}

fn peer(at: &At<'_>) -> Option<Peer> {
    if !at.is_map() {
        return None;
    }
    let (namespaces, pods) = (at.selector("namespaceSelector"), at.selector("podSelector"));
    let Some(block) = at.map("ipBlock") else {
        if namespaces.is_none() && pods.is_none() && at.field("ipBlock").is_none() {
            at.fault("must have a podSelector, a namespaceSelector or an ipBlock");
            return None;
        }
        return Some(Peer::Pods { namespaces, pods });
    };
    if namespaces.is_some() || pods.is_some() {
        at.fault("ipBlock excludes the selectors in one peer");
    }
    if block.field("cidr").is_none() {
        block.fault_of("cidr", "is required");
    }
    let cidr = block.field("cidr")?.parse(syntax::block)?;
    let except = block.list("except", |item| {
        let hole = item.parse(syntax::block)?;
        if !strictly_inside(&hole, &cidr) {
            item.fault(format!("{hole} must be strictly inside {cidr}"));
        }
        Some(hole)
    });
    Some(Peer::Block { cidr, except: except.unwrap_or_default() })
}

fn strictly_inside(hole: &IpNet, cidr: &IpNet) -> bool {
    cidr.contains(hole) && hole.prefix_len() > cidr.prefix_len()
}

fn port(at: &At<'_>) -> Option<PortMatch> {
    // `ports: [null]` is an empty item: every port of TCP (E0.2, E1.13).
    if at.node.value == Value::Null {
        return Some(PortMatch { protocol: Some(Protocol::Tcp), port: PortSpec::Any });
    }
    if !at.is_map() {
        return None;
    }
    let protocol = Some(at.protocol());
    let end = at.int("endPort", 1..=65535).map(|n| n as u16);
    let Some(field) = at.field("port") else {
        if at.field("endPort").is_some() {
            at.fault_of("endPort", "needs a port where the range starts");
        }
        return Some(PortMatch { protocol, port: PortSpec::Any });
    };
    let port = match policy_port(&field)? {
        PolicyPort::Name(_) if at.field("endPort").is_some() => {
            at.fault_of("endPort", "needs a numeric port, not a name");
            return None;
        }
        PolicyPort::Name(name) => PortSpec::Named(name),
        PolicyPort::Number(first) => {
            if end.is_some_and(|end| end < first) {
                at.fault_of("endPort", format!("must not be below port ({first})"));
                return None;
            }
            PortSpec::Range(first, end.unwrap_or(first))
        }
    };
    Some(PortMatch { protocol, port })
}
