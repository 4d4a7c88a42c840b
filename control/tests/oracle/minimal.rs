//! A difference, made small and printed as a case file.

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::Value;
use weir_dataplane::model::{Direction, NodeConfig, Protocol};

use crate::cluster::{Cluster, key};
use crate::compare::{Court, Difference};
use crate::packets::{self, Arrival};
use crate::question::Question;
use crate::sessions::{self, Astray, Connection};
use crate::standing;

/// Leaves out every one without which `differs` still holds.
pub(crate) fn shrink<T: Clone>(objects: &[T], differs: impl Fn(&[T]) -> bool) -> Vec<T> {
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
        let _ = writeln!(text, "config: {}", case_config(&objects[*node]["metadata"]["name"], config));
    }
    let _ = writeln!(text, "snapshot:");
    for object in objects {
        let _ = writeln!(text, "- {object}");
    }
    match question {
        Question::Side(flow, direction) => {
            let end = if *direction == Direction::Egress { "egress" } else { "ingress" };
            let verdict = if expected.contains("allowed: true") { "allow" } else { "deny" };
            let (from, to, port) = (flow.from, flow.to, flow.port);
            let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == flow.protocol);
            let protocol = known.map_or_else(|| flow.protocol.to_string(), word);
            let by = if flow.via_service { ", through a Service" } else { "" };
            let _ = writeln!(text, "expect:\n# {end}{by}");
            let _ =
                writeln!(text, "- {{from: '{from}', to: '{to}', port: {port}, protocol: {protocol}, verdict: {verdict}, source: derived}}");
        }
        Question::Service { from, to, protocol, .. } => {
            let _ = writeln!(text, "flows:\n- {{name: found, from: '{from}', to: '{to}', protocol: {}, source: derived}}", word(*protocol));
        }
    }
    text
}

/// What a change deletes, as case files have it.
fn gone(before: &[Value], after: &[Value]) -> String {
    let gone = before.iter().filter(|o| !after.iter().any(|other| key(other) == key(o))).map(key);
    let gone = gone.map(|(kind, namespace, name)| format!("{{kind: {kind}, namespace: '{namespace}', name: {name}}}"));
    gone.collect::<Vec<_>>().join(", ")
}

/// A protocol as case files have it.
fn word(protocol: Protocol) -> String {
    format!("{protocol:?}").to_uppercase()
}

