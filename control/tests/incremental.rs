//! A state that follows its objects is the one that they would be compiled to at once.

use std::sync::Arc;

use weir_control::compile::{Compiler, compile};
use weir_control::source::load_text;
use weir_control::source::objects::{Node, Object, Snapshot};
use weir_dataplane::model::NodeConfig;
use weir_fixtures::clusters::{self, Size};

const SMALL: Size = Size { services: 30, endpoints_per_service: 4, pods: 40, nodes: 4, policies: 20, namespaces: 5 };

fn snapshot(text: &str) -> Snapshot {
    load_text("cluster.json", text).unwrap()
}

fn slice(service: u32, ready: bool) -> Object {
    Object::EndpointSlice(snapshot(&clusters::changed_slice(&SMALL, service, ready)).slices.remove(0))
}

fn service(n: u32, address: u32, selector: bool) -> Object {
    let selector = if selector { r#""selector": {"app": "app-1"}, "# } else { "" };
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "svc-{n}", "namespace": "ns-{}"}}, "spec": {{{selector}"clusterIP": "10.97.0.{address}", "ports": [{{"name": "http", "port": 80, "targetPort": 8080}}]}}}}"#,
        n % SMALL.namespaces
    );
    Object::Service(snapshot(&text).services.remove(0))
}

fn pod(n: u32, ready: bool) -> Object {
    pod_of(n, "1", ready)
}

/// The late pod `n` with a label `app`, which tells the port's name too.
fn pod_of(n: u32, app: &str, ready: bool) -> Object {
    let status = if ready { "True" } else { "False" };
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "late-{n}", "namespace": "ns-1", "labels": {{"app": "app-{app}"}}}}, "spec": {{"nodeName": "node-1", "containers": [{{"name": "c", "ports": [{{"name": "p{app}", "containerPort": 80}}]}}]}}, "status": {{"podIPs": [{{"ip": "10.128.1.{}"}}], "conditions": [{{"type": "Ready", "status": "{status}"}}]}}}}"#,
        100 + n
    );
    Object::Pod(snapshot(&text).pods.remove(0))
}

/// One of the cluster's own pods or a late one in another shape: other labels, finished, without address, of another node, on the host
/// network, in a namespace that nobody mentioned.
fn other_pod(random: &mut fastrand::Rng) -> Object {
    let n = random.u32(..SMALL.pods);
    let text = clusters::changed_pod(&SMALL, n, ["tier-0", "tier-1", "a"][random.usize(..3)]);
    let Object::Pod(mut pod) = [Object::Pod(snapshot(&text).pods.remove(0)), pod_of(n % 4, ["1", "2"][n as usize % 2], true)]
        [usize::from(random.u8(..4) == 0)]
    .clone() else {
        unreachable!()
    };
    match random.u8(..10) {
        0 => pod.finished = true,
        1 => pod.addresses.clear(),
        2 => pod.host_network = true,
        3 => pod.node = [None, Some("nowhere".into())][random.usize(..2)].clone(),
        4 => pod.meta.namespace = ["late", "ns-2"][random.usize(..2)].into(),
        5 => drop(pod.meta.labels.remove("app")),
        6 => pod.ready = false,
        _ => {}
    }
    Object::Pod(pod)
}

fn policy(n: u32, port: u16) -> Object {
    let text = format!(
        r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "policy-{n}", "namespace": "ns-{}"}}, "spec": {{"podSelector": {{"matchLabels": {{"app": "app-1"}}}}, "ingress": [{{"from": [{{"namespaceSelector": {{"matchLabels": {{"team": "t{}"}}}}}}], "ports": [{{"port": {port}}}]}}]}}}}"#,
        n % SMALL.namespaces,
        port % 3
    );
    Object::NetworkPolicy(snapshot(&text).network_policies.remove(0))
}

