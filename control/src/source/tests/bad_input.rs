//! Bad input, each with its message: what, where, and what would be right.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// The one fault of a policy with this spec, without its place.
fn policy_fault(spec: &str) -> String {
    let said = faults(&policy(spec));
    assert_eq!(said.len(), 1, "{spec}: {said:#?}");
    said[0].split_once("NetworkPolicy shop/p: ").unwrap_or_else(|| panic!("{}", said[0])).1.to_owned()
}
/// The faults of a Service with this spec, without places.
fn service_faults(spec: &str) -> Vec<String> {
    faults(&service("a", "10.96.0.1", spec)).iter().map(|f| f.split_once("Service shop/a: ").unwrap().1.to_owned()).collect()
}

#[test]
fn all_faults_of_all_documents_come_together_with_their_places() {
    let text = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-web, namespace: shop}
spec:
  ingress:
  - ports:
    - port: 8080
      endPort: 80
    form: []
---
a: [1
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports: [{port: 70000}]
";
    let said = faults(text);
    assert_eq!(said[0], "t.yaml:8:16: NetworkPolicy shop/allow-web: spec.ingress[0].ports[0].endPort: must not be below port (8080)");
    assert_eq!(
        said[1],
        "t.yaml:9:5: NetworkPolicy shop/allow-web: spec.ingress[0].form: is not a field of NetworkPolicy; did you mean from?"
    );
    assert_eq!(said[2], "t.yaml:11:4: YAML: unclosed bracket '['");
    assert_eq!(said[3], "t.yaml:18:18: Service shop/web: spec.ports[0].port: 70000 is out of range: 1 to 65535");
    assert_eq!(said.len(), 4, "{said:#?}");
}

#[test]
fn json_faults_have_line_and_column_too() {
    let text = "{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {\"name\": \"p\"},\n \"spec\": {\"podSelectr\": {}}}";
    let said = load_text("p.json", text).unwrap_err().to_string();
    assert_eq!(said, "p.json:2:11: NetworkPolicy default/p: spec.podSelectr: is not a field of NetworkPolicy; did you mean podSelector?");
}

#[test]
fn a_field_that_resembles_none_gets_no_suggestion() {
    let said = load_text("t.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {foo: 1}}").unwrap_err().to_string();
    assert_eq!(said, "t.yaml:1:57: Pod default/p: spec.foo: is not a field of Pod");
}

#[test]
fn policy_ports_that_mean_nothing_are_refused_e0_7() {
    for (port, expected) in [
        ("{port: 80, endPort: 79}", "endPort: must not be below port (80)"),
        ("{endPort: 80}", "endPort: needs a port where the range starts"),
        ("{port: web, endPort: 80}", "endPort: needs a numeric port, not a name"),
        ("{port: 0}", "port: 0 is out of range: 1 to 65535"),
        ("{port: 65536}", "port: 65536 is out of range: 1 to 65535"),
        ("{port: 1, endPort: 65536}", "endPort: 65536 is out of range: 1 to 65535"),
        ("{protocol: ICMP}", "protocol: \"ICMP\" is not one of TCP, UDP, SCTP"),
        ("{protocol: tcp}", "protocol: \"tcp\" is not one of TCP, UDP, SCTP"),
    ] {
        assert_eq!(policy_fault(&format!("{{ingress: [{{ports: [{port}]}}]}}")), format!("spec.ingress[0].ports[0].{expected}"));
    }
    assert!(policy_fault("{ingress: [{ports: [{port: '80'}]}]}").contains("\"80\" is no port name"));
}

