//! Random Services with their EndpointSlices.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, labels, one_in, pick};

/// What is said of an endpoint, alike in every slice that has it: which of two statements holds is nowhere said.
struct Fact {
    address: String,
    node: Option<String>,
    conditions: Value,
    hints: Value,
}

/// A Service called `svc-N` and its slices, `svc-N-0` and so on.
pub(crate) fn service(cluster: &mut Cluster, serial: u16) -> Vec<Value> {
    let families: &[bool] = pick(&mut cluster.random, &[&[true][..], &[true], &[false], &[true, false], &[false, true]]);
    let facts = facts(cluster);
    let random = &mut cluster.random;
    let namespace = pick(random, &NAMESPACES);
    let name = format!("svc-{serial}");
    let kind = pick(random, &["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName", "None"]);
    let ports = ports(random, serial, kind);
    let mut spec = json!({"ports": ports});
    let mut metadata = json!({"namespace": namespace, "name": name});
    let addresses: Vec<String> =
        families.iter().map(|v4| if *v4 { format!("10.96.0.{serial}") } else { format!("fd00:96::{serial}") }).collect();
    match kind {
        "None" => spec["clusterIP"] = "None".into(),
        "ExternalName" => (spec["type"], spec["externalName"]) = (kind.into(), "example.org".into()),
        _ => {
            spec["type"] = kind.into();
            (spec["clusterIP"], spec["clusterIPs"]) = (addresses[0].clone().into(), addresses.into());
        }
    }
    let proxied = !["None", "ExternalName"].contains(&kind);
    if proxied && one_in(random, 12) {
        metadata["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    }
    if proxied && one_in(random, 3) {
        spec["internalTrafficPolicy"] = pick(random, &["Cluster", "Local"]).into();
    }
    let external_ips = proxied && one_in(random, 4);
    if external_ips {
        spec["externalIPs"] = json!([format!("192.0.2.{}", 100 + serial % 100), format!("2001:db8:e::{serial}")]);
    }
    if (external_ips || ["NodePort", "LoadBalancer"].contains(&kind)) && random.bool() {
        spec["externalTrafficPolicy"] = pick(random, &["Cluster", "Local"]).into();
    }
    if one_in(random, 3) {
        spec["sessionAffinity"] = pick(random, &["ClientIP", "ClientIP", "ClientIP", "None"]).into();
        if spec["sessionAffinity"] == "ClientIP" && random.bool() {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": pick(random, &[1, 30, 60, 600])}});
        }
    }
    if one_in(random, 6) {
        spec["publishNotReadyAddresses"] = true.into();
    }
    if one_in(random, 5) {
        spec["trafficDistribution"] = pick(random, &["PreferClose", "PreferSameZone", "PreferSameNode"]).into();
    }
    let mut status = json!({});
    if kind == "LoadBalancer" {
        let mut ingress = vec![json!({"ip": format!("192.0.2.{}", serial % 100)}), json!({"ip": format!("2001:db8:1b::{serial}")})];
        ingress.truncate(random.usize(0..3));
        for one in &mut ingress {
            if random.bool() {
                one["ipMode"] = pick(random, &["VIP", "VIP", "Proxy"]).into();
            }
        }
        status = json!({"loadBalancer": {"ingress": ingress}});
        if one_in(random, 3) {
            let ranges = ["10.244.1.0/24", "203.0.113.0/24", "172.18.0.1/32", "2001:db8::/32", "fd00::/8", "0.0.0.0/0"];
            spec["loadBalancerSourceRanges"] = (0..random.usize(1..3)).map(|_| pick(random, &ranges)).collect::<Vec<_>>().into();
        }
    }
    let with_slices = !one_in(random, 4);
    if !with_slices || random.bool() {
        spec["selector"] = labels(random);
    }
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status})];
    if with_slices {
        let count = random.usize(1..4);
        objects.extend((0..count).map(|n| slice(random, &format!("{name}-{n}"), (namespace, &name), &facts, &spec["ports"])));
    }
    objects
}