/// A policy whose subject and peers are any of these.
fn other_policy(random: &mut fastrand::Rng) -> Object {
    let selectors = [
        "{}",
        r#"{"matchLabels": {"app": "app-1"}}"#,
        r#"{"matchLabels": {"tier": "tier-1"}}"#,
        r#"{"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["app-1", "app-3"]}]}"#,
        r#"{"matchExpressions": [{"key": "tier", "operator": "Exists"}]}"#,
        r#"{"matchLabels": {"app": "app-1"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}"#,
    ];
    let namespaces =
        ["{}", r#"{"matchLabels": {"team": "t1"}}"#, r#"{"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["t2"]}]}"#];
    let mut pods = || selectors[random.usize(..selectors.len())];
    let (subject, own, far) = (pods(), pods(), pods());
    let spaces = namespaces[random.usize(..namespaces.len())];
    if random.u8(..3) == 0 {
        let text = format!(
            r#"{{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {{"name": "c{}"}}, "spec": {{"tier": "{}", "priority": {}, "subject": {{"pods": {{"namespaceSelector": {spaces}, "podSelector": {subject}}}}}, "ingress": [{{"action": "Accept", "from": [{{"namespaces": {spaces}}}, {{"pods": {{"namespaceSelector": {{}}, "podSelector": {far}}}}}]}}]}}}}"#,
            random.u8(..3),
            ["Admin", "Baseline"][random.usize(..2)],
            random.u8(..3),
        );
        return Object::ClusterPolicy(snapshot(&text).cluster_policies.remove(0));
    }
    let text = format!(
        r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "policy-{}", "namespace": "ns-{}"}}, "spec": {{"podSelector": {subject}, "policyTypes": ["Ingress", "Egress"], "ingress": [{{"from": [{{"podSelector": {own}}}, {{"ipBlock": {{"cidr": "10.0.0.0/8"}}}}], "ports": [{{"port": "p1"}}]}}], "egress": [{{"to": [{{"namespaceSelector": {spaces}, "podSelector": {far}}}], "ports": [{{"port": "p2"}}]}}]}}}}"#,
        random.u32(..40),
        random.u32(..SMALL.namespaces),
    );
    Object::NetworkPolicy(snapshot(&text).network_policies.remove(0))
}

fn namespace(n: u32, team: u32) -> Object {
    let text = format!(r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "ns-{n}", "labels": {{"team": "t{team}"}}}}}}"#);
    Object::Namespace(snapshot(&text).namespaces.remove(0))
}

/// One in zone 1 is being deleted too.
fn node(n: u32, zone: u32) -> Object {
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "node-{n}", "labels": {{"topology.kubernetes.io/zone": "z{zone}"}}}}, "status": {{"addresses": [{{"type": "InternalIP", "address": "172.16.0.{}"}}]}}}}"#,
        n + 1
    );
    Object::Node(Node { leaving: zone == 1, ..snapshot(&text).nodes.remove(0) })
}

/// Changed labels re-select at once (E1.42), and a Service that is proxied no more is gone at once (E2.38).
#[test]
fn after_any_changes_the_state_is_that_of_the_objects() {
    let config = NodeConfig::offline("node-1");
    let mut objects = snapshot(&clusters::json(&SMALL));
    let mut compiler = Compiler::new(objects.clone(), "node-1", config.clone()).unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let mut refused = 0;
    for step in 0..2000 {
        let n = random.u32(..SMALL.services);
        let namespace = format!("ns-{}", n % SMALL.namespaces);
        let (change, gone) = match random.u8(..17) {
            0 | 1 => (Some(slice(n, random.bool())), None),
            2 | 3 => (Some(service(n, random.u32(1..60), random.bool())), None),
            4 => (None, Some(("EndpointSlice", namespace, format!("svc-{n}-0")))),
            5 => (None, Some(("Service", namespace, format!("svc-{n}")))),
            6 => (Some(policy(random.u32(..40), random.u16(1..9))), None),
            7 => (None, Some(("NetworkPolicy", namespace, format!("policy-{n}")))),
            8 => (Some(self::namespace(n % SMALL.namespaces, random.u32(..3))), None),
            9 => (None, Some(("Pod", "ns-1".into(), format!("late-{}", random.u32(..4))))),
            10 | 11 => (Some(other_pod(&mut random)), None),
            12 | 13 => (Some(other_policy(&mut random)), None),
            14 => (None, Some(("Pod", namespace, format!("pod-{n}")))),
            15 if random.bool() => (None, Some(("ClusterNetworkPolicy", String::new(), format!("c{}", random.u8(..3))))),
            15 if random.u8(..8) == 0 => (None, Some(("Namespace", String::new(), ["late", "ns-2"][random.usize(..2)].into()))),
            16 if random.u8(..8) == 0 => (Some(node(random.u32(..5), random.u32(..2))), None),
            _ => (Some(pod(random.u32(..4), random.bool())), None),
        };
        let before = objects.clone();
        let followed = match (&change, &gone) {
            (Some(object), _) => {
                objects.apply(object.clone());
                compiler.apply(object.clone())
            }
            (None, Some((kind, namespace, name))) => {
                objects.remove(kind, namespace, name);
                compiler.remove(kind, namespace, name)
            }
            (None, None) => continue,
        };
        match (followed, compile(&objects, "node-1", &config)) {
            (Ok(state), Ok(expected)) => assert_eq!(**state, expected, "step {step}: {change:?} {gone:?}"),
            (Err(got), Err(expected)) => {
                assert_eq!(got, expected);
                refused += 1;
                objects = before;
                assert_eq!(**compiler.state(), compile(&objects, "node-1", &config).unwrap(), "nothing half applied");
            }
            (got, expected) => panic!("step {step}: {got:?} is not {expected:?}"),
        }
    }
    assert!(refused > 10, "two Services in one place were tried {refused} times");
}