#[test]
fn policy_peers_that_mean_nothing_are_refused_e0_7() {
    for (peer, expected) in [
        ("{}", ": must have a podSelector, a namespaceSelector or an ipBlock"),
        ("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}", ": ipBlock excludes the selectors in one peer"),
        ("{ipBlock: {except: []}}", ".ipBlock.cidr: is required"),
        ("{ipBlock: {cidr: 10.0.0.0}}", ".ipBlock.cidr: \"10.0.0.0\" is no address block: it has no prefix length, as in 10.0.0.0/8"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", ".ipBlock.cidr: \"10.0.0.0/33\" is no address block: its prefix length is out of range"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}", ".ipBlock.except[0]: 11.0.0.0/16 must be strictly inside 10.0.0.0/8"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", ".ipBlock.except[0]: 10.0.0.0/8 must be strictly inside 10.0.0.0/8"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}", ".ipBlock.except[0]: fd00::/64 must be strictly inside 10.0.0.0/8"),
    ] {
        assert_eq!(policy_fault(&format!("{{egress: [{{to: [{peer}]}}]}}")), format!("spec.egress[0].to[0]{expected}"));
    }
    assert_eq!(policy_fault("{policyTypes: [Ingres]}"), "spec.policyTypes[0]: \"Ingres\" is not one of Ingress, Egress");
    assert_eq!(policy_fault("{policyTypes: [Ingress, Egress, Ingress]}"), "spec.policyTypes: has more than two items");
}

#[test]
fn invalid_selectors_are_refused() {
    for (selector, expected) in [
        (
            "matchExpressions: [{key: a, operator: Is}]",
            "matchExpressions[0].operator: \"Is\" is not one of In, NotIn, Exists, DoesNotExist",
        ),
        ("matchExpressions: [{key: a}]", "matchExpressions[0].operator: is required: In, NotIn, Exists or DoesNotExist"),
        ("matchExpressions: [{operator: Exists}]", "matchExpressions[0].key: is required"),
        ("matchExpressions: [{key: a, operator: In}]", "matchExpressions[0].values: operator In needs at least one value"),
        (
            "matchExpressions: [{key: a, operator: NotIn, values: []}]",
            "matchExpressions[0].values: operator NotIn needs at least one value",
        ),
        ("matchExpressions: [{key: a, operator: Exists, values: [b]}]", "matchExpressions[0].values: operator Exists takes no values"),
        ("matchLabels: [a]", "matchLabels: must be a map, not a list"),
    ] {
        assert_eq!(policy_fault(&format!("{{podSelector: {{{selector}}}}}")), format!("spec.podSelector.{expected}"));
    }
    for key in ["/k", "a=b", "'a b'", "-a"] {
        assert!(policy_fault(&format!("{{podSelector: {{matchLabels: {{{key}: v}}}}}}")).contains("is no label key"), "{key}");
    }
}

#[test]
fn yaml_1_1_truth_words_are_no_label_values() {
    for (word, kind) in
        [("on", "a boolean"), ("no", "a boolean"), ("y", "a boolean"), ("true", "a boolean"), ("1.0", "a number"), ("80", "a number")]
    {
        let said = policy_fault(&format!("{{podSelector: {{matchLabels: {{feature: {word}}}}}}}"));
        assert_eq!(said, format!("spec.podSelector.matchLabels.feature: must be text, but `{word}` reads as {kind}: quote it"));
    }
    assert_eq!(
        policy_fault("{podSelector: {matchLabels: {on: x}}}"),
        "spec.podSelector.matchLabels.on: the key `on` reads as a boolean: quote it"
    );
    load(&policy("{podSelector: {matchLabels: {'on': 'on', a: }}}"));
}

