//! The tables' answers against packets: `weir trace` for every pair of places of small random clusters.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use weir_dataplane::model::{NodeConfig, PortSpec, proto};

use super::*;
use crate::sim::trace::{Question, Tracer};
use crate::source::load_text;

const APPS: [&str; 3] = ["a", "b", "c"];
const NAMESPACES: [&str; 2] = ["x", "z"];
const PORTS: [u16; 4] = [80, 81, 8080, 9090];

/// A small random cluster as YAML: two nodes, two namespaces, pods, Services of all kinds, policies of all tiers; dual stack.
pub(crate) fn cluster(rng: &mut Rng) -> String {
    let mut out = String::new();
    for (n, name) in ["node-a", "node-b"].iter().enumerate() {
        out.push_str(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{rack: r{n}}}}}\nspec: {{podCIDRs: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 10.0.0.1{n}}}, {{type: InternalIP, address: \"fd00:10::1{n}\"}}]}}\n---\n"
        ));
    }
    for namespace in NAMESPACES {
        out.push_str(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {namespace}}}}}\n---\n"));
    }
    for n in 0..5 {
        let (namespace, app, node) = (one(rng, &NAMESPACES), one(rng, &APPS), rng.u8(..2));
        out.push_str(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: p{n}, labels: {{app: {app}}}}}\n\
             spec: {{nodeName: node-{}, containers: [{{name: c, ports: [{{name: web, containerPort: {}}}]}}]}}\n\
             status: {{podIPs: [{{ip: 10.244.{node}.2{n}}}, {{ip: \"fd00:244:{node}::2{n}\"}}]}}\n---\n",
            ["a", "b"][usize::from(node)],
            one(rng, &PORTS[2..])
        ));
    }
    for n in 0..2 {
        let (namespace, app) = (one(rng, &NAMESPACES), one(rng, &APPS));
        let kind =
            one(rng, &["", "", "internalTrafficPolicy: Local, ", "type: NodePort, ", "type: NodePort, externalTrafficPolicy: Local, "]);
        let node_port = if kind.contains("NodePort") { format!(", nodePort: 3000{n}") } else { String::new() };
        let external = one(rng, &["", &format!("externalIPs: [198.51.100.{n}], ")]).to_owned();
        out.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: s{n}}}\nspec: {{{kind}{external}clusterIP: 10.96.0.{n}, \
             clusterIPs: [10.96.0.{n}, \"fd00:96::{n}\"], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, selector: {{app: \
             {app}}}, ports: [{{port: 80, targetPort: {}{node_port}}}]}}\n---\n",
            one(rng, &["web", "8080", "81"])
        ));
    }
    for n in 0..rng.u8(..4) {
        let (namespace, app) = (one(rng, &NAMESPACES), one(rng, &["{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b}}"]));
        let kinds = one(rng, &["[Ingress]", "[Egress]", "[Ingress, Egress]"]);
        let mut rules = |word: &str, peers: &str| {
            let mut text = String::new();
            for _ in 0..rng.u8(..3) {
                let peer = one(
                    rng,
                    &[
                        "{podSelector: {matchLabels: {app: a}}}",
                        "{namespaceSelector: {matchLabels: {team: z}}}",
                        "{namespaceSelector: {}, podSelector: {matchLabels: {app: c}}}",
                        "{ipBlock: {cidr: 10.244.0.0/23, except: [10.244.1.0/24]}}",
                        "{ipBlock: {cidr: 203.0.113.0/24}}",
                        "{ipBlock: {cidr: 10.0.0.10/32}}",
                        "{ipBlock: {cidr: \"fd00:244::/47\", except: [\"fd00:244:1::/64\"]}}",
                    ],
                );
                let port = one(rng, &["", ", ports: [{port: web}]", ", ports: [{port: 80}]", ", ports: [{port: 8080, endPort: 9000}]"]);
                text.push_str(&format!("  - {{{peers}: [{peer}]{port}}}\n"));
            }
            if text.is_empty() { String::new() } else { format!("  {word}:\n{text}") }
        };
        let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
        let section = |name: &str, text: String| if kinds.contains(name) { text } else { String::new() };
        out.push_str(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: {namespace}, name: n{n}}}\nspec:\n  podSelector: \
             {app}\n  policyTypes: {kinds}\n{}{}---\n",
            section("Ingress", ingress),
            section("Egress", egress)
        ));
    }
    for (n, tier) in ["Admin", "Baseline"].iter().enumerate() {
        if rng.u8(..3) > 0 {
            continue;
        }
        let action = one(rng, &["Accept", "Deny", "Pass"]);
        let (word, list, peer) = one(
            rng,
            &[
                ("ingress", "from", "{namespaces: {matchLabels: {team: z}}}"),
                ("egress", "to", "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}}"),
                ("egress", "to", "{nodes: {matchLabels: {rack: r1}}}"),
                ("egress", "to", "{networks: [10.244.1.0/24]}"),
            ],
        );
        out.push_str(&format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c{n}}}\nspec: {{tier: {tier}, \
             priority: {n}, subject: {{namespaces: {{}}}}, {word}: [{{action: {action}, {list}: [{peer}]}}]}}\n---\n"
        ));
    }
    out
}

