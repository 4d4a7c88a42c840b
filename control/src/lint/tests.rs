use weir_dataplane::model::NodeConfig;

use super::*;
use crate::sim::reach::tests::world;
use crate::source::load_text;

const BASE: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 10.0.0.10}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: node-a, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.244.1.20}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db, labels: {app: db}}
spec: {nodeName: node-a, containers: [{name: c}]}
status: {podIPs: [{ip: 10.244.1.30}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.96.0.20, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
"#;

/// The checks that find something in BASE with `more`, with the line and field of each.
fn found(more: &str) -> Vec<(&'static str, String)> {
    let (snapshot, _, world) = world(&format!("{BASE}{more}"));
    lint(&snapshot, &world).into_iter().map(|f| (f.check, format!("{} {}", f.object, f.field).trim().to_owned())).collect()
}

fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: p}}\nspec: {spec}\n---\n")
}

#[test]
fn a_sound_snapshot_has_no_findings() {
    assert_eq!(found(""), []);
    let dns = "{to: [{namespaceSelector: {}}], ports: [{protocol: UDP, port: 53}]}";
    assert_eq!(found(&policy(&format!("{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{dns}]}}"))), []);
}

#[test]
fn each_slip_is_found_by_its_check_and_nothing_else_is() {
    let web = "podSelector: {matchLabels: {app: web}}";
    let cases = [
        (policy("{podSelector: {matchLabels: {app: wbe}}}"), "selector-matches-nothing", "NetworkPolicy shop/p spec.podSelector"),
        (
            policy(&format!("{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: x}}}}}}]}}]}}")),
            "selector-matches-nothing",
            "NetworkPolicy shop/p spec.ingress[0].from[0].namespaceSelector",
        ),
        (
            policy(&format!("{{{web}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: cache}}}}}}]}}]}}")),
            "selector-matches-nothing",
            "NetworkPolicy shop/p spec.ingress[0].from[0]",
        ),
        (
            policy(&format!(
                "{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: shop}}}}}}, \
                 {{podSelector: {{matchLabels: {{app: db}}}}}}]}}]}}"
            )),
            "two-items-for-one",
            "NetworkPolicy shop/p spec.ingress[0].from[0]",
        ),
        (policy(&format!("{{{web}, policyTypes: [Egress]}}")), "no-dns", "NetworkPolicy shop/p spec.egress"),
        (
            policy(&format!("{{{web}, ingress: [{{ports: [{{port: 80}}]}}]}}")),
            "service-port-in-rule",
            "NetworkPolicy shop/p spec.ingress[0].ports[0].port",
        ),
        (
            policy(&format!("{{{web}, ingress: [{{ports: [{{port: metrics}}]}}]}}")),
            "named-port-nowhere",
            "NetworkPolicy shop/p spec.ingress[0].ports[0]",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: s}\nspec: {clusterIP: 10.96.0.21, selector: {app: nobody}, \
             ports: [{port: 80}]}\n"
                .to_owned(),
            "service-without-endpoints",
            "Service shop/s spec.selector",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: s}\nspec: {clusterIP: 10.244.1.99, selector: {app: web}, \
             ports: [{port: 80}]}\n"
                .to_owned(),
            "ranges-overlap",
            "Node node-a spec.podCIDRs",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: stray}\nspec: {nodeName: node-a, containers: [{name: c}]}\nstatus: \
             {podIPs: [{ip: 10.244.9.9}]}\n"
                .to_owned(),
            "address-outside-range",
            "Pod shop/stray status.podIPs",
        ),
    ];
    for (more, check, at) in cases {
        assert_eq!(found(&more), [(check, at.to_owned())], "{more}");
    }
}

#[test]
fn a_rule_whose_other_end_always_denies_is_found_and_one_that_works_is_not() {
    let out = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}, \
               {ports: [{protocol: UDP, port: 53}]}]}";
    let shut = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: q}\nspec: {podSelector: {matchLabels: \
                {app: db}}}\n";
    assert_eq!(found(&policy(out)), []);
    assert_eq!(found(&(policy(out) + shut)), [("rule-without-twin", "NetworkPolicy shop/p spec.egress[0]".to_owned())]);
}

#[test]
fn a_capture_tells_which_rules_nobody_hits_and_which_packets_are_too_large() {
    for (scenario, expected) in
        [("mtu-exceeded", ["mtu"].as_slice()), ("denied-by-policy", &[]), ("outage-egress-not-allowed", &["rule-never-hit"])]
    {
        let folder = weir_fixtures::root().join("scenarios").join(scenario);
        let text = std::fs::read_to_string(folder.join("snapshot.yaml")).unwrap();
        let snapshot = load_text("snapshot.yaml", &text).unwrap();
        let config = NodeConfig::offline("node-a");
        let state = crate::compile::compile(&snapshot, "node-a", &config).unwrap();
        let mut node = crate::sim::node::SimNode::new(&state, config, 1).unwrap();
        let mut checks: Vec<&str> =
            packets::lint(&snapshot, &mut node, &folder.join("in.pcap"), &[]).unwrap().iter().map(|f| f.check).collect();
        checks.dedup();
        assert_eq!(checks, expected, "{scenario}");
    }
}
