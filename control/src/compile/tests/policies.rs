//! Policies: who is selected, who is a peer, what stands in which order.

use weir_dataplane::model::{Action, Policy, PolicyKind, PortMatch, PortSpec, Selection, Tier};

use super::*;

fn equals(text: &str) -> Selector {
    Selector { match_labels: labels(text), expressions: Vec::new() }
}

fn policy(namespace: &str, name: &str, selector: &str, ingress: Vec<PolicyRule>) -> NetworkPolicy {
    NetworkPolicy { meta: meta(namespace, name, ""), pod_selector: equals(selector), ingress: Some(ingress), egress: None }
}

fn from(peer: Peer) -> Vec<PolicyRule> {
    vec![PolicyRule { peers: vec![peer], ports: Vec::new() }]
}

fn cluster_policy(kind: PolicyKind, tier: Tier, priority: i32, name: &str, rules: Vec<ClusterRule>) -> ClusterPolicy {
    ClusterPolicy { meta: meta("", name, ""), kind, tier, priority, subject: PodSelection::default(), ingress: rules, egress: Vec::new() }
}

fn rule(action: Action, peers: Vec<ClusterPeer>) -> ClusterRule {
    ClusterRule { name: None, action, peers, ports: Vec::new() }
}

/// Policies of all kinds, for tests of order.
pub(super) fn add_some(snapshot: &mut Snapshot) {
    let any = || Peer::Pods { namespaces: Some(Selector::default()), pods: None };
    snapshot.network_policies.push(policy("one", "p", "app=web", from(any())));
    snapshot.network_policies.push(policy("one", "o", "app=db", from(Peer::Pods { namespaces: None, pods: Some(equals("app=web")) })));
    for (name, priority) in [("y", 3), ("x", 3), ("z", 1)] {
        let rules = vec![rule(Action::Pass, vec![ClusterPeer::Nodes(Selector::default())])];
        snapshot.cluster_policies.push(cluster_policy(PolicyKind::ClusterNetworkPolicy, Tier::Admin, priority, name, rules));
    }
}

/// The names of the pods that the peers of the first ingress rule of the only policy mean, and their number of identities.
fn peers_of_only(snapshot: &Snapshot) -> Vec<String> {
    let state = compiled(snapshot, "a");
    let [policy] = &state.policies[..] else { panic!("{} policies", state.policies.len()) };
    let peers = policy.ingress.as_ref().unwrap()[0].peers.as_ref().unwrap();
    let mut names = Vec::new();
    for peer in peers {
        let Selection::Pods { identities, .. } = &state.selections[*peer as usize] else { continue };
        let selected = state.endpoints.iter().filter(|e| identities.contains(&e.identity));
        names.extend(selected.map(|e| format!("{}/{}", e.namespace, e.name)));
    }
    names
}

#[test]
fn a_policy_acts_on_pods_of_its_own_namespace_on_this_node_alone_e1_1() {
    let mut snapshot = cluster();
    snapshot.network_policies = vec![policy("one", "here", "app=db", vec![]), policy("two", "elsewhere", "", vec![])];
    snapshot.network_policies.push(policy("two", "db", "app=db", vec![]));
    let names = |node| compiled(&snapshot, node).policies.into_iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names("a"), ["here"]);
    assert_eq!(names("b"), ["elsewhere"]);
}

#[test]
fn an_empty_selector_selects_all_pods_of_the_namespace_e1_2_e1_16() {
    let mut snapshot = cluster();
    let everybody = Peer::Pods { namespaces: None, pods: Some(Selector::default()) };
    snapshot.network_policies = vec![policy("one", "p", "", from(everybody))];
    assert_eq!(peers_of_only(&snapshot), ["one/db", "one/web-0", "one/web-1"]);
}

#[test]
fn null_and_empty_peer_selectors_differ_e1_17_e1_19() {
    let mut snapshot = cluster();
    let peers = |namespaces: Option<Selector>, pods: Option<Selector>, snapshot: &mut Snapshot| {
        snapshot.network_policies = vec![policy("one", "p", "app=db", from(Peer::Pods { namespaces, pods }))];
        peers_of_only(snapshot)
    };
    assert_eq!(peers(Some(Selector::default()), None, &mut snapshot), ["one/db", "one/web-0", "one/web-1", "two/web"]);
    assert_eq!(peers(None, Some(equals("app=web")), &mut snapshot), ["one/web-0", "one/web-1"]);
    assert_eq!(peers(Some(equals("kubernetes.io/metadata.name=two")), None, &mut snapshot), ["two/web"]);
}

#[test]
fn both_selectors_in_one_item_must_hold_and_two_items_add_up_e1_18() {
    let mut snapshot = cluster();
    let (two, db) = (equals("kubernetes.io/metadata.name=two"), equals("app=db"));
    let both = Peer::Pods { namespaces: Some(two.clone()), pods: Some(db.clone()) };
    snapshot.network_policies = vec![policy("one", "p", "app=db", from(both))];
    assert!(peers_of_only(&snapshot).is_empty());
    let either = vec![Peer::Pods { namespaces: Some(two), pods: None }, Peer::Pods { namespaces: None, pods: Some(db) }];
    snapshot.network_policies = vec![policy("one", "p", "app=db", vec![PolicyRule { peers: either, ports: vec![] }])];
    assert_eq!(peers_of_only(&snapshot), ["two/web", "one/db"]);
}

