//! What the loader makes of good input; what it says of bad input; the field table.

mod api_server;
mod bad_input;
mod field_table;

use std::net::IpAddr;

use ipnet::IpNet;
use weir_dataplane::model::{Action, Family, PolicyKind, PortMatch, PortSpec, Protocol, Tier};

use super::objects::*;
use super::*;

fn load(text: &str) -> Snapshot {
    load_text("t.yaml", text).unwrap_or_else(|faults| panic!("{faults}"))
}
/// The faults, one line each.
fn faults(text: &str) -> Vec<String> {
    load_text("t.yaml", text).map(|s| format!("loads: {s:?}")).unwrap_err().0.iter().map(ToString::to_string).collect()
}
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
fn range(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch { protocol: Some(protocol), port: PortSpec::Range(first, last) }
}

/// A policy with this `spec`, in flow style, at line 4.
fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n")
}
/// A Service with this `spec` and an address.
fn service(name: &str, address: &str, rest: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {address}, {rest}}}\n")
}
fn pod(name: &str, spec: &str, status: &str) -> String {
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\nstatus: {{{status}}}\n")
}

#[test]
fn every_kind_reads_its_name_namespace_and_labels() {
    let head = |kind: &str, version: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web, namespace: shop, labels: {{a: b}}}}\n")
    };
    for (kind, version, rest) in [
        ("Node", "v1", ""),
        ("Namespace", "v1", ""),
        ("Pod", "v1", "spec: {}"),
        ("Service", "v1", "spec: {clusterIP: None}"),
        ("EndpointSlice", "discovery.k8s.io/v1", "addressType: IPv4"),
        ("NetworkPolicy", "networking.k8s.io/v1", "spec: {}"),
        ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2", "spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}"),
        ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", "spec: {priority: 1, subject: {namespaces: {}}}"),
    ] {
        let text = format!("{}{rest}\n", head(kind, version));
        let source = Source::new("t.yaml", text.clone().into()).unwrap();
        let (documents, _) = source.documents();
        let Ok(Decoded::Object(object, _)) = decode(&source, &documents[0]) else { panic!("{text}") };
        let cluster_wide = matches!(kind, "Node" | "Namespace") || kind.contains("ClusterN") || kind.contains("Admin");
        let meta = object.meta();
        assert_eq!((object.kind(), meta.name.as_str(), meta.labels["a"].as_str()), (kind, "web", "b"));
        assert_eq!(meta.namespace, if cluster_wide { "" } else { "shop" }, "{kind}");
        assert_eq!(meta.origin.to_string(), "t.yaml:1:1");
    }
    let snapshot = load("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\n");
    assert_eq!(snapshot.network_policies[0].meta.namespace, "default");
    assert_eq!(snapshot.namespaces[0].meta.labels[NAMESPACE_NAME_LABEL], "default", "E0.5 holds for implied namespaces too");
}

#[test]
fn every_field_of_a_node_is_read() {
    let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  labels: {topology.kubernetes.io/zone: z1}\n  annotations:\n    flannel.alpha.coreos.com/backend-data: '{\"VNI\":1,\"VtepMAC\":\"0a:58:0a:f4:01:00\"}'\nspec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}\nstatus:\n  addresses:\n  - {type: ExternalIP, address: 203.0.113.1}\n  - {type: Hostname, address: a}\n  - {type: InternalIP, address: 10.0.0.10}\n  - {type: InternalIP, address: 'fd00::10'}\n";
    let snapshot = load(text);
    let node = &snapshot.nodes[0];
    assert_eq!(node.addresses, [ip("10.0.0.10"), ip("fd00::10"), ip("203.0.113.1")]);
    assert_eq!(node.pod_cidrs, [net("10.244.1.0/24"), net("fd00:1::/64")]);
    assert_eq!(node.vtep_mac.unwrap().to_string(), "0a:58:0a:f4:01:00");
    assert_eq!(node.zone(), Some("z1"));
    assert_eq!(
        load("{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDR: 10.1.0.0/16}}").nodes[0].pod_cidrs,
        [net("10.1.0.0/16")]
    );
    let leaving = |rest: &str| load(&format!("{{apiVersion: v1, kind: Node, {rest}}}")).nodes[0].leaving;
    assert!(leaving("metadata: {name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}"), "E2.37");
    assert!(leaving("metadata: {name: a}, spec: {taints: [{key: a, effect: NoSchedule}, {key: ToBeDeletedByClusterAutoscaler}]}"), "E2.37");
    assert!(!node.leaving && !leaving("metadata: {name: a}, spec: {taints: [{key: a}]}"));
}