fn one<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

#[test]
fn a_pod_whose_node_no_object_tells_of_is_explained_all_the_same() {
    let (_, _, world) = world(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\nspec: {podCIDRs: [10.244.0.0/24]}\nstatus: {addresses: [{type: InternalIP, \
         address: 10.0.0.10}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: x, name: a, labels: {app: a}}\nspec: {nodeName: gone, \
         containers: []}\nstatus: {podIPs: [{ip: 10.244.9.1}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: x, name: b}\nspec: \
         {nodeName: node-a, containers: []}\nstatus: {podIPs: [{ip: 10.244.0.1}]}\n---\napiVersion: networking.k8s.io/v1\nkind: \
         NetworkPolicy\nmetadata: {namespace: x, name: closed}\nspec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}\n",
    );
    let (away, here) = (Ip::v4(0x0af4_0901), Ip::v4(0x0af4_0001));
    for (src, dst, side) in [(away, here, "egress"), (here, away, "ingress")] {
        let flow = Flow { src, dst, proto: proto::TCP, port: 80 };
        let outcome = world.reach(&flow);
        let [egress, ingress] = world.sides(&flow, outcome.ends.first().unwrap(), false);
        let judged = if side == "egress" { egress } else { ingress }.unwrap().explained;
        assert_eq!((judged.allowed, &*judged.isolated_by[0].name), (false, "closed"), "{side}");
    }
}

/// The ends that `trace` finds with several seeds.
pub(crate) fn traced(tracer: &mut Tracer<'_>, from: &Place, to: &Place, world: usize, port: u16) -> BTreeSet<End> {
    let address = |place: &Place| crate::sim::place::Place::Address(place.addresses[world].unwrap().to_std());
    let mut ends = BTreeSet::new();
    // Only a Service leaves something to chance; 12 choices out of at most 5 backends miss one too rarely to matter, and always alike.
    let tries = if to.kind == Kind::Service || port >= 30_000 { 12 } else { 1 };
    for sport in 50_000..50_000 + tries {
        let question = Question { from: address(from), to: address(to), proto: proto::TCP, port: Some(port), sport, family: None, seed: 1 };
        let answer = tracer.trace(&question).unwrap();
        ends.insert(End {
            verdict: answer.verdict,
            reason: answer.reason,
            backend: answer.backend.map(|b| b.parse().unwrap()),
            snat: answer.snat.map(|ip| ip.parse().unwrap()),
        });
    }
    ends
}

/// A world of a text.
pub(crate) fn world(text: &str) -> (Snapshot, NodeConfig, World) {
    let snapshot = load_text("random.yaml", text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
    let config = NodeConfig::offline("node-a");
    let world = World::new(&snapshot, &config).unwrap();
    (snapshot, config, world)
}

/// All ports in ranges in which no table of this world changes its mind, whoever asks.
pub(crate) fn all_spans(world: &World) -> Vec<Span> {
    let mut cuts: BTreeMap<u8, BTreeSet<u32>> =
        [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP].iter().map(|p| (*p, BTreeSet::from([0]))).collect();
    let mut range = |proto: Option<u8>, first: u16, last: u16| {
        for (_, starts) in cuts.iter_mut().filter(|(p, _)| **p != proto::ICMP && proto.is_none_or(|wanted| wanted == **p)) {
            starts.extend([u32::from(first), u32::from(last) + 1].into_iter().filter(|start| *start <= 65_535));
        }
    };
    for tables in [&world.everywhere, world.node(world.default)] {
        for rule in tables.state.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten())) {
            for item in rule.ports.iter().flatten() {
                match item.port {
                    PortSpec::Range(first, last) => range(item.protocol.map(|p| p.number()), first, last),
                    PortSpec::Any | PortSpec::Named(_) => {}
                }
            }
        }
        for named in tables.state.identities.iter().flat_map(|identity| &identity.named_ports) {
            range(Some(named.protocol.number()), named.port, named.port);
        }
        for service in &tables.state.services {
            let ports = service.frontends.iter().map(|f| f.port).chain(service.backends.iter().map(|b| b.port));
            ports.for_each(|port| range(Some(service.protocol.number()), port, port));
        }
        range(Some(proto::UDP), tables.runtime.config.overlay.port, tables.runtime.config.overlay.port);
    }
    cuts.iter()
        .flat_map(|(proto, starts)| {
            let ends = starts.iter().skip(1).map(|next| next - 1).chain([65_535]);
            starts.iter().zip(ends).map(|(first, last)| Span { proto: *proto, first: *first as u16, last: last as u16 })
        })
        .collect()
}

