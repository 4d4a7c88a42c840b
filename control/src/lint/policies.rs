//! Selectors that match nothing, rules that cannot work, and two items where one was meant.

use std::net::IpAddr;

use weir_dataplane::model::{PortMatch, PortSpec, Protocol, proto};

use super::Finding;
use super::objects::selected;
use crate::sim::reach::{Flow, World};
use crate::source::objects::{Namespace, NetworkPolicy, Peer, Pod, PolicyRule, Selector, Snapshot, TargetPort};

/// Pairs of pods that a rule is tried on, at most: enough to find one that passes.
const PAIRS_MAX: usize = 256;
/// Port of DNS (RFC 1035 §4.2).
const DNS: u16 = 53;

pub(super) fn check(snapshot: &Snapshot, world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for policy in &snapshot.network_policies {
        let cx = Cx { snapshot, world, policy };
        cx.subject(&mut findings);
        cx.dns(&mut findings);
        for (word, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
            for (index, rule) in rules.iter().flatten().enumerate() {
                let field = format!("spec.{word}[{index}]");
                cx.peers(rule, &field, word == "ingress", &mut findings);
                cx.named_ports(rule, &field, word == "ingress", &mut findings);
                cx.twin(rule, &field, word == "ingress", &mut findings);
                if word == "ingress" {
                    cx.service_port(rule, &field, &mut findings);
                }
            }
        }
    }
    findings
}

/// One policy in its snapshot.
struct Cx<'a> {
    snapshot: &'a Snapshot,
    world: &'a World,
    policy: &'a NetworkPolicy,
}

impl<'a> Cx<'a> {
    fn finding(&self, check: &'static str, field: String, why: String, fix: String) -> Finding {
        Finding::new(check, "NetworkPolicy", &self.policy.meta, field, why, fix)
    }