#[test]
fn every_field_of_a_pod_is_read() {
    let text = pod(
        "a",
        "nodeName: n1, containers: [{name: c, ports: [{name: web, containerPort: 80}, {containerPort: 53, protocol: UDP}]}]",
        "phase: Running, podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00::5'}], conditions: [{type: PodScheduled, status: 'True'}, {type: Ready, status: 'False'}]",
    );
    let snapshot = load(&text);
    let a = &snapshot.pods[0];
    assert_eq!((a.node.as_deref(), a.host_network, a.finished, a.terminating, a.ready), (Some("n1"), false, false, false, false));
    assert_eq!(a.addresses, [ip("10.244.1.5"), ip("fd00::5")]);
    assert_eq!((a.named_port("web", Protocol::Tcp), a.named_port("web", Protocol::Udp)), (Some(80), None));
    assert_eq!((a.ports[1].protocol, a.ports[1].port), (Protocol::Udp, 53));
    let status = |status: &str| load(&pod("a", "hostNetwork: true", status)).pods.remove(0);
    assert_eq!(status("podIP: 10.0.0.1").addresses, [ip("10.0.0.1")]);
    assert!(status("podIP: 10.0.0.1").ready && status("phase: Running").ready && !status("phase: Pending").ready);
    assert!(status("phase: Failed").finished && status("phase: Succeeded").finished && status("").host_network);
    assert!(
        load("{apiVersion: v1, kind: Pod, metadata: {name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}, spec: {}}").pods[0].terminating
    );
}

#[test]
fn named_ports_of_sidecars_count() {
    let init = |policy: &str| {
        let text =
            pod("a", &format!("containers: [], initContainers: [{{name: c, {policy} ports: [{{name: web, containerPort: 80}}]}}]"), "");
        load(&text).pods[0].named_port("web", Protocol::Tcp)
    };
    assert_eq!((init("restartPolicy: Always,"), init("")), (Some(80), None));
}

/// E0.6: on the host network a port that states no hostPort has its containerPort, and so may state nothing else.
#[test]
fn host_ports_are_refused_off_the_host_network() {
    let port = "containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}]}]";
    let said = faults(&pod("a", port, ""));
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("t.yaml:5:69: Pod shop/a: spec.containers[0].ports[0].hostPort: is not supported"), "{said:?}");
    let on_host = |port: &str| load(&pod("a", &format!("hostNetwork: true, {port}"), "")).pods.remove(0);
    assert_eq!(on_host(port), on_host(&port.replace(", hostPort: 80", "")));
    let other = port.replace("hostPort: 80", "hostPort: 81");
    assert!(
        faults(&pod("a", &format!("hostNetwork: true, {other}"), ""))[0].ends_with("must equal containerPort (80) on the host network")
    );
    load(&pod("a", &port.replace("hostPort: 80", "hostPort: 0"), ""));
}

#[test]
fn every_field_of_a_service_is_read() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10, 'fd00:96::10']\n  externalIPs: [192.0.2.1]\n  selector: {app: web}\n  ports:\n  - {name: http, port: 80, targetPort: web, nodePort: 30080}\n  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}\n  - {name: same, port: 81, targetPort: 0}\n  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30999\n  loadBalancerSourceRanges: [' 203.0.113.0/24']\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}\n  publishNotReadyAddresses: true\n  trafficDistribution: PreferClose\n  allocateLoadBalancerNodePorts: false\nstatus:\n  loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: x.example}, {ip: 198.51.100.3, ipMode: VIP}]}\n";
    let snapshot = load(text);
    let s = &snapshot.services[0];
    assert_eq!((s.kind, s.headless, s.other_proxy), (ServiceType::LoadBalancer, false, false));
    assert_eq!(s.cluster_ips, [ip("10.96.0.10"), ip("fd00:96::10")]);
    assert_eq!((&s.external_ips[..], &s.load_balancer_ips[..]), (&[ip("192.0.2.1")][..], &[ip("198.51.100.1"), ip("198.51.100.3")][..]));
    assert_eq!((s.selector["app"].as_str(), s.internal_local, s.external_local), ("web", true, true));
    assert_eq!((s.affinity_timeout_secs, s.health_check_node_port), (Some(60), Some(30999)));
    assert_eq!((&s.source_ranges[..], s.publish_not_ready_addresses), (&[net("203.0.113.0/24")][..], true));
    assert_eq!(s.traffic_distribution, Some(TrafficDistribution::SameZone));
    assert_eq!(
        s.ports[0],
        ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Name("web".into()),
            node_port: Some(30080)
        }
    );
    assert_eq!((s.ports[1].protocol, &s.ports[1].target, s.ports[1].node_port), (Protocol::Udp, &TargetPort::Number(5353), None));
    assert_eq!(s.ports[2].target, TargetPort::Number(81), "E0.2: 0 is the Service's own port");
    assert_eq!(snapshot.warnings, [""; 0], "E2.33: no node ports are missed where none are allocated, and the health check is there");
}