#[test]
fn service_faults_name_their_field() {
    for (spec, expected) in [
        ("ports: [{port: 0}]", "spec.ports[0].port: 0 is out of range: 1 to 65535"),
        ("ports: [{port: 65536}]", "spec.ports[0].port: 65536 is out of range: 1 to 65535"),
        ("ports: [{name: a}]", "spec.ports[0].port: is required"),
        ("ports: []", "spec.ports: is required: at least one port"),
        ("ports: [{port: 80, protocol: ICMP}]", "spec.ports[0].protocol: \"ICMP\" is not one of TCP, UDP, SCTP"),
        ("ports: [{port: 80}, {port: 81, name: a}]", "spec.ports: each of several ports needs a name"),
        ("ports: [{port: 80, name: a}, {port: 81, name: a}]", "spec.ports: the name \"a\" stands twice"),
        ("ports: [{port: 80, name: a}, {port: 80, name: b}]", "spec.ports: TCP port 80 stands twice"),
        ("ports: [{port: 80, nodePort: 30000}]", "spec.ports[0].nodePort: is for types NodePort and LoadBalancer only"),
        ("ports: [{port: 80, targetPort: 70000}]", "spec.ports[0].targetPort: 70000 is out of range: 1 to 65535"),
        ("ports: [{port: 80}], type: Headless", "spec.type: \"Headless\" is not one of ClusterIP, NodePort, LoadBalancer, ExternalName"),
        ("ports: [{port: 80}], sessionAffinity: Cookie", "spec.sessionAffinity: \"Cookie\" is not one of None, ClientIP"),
        (
            "ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is out of range: 1 to 86400",
        ),
        (
            "ports: [{port: 80}], type: NodePort, externalTrafficPolicy: Zone",
            "spec.externalTrafficPolicy: \"Zone\" is not one of Cluster, Local",
        ),
        ("ports: [{port: 80}], clusterIPs: [10.96.0.2]", "spec.clusterIP: is not the first of clusterIPs"),
        ("ports: [{port: 80}], clusterIPs: [10.96.0.1, 10.96.0.2]", "spec.clusterIPs: at most one address of each family"),
        (
            "ports: [{port: 80}], externalIPs: [127.0.0.1]",
            "spec.externalIPs[0]: \"127.0.0.1\" is a loopback address, which cannot be meant here",
        ),
        ("ports: [{port: 80}], externalIPs: [web]", "spec.externalIPs[0]: \"web\" is no IP address"),
        (
            "ports: [{port: 80}], topologyKeys: ['*']",
            "spec.topologyKeys: is not supported: removed from Kubernetes in 1.22; use trafficDistribution",
        ),
        (
            "ports: [{port: 80}], loadBalancerSourceRange: []",
            "spec.loadBalancerSourceRange: is not a field of Service; did you mean loadBalancerSourceRanges?",
        ),
    ] {
        assert_eq!(service_faults(spec), [expected], "{spec}");
    }
}

#[test]
fn two_live_pods_cannot_have_one_address() {
    let running = |name| pod(name, "nodeName: n1", "phase: Running, podIP: 10.244.1.5");
    let said = faults(&(running("a") + &running("b")));
    assert_eq!(
        said,
        ["t.yaml:8:1: Pod shop/b: status.podIPs: 10.244.1.5 is also the address of pod shop/a (t.yaml:2:1), which has not finished"]
    );
    load(&(running("a") + &pod("b", "nodeName: n1", "phase: Failed, podIP: 10.244.1.5")));
    let host = |name| pod(name, "hostNetwork: true", "podIP: 10.0.0.10");
    load(&(host("a") + &host("b")));
}

#[test]
fn two_services_cannot_share_address_and_port_or_a_node_port() {
    let said = faults(&(service("a", "10.96.0.1", "ports: [{port: 80}]") + &service("b", "10.96.0.1", "ports: [{port: 80}]")));
    assert_eq!(said, ["t.yaml:7:1: Service shop/b: spec.ports: 10.96.0.1 TCP 80 is also a port of Service shop/a (t.yaml:2:1)"]);
    load(&(service("a", "10.96.0.1", "ports: [{port: 80}]") + &service("b", "10.96.0.1", "ports: [{port: 80, protocol: UDP}]")));
    let node_port = |name, address| service(name, address, "type: NodePort, ports: [{port: 80, nodePort: 3000}]");
    let said = faults(&(node_port("a", "10.96.0.1") + &node_port("b", "10.96.0.2")));
    assert_eq!(said, ["t.yaml:7:1: Service shop/b: spec.ports: nodePort TCP 3000 is also one of Service shop/a (t.yaml:2:1)"]);
}

#[test]
fn a_health_check_port_cannot_be_another_services_node_port() {
    let said = faults(
        &(service("a", "10.96.0.1", "type: NodePort, ports: [{port: 80, nodePort: 3000}]")
            + &service(
                "b",
                "10.96.0.2",
                "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 3000, ports: [{port: 80}]",
            )),
    );
    assert_eq!(
        said,
        ["t.yaml:7:1: Service shop/b: spec.healthCheckNodePort: port 3000 is also a node port of Service shop/a (t.yaml:2:1)"]
    );
}

