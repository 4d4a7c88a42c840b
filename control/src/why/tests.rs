use fastrand::Rng;
use weir_dataplane::model::Family;

use super::*;
use crate::sim::reach::tests::{cluster, world};

/// Asks about TCP between two pods.
fn question(from: &str, to: &str, port: u16) -> Question {
    let place = |text: &str| text.parse().unwrap();
    Question { from: place(from), to: place(to), proto: proto::TCP, port: Some(port), sport: 50_000, family: Some(Family::V4), seed: 1 }
}

#[test]
fn every_denied_flow_of_random_clusters_has_a_patch_and_a_smallest_removal_that_work() {
    let mut rng = Rng::with_seed(7);
    let (mut denied, mut isolating) = (0, 0);
    for _ in 0..30 {
        let text = cluster(&mut rng);
        let (snapshot, config, _) = world(&text);
        let names: Vec<String> = snapshot.pods.iter().map(|p| p.meta.to_string()).collect();
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                let question = question(from, to, 80);
                let answer = why(&snapshot, &config, &question).unwrap();
                if answer.passes {
                    continue;
                }
                denied += 1;
                match answer.add {
                    Some(add) => {
                        let with = patched(&snapshot, &add.patch).unwrap();
                        assert_eq!(trace(&with, &config, &question).unwrap().verdict, "forward", "{}", add.patch);
                        // Pods with the same labels are let in too; nothing is shut, not by one way of several either.
                        let shut = add.changes.iter().find(|change| !change.open.is_empty());
                        assert!(shut.is_none(), "{shut:?}\n{}\n{text}", add.patch);
                        isolating += u32::from(add.isolates);
                    }
                    // What the Admin tier denies, no NetworkPolicy is offered for.
                    None => assert!(answer.why.contains("denied by c0"), "{}\n{text}", answer.why),
                }
                let Some(remove) = answer.remove else {
                    assert!(text.contains("tier: Baseline"), "{from} -> {to}\n{text}");
                    continue;
                };
                for left_in in 0..remove.policies.len() {
                    let mut less = snapshot.clone();
                    for policy in remove.policies.iter().enumerate().filter(|(n, _)| *n != left_in).map(|(_, policy)| policy) {
                        assert!(
                            less.remove(policy_kind(policy.kind), policy.namespace.as_deref().unwrap_or_default(), &policy.name).is_some()
                        );
                    }
                    assert_ne!(trace(&less, &config, &question).unwrap().verdict, "forward", "{from} -> {to}\n{text}");
                }
            }
        }
    }
    assert!(denied > 20 && isolating > 10, "{denied} {isolating}");
}

/// Three pods in two namespaces, a Baseline rule that denies what comes from one of them, and an Admin rule that denies a port.
const TIERS: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: node-a}, spec: {podCIDRs: [10.244.0.0/24]}, status: {addresses: [{type: InternalIP, address: 10.0.0.10}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-b}, spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: InternalIP, address: 10.0.0.11}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: guest}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {nodeName: node-a, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: api, labels: {app: api}}, spec: {nodeName: node-b, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: guest, name: one, labels: {app: one}}, spec: {nodeName: node-b, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: guest, name: two, labels: {app: two}}, spec: {nodeName: node-a, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.0.3}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}
  ingress: [{name: guests, action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: guest}}}]PORTS}]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: no-telnet}
spec:
  priority: 10
  subject: {namespaces: {}}
  ingress: [{name: telnet, action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 23}}]}]
"#;

#[test]
fn a_patch_over_a_baseline_rule_opens_the_one_flow_and_shuts_nothing() {
    for ports in ["", ", ports: [{portNumber: {protocol: TCP, port: 80}}, {portRange: {protocol: UDP, start: 100, end: 200}}]"] {
        let text = TIERS.replace("PORTS", ports);
        let (snapshot, config, _) = world(&text);
        let answer = why(&snapshot, &config, &question("guest/one", "shop/web", 80)).unwrap();
        let add = answer.add.as_ref().unwrap_or_else(|| panic!("{}", answer.text()));
        assert!(add.isolates && add.traced == "forward");
        // What is denied before and after is so for another reason.
        let told = add.changes.iter().filter(|c| c.old.verdict != c.new.verdict);
        let told: Vec<_> = told.map(|c| (&c.from[..], &c.to[..], c.traffic.as_str(), c.old.verdict, c.new.verdict)).collect();
        let (from, to) = (["guest/one".to_owned()], ["shop/web".to_owned()]);
        // Where the rule denies some ports, what has none stays open to guests too only by a rule without ports, which says all.
        let mut expected = vec![(&from[..], &to[..], "tcp 80", "drop", "forward")];
        if ports.is_empty() {
            assert_eq!(told, expected, "{}", add.patch);
            assert!(answer.text().contains("Nothing that was open is shut."), "{}", answer.text());
        } else {
            expected.extend(
                told.iter().copied().filter(|(.., traffic, old, new)| (*traffic, *old, *new) == ("other; tcp 0; udp 0", "forward", "drop")),
            );
            assert!(expected.len() > 1 && told.len() == expected.len(), "{told:?}\n{}", add.patch);
            // And these are told once more, by name.
            let text = answer.text();
            let (_, shut) = text.split_once("This is shut that was open").unwrap_or_else(|| panic!("{text}"));
            let (shut, _) = shut.split_once("\napiVersion").unwrap();
            assert_eq!(shut.lines().filter(|line| line.contains(" becomes ")).count(), expected.len() - 1, "{text}");
            assert!(shut.lines().skip(1).all(|line| line.is_empty() || line.contains("other; tcp 0; udp 0")), "{text}");
        }
    }
}

#[test]
fn no_policy_is_offered_against_the_admin_tier_and_the_answer_says_which_rule_it_is() {
    let (snapshot, config, _) = world(&TIERS.replace("PORTS", ""));
    let answer = why(&snapshot, &config, &question("shop/api", "shop/web", 23)).unwrap();
    assert!(answer.add.is_none() && answer.why.contains("denied by no-telnet rule 0"), "{}", answer.text());
    let removal = answer.remove.as_ref().unwrap();
    assert_eq!(removal.policies.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["no-telnet"]);
    assert!(answer.text().contains("a rule of the Admin tier denies it"), "{}", answer.text());
}