#[test]
fn a_service_gets_the_api_servers_defaults_e0_3() {
    let snapshot = load(&service("a", "10.96.0.1", "ports: [{port: 80}], sessionAffinity: ClientIP"));
    let s = &snapshot.services[0];
    assert_eq!((s.kind, s.affinity_timeout_secs, s.internal_local, s.external_local), (ServiceType::ClusterIp, Some(10_800), false, false));
    assert_eq!((s.ports[0].protocol, &s.ports[0].target), (Protocol::Tcp, &TargetPort::Number(80)));
    let name = load(&service("a", "10.96.0.1", "type: ExternalName, externalName: x.example"));
    assert!(name.services[0].cluster_ips.is_empty(), "E2.1");
    assert!(load(&service("a", "None", "ports: []")).services[0].headless);
}

#[test]
fn what_the_control_plane_allocates_must_be_stated_or_is_not_served_e0_8() {
    let said = faults("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}");
    assert!(said[0].starts_with("t.yaml:1:60: Service default/a: spec.clusterIP: is required"), "{said:?}");
    let snapshot = load(&service("a", "10.96.0.1", "type: NodePort, ports: [{port: 80}]"));
    assert!(snapshot.warnings[0].contains("a port without nodePort"), "{:?}", snapshot.warnings);
    let warnings = |spec: &str| load(&service("a", "10.96.0.1", &format!("type: LoadBalancer, {spec} ports: [{{port: 80}}]"))).warnings;
    assert!(warnings("")[0].contains("a port without nodePort"), "E0.3: they are allocated by default");
    assert!(warnings("allocateLoadBalancerNodePorts: false,").is_empty(), "E2.33");
    let local = warnings("allocateLoadBalancerNodePorts: false, externalTrafficPolicy: Local,");
    assert!(local.len() == 1 && local[0].contains("no healthCheckNodePort"), "E2.33: that one still is allocated");
}

#[test]
fn every_field_of_an_endpoint_slice_is_read() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ''}}\naddressType: IPv6\nendpoints:\n- {addresses: ['fd00::1', 'fd00::2'], nodeName: n1, zone: z, hostname: h, conditions: {ready: false, serving: true, terminating: true}, hints: {forZones: [{name: z1}], forNodes: [{name: n2}]}}\n- {addresses: ['fd00::3']}\n- {addresses: ['fd00::4'], conditions: {ready: null}}\nports: [{name: http, port: 80, protocol: SCTP}, {port: 81}, {name: none}]\n";
    let snapshot = load(text);
    let slice = &snapshot.slices[0];
    assert_eq!((slice.service.as_deref(), slice.headless, slice.family), (Some("web"), true, Some(Family::V6)));
    let e = &slice.endpoints[0];
    assert_eq!((e.address, e.ready, e.serving, e.terminating), (ip("fd00::1"), false, true, true), "E2.8: the first address");
    assert_eq!((e.node.as_deref(), &e.hint_zones[..], &e.hint_nodes[..]), (Some("n1"), &["z1".to_owned()][..], &["n2".to_owned()][..]));
    for e in &slice.endpoints[1..] {
        assert_eq!((e.ready, e.serving, e.terminating), (true, true, false), "E0.4");
    }
    let ports: Vec<_> = slice.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
    assert_eq!(ports, [("http", Protocol::Sctp, 80), ("", Protocol::Tcp, 81)], "a port without a number is skipped");
    assert_eq!(snapshot.warnings.len(), 1, "a slice of no Service is a warning: {:?}", snapshot.warnings);
    assert!(
        snapshot.warnings[0].contains("EndpointSlice shop/web-1: metadata.labels: is a slice of Service web, which is not in the snapshot")
    );
}