#[test]
fn a_slice_of_no_service_is_a_warning_with_its_place() {
    let slice = |of: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: IPv4\nports: []\nendpoints: []\n"
        )
    };
    let loaded = load(&(service("web", "10.96.0.1", "ports: [{port: 80}]") + &slice("wep")));
    assert_eq!(
        loaded.warnings,
        ["t.yaml:7:1: EndpointSlice shop/s: metadata.labels: is a slice of Service wep, which is not in the snapshot"]
    );
    assert!(load(&(service("web", "10.96.0.1", "ports: [{port: 80}]") + &slice("web"))).warnings.is_empty());
}

#[test]
fn an_unknown_protocol_of_a_slice_is_refused() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\nports: [{port: 80, protocol: QUIC}]\nendpoints: []\n";
    let said = faults(slice);
    assert_eq!(said, ["t.yaml:5:30: EndpointSlice default/s: ports[0].protocol: \"QUIC\" is not one of TCP, UDP, SCTP"]);
}

#[test]
fn an_address_of_the_wrong_family_is_refused() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\nendpoints: [{addresses: ['fd00::1']}, {addresses: []}]\n";
    let said = faults(slice);
    assert_eq!(
        said[0],
        "t.yaml:5:26: EndpointSlice default/s: endpoints[0].addresses[0]: fd00::1 is an IPv6 address in a slice of addressType IPv4"
    );
    assert_eq!(said[1], "t.yaml:5:51: EndpointSlice default/s: endpoints[1].addresses: is required: at least one address");
}

#[test]
fn pod_address_blocks_of_nodes_cannot_overlap() {
    let node =
        |name: &str, block: &str| format!("---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {block}}}}}\n");
    let said = faults(&(node("a", "10.244.0.0/16") + &node("b", "10.244.1.0/24") + &node("c", "10.245.0.0/24")));
    assert_eq!(said, ["t.yaml:4:1: Node b: spec.podCIDRs: 10.244.1.0/24 overlaps 10.244.0.0/16 of Node a (t.yaml:2:1)"]);
}

#[test]
fn other_versions_of_known_kinds_are_refused() {
    let said = faults("{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: p}, spec: {}}");
    assert_eq!(
        said,
        [
            "t.yaml:1:14: NetworkPolicy default/p: apiVersion: \"extensions/v1beta1\" of NetworkPolicy is not supported; networking.k8s.io/v1 is"
        ]
    );
    let snapshot = load("{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {}}");
    assert_eq!(snapshot.warnings, ["1 objects of crd.projectcalico.org/v1 NetworkPolicy are left out: its rules are not enforced"]);
}

#[test]
fn what_is_no_object_is_refused() {
    assert_eq!(faults("a: 1"), ["t.yaml:1:1: apiVersion: is missing: this is no Kubernetes object"]);
    assert_eq!(faults("{apiVersion: v1}"), ["t.yaml:1:1: kind: is missing: this is no Kubernetes object"]);
    assert_eq!(faults("[1]")[0], "t.yaml:1:1: apiVersion: is missing: this is no Kubernetes object");
    assert!(faults("{apiVersion: v1, kind: Pod, spec: {}}")[0].ends_with("metadata: is required"));
    assert!(faults("{apiVersion: v1, kind: Pod, metadata: {name: A_b}, spec: {}}")[0].contains("\"A_b\" is no name"));
    assert!(faults("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: 'x y'}, spec: {}}")[0].contains("\"x y\" is no name"));
}

#[test]
fn an_object_may_stand_twice_only_if_it_says_the_same() {
    load(&(service("a", "10.96.0.1", "ports: [{port: 80}]") + &service("a", "10.96.0.1", "ports: [{port: 80, protocol: TCP}]")));
    let said = faults(&(service("a", "10.96.0.1", "ports: [{port: 80}]") + &service("a", "10.96.0.1", "ports: [{port: 81}]")));
    assert_eq!(said, ["t.yaml:7:1: Service shop/a: stands twice with different contents; first at t.yaml:2:1"]);
}