#[test]
fn tables_say_what_traced_packets_say_for_every_pair_of_random_clusters() {
    let mut rng = Rng::with_seed(5);
    let mut compared = 0;
    for _ in 0..12 {
        let text = cluster(&mut rng);
        let (snapshot, config, world) = world(&text);
        let mut tracer = Tracer::new(&snapshot, &config, 1);
        let groups = groups(&[&world]);
        let places: Vec<&Place> = groups.iter().flat_map(|g| &g.places).collect();
        for from in places.iter().filter(|p| p.kind != Kind::Service) {
            let others = places.iter().filter(|to| to.name != from.name && to.family == from.family);
            for to in others.filter(|to| (from.kind, to.kind) != (Kind::Outside, Kind::Outside)) {
                for port in [80, 81, 8080, 9090, 30_000, 30_001] {
                    let flow = Flow { src: from.addresses[0].unwrap(), dst: to.addresses[0].unwrap(), proto: proto::TCP, port };
                    let expected = traced(&mut tracer, from, to, 0, port);
                    assert_eq!(world.reach(&flow).ends, expected, "{} -> {} port {port}\n{text}", from.name, to.name);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 3000, "{compared}");
}

#[test]
fn traffic_is_written_short() {
    let span = |proto, first, last| Span { proto, first, last };
    assert_eq!(traffic(&[span(6, 80, 80), span(6, 81, 90), span(6, 443, 443), span(17, 0, 65_535)]), "tcp 80-90, 443; udp");
    let all = [span(1, 0, 65_535), span(6, 0, 79), span(6, 80, 65_535), span(17, 0, 65_535), span(132, 0, 65_535)];
    assert_eq!(traffic(&all), "all traffic");
}

#[test]
fn ranges_of_ports_hold_for_every_port_that_any_table_tells_apart() {
    let mut rng = Rng::with_seed(61);
    let (mut compared, mut wide) = (0, 0);
    for _ in 0..12 {
        let text = cluster(&mut rng);
        let (_, _, world) = world(&text);
        let spans = all_spans(&world);
        let groups = groups(&[&world]);
        let places: Vec<&Place> = groups.iter().flat_map(|g| &g.places).collect();
        for from in places.iter().filter(|p| p.kind != Kind::Service) {
            for to in places.iter().filter(|to| to.name != from.name && to.family == from.family) {
                let (src, dst) = (from.addresses[0].unwrap(), to.addresses[0].unwrap());
                let ranges = ranges(&[&world], &[(src, dst)]);
                for span in &spans {
                    let is_in = |(range, _): &(Span, _)| range.proto == span.proto && range.first <= span.first && span.last <= range.last;
                    let (range, outcomes) =
                        ranges.iter().find(|range| is_in(range)).unwrap_or_else(|| panic!("{span:?} {ranges:?}\n{text}"));
                    assert_eq!(outcomes, &[world.reach(&span.flow(src, dst))], "{} -> {} {span:?}\n{text}", from.name, to.name);
                    compared += 1;
                    wide += usize::from(range.first < span.first);
                }
            }
        }
    }
    assert!(compared > 20_000 && wide > 5_000, "{compared} {wide}");
}