#[test]
fn every_field_of_a_network_policy_is_read() {
    let snapshot = load(&policy(
        "{podSelector: {matchLabels: {app: web}, matchExpressions: [{key: k, operator: In, values: [a, b]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}, namespaceSelector: {matchLabels: {team: x}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80}, {port: web, protocol: UDP}, {protocol: SCTP}]}, {}], egress: [{to: [{ipBlock: {cidr: 'fd00::/8', except: ['fd00:1::/32']}}], ports: [{port: 1, endPort: 9}]}]}",
    ));
    let p = &snapshot.network_policies[0];
    assert_eq!(p.pod_selector.to_string(), "app=web,k in (a,b)");
    let ingress = p.ingress.as_ref().unwrap();
    assert_eq!(ingress[1], PolicyRule::default());
    let Peer::Pods { namespaces: Some(namespaces), pods: Some(pods) } = &ingress[0].peers[0] else { panic!("{ingress:?}") };
    assert_eq!((namespaces.to_string().as_str(), pods.is_empty()), ("team=x", true));
    assert_eq!(ingress[0].peers[1], Peer::Block { cidr: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16")] });
    let named = PortMatch { protocol: Some(Protocol::Udp), port: PortSpec::Named("web".into()) };
    let any = PortMatch { protocol: Some(Protocol::Sctp), port: PortSpec::Any };
    assert_eq!(ingress[0].ports, [range(Protocol::Tcp, 80, 80), named, any]);
    let egress = &p.egress.as_ref().unwrap()[0];
    assert_eq!(egress.peers, [Peer::Block { cidr: net("fd00::/8"), except: vec![net("fd00:1::/32")] }]);
    assert_eq!(egress.ports, [range(Protocol::Tcp, 1, 9)]);
}

#[test]
fn policy_types_default_by_the_rules_that_are_there_e0_1() {
    for (spec, ingress, egress) in [
        ("{}", Some(0), None),
        ("{egress: []}", Some(0), None),
        ("{egress: null}", Some(0), None),
        ("{egress: [{}]}", Some(0), Some(1)),
        ("{ingress: [{}], policyTypes: []}", Some(1), None),
        ("{ingress: [{}], egress: [{}], policyTypes: [Egress]}", None, Some(1)),
        ("{policyTypes: [Egress]}", None, Some(0)),
    ] {
        let snapshot = load(&policy(spec));
        let p = &snapshot.network_policies[0];
        assert_eq!((p.ingress.as_ref().map(Vec::len), p.egress.as_ref().map(Vec::len)), (ingress, egress), "{spec}");
    }
}

#[test]
fn what_is_null_or_absent_is_what_the_api_server_makes_of_it_e1_2_e1_13() {
    let bare = load("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}}");
    let first = &bare.network_policies[0];
    assert_eq!((&first.ingress, &first.egress), (&Some(Vec::new()), &None));
    assert!(first.pod_selector.is_empty() && bare.warnings.len() == 1, "{:?}", bare.warnings);
    let nulls = load(&policy("{podSelector: null, policyTypes: null, ingress: [{from: null, ports: [null]}, null], egress: []}"));
    let second = &nulls.network_policies[0];
    let rules = second.ingress.as_ref().unwrap();
    assert_eq!(rules[0].ports, [PortMatch { protocol: Some(Protocol::Tcp), port: PortSpec::Any }]);
    assert!(rules[0].peers.is_empty() && rules[1] == PolicyRule::default() && second.egress.is_none());
}

#[test]
fn absent_selectors_differ_from_empty_ones_e1_19() {
    let peer = |peer: &str| match load(&policy(&format!("{{ingress: [{{from: [{peer}]}}]}}"))).network_policies[0].ingress.as_ref().unwrap()
        [0]
    .peers[0]
        .clone()
    {
        Peer::Pods { namespaces, pods } => (namespaces.is_some(), pods.is_some()),
        Peer::Block { .. } => panic!("{peer}"),
    };
    assert_eq!(peer("{podSelector: {}}"), (false, true));
    assert_eq!(peer("{podSelector: null, namespaceSelector: {}}"), (true, false));
    assert_eq!(peer("{podSelector: {}, namespaceSelector: {}}"), (true, true));
}

#[test]
fn every_field_of_a_cluster_policy_is_read() {
    let text = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec:\n  tier: Baseline\n  priority: 7\n  subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}\n  ingress:\n  - {name: first, action: Accept, from: [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {e: f}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {destinationNamedPort: web}]}\n  egress:\n  - {action: Pass, to: [{nodes: {matchLabels: {g: h}}}, {networks: [10.0.0.0/8]}, {}, {future: {}}], protocols: [{sctp: {destinationPort: {number: 5}}}]}\n";
    let snapshot = load(text);
    let p = &snapshot.cluster_policies[0];
    assert_eq!((p.kind, p.tier, p.priority), (PolicyKind::ClusterNetworkPolicy, Tier::Baseline, 7));
    assert_eq!((p.subject.namespaces.to_string(), p.subject.pods.to_string()), ("a=b".into(), "c=d".into()));
    let rule = &p.ingress[0];
    assert_eq!((rule.name.as_deref(), rule.action), (Some("first"), Action::Allow));
    let ClusterPeer::Pods(pods) = &rule.peers[1] else { panic!("{rule:?}") };
    assert_eq!((rule.peers[0].clone(), pods.pods.to_string()), (ClusterPeer::Pods(PodSelection::default()), "e=f".into()));
    let named = PortMatch { protocol: None, port: PortSpec::Named("web".into()) };
    assert_eq!(rule.ports, [range(Protocol::Tcp, 80, 80), range(Protocol::Udp, 1, 9), named.clone()]);
    let rule = &p.egress[0];
    let ClusterPeer::Nodes(nodes) = &rule.peers[0] else { panic!("{rule:?}") };
    assert_eq!((rule.action, nodes.to_string()), (Action::Pass, "g=h".into()));
    assert_eq!(rule.peers[1..], [ClusterPeer::Networks(vec![net("10.0.0.0/8")]), ClusterPeer::Unknown, ClusterPeer::Unknown]);
    assert_eq!(rule.ports, [range(Protocol::Sctp, 5, 5)]);
    assert_eq!(snapshot.warnings.len(), 2, "unknown peers fail closed, loudly: {:?}", snapshot.warnings);

    let text = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\nspec:\n  priority: 3\n  subject: {namespaces: {}}\n  ingress: [{action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {portRange: {protocol: UDP, start: 1, end: 9}}, {namedPort: web}]}]\n";
    let snapshot = load(text);
    let p = &snapshot.cluster_policies[0];
    assert_eq!((p.kind, p.tier, p.priority, p.ingress[0].action), (PolicyKind::AdminNetworkPolicy, Tier::Admin, 3, Action::Deny));
    assert_eq!(p.ingress[0].ports, [range(Protocol::Tcp, 80, 80), range(Protocol::Udp, 1, 9), named]);
}

