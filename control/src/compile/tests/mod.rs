//! What the compiler decides, rule by rule. Objects are built by hand: reading them has its own tests in `source`.

mod check;
mod policies;
mod services;

use std::net::IpAddr;

use weir_dataplane::model::{NodeConfig, NodeState, Protocol};

use super::*;
use crate::source::objects::*;

/// Labels from `key=value` pairs separated by commas.
fn labels(text: &str) -> Labels {
    text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), v.into())).collect()
}

fn meta(namespace: &str, name: &str, text: &str) -> Meta {
    Meta { namespace: namespace.into(), name: name.into(), labels: labels(text), origin: Origin::default() }
}

fn node(name: &str, address: &str, cidr: &str, text: &str) -> Node {
    let (addresses, pod_cidrs) = (vec![address.parse().unwrap()], vec![cidr.parse().unwrap()]);
    Node { meta: meta("", name, text), addresses, pod_cidrs, ..Node::default() }
}

fn namespace(name: &str, text: &str) -> Namespace {
    Namespace { meta: meta("", name, &format!("{NAMESPACE_NAME_LABEL}={name},{text}")) }
}

fn pod(namespace: &str, name: &str, text: &str, node: &str, address: &str) -> Pod {
    Pod {
        meta: meta(namespace, name, text),
        node: Some(node.into()),
        ready: true,
        addresses: vec![address.parse().unwrap()],
        ..Pod::default()
    }
}

/// Two nodes in two zones, two namespaces, four pods.
fn cluster() -> Snapshot {
    Snapshot {
        nodes: vec![
            node("b", "10.0.0.2", "10.244.2.0/24", "topology.kubernetes.io/zone=z2"),
            node("a", "10.0.0.1", "10.244.1.0/24", "topology.kubernetes.io/zone=z1"),
        ],
        namespaces: vec![namespace("two", "team=x"), namespace("one", "team=x")],
        pods: vec![
            pod("one", "web-1", "app=web", "b", "10.244.2.1"),
            pod("one", "web-0", "app=web", "a", "10.244.1.1"),
            pod("one", "db", "app=db,tier=back", "a", "10.244.1.2"),
            pod("two", "web", "app=web", "b", "10.244.2.2"),
        ],
        ..Snapshot::default()
    }
}

fn compiled(snapshot: &Snapshot, node: &str) -> NodeState {
    compile(snapshot, node, &NodeConfig::offline(node)).unwrap()
}

/// Brings everything into another order.
fn shuffle(snapshot: &mut Snapshot, rng: &mut fastrand::Rng) {
    rng.shuffle(&mut snapshot.nodes);
    rng.shuffle(&mut snapshot.namespaces);
    rng.shuffle(&mut snapshot.pods);
    rng.shuffle(&mut snapshot.services);
    rng.shuffle(&mut snapshot.slices);
    rng.shuffle(&mut snapshot.network_policies);
    rng.shuffle(&mut snapshot.cluster_policies);
    for slice in &mut snapshot.slices {
        rng.shuffle(&mut slice.endpoints);
        rng.shuffle(&mut slice.ports);
    }
    for service in &mut snapshot.services {
        rng.shuffle(&mut service.ports);
    }
}

#[test]
fn finished_pods_and_pods_without_address_are_nobody_e1_39_e1_40() {
    let mut snapshot = cluster();
    snapshot.pods[0].finished = true;
    snapshot.pods[1].addresses.clear();
    let state = compiled(&snapshot, "a");
    let names: Vec<_> = state.endpoints.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["db", "web"]);
    assert_eq!(state.identities.len(), 2);
}

#[test]
fn pods_alike_are_one_identity_and_another_port_name_makes_another_e1_27() {
    let mut snapshot = cluster();
    assert_eq!(compiled(&snapshot, "a").identities.len(), 3);
    snapshot.pods[0].ports.push(ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 });
    assert_eq!(compiled(&snapshot, "a").identities.len(), 4);
}

#[test]
fn of_two_ports_with_one_name_and_protocol_the_first_counts_e1_27() {
    let mut snapshot = cluster();
    for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Tcp, 9090), (Protocol::Udp, 53)] {
        snapshot.pods[2].ports.push(ContainerPort { name: Some("x".into()), protocol, port });
    }
    let state = compiled(&snapshot, "a");
    let db = &state.identities[state.endpoints.iter().find(|e| e.name == "db").unwrap().identity as usize];
    let ports: Vec<_> = db.named_ports.iter().map(|p| (p.protocol, p.port)).collect();
    assert_eq!(ports, [(Protocol::Tcp, 8080), (Protocol::Udp, 53)]);
}

#[test]
fn a_pod_on_the_host_network_without_an_address_has_its_nodes_e1_30() {
    let mut snapshot = cluster();
    snapshot.pods[0].host_network = true;
    snapshot.pods[0].addresses.clear();
    let state = compiled(&snapshot, "a");
    let host = state.endpoints.iter().find(|e| e.name == "web-1").unwrap();
    assert_eq!(host.addresses, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    assert!(host.host_network);
}

#[test]
fn the_vtep_has_flannels_mac_or_the_one_made_from_the_primary_address() {
    let mut snapshot = cluster();
    snapshot.nodes[0].vtep_mac = Some("0a:01:02:03:04:05".parse().unwrap());
    let macs: Vec<_> = compiled(&snapshot, "a").nodes.iter().map(|n| n.vtep_mac.to_string()).collect();
    assert_eq!(macs, ["0a:58:0a:00:00:01", "0a:01:02:03:04:05"]);
}

#[test]
fn a_node_that_is_being_deleted_is_told_and_no_other_e2_37() {
    let mut snapshot = cluster();
    assert!(!compiled(&snapshot, "a").leaving);
    snapshot.nodes[1].leaving = true;
    assert_eq!(["a", "b"].map(|node| compiled(&snapshot, node).leaving), [true, false]);
}

#[test]
fn pod_ranges_come_from_the_configuration_or_the_nodes_or_are_unknown_e2_27() {
    let mut snapshot = cluster();
    let ranges = |snapshot: &Snapshot, config: &NodeConfig| compile(snapshot, "a", config).unwrap().cluster.pod_cidrs;
    let mut config = NodeConfig::offline("a");
    assert_eq!(ranges(&snapshot, &config).unwrap().len(), 2);
    config.cluster.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    assert_eq!(ranges(&snapshot, &config), Some(config.cluster.pod_cidrs.clone()));
    config.cluster.pod_cidrs.clear();
    snapshot.nodes.iter_mut().for_each(|n| n.pod_cidrs.clear());
    assert_eq!(ranges(&snapshot, &config), None);
}

#[test]
fn a_node_that_is_not_there_is_refused_by_name_with_those_that_are() {
    let error = compile(&cluster(), "c", &NodeConfig::offline("c")).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot has no Node \"c\"; it has: a, b");
    assert!(compile(&Snapshot::default(), "", &NodeConfig::offline("")).is_err());
}

#[test]
fn the_same_objects_in_any_order_give_the_same_bytes() {
    let mut snapshot = cluster();
    policies::add_some(&mut snapshot);
    services::add_some(&mut snapshot);
    let expected = serde_json::to_string(&compiled(&snapshot, "a")).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..50 {
        shuffle(&mut snapshot, &mut rng);
        assert_eq!(serde_json::to_string(&compiled(&snapshot, "a")).unwrap(), expected);
    }
}