#[test]
fn expressions_select_pods_without_the_key_too_e1_21() {
    let mut snapshot = cluster();
    let requirement = Requirement { key: "tier".into(), operator: Operator::NotIn, values: vec!["back".into()] };
    let not_back = Selector { match_labels: Labels::new(), expressions: vec![requirement] };
    let peer = Peer::Pods { namespaces: None, pods: Some(not_back) };
    snapshot.network_policies = vec![policy("one", "p", "", from(peer))];
    assert_eq!(peers_of_only(&snapshot), ["one/web-0", "one/web-1"]);
}

#[test]
fn pods_on_the_host_network_are_neither_subject_nor_peer_e1_30_e1_50() {
    let mut snapshot = cluster();
    snapshot.pods.iter_mut().find(|p| p.meta.name == "db").unwrap().host_network = true;
    snapshot.network_policies = vec![policy("one", "p", "app=db", vec![])];
    assert!(compiled(&snapshot, "a").policies.is_empty());
    let peer = Peer::Pods { namespaces: None, pods: Some(equals("app=db")) };
    snapshot.network_policies = vec![policy("one", "p", "app=web", from(peer))];
    assert!(peers_of_only(&snapshot).is_empty());
}

#[test]
fn missing_sections_do_not_isolate_and_empty_ones_do_e1_7_e1_9() {
    let mut snapshot = cluster();
    snapshot.network_policies = vec![policy("one", "p", "", vec![])];
    let [policy] = &compiled(&snapshot, "a").policies[..] else { panic!() };
    assert_eq!((policy.ingress.as_deref(), policy.egress.as_deref()), (Some(&[][..]), None));
}

#[test]
fn a_rule_without_peers_or_ports_means_anybody_on_any_port_e1_10_e1_11() {
    let mut snapshot = cluster();
    let port = PortMatch { protocol: Some(Protocol::Tcp), port: PortSpec::Range(80, 80) };
    let rules = vec![PolicyRule::default(), PolicyRule { peers: vec![], ports: vec![port.clone()] }];
    snapshot.network_policies = vec![policy("one", "p", "", rules)];
    let [policy] = &compiled(&snapshot, "a").policies[..] else { panic!() };
    let rules = policy.ingress.as_ref().unwrap();
    assert_eq!((&rules[0].peers, &rules[0].ports), (&None, &None));
    assert_eq!((&rules[1].peers, &rules[1].ports), (&None, &Some(vec![port])));
}

#[test]
fn blocks_lose_their_host_bits_and_equal_ones_are_one_selection_e1_22() {
    let mut snapshot = cluster();
    let block = |cidr: &str, except: &[&str]| Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|e| e.parse().unwrap()).collect(),
    };
    let peers = vec![block("10.0.0.7/8", &["10.2.0.0/16", "10.1.0.0/16"]), block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"])];
    snapshot.network_policies = vec![policy("one", "p", "", vec![PolicyRule { peers, ports: vec![] }])];
    let state = compiled(&snapshot, "a");
    assert_eq!(state.selections.len(), 2); // The subject and the block.
    assert_eq!(state.policies[0].ingress.as_ref().unwrap()[0].peers, Some(vec![1, 1]));
}

#[test]
fn tiers_priorities_and_names_give_the_order_of_evaluation_e1_45_e1_49() {
    use PolicyKind::{AdminNetworkPolicy as Anp, BaselineAdminNetworkPolicy as Banp, ClusterNetworkPolicy as Cnp};
    let mut snapshot = cluster();
    snapshot.network_policies = vec![policy("one", "np", "", vec![])];
    snapshot.cluster_policies = [
        (Banp, Tier::Baseline, 0, "default"),
        (Cnp, Tier::Baseline, 900, "base"),
        (Cnp, Tier::Admin, 5, "d"),
        (Anp, Tier::Admin, 5, "a"),
        (Cnp, Tier::Admin, 5, "c"),
        (Anp, Tier::Admin, 4, "z"),
    ]
    .map(|(kind, tier, priority, name)| cluster_policy(kind, tier, priority, name, vec![]))
    .to_vec();
    let names: Vec<_> = compiled(&snapshot, "a").policies.into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["z", "a", "c", "d", "np", "base", "default"]);
}

#[test]
fn an_unknown_peer_admits_nobody_and_refuses_everybody_e1_48() {
    let mut snapshot = cluster();
    let actions = [Action::Allow, Action::Deny, Action::Pass];
    let rules = actions.map(|action| rule(action, vec![ClusterPeer::Unknown])).to_vec();
    snapshot.cluster_policies = vec![cluster_policy(PolicyKind::ClusterNetworkPolicy, Tier::Admin, 1, "p", rules)];
    let [policy]: &[Policy] = &compiled(&snapshot, "a").policies else { panic!() };
    let rules: Vec<_> = policy.ingress.as_ref().unwrap().iter().map(|r| (r.action, r.peers.clone())).collect();
    assert_eq!(rules, [(Action::Allow, Some(vec![])), (Action::Deny, None), (Action::Deny, None)]);
}

#[test]
fn node_peers_are_nodes_by_their_labels() {
    let mut snapshot = cluster();
    let z2 = ClusterPeer::Nodes(equals("topology.kubernetes.io/zone=z2"));
    let rules = vec![rule(Action::Deny, vec![z2])];
    snapshot.cluster_policies = vec![cluster_policy(PolicyKind::ClusterNetworkPolicy, Tier::Admin, 1, "p", rules)];
    let state = compiled(&snapshot, "a");
    let text = "topology.kubernetes.io/zone=z2".to_owned();
    assert_eq!(state.selections[1], Selection::Nodes { nodes: vec![1], text });
}