#[test]
fn equal_tier_and_priority_is_a_warning_e1_49() {
    let one = |name: &str| {
        format!(
            "---\n{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}}}}}\n"
        )
    };
    let snapshot = load(&(one("a") + &one("b")));
    assert!(
        snapshot.warnings[0].contains("ClusterNetworkPolicy b: spec.priority: has the tier and priority of a"),
        "{:?}",
        snapshot.warnings
    );
}

#[test]
fn a_load_balancer_address_that_source_ranges_do_not_guard_is_a_warning_e2_32() {
    let service = |ranges: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: a, namespace: b}}, spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}], loadBalancerSourceRanges: {ranges}}}, status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.1}}]}}}}}}\n"
        )
    };
    let warnings = load(&service("['fd00::/8']")).warnings;
    assert!(warnings.iter().any(|w| w.contains("everybody may reach") && w.contains("192.0.2.1")), "{warnings:?}");
    for quiet in ["[]", "['fd00::/8', 10.0.0.0/8]"] {
        let warnings = load(&service(quiet)).warnings;
        assert!(!warnings.iter().any(|w| w.contains("everybody")), "{quiet}: {warnings:?}");
    }
}

#[test]
fn many_items_are_read_by_several_threads_in_their_order_and_with_their_places() {
    let items = |odd: &dyn Fn(usize) -> bool| {
        let item = |n| {
            let name = if odd(n) { "7".to_owned() } else { format!("\"pod-{n}\"") };
            format!(r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": {name}, "labels": {{"n": "{n}"}}}}}}"#)
        };
        format!("{{\"kind\": \"List\", \"items\": [\n{}]}}", (0..2000).map(item).collect::<Vec<_>>().join(",\n"))
    };
    let all = load_text("t.json", &items(&|_| false)).unwrap().namespaces;
    assert_eq!(all.len(), 2000);
    for (n, namespace) in all.iter().enumerate() {
        assert_eq!((namespace.meta.name.as_str(), namespace.meta.origin.line), (format!("pod-{n}").as_str(), n as u32 + 2));
    }
    let faults = load_text("t.json", &items(&|n| n % 7 == 3)).unwrap_err();
    let lines: Vec<u32> = faults.0.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, (0..2000).filter(|n| n % 7 == 3).map(|n| n + 2).collect::<Vec<u32>>());
}
