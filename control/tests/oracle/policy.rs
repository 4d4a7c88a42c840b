//! What policies say, straight from the objects: E1 read aloud. No table, no index, nothing shared with the compiler.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weir_control::source::objects::{ClusterPeer, ClusterPolicy, NetworkPolicy, Peer, Pod, PodSelection, PolicyRule, Selector, Snapshot};
use weir_dataplane::model::{Action, Direction, PolicyKind, PortMatch, PortSpec, Tier, proto};

use crate::who::Who;

/// The first packet of a new connection, after the service choice and before source translation (E1.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// IANA number.
    pub(crate) protocol: u8,
    /// Destination port.
    pub(crate) port: u16,
    /// A Service was asked for.
    pub(crate) via_service: bool,
}

/// What one side says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// A NetworkPolicy selects the pod in this direction (E1.3).
    pub(crate) isolated: bool,
    /// The flow may pass.
    pub(crate) allowed: bool,
}

const FREE: Side = Side { isolated: false, allowed: true };

/// The policies of a cluster, with the operator's choice about egress to the pod's own node (E1.32).
pub(crate) struct Policies<'s> {
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) own_node_egress_is_free: bool,
}

/// The question that one side asks.
struct Question<'s> {
    subject: &'s Pod,
    direction: Direction,
    other: Who<'s>,
    address: IpAddr,
    /// The pod whose ports are meant (E1.14).
    destination: Option<&'s Pod>,
    flow: Flow,
}

impl<'s> Policies<'s> {
    /// Both ends must allow (E1.6).
    pub(crate) fn allow(&self, flow: &Flow) -> bool {
        self.side(flow, Direction::Egress).allowed && self.side(flow, Direction::Ingress).allowed
    }

    /// Judges one end. Who is no pod of its own has no policies.
    pub(crate) fn side(&self, flow: &Flow, direction: Direction) -> Side {
        let (own, address) = match direction {
            Direction::Egress => (flow.from, flow.to),
            Direction::Ingress => (flow.to, flow.from),
        };
        let Who::Pod(subject) = Who::at(self.snapshot, own) else { return FREE };
        let is_self = subject.addresses.contains(&address);
        let other = Who::at(self.snapshot, address);
        let destination = if direction == Direction::Ingress { Some(subject) } else { other.pod() };
        let question = Question { subject, direction, other, address, destination, flow: *flow };
        let isolating: Vec<_> = self.isolating(&question).collect();
        let isolated = !isolating.is_empty();
        // E1.34, E1.50: a pod reaches itself, whatever policies say; through a Service only cluster-wide ones can object.
        if is_self && !flow.via_service {
            return Side { isolated, allowed: true };
        }
        let allowed = match self.tier(Tier::Admin, &question) {
            Some(Action::Allow) => true,
            Some(Action::Deny) => false,
            // E1.47: where a NetworkPolicy isolates, its word is final.
            Some(Action::Pass) | None if isolated => {
                let admitted = |(policy, rules): &(&NetworkPolicy, &[PolicyRule])| rules.iter().any(|r| self.admits(policy, r, &question));
                is_self || self.is_exempt(&question) || isolating.iter().any(admitted)
            }
            // E1.4: nobody isolates it, so all that no cluster-wide policy denies may pass.
            _ => self.tier(Tier::Baseline, &question) != Some(Action::Deny),
        };
        Side { isolated, allowed }
    }

    /// Tells whether a rule admits the flow (E1.10 to E1.12).
    fn admits(&self, policy: &NetworkPolicy, rule: &PolicyRule, question: &Question<'_>) -> bool {
        let peer = rule.peers.is_empty() || rule.peers.iter().any(|peer| question.peer(policy, peer, self.snapshot));
        peer && question.ports(&rule.ports)
    }

