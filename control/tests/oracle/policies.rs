//! Random policies of all kinds, in every form that the API server takes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fastrand::Rng;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PORT_NAMES, PORTS, PROTOCOLS, one_in, pick, selector};

/// A NetworkPolicy.
pub(crate) fn network_policy(cluster: &mut Cluster, serial: u16, namespace: &str) -> Value {
    let mut spec = json!({});
    if !one_in(&mut cluster.random, 4) {
        spec["podSelector"] = selector(&mut cluster.random);
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules: Vec<Value> = (0..cluster.random.usize(0..4)).map(|_| rule(cluster, peers)).collect();
        state(&mut cluster.random, &mut spec, direction, rules);
    }
    let types: &[&str] = pick(&mut cluster.random, &[&[][..], &["Ingress"], &["Egress"], &["Ingress", "Egress"]]);
    state(&mut cluster.random, &mut spec, "policyTypes", types.iter().map(|t| Value::from(*t)).collect());
    let metadata = json!({"namespace": namespace, "name": format!("np-{serial}")});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

/// Writes a list; an empty one as an empty list, as null or not at all.
fn state(random: &mut Rng, object: &mut Value, key: &str, list: Vec<Value>) {
    match random.u32(0..3) {
        0 if list.is_empty() => {}
        1 if list.is_empty() => object[key] = Value::Null,
        _ => object[key] = list.into(),
    }
}

fn rule(cluster: &mut Cluster, peers: &str) -> Value {
    let mut rule = json!({});
    let list: Vec<Value> = (0..cluster.random.usize(0..3)).map(|_| peer(cluster)).collect();
    state(&mut cluster.random, &mut rule, peers, list);
    let ports: Vec<Value> = (0..cluster.random.usize(0..3)).map(|_| port(&mut cluster.random)).collect();
    state(&mut cluster.random, &mut rule, "ports", ports);
    rule
}

fn peer(cluster: &mut Cluster) -> Value {
    let form = cluster.random.u32(0..5);
    let random = &mut cluster.random;
    match form {
        0 => json!({"podSelector": selector(random)}),
        1 => json!({"namespaceSelector": namespaces(random), "podSelector": null}),
        2 => json!({"namespaceSelector": namespaces(random), "podSelector": selector(random)}),
        _ => {
            let cidr = block(cluster);
            let mut block = json!({"cidr": cidr.to_string()});
            let mut except = Vec::new();
            for _ in 0..cluster.random.usize(0..3) {
                let inside = cluster.address();
                let longest = cidr.max_prefix_len();
                if cidr.contains(&inside) && cidr.prefix_len() < longest {
                    let len = cluster.random.u8(cidr.prefix_len() + 1..=longest);
                    except.extend(IpNet::new(inside, len).map(|hole| Value::from(hole.trunc().to_string())));
                }
            }
            state(&mut cluster.random, &mut block, "except", except);
            json!({"ipBlock": block})
        }
    }
}

fn namespaces(random: &mut Rng) -> Value {
    if one_in(random, 3) {
        let name = pick(random, &crate::cluster::NAMESPACES);
        return json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    }
    selector(random)
}

/// A block around an address that means something.
fn block(cluster: &mut Cluster) -> IpNet {
    let inside = cluster.address();
    let lengths: &[u8] = if inside.is_ipv4() { &[0, 8, 16, 24, 28, 30, 31, 32] } else { &[0, 16, 64, 120, 126, 127, 128] };
    let len = pick(&mut cluster.random, lengths);
    IpNet::new(inside, len).unwrap_or(IpNet::from(inside)).trunc()
}

fn port(random: &mut Rng) -> Value {
    let mut port = json!({});
    if random.bool() {
        port["protocol"] = pick(random, &PROTOCOLS).into();
    }
    match random.u32(0..5) {
        0 => {}
        1 => port["port"] = pick(random, &PORT_NAMES).into(),
        2 => {
            let (first, last) = range(random);
            port["port"] = first.into();
            port["endPort"] = last.into();
        }
        _ => port["port"] = pick(random, &PORTS).into(),
    }
    port
}

fn range(random: &mut Rng) -> (u16, u16) {
    let first = pick(random, &[1, 53, 79, 80, 8079, 65_534]);
    (first, pick(random, &[first + 1, first.saturating_add(10), 65_535]))
}

/// A ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy.
pub(crate) fn cluster_policy(cluster: &mut Cluster, serial: u16) -> Value {
    let kind =
        pick(&mut cluster.random, &["ClusterNetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"]);
    let newer = kind == "ClusterNetworkPolicy";
    let random = &mut cluster.random;
    let mut spec = json!({"subject": pods(random)});
    if newer {
        spec["tier"] = pick(random, &["Admin", "Admin", "Baseline"]).into();
    }
    if kind != "BaselineAdminNetworkPolicy" {
        spec["priority"] = random.u32(0..4).into();
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules: Vec<Value> = (0..cluster.random.usize(0..4)).map(|_| cluster_rule(cluster, kind, peers)).collect();
        if !rules.is_empty() || cluster.random.bool() {
            spec[direction] = rules.into();
        }
    }
    let version = if newer { "v1alpha2" } else { "v1alpha1" };
    let name = if kind == "BaselineAdminNetworkPolicy" { "default".to_owned() } else { format!("cp-{serial}") };
    json!({"apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn pods(random: &mut Rng) -> Value {
    if random.bool() {
        return json!({"namespaces": namespaces(random)});
    }
    json!({"pods": {"namespaceSelector": namespaces(random), "podSelector": selector(random)}})
}

fn cluster_rule(cluster: &mut Cluster, kind: &str, peers: &str) -> Value {
    let actions: &[&str] = match kind {
        "ClusterNetworkPolicy" => &["Accept", "Deny", "Pass"],
        "AdminNetworkPolicy" => &["Allow", "Deny", "Pass"],
        _ => &["Allow", "Deny"],
    };
    let mut rule = json!({"action": pick(&mut cluster.random, actions)});
    let mut names = true;
    let mut list = Vec::new();
    for _ in 0..cluster.random.usize(1..3) {
        list.push(match cluster.random.u32(0..7) {
            0 => json!({}),
            1 if peers == "to" => {
                names = false;
                json!({"nodes": selector(&mut cluster.random)})
            }
            2 | 3 if peers == "to" => {
                names = false;
                // A set, as the API has it.
                let networks: BTreeSet<String> = (0..cluster.random.usize(1..3)).map(|_| block(cluster).to_string()).collect();
                json!({"networks": networks})
            }
            _ => pods(&mut cluster.random),
        });
    }
    rule[peers] = list.into();
    let newer = kind == "ClusterNetworkPolicy";
    let ports: Vec<Value> = (0..cluster.random.usize(0..3))
        .map(|_| if newer { transport(&mut cluster.random, names) } else { old_port(&mut cluster.random, names) })
        .collect();
    if !ports.is_empty() {
        rule[if newer { "protocols" } else { "ports" }] = ports.into();
    }
    rule
}

/// An item of `protocols` (v1alpha2).
fn transport(random: &mut Rng, names: bool) -> Value {
    let protocol = pick(random, &["tcp", "udp", "sctp"]);
    match random.u32(0..3) {
        0 if names => json!({"destinationNamedPort": pick(random, &PORT_NAMES)}),
        1 => {
            let (start, end) = range(random);
            json!({protocol: {"destinationPort": {"range": {"start": start, "end": end}}}})
        }
        _ => json!({protocol: {"destinationPort": {"number": pick(random, &PORTS)}}}),
    }
}

/// An item of `ports` (v1alpha1).
fn old_port(random: &mut Rng, names: bool) -> Value {
    let mut port = json!({});
    if random.bool() {
        port["protocol"] = pick(random, &PROTOCOLS).into();
    }
    match random.u32(0..3) {
        0 if names => json!({"namedPort": pick(random, &PORT_NAMES)}),
        1 => {
            let (start, end) = range(random);
            (port["start"], port["end"]) = (start.into(), end.into());
            json!({"portRange": port})
        }
        _ => {
            port["port"] = pick(random, &PORTS).into();
            json!({"portNumber": port})
        }
    }
}

/// Every address that stands in a policy, with its neighbours on both sides of each block.
pub(crate) fn edges(block: &IpNet) -> Vec<IpAddr> {
    let step = |address: IpAddr, by: i128| match address {
        IpAddr::V4(a) => IpAddr::V4(a.to_bits().wrapping_add(by as u32).into()),
        IpAddr::V6(a) => IpAddr::V6(a.to_bits().wrapping_add(by as u128).into()),
    };
    let (first, last) = (block.network(), block.broadcast());
    vec![step(first, -1), first, last, step(last, 1)]
}
