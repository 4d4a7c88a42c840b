//! The oracle against the conformance cases: it must know what others wrote down before it may judge the tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use weir_control::source::load_nodes;
use weir_control::source::objects::Snapshot;
use weir_dataplane::model::Protocol;
use weir_dataplane::yaml::{Node, Source, from_node};

use crate::policy::{Flow, Policies};
use crate::service::{Answer, Proxy};

#[derive(Deserialize)]
struct Head {
    id: String,
    kind: String,
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Deserialize)]
struct Config {
    this_node: String,
    #[serde(default)]
    cluster_cidrs: Option<Vec<IpNet>>,
    #[serde(default)]
    masquerade_all: bool,
    #[serde(default)]
    nodeport_addresses: Vec<IpNet>,
    #[serde(default)]
    service_cidrs: Vec<IpNet>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Step {
    expect: Vec<Pairs>,
    flows: Vec<ServiceFlow>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
struct Pairs {
    from: OneOrMany<String>,
    to: OneOrMany<String>,
    port: OneOrMany<u16>,
    protocol: OneOrMany<Protocol>,
    verdict: String,
    #[serde(default)]
    family: Option<String>,
    #[serde(default, rename = "self")]
    with_self: bool,
}

#[derive(Deserialize)]
struct ServiceFlow {
    name: String,
    from: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    expect: Expected,
}

#[derive(Deserialize)]
struct Expected {
    verdict: String,
    #[serde(default)]
    endpoints: Vec<SocketAddr>,
    #[serde(default)]
    snat: Option<String>,
    #[serde(default)]
    policy: BTreeMap<SocketAddr, String>,
}

/// What was found out.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) checked: usize,
    pub(crate) differences: Vec<String>,
}

/// Judges every case of the kinds that the oracle knows, our own too.
pub(crate) fn run() -> Report {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut report = Report::default();
    for folder in
        ["../shared/conformance/policy", "../shared/conformance/policy-cluster", "../shared/conformance/services", "fixtures/cases"]
    {
        let files = std::fs::read_dir(here.join("..").join(folder)).unwrap_or_else(|error| panic!("no conformance cases: {error}"));
        let mut files: Vec<PathBuf> = files.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "yaml")).collect();
        files.sort();
        for file in files {
            let source = Source::new(&file.display().to_string(), std::fs::read(&file).unwrap()).unwrap();
            let (documents, faults) = source.documents();
            assert_eq!(faults, [], "{}", file.display());
            documents.iter().for_each(|document| case(&source, document, &mut report));
        }
    }
    report
}

fn name(node: &Node<'_>, kind: &Node<'_>) -> [String; 3] {
    let text = |node: &Node<'_>, key: &str| node.field(key).and_then(|n| n.str()).unwrap_or_default().to_owned();
    [text(kind, "kind"), text(node, "namespace"), text(node, "name")]
}