fn ports(random: &mut Rng, serial: u16, kind: &str) -> Vec<Value> {
    let count = random.usize(1..4);
    let mut numbers = PORTS.to_vec();
    let mut ports = Vec::new();
    for n in 0..count {
        let mut port = json!({"port": numbers.remove(random.usize(0..numbers.len()))});
        if count > 1 || random.bool() {
            port["name"] = format!("p{n}").into();
        }
        if random.bool() {
            port["protocol"] = pick(random, &PROTOCOLS).into();
        }
        match random.u32(0..4) {
            0 => port["targetPort"] = pick(random, &PORT_NAMES).into(),
            1 => port["targetPort"] = pick(random, &PORTS).into(),
            2 => port["targetPort"] = 0.into(),
            _ => {}
        }
        if kind == "NodePort" || kind == "LoadBalancer" && random.bool() {
            port["nodePort"] = (30_000 + serial * 4 + n as u16).into();
        }
        ports.push(port);
    }
    ports
}

fn facts(cluster: &mut Cluster) -> Vec<Fact> {
    let mut known: Vec<(String, Option<String>)> =
        cluster.pods().flat_map(|(node, all)| all.into_iter().map(move |a| (a, node.map(str::to_owned)))).collect();
    known.extend(["203.0.113.80", "2001:db8::80"].map(|a| (a.to_owned(), None)));
    known.extend((1..=cluster.nodes).flat_map(|n| cluster.node_addresses(n).into_iter().map(move |a| (a, Some(format!("node-{n}"))))));
    known.sort();
    known.dedup_by(|a, b| a.0 == b.0);
    let nodes: Vec<String> = (1..=cluster.nodes).map(|n| format!("node-{n}")).collect();
    let random = &mut cluster.random;
    random.shuffle(&mut known);
    known.truncate(random.usize(0..16));
    let (zones, hinted_nodes) = (one_in(random, 3), one_in(random, 4));
    let mood = random.u32(0..4);
    let fact = |(address, node)| {
        let mut conditions = json!({});
        for (key, likely) in [("ready", mood < 2), ("serving", mood != 3), ("terminating", mood > 1)] {
            if random.bool() {
                conditions[key] = (likely ^ one_in(random, 4)).into();
            }
        }
        let mut hints = json!({});
        if zones && !one_in(random, 8) {
            hints["forZones"] = json!([{"name": pick(random, &["east", "west", "north"])}]);
        }
        if hinted_nodes && !one_in(random, 8) {
            hints["forNodes"] = json!([{"name": pick(random, &nodes)}]);
        }
        Fact { address, node, conditions, hints }
    };
    known.into_iter().map(fact).collect()
}

fn slice(random: &mut Rng, name: &str, (namespace, service): (&str, &str), facts: &[Fact], ports: &Value) -> Value {
    let v4 = !one_in(random, 3);
    let mut endpoints = Vec::new();
    for fact in facts.iter().filter(|f| f.address.contains('.') == v4) {
        if one_in(random, 3) {
            continue;
        }
        let mut endpoint = json!({"addresses": [fact.address], "conditions": fact.conditions});
        if fact.hints != json!({}) {
            endpoint["hints"] = fact.hints.clone();
        }
        match &fact.node {
            _ if one_in(random, 10) => endpoint["nodeName"] = "node-1".into(),
            Some(node) if !one_in(random, 10) => endpoint["nodeName"] = node.clone().into(),
            _ => {}
        }
        endpoints.push(endpoint);
    }
    let mut listed = Vec::new();
    for port in ports.as_array().map_or(&[][..], Vec::as_slice) {
        if one_in(random, 8) {
            continue;
        }
        let mut item = json!({});
        for key in ["name", "protocol"] {
            if !port[key].is_null() {
                item[key] = port[key].clone();
            }
        }
        match random.u32(0..12) {
            0 => item["name"] = format!("wrong-{}", listed.len()).into(),
            1 => item["protocol"] = pick(random, &PROTOCOLS).into(),
            _ => {}
        }
        if !one_in(random, 12) {
            item["port"] = pick(random, &PORTS).into();
        }
        listed.push(item);
    }
    let mut metadata = json!({"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}});
    match random.u32(0..15) {
        0 => metadata["labels"]["kubernetes.io/service-name"] = "nobody".into(),
        1 => metadata["labels"]["service.kubernetes.io/headless"] = "".into(),
        _ => {}
    }
    let family = if v4 { "IPv4" } else { "IPv6" };
    let kind = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"});
    let mut slice = kind;
    (slice["metadata"], slice["addressType"]) = (metadata, family.into());
    (slice["endpoints"], slice["ports"]) = (endpoints.into(), listed.into());
    slice
}
