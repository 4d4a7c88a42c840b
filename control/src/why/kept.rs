//! Rules that keep open what was open to a pod that no NetworkPolicy isolated before: overriding Baseline for one flow isolates
//! the pod for all others (E1.45).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use weir_dataplane::model::{Direction, Endpoint, Ip, proto};

use super::lasting;
use crate::sim::reach::{Kind, Span, World, groups};
use crate::sim::row::endpoint_of;

/// Who has which ports open now.
#[derive(Default)]
struct Open {
    namespaces: Vec<String>,
    /// Other peers, as items of a list.
    items: Vec<String>,
}

/// An address of a pod, and the ports that are open to it.
type Peer = (Ip, Vec<Span>);

/// The rules, as further items of `ingress` or `egress`; as the pods of the snapshot are, what is in no namespace by blocks.
pub(super) fn rules(world: &World, pod: Ip, direction: Direction) -> String {
    let state = world.state();
    let mut open: BTreeMap<Vec<Span>, Open> = BTreeMap::new();
    let subjects = Subjects { world, direction, addresses: subjects(world, pod) };
    let mut alike: BTreeMap<(&str, String), Vec<Peer>> = BTreeMap::new();
    for endpoint in state.endpoints.iter().filter(|e| !e.host_network) {
        let labels = serde_json::to_string(&state.identities[endpoint.identity as usize].labels).unwrap_or_default();
        let peers = endpoint.addresses.iter().filter_map(|peer| Some((Ip::from(*peer), subjects.admitted(Ip::from(*peer))?)));
        alike.entry((&endpoint.namespace, labels)).or_default().extend(peers);
    }
    let mut pods: BTreeMap<&str, BTreeMap<Vec<Span>, Vec<String>>> = BTreeMap::new();
    // Namespaces with pods that labels do not tell apart where blocks do, be it one address of a pod from the other.
    let mut divided = BTreeSet::new();
    for ((namespace, labels), mut peers) in alike.into_iter().filter(|(_, peers)| !peers.is_empty()) {
        if peers.windows(2).all(|two| two[0].1 == two[1].1) {
            let (_, ports) = peers.swap_remove(0);
            pods.entry(namespace).or_default().entry(ports).or_default().push(labels);
            continue;
        }
        divided.insert(namespace);
        for (peer, ports) in peers {
            open.entry(ports).or_default().items.push(format!("ipBlock: {{cidr: \"{}\"}}", IpNet::from(peer.to_std())));
        }
    }
    for (namespace, by_ports) in pods {
        let whole = by_ports.len() == 1 && !divided.contains(namespace);
        for (ports, labels) in by_ports {
            let open = open.entry(ports).or_default();
            if whole {
                open.namespaces.push(namespace.into());
                continue;
            }
            let selector = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: \"{namespace}\"}}}}");
            open.items.extend(labels.iter().map(|labels| format!("{selector}\n      podSelector: {{matchLabels: {labels}}}")));
        }
    }
    for (peers, ports) in blocks(&subjects) {
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

/// The pods that the patch isolates.
struct Subjects<'a> {
    world: &'a World,
    direction: Direction,
    addresses: Vec<Ip>,
}

impl Subjects<'_> {
    /// The ports that are open between any of them and a peer; `None` where there is none but the peer itself.
    fn admitted(&self, peer: Ip) -> Option<Vec<Span>> {
        let others = self.addresses.iter().filter(|own| own.is_v4() == peer.is_v4() && **own != peer);
        let mut each: Vec<Vec<Span>> = others.map(|own| self.world.admitted(*own, self.direction, peer)).collect();
        each.sort_unstable();
        each.dedup();
        if each.len() < 2 {
            return each.pop();
        }
        let mut spans: Vec<Span> = each.into_iter().flatten().collect();
        spans.sort_unstable();
        let mut union: Vec<Span> = Vec::new();
        for span in spans {
            match union.last_mut() {
                Some(last) if last.proto == span.proto && span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
                _ => union.push(span),
            }
        }
        Some(union)
    }
}

/// All addresses of the pods that a policy for the pod at `pod` selects: those of its namespace that have its labels.
fn subjects(world: &World, pod: Ip) -> Vec<Ip> {
    let state = world.state();
    let found = endpoint_of(state, pod.to_std()).and_then(|index| state.endpoints.get(index as usize));
    let Some(pod) = found else { return vec![pod] };
    let labels = |endpoint: &Endpoint| &state.identities[endpoint.identity as usize].labels;
    let selected = |endpoint: &&Endpoint| {
        !endpoint.host_network
            && endpoint.namespace == pod.namespace
            && lasting(labels(pod)).all(|(key, value)| labels(endpoint).get(key) == Some(value))
    };
    state.endpoints.iter().filter(selected).flat_map(|endpoint| &endpoint.addresses).map(|address| Ip::from(*address)).collect()
}

/// Nodes and the outside: everything but the pods' ranges, and apart what fares otherwise.
fn blocks(subjects: &Subjects<'_>) -> Vec<(Vec<String>, Vec<Span>)> {
    let state = subjects.world.state();
    let mut found = Vec::new();
    let groups = groups(&[subjects.world]);
    let families: BTreeSet<bool> = subjects.addresses.iter().map(|own| own.is_v4()).collect();
    for v4 in families {
        let places = groups.iter().filter(|g| matches!(g.kind, Kind::Node | Kind::Outside)).flat_map(|g| &g.places);
        let places: Vec<(&str, Ip, Vec<Span>)> = places
            .filter_map(|place| Some((place.name.as_str(), place.addresses[0].filter(|ip| ip.is_v4() == v4)?)))
            .filter_map(|(name, ip)| Some((name, ip, subjects.admitted(ip)?)))
            .collect();
        let usual = places.iter().find(|(name, ..)| *name == "outside").map(|(.., ports)| ports.clone()).unwrap_or_default();
        let mut except: Vec<String> =
            state.nodes.iter().flat_map(|n| &n.pod_cidrs).filter(|c| c.addr().is_ipv4() == v4).map(ToString::to_string).collect();
        for (name, ip, ports) in places.into_iter().filter(|(.., ports)| *ports != usual) {
            let block = name.parse::<IpNet>().map_or_else(|_| format!("{ip}/{}", if v4 { 32 } else { 128 }), |block| block.to_string());
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
