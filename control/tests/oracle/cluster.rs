//! Random clusters, as the JSON that `kubectl get -o json` would print, and random changes of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::{policies, services};

pub(crate) const NAMESPACES: [&str; 4] = ["a", "b", "c", "default"];
pub(crate) const PORTS: [u16; 6] = [53, 80, 81, 443, 8080, 9090];
pub(crate) const PORT_NAMES: [&str; 3] = ["web", "dns", "db"];
pub(crate) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const KEYS: [&str; 3] = ["app", "env", "team"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const ZONES: [&str; 2] = ["east", "west"];

/// A cluster as a list of objects, and what it takes to make more of them.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) objects: Vec<Value>,
    /// The objects before the last change.
    before: Vec<Value>,
    pub(crate) random: Rng,
    /// Nodes are `node-1` to `node-N`.
    pub(crate) nodes: u16,
    /// Pods and nodes may have IPv6 addresses.
    dual: bool,
    /// Nodes state their podCIDRs.
    has_cidrs: bool,
    /// Number of the next object, in names and addresses.
    serial: u16,
}

/// Tells true once in `n` times.
pub(crate) fn one_in(random: &mut Rng, n: u32) -> bool {
    random.u32(0..n) == 0
}

/// Any one.
pub(crate) fn pick<T: Clone>(random: &mut Rng, all: &[T]) -> T {
    all[random.usize(0..all.len())].clone()
}

/// Labels of a few keys.
pub(crate) fn labels(random: &mut Rng) -> Value {
    let mut labels = json!({});
    for key in KEYS {
        if random.bool() {
            labels[key] = pick(random, &VALUES).into();
        }
    }
    labels
}

/// A selector of any form, the empty one included.
pub(crate) fn selector(random: &mut Rng) -> Value {
    let mut selector = json!({});
    if random.bool() {
        selector["matchLabels"] = json!({ pick(random, &KEYS): pick(random, &VALUES) });
    }
    if one_in(random, 3) {
        let mut expressions = Vec::new();
        for _ in 0..random.usize(1..3) {
            let operator = pick(random, &["In", "NotIn", "Exists", "DoesNotExist"]);
            let mut expression = json!({"key": pick(random, &KEYS), "operator": operator});
            if operator.ends_with("In") {
                let mut values = VALUES.to_vec();
                random.shuffle(&mut values);
                values.truncate(random.usize(1..3));
                expression["values"] = values.into();
            }
            expressions.push(expression);
        }
        selector["matchExpressions"] = expressions.into();
    }
    selector
}