    /// Living pods off the host network, in the namespaces that `within` tells.
    fn pods(&self, within: impl Fn(&str) -> bool, selector: &Selector) -> Vec<&'a Pod> {
        let pods = self.snapshot.pods.iter().filter(|pod| !pod.finished && !pod.host_network && within(&pod.meta.namespace));
        pods.filter(|pod| selector.matches(&pod.meta.labels)).collect()
    }

    fn subjects(&self) -> Vec<&'a Pod> {
        self.pods(|namespace| namespace == self.policy.meta.namespace, &self.policy.pod_selector)
    }

    fn namespaces(&self, selector: &Selector) -> Vec<&'a Namespace> {
        self.snapshot.namespaces.iter().filter(|n| selector.matches(&n.meta.labels)).collect()
    }

    /// The pods that a peer means; `None` for a block of addresses.
    fn peer_pods(&self, peer: &Peer) -> Option<Vec<&'a Pod>> {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let everything = Selector::default();
        let pods = pods.as_ref().unwrap_or(&everything);
        Some(match namespaces {
            None => self.pods(|namespace| namespace == self.policy.meta.namespace, pods),
            Some(selector) => {
                let names: Vec<&str> = self.namespaces(selector).iter().map(|n| n.meta.name.as_str()).collect();
                self.pods(|namespace| names.contains(&namespace), pods)
            }
        })
    }

    fn subject(&self, findings: &mut Vec<Finding>) {
        if !self.policy.pod_selector.is_empty() && self.subjects().is_empty() {
            let why = format!("{} matches no pod in {}: the policy does nothing", self.policy.pod_selector, self.policy.meta.namespace);
            let fix = "compare it with the pods' labels (kubectl get pods --show-labels)".into();
            findings.push(self.finding("selector-matches-nothing", "spec.podSelector".into(), why, fix));
        }
    }

    fn peers(&self, rule: &PolicyRule, field: &str, ingress: bool, findings: &mut Vec<Finding>) {
        let list = if ingress { "from" } else { "to" };
        for (index, peer) in rule.peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else { continue };
            let field = format!("{field}.{list}[{index}]");
            match namespaces {
                Some(selector) if self.namespaces(selector).is_empty() => {
                    let why = format!("no namespace has {selector}: the item matches nobody");
                    let fix = "label the namespace, or select kubernetes.io/metadata.name, which every namespace has".into();
                    findings.push(self.finding("selector-matches-nothing", format!("{field}.namespaceSelector"), why, fix));
                }
                _ if self.peer_pods(peer).is_some_and(|pods| pods.is_empty()) => {
                    let pods = pods.as_ref().map(ToString::to_string).filter(|text| !text.is_empty()).unwrap_or("any label".into());
                    let at = match namespaces {
                        Some(selector) => {
                            format!("namespaces with {}", if selector.is_empty() { "any label".into() } else { selector.to_string() })
                        }
                        None => format!("namespace {}", self.policy.meta.namespace),
                    };
                    let why = format!("no pod with {pods} is in {at}: the item matches nobody");
                    let fix = if namespaces.is_some() {
                        "both selectors of one item must match; a dash before podSelector makes two items of which either may"
                    } else {
                        "a podSelector alone means the policy's own namespace; add a namespaceSelector for others"
                    };
                    findings.push(self.finding("selector-matches-nothing", field, why, fix.into()));
                }
                _ => {}
            }
        }
        let is = |peer: &Peer, with_namespaces: bool| match peer {
            Peer::Pods { namespaces, pods } => {
                namespaces.as_ref().is_some_and(|n| !n.is_empty()) == with_namespaces && pods.is_some() != with_namespaces
            }
            Peer::Block { .. } => false,
        };
        for (index, pair) in rule.peers.windows(2).enumerate() {
            if is(&pair[0], true) && is(&pair[1], false) || is(&pair[0], false) && is(&pair[1], true) {
                let why =
                    "a namespaceSelector and a podSelector in two items: all pods of those namespaces, or such pods of the policy's own";
                let fix = "where pods of those namespaces were meant, take away the dash before the second one";
                findings.push(self.finding("two-items-for-one", format!("{field}.{list}[{index}]"), why.into(), fix.into()));
            }
        }
    }

    fn named_ports(&self, rule: &PolicyRule, field: &str, ingress: bool, findings: &mut Vec<Finding>) {
        for (index, port) in rule.ports.iter().enumerate() {
            let (PortSpec::Named(name), Some(protocol)) = (&port.port, port.protocol) else { continue };
            let destinations = if ingress { self.subjects() } else { self.others(rule) };
            if destinations.iter().all(|pod| pod.named_port(name, protocol).is_none()) {
                let why = format!("no pod that the flow can go to has a {protocol:?} port called {name}: the item matches nothing");
                let fix = format!("name a container port {name}, or give the number");
                findings.push(self.finding("named-port-nowhere", format!("{field}.ports[{index}]"), why, fix));
            }
        }
    }

    /// The pods at the other end of a rule.
    fn others(&self, rule: &PolicyRule) -> Vec<&'a Pod> {
        if rule.peers.is_empty() {
            return self.pods(|_| true, &Selector::default());
        }
        rule.peers.iter().filter_map(|peer| self.peer_pods(peer)).flatten().collect()
    }

    /// A rule that admits on its side what the other side always denies.
    fn twin(&self, rule: &PolicyRule, field: &str, ingress: bool, findings: &mut Vec<Finding>) {
        if rule.peers.is_empty() || rule.peers.iter().any(|peer| matches!(peer, Peer::Block { .. })) {
            return;
        }
        let (subjects, others) = (self.subjects(), self.others(rule));
        let pairs = subjects.iter().flat_map(|s| others.iter().map(move |o| if ingress { (*o, *s) } else { (*s, *o) }));
        let mut why = None;
        for (from, to) in pairs.filter(|(from, to)| from.meta != to.meta).take(PAIRS_MAX) {
            let Some((src, dst)) = common(from, to) else { continue };
            for (protocol, port) in tried(rule, to) {
                let flow = Flow { src: src.into(), dst: dst.into(), proto: protocol, port };
                let outcome = self.world.reach(&flow);
                let denied = outcome.ends.iter().any(|end| end.reason == Some("POLICY_DENIED"));
                let sides = outcome.ends.first().map(|end| self.world.sides(&flow, end, false));
                let Some([egress, ingress_side]) = sides else { continue };
                let (own, other) = if ingress { (ingress_side, egress) } else { (egress, ingress_side) };
                if !denied || own.is_some_and(|own| !own.explained.allowed) {
                    return;
                }
                why = why.or(other.map(|side| format!("{} to {}: {side}", from.meta, to.meta)));
            }
        }
        if let Some(why) = why {
            let (here, there) = if ingress { ("ingress", "egress at the sender") } else { ("egress", "ingress at the destination") };
            let fix = format!("allow {there} too; weir why writes the policy");
            findings.push(self.finding(
                "rule-without-twin",
                field.into(),
                format!("{here} is allowed here and denied at the other end: {why}"),
                fix,
            ));
        }
    }

    /// Isolation for egress without any way to a name server.
    fn dns(&self, findings: &mut Vec<Finding>) {
        if self.policy.egress.is_none() {
            return;
        }
        let namespace = &self.policy.meta.namespace;
        let mut without = Vec::new();
        for pod in self.subjects() {
            let acting = self
                .snapshot
                .network_policies
                .iter()
                .filter(|p| p.meta.namespace == *namespace && p.pod_selector.matches(&pod.meta.labels));
            let rules: Vec<&PolicyRule> = acting.flat_map(|p| p.egress.iter().flatten()).collect();
            if !rules.iter().any(|rule| admits_dns(rule)) {
                without.push(pod.meta.name.as_str());
            }
        }
        if let Some(first) = without.first() {
            let more = if without.len() > 1 { format!(" and {} more", without.len() - 1) } else { String::new() };
            let why = format!("isolates for egress, and no rule admits DNS: {first}{more} can resolve no name");
            let fix = "allow UDP and TCP port 53 to kube-dns (namespace kube-system, label k8s-app=kube-dns)".into();
            findings.push(self.finding("no-dns", "spec.egress".into(), why, fix));
        }
    }

    /// A rule that admits a Service's port where the flow that it sees has the target port (E1.25).
    fn service_port(&self, rule: &PolicyRule, field: &str, findings: &mut Vec<Finding>) {
        let subjects = self.subjects();
        for (index, port) in rule.ports.iter().enumerate() {
            let PortSpec::Range(number, last) = port.port else { continue };
            if number != last || subjects.iter().any(|pod| pod.ports.iter().any(|p| p.port == number)) {
                continue;
            }
            for service in &self.snapshot.services {
                let selects = || selected(self.snapshot, service).any(|pod| subjects.iter().any(|s| s.meta == pod.meta));
                let same = service.ports.iter().filter(|p| p.port == number && Some(p.protocol) == port.protocol);
                for target in same.map(|p| &p.target) {
                    let (target, differs) = match target {
                        TargetPort::Number(target) => (target.to_string(), *target != number),
                        TargetPort::Name(name) => (name.clone(), true),
                    };
                    if differs && selects() {
                        let why =
                            format!("{number} is the port of Service {}; the pods are reached at its target port, {target}", service.meta);
                        let fix = format!("write port: {target}");
                        findings.push(self.finding("service-port-in-rule", format!("{field}.ports[{index}].port"), why, fix));
                    }
                }
            }
        }
    }
}

