//! A difference, made small and printed as a case file.

use std::fmt::Write;

use serde_json::Value;
use weir_dataplane::model::{Direction, NodeConfig};

use crate::compare::{Court, Difference};
use crate::packets::{self, Arrival};
use crate::question::Question;

/// Leaves out every object without which `differs` still holds.
pub(crate) fn shrink(objects: &[Value], differs: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut kept = objects.to_vec();
    let mut again = true;
    while again {
        again = false;
        for index in (0..kept.len()).rev() {
            let mut fewer = kept.clone();
            fewer.remove(index);
            if differs(&fewer) {
                (kept, again) = (fewer, true);
            }
        }
    }
    kept
}

/// Makes the smallest case of a difference, in the conformance format.
pub(crate) fn case(seed: u64, objects: &[Value], config: &NodeConfig, question: &Question, difference: &Difference) -> String {
    // Nodes stay, so that the question means the same.
    let is_fixed = |o: &Value| o["kind"] == "Node";
    let ask = |objects: &[Value]| Court::new(objects, config, None).ok().and_then(|court| court.ask(question).err());
    let nodes: Vec<Value> = objects.iter().filter(|o| is_fixed(o)).cloned().collect();
    let others: Vec<Value> = objects.iter().filter(|o| !is_fixed(o)).cloned().collect();
    let with = |fewer: &[Value]| nodes.iter().chain(fewer).cloned().collect::<Vec<_>>();
    let (small, difference, note) = match ask(objects) {
        None => (objects.to_vec(), difference.clone(), "the tables compiled anew agree: a change was applied wrongly"),
        Some(_) => {
            let small = with(&shrink(&others, |fewer| ask(&with(fewer)).is_some()));
            let difference = ask(&small).unwrap_or_else(|| difference.clone());
            (small, difference, "minimal")
        }
    };
    print(seed, &small, config, question, &difference, note)
}

fn print(seed: u64, objects: &[Value], config: &NodeConfig, question: &Question, difference: &Difference, note: &str) -> String {
    let mut text = String::new();
    let kind = if matches!(question, Question::Side(..)) { "policy" } else { "services" };
    let Difference { expected, got } = difference;
    let _ = writeln!(text, "\n# WEIR_SEED={seed} ({note})\n# oracle: {expected}\n# tables: {got}");
    let _ = writeln!(text, "id: oracle-{seed}\nkind: {kind}\ntitle: found by the oracle");
    if let Question::Service { node, .. } = question {
        let config = serde_json::json!({
            "this_node": objects[*node]["metadata"]["name"],
            "cluster_cidrs": config.cluster.pod_cidrs,
            "masquerade_all": config.masquerade.all,
            "nodeport_addresses": config.services.node_port_cidrs,
            "service_cidrs": config.cluster.service_cidrs,
        });
        let _ = writeln!(text, "config: {config}");
    }
    let _ = writeln!(text, "snapshot:");
    for object in objects {
        let _ = writeln!(text, "- {object}");
    }
    match question {
        Question::Side(flow, direction) => {
            let end = if *direction == Direction::Egress { "egress" } else { "ingress" };
            let verdict = if expected.contains("allowed: true") { "allow" } else { "deny" };
            let (from, to, port, protocol) = (flow.from, flow.to, flow.port, flow.protocol);
            let by = if flow.via_service { ", through a Service" } else { "" };
            let _ = writeln!(text, "expect:\n# {end}{by}");
            let _ =
                writeln!(text, "- {{from: '{from}', to: '{to}', port: {port}, protocol: {protocol}, verdict: {verdict}, source: derived}}");
        }
        Question::Service { from, to, protocol, .. } => {
            let _ = writeln!(text, "flows:\n- {{name: found, from: '{from}', to: '{to}', protocol: {protocol:?}, source: derived}}");
        }
    }
    text
}

/// The same for a wrong explanation.
pub(crate) fn explanation(seed: u64, objects: &[Value], config: &NodeConfig, question: &Question, difference: &Difference) -> String {
    let Question::Side(flow, direction) = question else { return String::new() };
    let ask = |objects: &[Value]| Court::new(objects, config, None).ok().and_then(|court| court.misexplained(flow, *direction));
    let small = shrink(objects, |fewer| ask(fewer).is_some());
    let difference = ask(&small).unwrap_or_else(|| difference.clone());
    print(seed, &small, config, question, &difference, "wrongly explained")
}

/// The same for a packet that arrives at a node.
pub(crate) fn packet(seed: u64, objects: &[Value], config: &NodeConfig, (node, arrival): (&str, &Arrival), wrong: String) -> String {
    let ask = |objects: &[Value]| Court::new(objects, config, None).ok().and_then(|court| packets::send_alone(&court, node, arrival));
    let small = shrink(objects, |fewer| ask(fewer).is_some());
    let wrong = ask(&small).unwrap_or(wrong);
    let mut text = format!(
        "\n# WEIR_SEED={seed} at {node}: {arrival:?}\n# {wrong}\n# {:?}\n# {:?}\n# {:?}\nsnapshot:\n",
        config.services, config.masquerade, config.cluster
    );
    for object in small {
        let _ = writeln!(text, "- {object}");
    }
    text
}
