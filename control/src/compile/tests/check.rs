//! What is found for all nodes at once is what each would be refused for.

use super::super::{check, compile};
use super::*;
use crate::source::load_text;

const CLUSTER: &str = "apiVersion: v1
kind: Node
metadata: {name: b}
status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: a}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: shop}
spec: {clusterIP: 10.96.0.2, externalIPs: [10.0.0.1, 'fd00::1', 10.0.0.2], ports: [{name: a, port: 30080}, {name: b, port: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced, namespace: shop}
spec: {clusterIP: 10.96.0.3, type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 30080, protocol: UDP}]}
status: {loadBalancer: {ingress: [{ip: 10.0.0.2}]}}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: 10.96.0.4, type: NodePort, ports: [{port: 53, protocol: UDP, nodePort: 30080}]}
";

#[test]
fn all_faults_of_all_nodes_come_together_each_once_with_their_places() {
    let faults: Vec<String> = check(&load_text("t.yaml", CLUSTER).unwrap()).iter().map(ToString::to_string).collect();
    let web = "is the nodePort of Service shop/web (t.yaml:11:1)";
    assert_eq!(
        faults,
        [
            format!("t.yaml:16:1: Service shop/far: spec.externalIPs: 10.0.0.1 is an address of Node a, where TCP 30080 {web}"),
            format!("t.yaml:16:1: Service shop/far: spec.externalIPs: 10.0.0.1 is an address of Node a, where TCP 30081 {web}"),
            format!("t.yaml:16:1: Service shop/far: spec.externalIPs: 10.0.0.2 is an address of Node b, where TCP 30080 {web}"),
            format!("t.yaml:16:1: Service shop/far: spec.externalIPs: 10.0.0.2 is an address of Node b, where TCP 30081 {web}"),
            "t.yaml:21:1: Service shop/balanced: status.loadBalancer.ingress: 10.0.0.2 is an address of Node b, where UDP 30080 is the nodePort of Service shop/dns (t.yaml:27:1)".into(),
        ]
    );
}

#[test]
fn a_snapshot_without_faults_compiles_for_every_node_and_one_with_some_does_not() {
    let mut random = fastrand::Rng::with_seed(3);
    let (mut sound, mut faulty) = (0, 0);
    for _ in 0..8000 {
        let mut snapshot = cluster();
        snapshot.nodes[0].addresses.push("fd00::2".parse().unwrap());
        snapshot.nodes[1].addresses.push("10.0.0.9".parse().unwrap());
        for name in ["x", "y"] {
            let mut some =
                |of: &[&str]| -> Vec<IpAddr> { of.iter().filter(|_| random.u8(..3) == 0).map(|text| text.parse().unwrap()).collect() };
            let cluster_ips =
                some(&[["10.96.0.1", "10.96.0.2"][usize::from(name == "y")], ["fd96::1", "fd96::2"][usize::from(name == "y")]]);
            let external_ips = some(&["10.0.0.1", "10.0.0.2", "10.0.0.9", "fd00::2"]);
            let load_balancer_ips = some(&["10.0.0.1", "fd00::2"]);
            let mut port = |name: &str, port| ServicePort {
                name: name.into(),
                protocol: [Protocol::Tcp, Protocol::Udp][random.usize(..2)],
                port,
                target: TargetPort::Number(80),
                node_port: [None, Some(30080), Some(30081)][random.usize(..3)],
            };
            let ports = vec![port("p", 80), port("q", 30080)];
            let meta = meta("one", name, "");
            snapshot.services.push(Service { meta, cluster_ips, external_ips, load_balancer_ips, ports, ..Service::default() });
        }
        // One number for two ports of one Service the decoder refuses, two Services in one place the loader.
        let twice = |s: &Service| {
            let [a, b] = &s.ports[..] else { return false };
            a.node_port.is_some() && (a.protocol, a.node_port) == (b.protocol, b.node_port)
        };
        if !snapshot.check().is_empty() || snapshot.services.iter().any(twice) {
            continue;
        }
        let compiles = ["a", "b"].iter().all(|node| compile(&snapshot, node, &NodeConfig::offline(node)).is_ok());
        assert_eq!(check(&snapshot).is_empty(), compiles, "{:#?}", snapshot.services);
        *if compiles { &mut sound } else { &mut faulty } += 1;
    }
    assert!(sound > 200 && faulty > 200, "{sound} sound, {faulty} faulty");
}
