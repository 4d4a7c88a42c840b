//! Rules that keep open what was open to a pod that no NetworkPolicy isolated before: overriding Baseline for one flow isolates
//! the pod for all others (E1.45).

use std::collections::BTreeMap;

use weir_dataplane::model::{Direction, Ip, proto};

use crate::sim::reach::{Kind, Span, World, groups};

/// Who has which ports open now.
#[derive(Default)]
struct Open {
    namespaces: Vec<String>,
    /// Other peers, as items of a list.
    items: Vec<String>,
}

/// The rules, as further items of `ingress` or `egress`; as the pods of the snapshot are, what is in no namespace by blocks.
pub(super) fn rules(world: &World, pod: Ip, direction: Direction) -> String {
    let state = world.state();
    let mut open: BTreeMap<Vec<Span>, Open> = BTreeMap::new();
    let mut pods: BTreeMap<&str, BTreeMap<Vec<Span>, Vec<String>>> = BTreeMap::new();
    for endpoint in state.endpoints.iter().filter(|e| !e.host_network) {
        let Some(peer) = endpoint.addresses.iter().map(|a| Ip::from(*a)).find(|a| a.is_v4() == pod.is_v4()) else { continue };
        if peer != pod {
            let labels = serde_json::to_string(&state.identities[endpoint.identity as usize].labels).unwrap_or_default();
            pods.entry(&endpoint.namespace).or_default().entry(world.admitted(pod, direction, peer)).or_default().push(labels);
        }
    }
    for (namespace, by_ports) in pods {
        let whole = by_ports.len() == 1;
        for (ports, mut labels) in by_ports {
            let open = open.entry(ports).or_default();
            if whole {
                open.namespaces.push(namespace.into());
                continue;
            }
            labels.sort();
            labels.dedup();
            let selector = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: \"{namespace}\"}}}}");
            open.items.extend(labels.iter().map(|labels| format!("{selector}\n      podSelector: {{matchLabels: {labels}}}")));
        }
    }
    for (peers, ports) in blocks(world, pod, direction) {
        open.entry(ports).or_default().items.extend(peers);
    }
    let (word, mut out) = (if direction == Direction::Ingress { "from" } else { "to" }, String::new());
    for (ports, Open { namespaces, items }) in open.into_iter().filter(|(ports, _)| !ports.is_empty()) {
        out.push_str(&format!("  - {word}:\n"));
        if !namespaces.is_empty() {
            let names = serde_json::to_string(&namespaces).unwrap_or_default();
            let expression = format!("{{key: kubernetes.io/metadata.name, operator: In, values: {names}}}");
            out.push_str(&format!("    - namespaceSelector: {{matchExpressions: [{expression}]}}\n"));
        }
        items.iter().for_each(|item| out.push_str(&format!("    - {item}\n")));
        out.push_str(&list(&ports));
    }
    out
}

/// Nodes and the outside: everything but the pods' ranges, and apart what fares otherwise.
fn blocks(world: &World, pod: Ip, direction: Direction) -> Vec<(Vec<String>, Vec<Span>)> {
    let state = world.state();
    let mut found = Vec::new();
    let families: Vec<bool> = match state.endpoints.iter().find(|e| e.addresses.iter().any(|a| Ip::from(*a) == pod)) {
        Some(endpoint) => endpoint.addresses.iter().map(|address| address.is_ipv4()).collect(),
        None => vec![pod.is_v4()],
    };
    let groups = groups(&[world]);
    for v4 in families {
        let own = state.endpoints.iter().find(|e| e.addresses.iter().any(|a| Ip::from(*a) == pod));
        let own = own.and_then(|e| e.addresses.iter().copied().find(|a| a.is_ipv4() == v4)).map_or(pod, Ip::from);
        let places = groups.iter().filter(|g| matches!(g.kind, Kind::Node | Kind::Outside)).flat_map(|g| &g.places);
        let places: Vec<(&str, Ip, Vec<Span>)> = places
            .filter_map(|place| Some((place.name.as_str(), place.addresses[0].filter(|ip| ip.is_v4() == v4)?)))
            .map(|(name, ip)| (name, ip, world.admitted(own, direction, ip)))
            .collect();
        let usual = places.iter().find(|(name, ..)| *name == "outside").map(|(.., ports)| ports.clone()).unwrap_or_default();
        let mut except: Vec<String> =
            state.nodes.iter().flat_map(|n| &n.pod_cidrs).filter(|c| c.addr().is_ipv4() == v4).map(ToString::to_string).collect();
        for (name, ip, ports) in places.into_iter().filter(|(.., ports)| *ports != usual) {
            let block =
                name.parse::<ipnet::IpNet>().map_or_else(|_| format!("{ip}/{}", if v4 { 32 } else { 128 }), |block| block.to_string());
            except.push(block.clone());
            found.push((vec![format!("ipBlock: {{cidr: \"{block}\"}}")], ports));
        }
        let (all, except) = (if v4 { "0.0.0.0/0" } else { "::/0" }, serde_json::to_string(&except).unwrap_or_default());
        found.push((vec![format!("ipBlock: {{cidr: \"{all}\", except: {except}}}")], usual));
    }
    found
}

/// `ports` of a rule; nothing where it is all traffic.
fn list(spans: &[Span]) -> String {
    let whole = |span: &Span| span.first == 0 && span.last == u16::MAX;
    if spans.iter().filter(|span| whole(span)).count() == 4 {
        return String::new();
    }
    let mut out = String::from("    ports:\n");
    // Only a rule without ports admits what has none (E1.15).
    for span in spans.iter().filter(|span| span.proto != proto::ICMP && span.last > 0) {
        let protocol = crate::sim::row::protocol(span.proto).to_uppercase();
        let range = if whole(span) { String::new() } else { format!(", port: {}, endPort: {}", span.first.max(1), span.last) };
        out.push_str(&format!("    - {{protocol: {protocol}{range}}}\n"));
    }
    out
}