fn case(source: &Source, document: &Node<'_>, report: &mut Report) {
    let head: Head = from_node(source, document).unwrap();
    let list = |node: &'_ Node<'_>, key: &str| node.field(key).map(|n| n.list().len()).unwrap_or_default();
    let mut objects: Vec<([String; 3], &Node<'_>)> = Vec::new();
    let then = document.field("then").map_or(&[][..], |n| n.list());
    for (index, node) in std::iter::once(document).chain(then).enumerate() {
        let key = if index == 0 { "snapshot" } else { "apply" };
        for object in 0..list(node, key) {
            let object = &node.field(key).unwrap().list()[object];
            let named = name(object.field("metadata").unwrap(), object);
            objects.retain(|(n, _)| *n != named);
            objects.push((named, object));
        }
        for gone in node.field("delete").map_or(&[][..], |n| n.list()) {
            objects.retain(|(n, _)| *n != name(gone, gone));
        }
        let snapshot = load_nodes(source, objects.iter().map(|(_, node)| *node)).unwrap_or_else(|faults| panic!("{faults}"));
        let step: Step = from_node(source, node).unwrap();
        let at = format!("{} step {index}", head.id);
        if head.kind == "services" {
            services(&at, &snapshot, head.config.as_ref().unwrap(), &step.flows, report);
        } else {
            policies(&at, &snapshot, &step.expect, report);
        }
    }
}

fn addresses(snapshot: &Snapshot, place: &str) -> Vec<IpAddr> {
    let pod = snapshot.pods.iter().find(|p| !p.finished && p.meta.to_string() == place);
    pod.map_or_else(|| vec![place.parse().unwrap_or_else(|_| panic!("nobody is {place}"))], |p| p.addresses.clone())
}

fn policies(at: &str, snapshot: &Snapshot, expect: &[Pairs], report: &mut Report) {
    let judge = Policies { snapshot, own_node_egress_is_free: true };
    for pairs in expect {
        for from in pairs.from.all() {
            for to in pairs.to.all().iter().filter(|to| *to != from || pairs.with_self) {
                let (sources, destinations) = (addresses(snapshot, from), addresses(snapshot, to));
                let family = |v4| {
                    let of = |list: &[IpAddr]| list.iter().copied().find(|a| a.is_ipv4() == v4);
                    Some((of(&sources)?, of(&destinations)?))
                };
                let ends = match pairs.family.as_deref() {
                    Some(word) => family(word == "IPv4"),
                    None => family(true).or_else(|| family(false)),
                };
                let (source, destination) = ends.unwrap_or_else(|| panic!("{at}: {from} and {to} share no family"));
                for (port, protocol) in pairs.port.all().iter().flat_map(|p| pairs.protocol.all().iter().map(move |q| (*p, *q))) {
                    let flow = Flow { from: source, to: destination, protocol: protocol.number(), port, via_service: false };
                    report.checked += 1;
                    if judge.allow(&flow) != (pairs.verdict == "allow") {
                        report.differences.push(format!("{at}: {from} -> {to}:{port}/{protocol:?} should {}", pairs.verdict));
                    }
                }
            }
        }
    }
}

fn services(at: &str, snapshot: &Snapshot, config: &Config, flows: &[ServiceFlow], report: &mut Report) {
    let proxy = Proxy {
        snapshot,
        node: &config.this_node,
        pod_cidrs: config.cluster_cidrs.clone(),
        masquerade_all: config.masquerade_all,
        node_port_cidrs: config.nodeport_addresses.clone(),
        service_cidrs: config.service_cidrs.clone(),
        external_cluster_ip: true,
    };
    let judge = Policies { snapshot, own_node_egress_is_free: true };
    for flow in flows {
        report.checked += 1;
        let answer = proxy.ask(flow.from, flow.to, flow.protocol);
        let expected = &flow.expect;
        let agrees = match &answer {
            Answer::Pass => expected.verdict == "pass",
            Answer::Drop => expected.verdict == "drop",
            Answer::Reject => expected.verdict == "reject",
            Answer::Open => true,
            Answer::Forward { endpoints, masquerade } => {
                let translated = *masquerade || endpoints.iter().all(|e| e.ip() == flow.from);
                let snat = expected.snat.as_ref().is_none_or(|s| (s == "node-ip") == translated);
                expected.verdict == "forward" && endpoints.iter().eq(&sorted(&expected.endpoints)) && snat
            }
        };
        if !agrees {
            report.differences.push(format!("{at}: {}: {} -> {}: {answer:?}", flow.name, flow.from, flow.to));
        }
        for (endpoint, verdict) in &expected.policy {
            let protocol = flow.protocol.number();
            let translated = Flow { from: flow.from, to: endpoint.ip(), protocol, port: endpoint.port(), via_service: true };
            report.checked += 1;
            if judge.allow(&translated) != (verdict == "allow") {
                report.differences.push(format!("{at}: {}: {} -> {endpoint} should {verdict}", flow.name, flow.from));
            }
        }
    }
}

fn sorted(endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut endpoints = endpoints.to_vec();
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}
