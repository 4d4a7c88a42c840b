//! Policies of all four kinds: those that have a subject among this node's pods, in order of evaluation (E1.45).

use std::collections::HashMap;

use weir_dataplane::model::{Action, IdentityIndex, Node, NodeIndex, Policy, PolicyKind, Rule, SelectionIndex, Tier};

use super::endpoint::Pods;
use super::overlay;
use super::selection::{Scope, Selections};
use crate::source::objects::{
    ClusterPeer, ClusterPolicy, ClusterRule, Labels, NetworkPolicy, Peer, PodSelection, PolicyRule, Selector, Snapshot,
};

/// Where BaselineAdminNetworkPolicy, which has no priority, stands in its tier: after every ClusterNetworkPolicy, whose
/// priorities end at 1000.
const AFTER_ALL_PRIORITIES: i32 = 1001;

/// The selector of a peer that states none: all pods of the namespaces.
static EVERYTHING: Selector = Selector { match_labels: std::collections::BTreeMap::new(), expressions: Vec::new() };

/// Compiles the policies that have a subject on `this_node`.
pub(super) fn compile<'a>(
    snapshot: &'a Snapshot,
    pods: &Pods<'a>,
    nodes: &[Node],
    this_node: NodeIndex,
    selections: &mut Selections<'_, 'a>,
) -> Vec<Policy> {
    let here = pods.identities_on(this_node);
    let mut policies = Vec::new();

    let mut cluster: Vec<&ClusterPolicy> = snapshot.cluster_policies.iter().filter(|p| acts_on(&p.subject, pods, &here)).collect();
    // Same tier and priority: by name, whatever the kind (E1.49); the kind only keeps two of one name apart.
    cluster.sort_unstable_by_key(|p| (p.tier, priority(p), p.meta.name.as_str(), p.kind));
    // A policy acts on pods of its own namespace only (E1.1).
    let mut by_namespace: HashMap<&str, Vec<&Labels>> = HashMap::new();
    for identity in here.iter().map(|&i| &pods.identities[i as usize]) {
        by_namespace.entry(pods.namespaces[identity.namespace as usize].name).or_default().push(&identity.labels);
    }
    let acts = |p: &&NetworkPolicy| by_namespace.get(&*p.meta.namespace).is_some_and(|l| l.iter().any(|l| p.pod_selector.matches(l)));
    let mut namespaced: Vec<&NetworkPolicy> = snapshot.network_policies.iter().filter(acts).collect();
    namespaced.sort_unstable_by_key(|p| (p.meta.namespace.as_str(), p.meta.name.as_str()));

    let baseline = cluster.partition_point(|p| p.tier < Tier::Baseline);
    let mut compile = Compile { nodes, selections };
    policies.extend(cluster[..baseline].iter().map(|p| compile.cluster_policy(p)));
    policies.extend(namespaced.iter().filter_map(|p| compile.network_policy(p, pods)));
    policies.extend(cluster[baseline..].iter().map(|p| compile.cluster_policy(p)));
    policies
}

fn priority(policy: &ClusterPolicy) -> i32 {
    if policy.kind == PolicyKind::BaselineAdminNetworkPolicy { AFTER_ALL_PRIORITIES } else { policy.priority }
}

fn acts_on(subject: &PodSelection, pods: &Pods<'_>, here: &[IdentityIndex]) -> bool {
    here.iter().any(|&i| {
        let identity = &pods.identities[i as usize];
        subject.pods.matches(&identity.labels) && subject.namespaces.matches(pods.namespaces[identity.namespace as usize].labels)
    })
}

struct Compile<'s, 'p, 'a> {
    nodes: &'s [Node],
    selections: &'s mut Selections<'p, 'a>,
}

impl<'a> Compile<'_, '_, 'a> {
    fn network_policy(&mut self, policy: &'a NetworkPolicy, pods: &Pods<'_>) -> Option<Policy> {
        let own = Scope::Own(pods.namespace(&policy.meta.namespace)?);
        Some(Policy {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some(policy.meta.namespace.clone()),
            name: policy.meta.name.clone(),
            tier: Tier::NetworkPolicy,
            priority: 0,
            subject: self.selections.pods(own, &policy.pod_selector),
            ingress: policy.ingress.as_ref().map(|rules| self.rules(own, rules)),
            egress: policy.egress.as_ref().map(|rules| self.rules(own, rules)),
        })
    }

    fn rules(&mut self, own: Scope<'a>, rules: &'a [PolicyRule]) -> Vec<Rule> {
        rules.iter().map(|rule| self.rule(own, rule)).collect()
    }

    fn rule(&mut self, own: Scope<'a>, rule: &'a PolicyRule) -> Rule {
        let peers: Vec<SelectionIndex> = rule.peers.iter().map(|peer| self.peer(own, peer)).collect();
        Rule {
            name: None,
            action: Action::Allow,
            peers: (!rule.peers.is_empty()).then_some(peers),
            ports: (!rule.ports.is_empty()).then(|| rule.ports.clone()),
        }
    }

    fn peer(&mut self, own: Scope<'a>, peer: &'a Peer) -> SelectionIndex {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let scope = namespaces.as_ref().map_or(own, Scope::Selected);
                self.selections.pods(scope, pods.as_ref().unwrap_or(&EVERYTHING))
            }
            Peer::Block { cidr, except } => self.selections.block(*cidr, except),
        }
    }

    fn cluster_policy(&mut self, policy: &'a ClusterPolicy) -> Policy {
        let subject = self.selections.pods(Scope::Selected(&policy.subject.namespaces), &policy.subject.pods);
        let mut rules = |rules: &'a [ClusterRule]| -> Option<Vec<Rule>> {
            (!rules.is_empty()).then(|| rules.iter().map(|rule| self.cluster_rule(rule)).collect())
        };
        Policy {
            kind: policy.kind,
            namespace: None,
            name: policy.meta.name.clone(),
            tier: policy.tier,
            priority: priority(policy),
            subject,
            ingress: rules(&policy.ingress),
            egress: rules(&policy.egress),
        }
    }

    fn cluster_rule(&mut self, rule: &'a ClusterRule) -> Rule {
        // A peer that we do not know fails closed: to Allow it is nobody; Deny and Pass match everybody, and since what a later API
        // means to be passed on is not known here, both deny (E1.48; `clusternetworkpolicy_types.go`: "a 'Deny all' rule").
        let anybody = rule.action != Action::Allow && rule.peers.contains(&ClusterPeer::Unknown);
        let mut peers = Vec::new();
        for peer in &rule.peers {
            match peer {
                ClusterPeer::Pods(selection) => {
                    peers.push(self.selections.pods(Scope::Selected(&selection.namespaces), &selection.pods));
                }
                ClusterPeer::Nodes(selector) => peers.push(self.selections.nodes(selector, |name| overlay::find(self.nodes, name))),
                ClusterPeer::Networks(networks) => peers.extend(networks.iter().map(|cidr| self.selections.block(*cidr, &[]))),
                ClusterPeer::Unknown => {}
            }
        }
        Rule {
            name: rule.name.clone(),
            action: if anybody { Action::Deny } else { rule.action },
            peers: (!anybody).then_some(peers),
            ports: (!rule.ports.is_empty()).then(|| rule.ports.clone()),
        }
    }
}
