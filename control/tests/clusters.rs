//! Golden node states: `fixtures/clusters/<case>/*.yaml` compiled for each Node, beside it as `<node>.golden`.
//!
//! `UPDATE=1 cargo test -p weir-control --test clusters` rewrites them; read the diff.

use std::path::{Path, PathBuf};

use weir_control::compile::compile;
use weir_control::source::load;
use weir_control::source::objects::Snapshot;
use weir_dataplane::model::{NodeConfig, NodeState};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/clusters");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 3);
    cases
}

fn json(snapshot: &Snapshot, node: &str) -> String {
    let state = compile(snapshot, node, &NodeConfig::offline(node)).unwrap();
    serde_json::to_string_pretty(&state).unwrap() + "\n"
}

#[test]
fn every_cluster_compiles_to_its_golden_state_for_every_node() {
    for case in cases() {
        let snapshot = load(std::slice::from_ref(&case)).unwrap();
        for node in &snapshot.nodes {
            let (state, golden) = (json(&snapshot, &node.meta.name), case.join(format!("{}.golden", node.meta.name)));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&golden, &state).unwrap();
            }
            let expected = std::fs::read_to_string(&golden).unwrap_or_default();
            assert!(state == expected, "{} differs; UPDATE=1 rewrites it", golden.display());
        }
    }
}

#[test]
fn states_survive_the_socket_as_json() {
    for case in cases() {
        let snapshot = load(&[case]).unwrap();
        for node in &snapshot.nodes {
            let text = json(&snapshot, &node.meta.name);
            let state: NodeState = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string_pretty(&state).unwrap() + "\n", text);
        }
    }
}

#[test]
fn the_order_of_objects_does_not_matter() {
    let mut random = fastrand::Rng::with_seed(3);
    for case in cases() {
        let mut snapshot = load(&[case]).unwrap();
        let node = snapshot.nodes[0].meta.name.clone();
        let expected = json(&snapshot, &node);
        for _ in 0..20 {
            random.shuffle(&mut snapshot.nodes);
            random.shuffle(&mut snapshot.namespaces);
            random.shuffle(&mut snapshot.pods);
            random.shuffle(&mut snapshot.services);
            random.shuffle(&mut snapshot.slices);
            random.shuffle(&mut snapshot.network_policies);
            random.shuffle(&mut snapshot.cluster_policies);
            assert_eq!(json(&snapshot, &node), expected);
        }
    }
}