    /// The policies that isolate the subject, with their rules for the direction (E1.1 to E1.3, E1.7).
    fn isolating<'q>(&'q self, question: &'q Question<'s>) -> impl Iterator<Item = (&'q NetworkPolicy, &'q [PolicyRule])> {
        let meta = &question.subject.meta;
        let selecting = self.snapshot.network_policies.iter();
        let selecting = selecting.filter(|p| p.meta.namespace == meta.namespace && selects(&p.pod_selector, &meta.labels));
        selecting.filter_map(|p| {
            let rules = if question.direction == Direction::Ingress { p.ingress.as_deref() } else { p.egress.as_deref() };
            Some((p, rules?))
        })
    }

    /// Traffic between a pod and its own node, which no NetworkPolicy holds up (E1.31, E1.32).
    fn is_exempt(&self, question: &Question<'_>) -> bool {
        let own_node = question.subject.node.as_deref().is_some_and(|node| question.other.is_node(node));
        own_node && (question.direction == Direction::Ingress || self.own_node_egress_is_free)
    }

    /// The first rule of a tier that matches, by priority, then name, then position (E1.45, E1.46, E1.49). The one policy without
    /// a priority, BaselineAdminNetworkPolicy, comes last.
    fn tier(&self, tier: Tier, question: &Question<'_>) -> Option<Action> {
        let mut policies: Vec<&ClusterPolicy> = self.snapshot.cluster_policies.iter().filter(|p| p.tier == tier).collect();
        policies.sort_by_key(|p| (p.kind == PolicyKind::BaselineAdminNetworkPolicy, p.priority, &p.meta.name));
        for policy in policies {
            if !self.selects_pod(&policy.subject, question.subject) {
                continue;
            }
            let rules = if question.direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            let first = rules
                .iter()
                .find(|rule| rule.peers.iter().any(|peer| self.cluster_peer(peer, rule.action, question)) && question.ports(&rule.ports));
            if let Some(rule) = first {
                // E1.48: fail closed; what is not understood denies.
                let unknown = rule.peers.contains(&ClusterPeer::Unknown);
                return Some(if unknown && rule.action == Action::Pass { Action::Deny } else { rule.action });
            }
        }
        None
    }

    fn cluster_peer(&self, peer: &ClusterPeer, action: Action, question: &Question<'_>) -> bool {
        match peer {
            ClusterPeer::Pods(selection) => question.other.pod().is_some_and(|pod| self.selects_pod(selection, pod)),
            ClusterPeer::Nodes(selector) => matches!(question.other, Who::Node(node) if selects(selector, &node.meta.labels)),
            ClusterPeer::Networks(networks) => networks.iter().any(|n| n.contains(&question.address)),
            // E1.48: fail closed.
            ClusterPeer::Unknown => action != Action::Allow,
        }
    }

    fn selects_pod(&self, selection: &PodSelection, pod: &Pod) -> bool {
        selects(&selection.pods, &pod.meta.labels) && in_namespace(&selection.namespaces, pod, self.snapshot)
    }
}

impl Question<'_> {
    /// Tells whether an item of `from` or `to` means the other end (E1.16 to E1.24).
    fn peer(&self, policy: &NetworkPolicy, peer: &Peer, snapshot: &Snapshot) -> bool {
        match peer {
            Peer::Block { cidr, except } => cidr.contains(&self.address) && !except.iter().any(|hole| hole.contains(&self.address)),
            Peer::Pods { namespaces, pods } => {
                let Who::Pod(pod) = self.other else { return false };
                let namespace = match namespaces {
                    None => pod.meta.namespace == policy.meta.namespace,
                    Some(selector) => in_namespace(selector, pod, snapshot),
                };
                namespace && pods.as_ref().is_none_or(|selector| selects(selector, &pod.meta.labels))
            }
        }
    }

    /// Tells whether a rule's ports admit the packet; no list admits every protocol (E1.11, E1.13, E1.15, E1.27, E1.28).
    /// A name means the destination pod's port, by whatever item the pod was reached; what is no pod has no names.
    fn ports(&self, ports: &[PortMatch]) -> bool {
        let Flow { protocol, port, .. } = self.flow;
        let has_ports = [proto::TCP, proto::UDP, proto::SCTP].contains(&protocol);
        let admits = |item: &PortMatch| {
            let of_protocol = item.protocol.map_or(has_ports, |p| p.number() == protocol);
            of_protocol
                && match &item.port {
                    PortSpec::Any => true,
                    PortSpec::Range(first, last) => (*first..=*last).contains(&port),
                    PortSpec::Named(name) => self.destination.is_some_and(|pod| {
                        let named = pod.ports.iter().find(|p| p.name.as_ref() == Some(name) && p.protocol.number() == protocol);
                        named.is_some_and(|p| p.port == port)
                    }),
                }
        };
        ports.is_empty() || ports.iter().any(admits)
    }
}

/// Tells whether a selector selects the labels (E1.21).
fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    use weir_control::source::objects::Operator::{DoesNotExist, Exists, In, NotIn};
    for (key, value) in &selector.match_labels {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for wanted in &selector.expressions {
        let met = match (labels.get(&wanted.key), wanted.operator) {
            (Some(value), In) => wanted.values.contains(value),
            (Some(value), NotIn) => !wanted.values.contains(value),
            (Some(_), Exists) | (None, NotIn | DoesNotExist) => true,
            (Some(_), DoesNotExist) | (None, In | Exists) => false,
        };
        if !met {
            return false;
        }
    }
    true
}

/// Tells whether the namespace of a pod is selected.
fn in_namespace(selector: &Selector, pod: &Pod, snapshot: &Snapshot) -> bool {
    let namespace = snapshot.namespaces.iter().find(|n| n.meta.name == pod.meta.namespace);
    namespace.is_some_and(|n| selects(selector, &n.meta.labels))
}