/// The name of an object.
pub(crate) fn key(object: &Value) -> (String, String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

impl Cluster {
    /// Makes a cluster.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let (nodes, dual, has_cidrs) = (random.u16(1..4), random.bool(), !one_in(&mut random, 8));
        let mut cluster = Self { objects: Vec::new(), before: Vec::new(), random, nodes, dual, has_cidrs, serial: 1 };
        for node in 1..=nodes {
            let node = cluster.node(node);
            cluster.put(node);
        }
        for namespace in NAMESPACES {
            if !one_in(&mut cluster.random, 5) {
                let labels = labels(&mut cluster.random);
                cluster.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
            }
        }
        for _ in 0..cluster.random.usize(3..18) {
            cluster.add_pod();
        }
        for _ in 0..cluster.random.usize(0..8) {
            cluster.add_policy();
        }
        for _ in 0..cluster.random.usize(0..8) {
            cluster.add_service();
        }
        cluster
    }

    /// Adds, replaces and removes a few objects, or takes the last change back.
    pub(crate) fn change(&mut self) {
        let before = std::mem::replace(&mut self.before, self.objects.clone());
        if !before.is_empty() && one_in(&mut self.random, 4) {
            self.objects = before;
            return;
        }
        for _ in 0..self.random.usize(1..4) {
            match self.random.u32(0..10) {
                0 => self.add_pod(),
                1 => self.add_policy(),
                2 => self.add_service(),
                3 | 4 => {
                    let index = self.random.usize(0..self.objects.len());
                    let object = self.objects[index].clone();
                    if object["kind"] != "Node" {
                        self.objects.remove(index);
                    }
                }
                _ => self.change_one(),
            }
        }
    }

    fn change_one(&mut self) {
        let index = self.random.usize(0..self.objects.len());
        let object = self.objects[index].clone();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match object["kind"].as_str().unwrap_or_default() {
            "Node" => {
                let number = name.trim_start_matches("node-").parse().unwrap_or(1);
                let node = self.node(number);
                self.put(node);
            }
            "Pod" => {
                let mut pod = object;
                match self.random.u32(0..4) {
                    0 => pod["metadata"]["labels"] = labels(&mut self.random),
                    1 => pod["status"]["phase"] = pick(&mut self.random, &["Succeeded", "Failed"]).into(),
                    2 => pod["status"]["conditions"] = json!([{"type": "Ready", "status": pick(&mut self.random, &["True", "False"])}]),
                    _ => pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
                }
                self.put(pod);
            }
            "Namespace" => {
                let labels = labels(&mut self.random);
                self.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
            }
            "NetworkPolicy" => {
                let serial = name.trim_start_matches("np-").parse().unwrap_or(0);
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
                let policy = policies::network_policy(self, serial, &namespace);
                self.put(policy);
            }
            "EndpointSlice" if self.random.bool() => self.retire(&object),
            "Service" | "EndpointSlice" => {
                let serial = name.trim_start_matches("svc-").split('-').next().and_then(|s| s.parse().ok()).unwrap_or(0);
                self.remove_service(serial);
                let objects = services::service(self, serial);
                objects.into_iter().for_each(|o| self.put(o));
            }
            _ => {
                self.objects.remove(index);
                self.add_policy();
            }
        }
    }

    fn remove_service(&mut self, serial: u16) {
        let (service, slices) = (format!("svc-{serial}"), format!("svc-{serial}-"));
        self.objects.retain(|o| {
            let name = o["metadata"]["name"].as_str().unwrap_or_default();
            name != service && !name.starts_with(&slices)
        });
    }

    /// Takes an endpoint of a slice out of its Service, or lets it end; in every slice that has it.
    fn retire(&mut self, slice: &Value) {
        let listed = slice["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
        if listed.is_empty() {
            return;
        }
        let (gone, at_once) = (pick(&mut self.random, listed), self.random.bool());
        let service = |o: &Value| o["metadata"]["labels"]["kubernetes.io/service-name"].clone();
        for other in self.objects.iter_mut().filter(|o| o["kind"] == "EndpointSlice" && service(o) == service(slice)) {
            let Some(endpoints) = other["endpoints"].as_array_mut() else { continue };
            let is_it = |e: &Value| e["addresses"] == gone["addresses"];
            if at_once {
                endpoints.retain(|e| !is_it(e));
            }
            for endpoint in endpoints.iter_mut().filter(|e| is_it(e)) {
                endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
            }
        }
    }

    /// Adds an object, or puts it in the place of the one with its name.
    fn put(&mut self, object: Value) {
        match self.objects.iter_mut().find(|o| key(o) == key(&object)) {
            Some(place) => *place = object,
            None => self.objects.push(object),
        }
    }

    fn next(&mut self) -> u16 {
        self.serial += 1;
        self.serial
    }

    fn add_policy(&mut self) {
        let serial = self.next();
        let policy = if one_in(&mut self.random, 3) {
            policies::cluster_policy(self, serial)
        } else {
            let namespace = pick(&mut self.random, &NAMESPACES);
            policies::network_policy(self, serial, namespace)
        };
        self.put(policy);
    }

    fn add_service(&mut self) {
        let serial = self.next();
        let objects = services::service(self, serial);
        objects.into_iter().for_each(|o| self.put(o));
    }

    fn node(&mut self, number: u16) -> Value {
        let random = &mut self.random;
        let mut labels = labels(random);
        if !one_in(random, 4) {
            labels["topology.kubernetes.io/zone"] = pick(random, &ZONES).into();
        }
        let mut addresses = vec![json!({"type": "InternalIP", "address": format!("172.18.0.{number}")})];
        let mut cidrs = vec![format!("10.244.{number}.0/24")];
        if self.dual {
            addresses.push(json!({"type": "InternalIP", "address": format!("fd00:18::{number}")}));
            cidrs.push(format!("fd00:244:{number}::/64"));
        }
        if one_in(random, 3) {
            addresses.push(json!({"type": pick(random, &["InternalIP", "ExternalIP"]), "address": format!("198.51.100.{number}")}));
        }
        addresses.push(json!({"type": "Hostname", "address": format!("node-{number}")}));
        let spec = if self.has_cidrs { json!({"podCIDR": cidrs[0], "podCIDRs": cidrs}) } else { json!({}) };
        let metadata = json!({"name": format!("node-{number}"), "labels": labels});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": {"addresses": addresses}})
    }

    fn add_pod(&mut self) {
        let serial = self.next();
        let node = self.random.u16(1..=self.nodes);
        let host_network = one_in(&mut self.random, 8);
        let finished = one_in(&mut self.random, 8);
        let mut addresses = if host_network { self.node_addresses(node) } else { self.pod_addresses(node, serial) };
        if finished && self.random.bool() {
            // The address of a pod that has ended may be another's by now (E1.39).
            let others: Vec<Vec<String>> = self.pods().map(|(_, addresses)| addresses).filter(|a| !a.is_empty()).collect();
            if !others.is_empty() {
                addresses = pick(&mut self.random, &others);
            }
        }
        let random = &mut self.random;
        if one_in(random, 12) {
            addresses.clear();
        }
        let mut containers = vec![json!({"name": "main", "ports": container_ports(random)})];
        if one_in(random, 4) {
            containers.push(json!({"name": "side", "ports": container_ports(random)}));
        }
        let mut spec = json!({"containers": containers});
        if one_in(random, 6) {
            spec["initContainers"] = json!([{"name": "first", "ports": container_ports(random)}]);
            if random.bool() {
                spec["initContainers"][0]["restartPolicy"] = "Always".into();
            }
        }
        if !one_in(random, 15) {
            spec["nodeName"] = format!("node-{node}").into();
        }
        if host_network {
            spec["hostNetwork"] = true.into();
        }
        let mut status = json!({"podIPs": addresses.iter().map(|a| json!({"ip": a})).collect::<Vec<_>>()});
        if let Some(first) = addresses.first() {
            status["podIP"] = first.clone().into();
        }
        if finished {
            status["phase"] = pick(random, &["Succeeded", "Failed"]).into();
        } else if random.bool() {
            status["phase"] = "Running".into();
        }
        if one_in(random, 3) {
            status["conditions"] = json!([{"type": "Ready", "status": pick(random, &["True", "False"])}]);
        }
        let mut metadata = json!({"name": format!("pod-{serial}"), "labels": labels(random)});
        metadata["namespace"] = pick(random, &NAMESPACES).into();
        if one_in(random, 10) {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}));
    }

    fn pod_addresses(&mut self, node: u16, serial: u16) -> Vec<String> {
        let v4 = Ipv4Addr::new(10, 244, node as u8, 0).to_bits() + u32::from(serial);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, serial);
        let (v4, v6) = (Ipv4Addr::from_bits(v4).to_string(), v6.to_string());
        match (self.dual, self.random.u32(0..6)) {
            (true, 0) => vec![v6],
            (true, 1) => vec![v6, v4],
            (true, 2..5) => vec![v4, v6],
            _ => vec![v4],
        }
    }

    /// The addresses of a node, the first of each family.
    pub(crate) fn node_addresses(&self, number: u16) -> Vec<String> {
        let mut addresses = vec![format!("172.18.0.{number}")];
        if self.dual {
            addresses.push(format!("fd00:18::{number}"));
        }
        addresses
    }

    /// Every pod with the node and the addresses that it states.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (Option<&str>, Vec<String>)> {
        self.objects.iter().filter(|o| o["kind"] == "Pod").map(|pod| {
            let list = pod["status"]["podIPs"].as_array().map_or(&[][..], Vec::as_slice);
            (pod["spec"]["nodeName"].as_str(), list.iter().filter_map(|a| a["ip"].as_str().map(str::to_owned)).collect())
        })
    }

    /// An address that means something: of a pod, a node, or outside.
    pub(crate) fn address(&mut self) -> IpAddr {
        let mut all: Vec<String> = self.pods().flat_map(|(_, addresses)| addresses).collect();
        all.extend((1..=self.nodes).flat_map(|n| self.node_addresses(n)));
        all.extend(["203.0.113.7", "2001:db8::7", "198.51.100.1", "10.244.1.255"].map(str::to_owned));
        pick(&mut self.random, &all).parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

fn container_ports(random: &mut Rng) -> Value {
    let mut names = PORT_NAMES.to_vec();
    let mut ports: Vec<Value> = Vec::new();
    for _ in 0..random.usize(0..4) {
        let mut port = json!({"containerPort": pick(random, &PORTS)});
        if !one_in(random, 4) && !names.is_empty() {
            port["name"] = names.remove(random.usize(0..names.len())).into();
        }
        if !one_in(random, 3) {
            port["protocol"] = pick(random, &PROTOCOLS).into();
        }
        ports.push(port);
    }
    ports.into()
}