#[test]
fn cluster_policies_meet_the_limits_of_their_schema() {
    let with = |spec: &str| {
        let text = format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}"
        );
        load_text("t.yaml", &text).map(|_| String::new()).unwrap_or_else(|f| f.0[0].to_string().split_once(" p: ").unwrap().1.to_owned())
    };
    let base = "tier: Admin, priority: 1, subject: {namespaces: {}}";
    for (spec, expected) in [
        ("tier: Admin, priority: 1001, subject: {namespaces: {}}".into(), "spec.priority: 1001 is out of range: 0 to 1000"),
        ("tier: Admin, subject: {namespaces: {}}".into(), "spec.priority: is required"),
        ("priority: 1, subject: {namespaces: {}}".into(), "spec.tier: is required"),
        ("tier: Admin, priority: 1, subject: {namespaces: {}, pods: {}}".into(), "spec.subject: must have only one of namespaces, pods"),
        (format!("{base}, ingress: [{{action: Deny, from: []}}]"), "spec.ingress[0].from: has 0 items; 1 to 25 are allowed"),
        (format!("{base}, ingress: [{{action: Deny}}]"), "spec.ingress[0].from: is required"),
        (
            format!("{base}, ingress: [{{action: Allow, from: [{{namespaces: {{}}}}]}}]"),
            "spec.ingress[0].action: \"Allow\" is not one of Accept, Deny, Pass",
        ),
        (
            format!("{base}, egress: [{{action: Deny, to: [{{networks: [10.0.0.0/8]}}], protocols: [{{destinationNamedPort: web}}]}}]"),
            "spec.egress[0].protocols: a named port cannot go with nodes or networks: they have no named ports",
        ),
        (
            format!("{base}, egress: [{{action: Accept, to: [{{domainNames: [a.example]}}]}}]"),
            "spec.egress[0].to[0].domainNames: is not supported: names of the DNS are not followed; use networks",
        ),
        (
            format!(
                "{base}, ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{tcp: {{destinationPort: {{range: {{start: 9, end: 9}}}}}}}}]}}]"
            ),
            "spec.ingress[0].protocols[0].tcp.destinationPort.range.end: must be above start (9)",
        ),
    ] {
        assert_eq!(with(&spec), expected, "{spec}");
    }
    assert_eq!(with(base), "");
}

#[test]
fn wrong_types_are_faults_everywhere() {
    for (spec, expected) in [
        ("[]", "spec: must be a map, not a list"),
        ("{podSelector: x}", "spec.podSelector: must be a map, not text"),
        ("{ingress: {}}", "spec.ingress: must be a list, not a map"),
        ("{ingress: [x]}", "spec.ingress[0]: must be a map, not text"),
        ("{ingress: [{ports: [80]}]}", "spec.ingress[0].ports[0]: must be a map, not a number"),
        ("{ingress: [{from: [null]}]}", "spec.ingress[0].from[0]: must be a map, not null"),
    ] {
        assert_eq!(policy_fault(spec), expected);
    }
}

#[test]
fn bombs_and_deep_nesting_are_one_clear_fault() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    (1..20).for_each(|n| bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(","))));
    let block: String = (0..3000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for text in [bomb, "[".repeat(100_000), format!("{{\"a\":{}", "[".repeat(100_000)), "- ".repeat(100_000), block] {
        let said = faults(&text);
        assert_eq!(said.len(), 1, "{said:?}");
    }
}

#[test]
fn files_folders_lists_and_compressed_files_load() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    std::fs::create_dir(folder.path().join("inner")).unwrap();
    put("a.yaml", b"apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Pod, metadata: {name: a, managedFields: [{x: 1}], creationTimestamp: null}, spec: {}, status: {}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n");
    put(
        "inner/b.json",
        b"{\"kind\": \"PodList\", \"apiVersion\": \"v1\", \"metadata\": {}, \"items\": [{\"metadata\": {\"name\": \"b\"}, \"spec\": {}}]}",
    );
    put("readme.txt", b"not read: [");
    put(".hidden.yaml", b"not read: [");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(b"# nothing\n---\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: c}\nspec: {}\n").unwrap();
    put("c.yml.gz", &gz.finish().unwrap());
    let snapshot = super::super::load(&[folder.path().to_owned()]).unwrap();
    let names: Vec<&str> = snapshot.pods.iter().map(|p| p.meta.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "b"]);
    assert_eq!(snapshot.foreign.iter().collect::<Vec<_>>(), [(&"apps/v1 Deployment".to_owned(), &1)]);
    let missing = super::super::load(&["/nowhere/x.yaml".into()]).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/x.yaml:1:1: cannot be read: No such file"), "{missing}");
}