fn admits_dns(rule: &PolicyRule) -> bool {
    let dns = |port: &PortMatch| {
        port.protocol.is_none_or(|p| p == Protocol::Udp)
            && match &port.port {
                PortSpec::Any => true,
                PortSpec::Range(first, last) => (*first..=*last).contains(&DNS),
                PortSpec::Named(name) => name.contains("dns"),
            }
    };
    // A rule without ports towards some pods of the own namespace is no way to a name server that is elsewhere.
    let far = |peer: &Peer| matches!(peer, Peer::Block { .. } | Peer::Pods { namespaces: Some(_), .. });
    match rule.ports.is_empty() {
        true => rule.peers.is_empty() || rule.peers.iter().any(far),
        false => rule.ports.iter().any(dns),
    }
}

/// Addresses of two pods in a family that both have.
fn common(from: &Pod, to: &Pod) -> Option<(IpAddr, IpAddr)> {
    from.addresses.iter().find_map(|src| Some((*src, *to.addresses.iter().find(|dst| dst.is_ipv4() == src.is_ipv4())?)))
}

/// One port for each item of a rule, as `to` has it.
fn tried(rule: &PolicyRule, to: &Pod) -> Vec<(u8, u16)> {
    if rule.ports.is_empty() {
        return to.ports.first().map_or(vec![(proto::TCP, 80)], |p| vec![(p.protocol.number(), p.port)]);
    }
    let number = |item: &PortMatch| {
        let protocol = item.protocol.unwrap_or(Protocol::Tcp);
        let port = match &item.port {
            PortSpec::Any => Some(80),
            PortSpec::Range(first, _) => Some(*first),
            PortSpec::Named(name) => to.named_port(name, protocol),
        };
        port.map(|port| (protocol.number(), port))
    };
    rule.ports.iter().filter_map(number).collect()
}
