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
    let mut denied = 0;
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
                        // Pods with the same labels are let in too; nothing is shut.
                        assert!(add.changes.iter().all(|change| change.new.verdict != "drop"), "{text}\n{}", add.patch);
                    }
                    // What a cluster policy denies, no NetworkPolicy is offered for.
                    None => assert!(answer.why.contains("denied by c"), "{}\n{text}", answer.why),
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
    assert!(denied > 20, "{denied}");
}