#[test]
fn a_compressed_file_of_200_mb_is_refused_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.yaml.gz");
    let mut gz = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    (0..200).for_each(|_| gz.write_all(&vec![b'#'; 1 << 20]).unwrap());
    gz.finish().unwrap();
    let said = super::super::load(&[path]).unwrap_err().to_string();
    assert!(said.contains("is longer than 195 MB"), "{said}");
}

#[test]
fn a_file_of_200_mb_is_refused_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.yaml");
    std::fs::File::create(&path).unwrap().set_len(200 << 20).unwrap();
    let said = super::super::load(&[path]).unwrap_err().to_string();
    assert!(said.contains("is longer than 195 MB"), "{said}");
}

#[test]
fn one_fault_in_one_file_keeps_all_files_out() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: good}\nspec: {}\n");
    put("b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {hostNetwork: 3}\n");
    put("c.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: Bad}\n");
    let said = super::super::load(&[folder.path().to_owned()]).unwrap_err().to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("b.yaml:4:21: ") && lines[1].contains("c.yaml:3:18: "), "{said}");
}

/// Mostly valid objects with odd values in odd places.
fn odd_object() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec![
        "v1, kind: Pod",
        "v1, kind: Service",
        "v1, kind: Node",
        "discovery.k8s.io/v1, kind: EndpointSlice",
        "networking.k8s.io/v1, kind: NetworkPolicy",
        "policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1, kind: BaselineAdminNetworkPolicy",
    ]);
    let leaf = prop::sample::select(vec![
        "null",
        "[]",
        "{}",
        "80",
        "-1",
        "on",
        "10.0.0.1",
        "10.0.0.0/8",
        "'::/0'",
        "x",
        "{a: b}",
        "[{}]",
        "[null]",
        "1e9",
    ]);
    let key = prop::sample::select(vec![
        "spec",
        "status",
        "metadata",
        "ports",
        "ingress",
        "egress",
        "from",
        "to",
        "podSelector",
        "matchLabels",
        "matchExpressions",
        "ipBlock",
        "cidr",
        "except",
        "port",
        "endPort",
        "protocol",
        "clusterIP",
        "clusterIPs",
        "type",
        "podIPs",
        "addresses",
        "endpoints",
        "hints",
        "conditions",
        "subject",
        "protocols",
        "tcp",
        "containers",
        "name",
        "namespace",
        "labels",
        "selector",
        "items",
        "annotations",
        "podCIDRs",
        "action",
        "tier",
        "priority",
    ]);
    let value = leaf.prop_map(str::to_owned).prop_recursive(5, 40, 5, move |inner| {
        let map = prop::collection::btree_map(key.clone(), inner.clone(), 0..5);
        let map = map.prop_map(|m| format!("{{{}}}", m.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ")));
        prop_oneof![map, prop::collection::vec(inner, 0..3).prop_map(|v| format!("[{}]", v.join(", ")))]
    });
    (kind, value.clone(), value.clone(), value)
        .prop_map(|(kind, a, b, c)| format!("{{apiVersion: {kind}, metadata: {a}, spec: {b}, endpoints: {c}}}"))
}

proptest! {
    #[test]
    fn no_bytes_make_the_loader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = load_text("t.yaml", &text);
            let _ = load_text("t.json", &text);
        }
    }

    #[test]
    fn no_odd_object_makes_the_loader_panic_and_every_fault_is_one_line(text in odd_object()) {
        if let Err(faults) = load_text("t.yaml", &text) {
            prop_assert!(!faults.0.is_empty());
            prop_assert_eq!(faults.to_string().lines().count(), faults.0.len());
        }
    }
}