#[test]
fn one_changed_slice_leaves_all_other_services_as_they_are() {
    let mut compiler = Compiler::new(snapshot(&clusters::json(&SMALL)), "node-1", NodeConfig::offline("node-1")).unwrap();
    let before = compiler.state().clone();
    let after = compiler.apply(slice(7, false)).unwrap();
    let changed: Vec<&str> =
        before.services.iter().zip(&after.services).filter(|(a, b)| !Arc::ptr_eq(a, b)).map(|(a, _)| &*a.name).collect();
    assert_eq!(changed, ["svc-7"]);
}

#[test]
fn a_snapshot_that_takes_the_place_of_another_gives_its_state_and_a_wrong_one_changes_nothing() {
    let config = NodeConfig::offline("node-1");
    let mut objects = snapshot(&clusters::json(&SMALL));
    let mut compiler = Compiler::new(objects.clone(), "node-1", config.clone()).unwrap();
    assert_eq!(compiler.replace(objects.clone()), Ok(false));
    // Two Services exchange their addresses, which one after the other could not.
    objects.apply(service(3, 5, false));
    objects.apply(service(4, 6, false));
    assert_eq!(compiler.replace(objects.clone()), Ok(true));
    objects.apply(service(3, 6, false));
    objects.apply(service(4, 5, false));
    objects.apply(pod(1, true));
    objects.remove("NetworkPolicy", "ns-1", "policy-1");
    assert_eq!(compiler.replace(objects.clone()), Ok(true));
    let expected = compile(&objects, "node-1", &config).unwrap();
    assert_eq!(**compiler.state(), expected);
    let mut wrong = objects.clone();
    wrong.apply(service(7, 6, false));
    assert!(compiler.replace(wrong).is_err());
    assert_eq!(**compiler.state(), expected);
    assert_eq!(compiler.replace(objects), Ok(false));
}

#[test]
fn a_changed_policy_leaves_every_service_and_a_changed_pod_those_with_slices_as_they_are() {
    let mut compiler = Compiler::new(snapshot(&clusters::json(&SMALL)), "node-1", NodeConfig::offline("node-1")).unwrap();
    compiler.remove("EndpointSlice", "ns-1", "svc-6-0").unwrap();
    compiler.apply(service(6, 50, true)).unwrap();
    for (object, expected) in [(policy(1, 7), &[][..]), (pod(1, true), &["svc-6"]), (namespace(2, 9), &[])] {
        let before = compiler.state().clone();
        let after = compiler.apply(object).unwrap();
        let changed: Vec<&str> = before.services.iter().zip(&after.services).filter(|(a, b)| a != b).map(|(a, _)| &*a.name).collect();
        let same = before.services.iter().zip(&after.services).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(changed, expected);
        assert_eq!(same, before.services.len() - expected.len(), "but for one that selects the pod and has no slices");
    }
}