/// The node under test, as case files have it.
fn case_config(node: &Value, config: &NodeConfig) -> Value {
    serde_json::json!({
        "this_node": node,
        "cluster_cidrs": config.cluster.pod_cidrs,
        "masquerade_all": config.masquerade.all,
        "nodeport_addresses": config.services.node_port_cidrs,
        "service_cidrs": config.cluster.service_cidrs,
    })
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

/// The same for a client that came again and went astray: its connections that count, each at its generation.
pub(crate) fn session(seed: u64, config: &NodeConfig, astray: &Astray) -> String {
    /// Seeds of the choice that are tried: it may be right by chance.
    const SEEDS: u64 = 32;
    let mut steps: Vec<(Vec<Value>, Option<Connection>)> = Vec::new();
    let mut cluster = Cluster::new(seed);
    let mut generation = 0;
    for (of, connection) in &astray.visits {
        while generation < *of {
            cluster.change();
            generation += 1;
            // What no client met may have taken an endpoint away.
            if generation < *of && !steps.is_empty() {
                steps.push((cluster.objects.clone(), None));
            }
        }
        steps.push((cluster.objects.clone(), Some(*connection)));
    }
    let mut names: Vec<_> = steps.iter().flat_map(|(objects, _)| objects.iter().map(key)).collect();
    names.sort();
    names.dedup();
    let with = |names: &[(String, String, String)]| -> Vec<(Vec<Value>, Option<Connection>)> {
        let some = |objects: &[Value]| objects.iter().filter(|o| names.contains(&key(o))).cloned().collect();
        steps.iter().map(|(objects, connection)| (some(objects), *connection)).collect()
    };
    let ask = |steps: &[(Vec<Value>, Option<Connection>)]| (0..SEEDS).find_map(|seed| sessions::again(steps, config, &astray.node, seed));
    let small = with(&shrink(&names, |fewer| ask(&with(fewer)).is_some()));
    let wrong = ask(&small).unwrap_or_else(|| astray.wrong.clone());
    let mut text = format!("\n# WEIR_SEED={seed}\n# oracle: {wrong}\nid: oracle-{seed}\nkind: services\ntitle: found by the oracle\n");
    let _ = writeln!(text, "config: {}", case_config(&astray.node.clone().into(), config));
    let mut before: &[Value] = &[];
    let (mut indent, mut listed) = ("", false);
    for (index, (objects, connection)) in small.iter().enumerate() {
        if before != objects {
            if index == 0 {
                text.push_str("snapshot:\n");
            } else {
                let _ = writeln!(text, "then:\n- delete: [{}]\n  apply:", gone(before, objects));
                indent = "  ";
            }
            for object in objects.iter().filter(|o| !before.contains(o)) {
                let _ = writeln!(text, "{indent}- {object}");
            }
            (before, listed) = (objects, false);
        }
        let Some(Connection { at_secs, from, to, protocol }) = connection else { continue };
        if !listed {
            let _ = writeln!(text, "{indent}affinity:\n{indent}- name: found\n{indent}  steps:");
            listed = true;
        }
        let expect = if index + 1 == small.len() { "same} # or any: see above" } else { "any}" };
        let protocol = word(*protocol);
        let _ = writeln!(text, "{indent}  - {{at: {at_secs}, from: '{from}', to: '{to}', protocol: {protocol}, expect: {expect}");
    }
    text
}

/// The same for a connection that went on otherwise than it should when the objects changed.
pub(crate) fn standing(seed: u64, before: &[Value], after: &[Value], config: &NodeConfig, arrival: &Arrival, wrong: String) -> String {
    const NODE: &str = "node-1";
    let mut names: Vec<_> = before.iter().chain(after).map(key).collect();
    names.sort();
    names.dedup();
    let some = |objects: &[Value], names: &[_]| objects.iter().filter(|o| names.contains(&key(o))).cloned().collect::<Vec<_>>();
    let ask = |names: &[_]| standing::through(&some(before, names), &some(after, names), config, NODE, arrival, seed);
    let small = shrink(&names, |fewer| ask(fewer).is_some());
    let wrong = ask(&small).unwrap_or(wrong);
    let (before, after) = (some(before, &small), some(after, &small));
    let mut text = format!("\n# WEIR_SEED={seed}\n# {wrong}\n# policy.onChange: {:?}\n", config.policy.on_change);
    let _ = writeln!(text, "id: oracle-{seed}\nkind: conntrack\ntitle: found by the oracle\nconfig: {}", case_config(&NODE.into(), config));
    text.push_str("snapshot:\n");
    for object in &before {
        let _ = writeln!(text, "- {object}");
    }
    let Arrival { from, to, protocol, sport, .. } = arrival;
    let from = SocketAddr::new(*from, *sport);
    let opens = if *protocol == Protocol::Tcp { ", tcp: {flags: S}" } else { "" };
    let packet = |n| {
        let proto = word(*protocol);
        format!("- {{'n': {n}, proto: {proto}, from: '{from}', to: '{to}'{opens}, expect: {{verdict: forward}}}}")
    };
    let changed: Vec<String> = after.iter().filter(|o| !before.contains(o)).map(ToString::to_string).collect();
    let change = format!("- {{'n': 2, delete: [{}], apply: [{}]}}", gone(&before, &after), changed.join(", "));
    let _ = writeln!(text, "packets:\n{}\n{change}\n{}", packet(1), packet(3));
    text
}
