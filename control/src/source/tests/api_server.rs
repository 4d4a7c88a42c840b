//! What the API server refuses although each field is well-formed by itself, and what it takes although it looks odd. A snapshot
//! written by hand has not met it (E0).

use super::*;

/// `kind` at line 1 with these lists of fields.
fn object(kind: &str, name: &str, rest: &str) -> String {
    let version = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\n{rest}\n")
}
/// A Service whose `spec` also has a port, unless it states some.
fn a_service(spec: &str) -> String {
    let ports = if spec.contains("ports:") { "" } else { "ports: [{port: 80}], " };
    object("Service", "a", &format!("spec: {{{ports}{spec}}}"))
}
/// An IPv4 EndpointSlice with one endpoint.
fn a_slice(endpoint: &str, ports: &str) -> String {
    object("EndpointSlice", "a", &format!("addressType: IPv4\nports: [{ports}]\nendpoints: [{{addresses: [10.0.0.1], {endpoint}}}]"))
}
/// `count` times what `item` makes of the number, as items of a list.
fn items(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

#[test]
fn what_the_api_server_refuses_is_refused_with_its_place() {
    let address = "clusterIP: 10.96.0.1";
    let balanced = "type: LoadBalancer, clusterIP: 10.96.0.1";
    let label = "a".repeat(64);
    for (text, expected) in [
        (
            object("Service", "a.b", "spec: {clusterIP: None}"),
            "t.yaml:3:18: Service default/a.b: metadata.name: \"a.b\" is no name: lower case letters, digits and - (at most 63)",
        ),
        (
            object("Namespace", &label, ""),
            &format!(
                "t.yaml:3:18: Namespace {label}: metadata.name: \"{label}\" is no name: lower case letters, digits and - (at most 63)"
            ),
        ),
        (
            object("Pod", "p, namespace: a.b", "spec: {}"),
            "t.yaml:3:32: Pod a.b/p: metadata.namespace: \"a.b\" is no name: lower case letters, digits and - (at most 63)",
        ),
        (
            a_service(&format!("{address}, ports: [{{port: 80, name: a.b}}]")),
            "t.yaml:4:55: Service default/a: spec.ports[0].name: \"a.b\" is no name: lower case letters, digits and - (at most 63)",
        ),
        (a_service(&format!("{address}, ipFamilies: [IPv4, IPv4]")), "t.yaml:4:63: Service default/a: spec.ipFamilies: IPv4 stands twice"),
        (
            a_service(&format!("{address}, ipFamilies: [IPv6]")),
            "t.yaml:4:63: Service default/a: spec.ipFamilies: 10.96.0.1 of clusterIPs is not of the family in its place",
        ),
        (
            a_service(&format!("{address}, ipFamilies: [IP]")),
            "t.yaml:4:64: Service default/a: spec.ipFamilies[0]: \"IP\" is not one of IPv4, IPv6",
        ),
        (
            a_service(&format!("{address}, ipFamilyPolicy: DualStack")),
            "t.yaml:4:67: Service default/a: spec.ipFamilyPolicy: \"DualStack\" is not one of SingleStack, PreferDualStack, RequireDualStack",
        ),
        (
            a_service("clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.96.0.1], ipFamilyPolicy: SingleStack"),
            "t.yaml:4:103: Service default/a: spec.ipFamilyPolicy: SingleStack excludes a second family",
        ),
        (
            a_service(&format!("{address}, ipFamilies: [IPv4, IPv6], ipFamilyPolicy: SingleStack")),
            "t.yaml:4:93: Service default/a: spec.ipFamilyPolicy: SingleStack excludes a second family",
        ),
        (
            a_service(&format!("{address}, loadBalancerSourceRanges: [10.0.0.0/8]")),
            "t.yaml:4:77: Service default/a: spec.loadBalancerSourceRanges: is for type LoadBalancer only: it would keep nobody out",
        ),
        (
            a_service(balanced) + "status: {loadBalancer: {ingress: [{hostname: x, ipMode: VIP}]}}",
            "t.yaml:5:57: Service default/a: status.loadBalancer.ingress[0].ipMode: is said of an ip, and there is none",
        ),
        (
            a_slice("nodeName: 'a b'", ""),
            "t.yaml:6:47: EndpointSlice default/a: endpoints[0].nodeName: \"a b\" is no name: lower case letters, digits, - and . (at most 253)",
        ),
        (
            a_slice("hints: {forZones: [{name: 'a b'}]}", ""),
            "t.yaml:6:63: EndpointSlice default/a: endpoints[0].hints.forZones[0].name: \"a b\" is no label value: at most 63 of letters, digits, -, _ and ., a letter or digit at both ends",
        ),
        (
            a_slice("hints: {forZones: [{name: z}, {name: z}]}", ""),
            "t.yaml:6:55: EndpointSlice default/a: endpoints[0].hints.forZones: \"z\" stands twice",
        ),
        (
            a_slice("hints: {forNodes: [{name: A_b}]}", ""),
            "t.yaml:6:63: EndpointSlice default/a: endpoints[0].hints.forNodes[0].name: \"A_b\" is no name: lower case letters, digits, - and . (at most 253)",
        ),
        (
            a_slice("hints: {forNodes: [{name: w}, {name: w}]}", ""),
            "t.yaml:6:55: EndpointSlice default/a: endpoints[0].hints.forNodes: \"w\" stands twice",
        ),
        (
            a_slice(&format!("hints: {{forZones: [{}]}}", items(9, |n| format!("{{name: z{n}}}"))), ""),
            "t.yaml:6:55: EndpointSlice default/a: endpoints[0].hints.forZones: has 9 items; 0 to 8 are allowed",
        ),
        (
            a_slice("", "{name: a.b, port: 80}"),
            "t.yaml:5:16: EndpointSlice default/a: ports[0].name: \"a.b\" is no name: lower case letters, digits and - (at most 63)",
        ),
        (
            a_slice("", "{name: a, port: 80}, {name: a, port: 81, protocol: UDP}"),
            "t.yaml:5:8: EndpointSlice default/a: ports: the name \"a\" stands twice",
        ),
        (a_slice("", "{port: 80}, {port: 81}"), "t.yaml:5:8: EndpointSlice default/a: ports: the name \"\" stands twice"),
        (
            a_slice("", &items(20_001, |n| format!("{{name: p{n}, port: 80}}"))),
            "t.yaml:5:8: EndpointSlice default/a: ports: has 20001 items; 0 to 20000 are allowed",
        ),
        (
            object("EndpointSlice", "a", &format!("addressType: IPv4\nendpoints: [{}]", items(1001, |_| "{addresses: [10.0.0.1]}".into()))),
            "t.yaml:5:12: EndpointSlice default/a: endpoints: has 1001 items; 0 to 1000 are allowed",
        ),
        (
            object(
                "EndpointSlice",
                "a",
                &format!("addressType: IPv4\nendpoints: [{{addresses: [{}]}}]", items(101, |_| "10.0.0.1".into())),
            ),
            "t.yaml:5:25: EndpointSlice default/a: endpoints[0].addresses: has 101 items; 0 to 100 are allowed",
        ),
        (
            object("Pod", "p", "spec: {nodeName: A_b, containers: []}"),
            "t.yaml:4:18: Pod default/p: spec.nodeName: \"A_b\" is no name: lower case letters, digits, - and . (at most 253)",
        ),
        (
            object("Pod", "p", "spec: {containers: [{ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]}]}"),
            "t.yaml:4:29: Pod default/p: spec.containers[0].ports: \"a\" names two TCP ports",
        ),
        (
            object("Node", "w", "spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.2.0.0/24]}"),
            "t.yaml:4:17: Node w: spec.podCIDR: 10.1.0.0/24 is not the first of podCIDRs, 10.2.0.0/24",
        ),
        (
            object("Node", "w", "spec: {podCIDRs: [10.1.0.0/24, 10.2.0.0/24]}"),
            "t.yaml:4:18: Node w: spec.podCIDRs: at most one block of each family",
        ),
    ] {
        assert_eq!(faults(&text), [expected], "{}", text.chars().take(300).collect::<String>());
    }
}

#[test]
fn what_the_api_server_takes_is_taken() {
    for spec in [
        "clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], externalTrafficPolicy: Local",
        "clusterIP: 10.96.0.1, externalTrafficPolicy: '', healthCheckNodePort: 0, loadBalancerSourceRanges: [], ipFamilies: []",
        "clusterIP: 10.96.0.1, allocateLoadBalancerNodePorts: null",
        "clusterIP: 10.96.0.1, ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack",
        "clusterIP: 10.96.0.1, ipFamilies: [IPv4], ipFamilyPolicy: RequireDualStack",
        "clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.96.0.1], ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack",
        "clusterIP: None, ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack",
        "clusterIP: 10.96.0.1, internalTrafficPolicy: Local, sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
        "type: LoadBalancer, clusterIP: 10.96.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 30000, allocateLoadBalancerNodePorts: false",
        "type: ExternalName, externalName: x, clusterIP: '', ports: [{port: 80, nodePort: 30000}], sessionAffinity: ClientIP",
    ] {
        load(&a_service(spec));
    }
    load(
        &(a_service("type: LoadBalancer, clusterIP: 10.96.0.1")
            + "status: {loadBalancer: {ingress: [{hostname: x}, {ip: 192.0.2.1, ipMode: VIP}]}}"),
    );
    load(&a_slice(
        "nodeName: node-a.example, hints: {forZones: [{name: eu-1A}], forNodes: []}",
        "{port: 80}, {name: a, port: 80}, {name: b, port: 80}",
    ));
    load(&a_slice(
        &format!("hints: {{forZones: [{}]}}", items(8, |n| format!("{{name: z{n}}}"))),
        &items(20_000, |n| format!("{{name: p{n}, port: 80}}")),
    ));
    load(&object(
        "EndpointSlice",
        "a.b",
        &format!("addressType: IPv4\nendpoints: [{}]", items(1000, |_| "{addresses: [10.0.0.1]}".into())),
    ));
    load(&object("EndpointSlice", "a", &format!("addressType: IPv4\nendpoints: [{{addresses: [{}]}}]", items(100, |_| "10.0.0.1".into()))));
    load(&object("Pod", "p.q", "spec: {containers: [{ports: [{name: a, containerPort: 1}]}, {ports: [{name: a, containerPort: 2}]}]}"));
    // E1.27: a name and a protocol are one port.
    load(&object("Pod", "p", "spec: {containers: [{ports: [{name: a, containerPort: 1}, {name: a, containerPort: 1, protocol: UDP}]}]}"));
    load(&object("Node", "n.example", "spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}"));
}

#[test]
fn addresses_of_a_name_in_the_dns_are_a_warning_e2_49() {
    for spec in ["clusterIP: 10.96.0.1", "clusterIPs: [None]", "ipFamilies: [IPv4]", "ipFamilyPolicy: SingleStack"] {
        let loaded = load(&a_service(&format!("type: ExternalName, externalName: x, {spec}")));
        assert_eq!(
            loaded.warnings,
            [
                "t.yaml:4:7: Service default/a: spec: an ExternalName is a name in the DNS: what is said of its addresses counts for nothing (E2.49)"
            ],
            "{spec}"
        );
    }
    assert!(load(&a_service("type: ExternalName, externalName: x, clusterIP: ''")).warnings.is_empty());
}

#[test]
fn what_says_nothing_for_a_service_of_this_type_is_a_warning() {
    let (address, balanced) = ("clusterIP: 10.96.0.1", "type: LoadBalancer, clusterIP: 10.96.0.1");
    for (spec, key) in [
        (format!("{address}, allocateLoadBalancerNodePorts: false"), "allocateLoadBalancerNodePorts"),
        (format!("{address}, externalTrafficPolicy: Local"), "externalTrafficPolicy"),
        ("type: ExternalName, externalName: x, externalIPs: [192.0.2.1], externalTrafficPolicy: Local".into(), "externalTrafficPolicy"),
        (format!("{address}, healthCheckNodePort: 30000"), "healthCheckNodePort"),
        (format!("{balanced}, healthCheckNodePort: 30000"), "healthCheckNodePort"),
        (format!("type: NodePort, {address}, externalTrafficPolicy: Local, healthCheckNodePort: 30000"), "healthCheckNodePort"),
    ] {
        let loaded = load(&a_service(&spec));
        let warnings: Vec<_> = loaded.warnings.iter().filter(|w| w.contains("says nothing")).collect();
        assert!(
            matches!(&warnings[..], [one] if one.starts_with(&format!("t.yaml:4:7: Service default/a: spec: {key} says nothing"))),
            "{spec}: {warnings:?}"
        );
        let service = &loaded.services[0];
        assert!(service.health_check_node_port.is_none() && !service.external_local || spec.contains("NodePort,"), "{spec}");
    }
}

#[test]
fn an_affinitys_configuration_without_an_affinity_is_a_warning() {
    let loaded = load(&a_service("clusterIP: 10.96.0.1, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"));
    assert_eq!(loaded.services[0].affinity_timeout_secs, None);
    assert_eq!(
        loaded.warnings,
        ["t.yaml:4:7: Service default/a: spec: sessionAffinityConfig says nothing without sessionAffinity: ClientIP"]
    );
}
