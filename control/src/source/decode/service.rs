//! v1 Service.

use std::net::IpAddr;

use weir_dataplane::model::{Family, Protocol};
use weir_dataplane::yaml::Value;

use super::{PolicyPort, policy_port};
use crate::source::objects::{Meta, Service, ServicePort, ServiceType, TargetPort, TrafficDistribution};
use crate::source::read::{At, twice};
use crate::source::syntax;

/// Label that leaves a Service to another proxy (E2.1).
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Seconds of `sessionAffinityConfig.clientIP.timeoutSeconds` unless stated (E0.3).
const AFFINITY_TIMEOUT_SECS: u32 = 10_800;
/// Its upper bound (E0.3): a day.
const AFFINITY_TIMEOUT_SECS_MAX: i64 = 86_400;

const TYPES: [(&str, ServiceType); 4] = [
    ("ClusterIP", ServiceType::ClusterIp),
    ("NodePort", ServiceType::NodePort),
    ("LoadBalancer", ServiceType::LoadBalancer),
    ("ExternalName", ServiceType::ExternalName),
];
const TRAFFIC_POLICIES: [(&str, bool); 2] = [("Cluster", false), ("Local", true)];
const DISTRIBUTIONS: [(&str, TrafficDistribution); 3] = [
    ("PreferClose", TrafficDistribution::SameZone),
    ("PreferSameZone", TrafficDistribution::SameZone),
    ("PreferSameNode", TrafficDistribution::SameNode),
];

pub(super) fn service(at: &At<'_>, meta: Meta) -> Service {
    let other_proxy = meta.labels.contains_key(OTHER_PROXY_LABEL);
    let mut service = Service { meta, other_proxy, ..Service::default() };
    let Some(spec) = at.map("spec") else {
        at.fault_of("spec", "is required");
        return service;
    };
    service.kind = spec.word("type", &TYPES).unwrap_or_default();
    let load_balancer = service.kind == ServiceType::LoadBalancer;
    cluster_ips(&spec, &mut service);
    service.external_ips = spec.list("externalIPs", |item| item.parse(syntax::unicast)).unwrap_or_default();
    service.selector = spec.labels("selector");
    service.ports = spec.list("ports", |item| port(&item, service.kind)).unwrap_or_default();
    if service.kind != ServiceType::ExternalName && !service.headless && spec.field("ports").is_none_or(|p| p.node.list().is_empty()) {
        spec.fault_of("ports", "is required: at least one port");
    }
    check_ports(&spec, &service.ports);
    service.internal_local = spec.word("internalTrafficPolicy", &TRAFFIC_POLICIES).unwrap_or(false);
    service.external_local = spec.word("externalTrafficPolicy", &TRAFFIC_POLICIES).unwrap_or(false) && is_external(&service);
    service.affinity_timeout_secs = affinity(&spec);
    service.publish_not_ready_addresses = spec.bool("publishNotReadyAddresses").unwrap_or(false);
    service.traffic_distribution = spec.word("trafficDistribution", &DISTRIBUTIONS);
    let health = spec.port("healthCheckNodePort", true);
    let ranges = spec.list("loadBalancerSourceRanges", |item| item.parse(syntax::block)).unwrap_or_default();
    if load_balancer {
        service.health_check_node_port = health.filter(|_| service.external_local);
        service.source_ranges = ranges;
        service.load_balancer_ips = load_balancer_ips(at);
    }
    families(&spec, &service);
    excluded(&spec, &service);
    unallocated(&spec, &service);
    service
}

/// `clusterIPs`, else `clusterIP`: addresses, or `None` for a headless Service.
fn cluster_ips(spec: &At<'_>, service: &mut Service) {
    let address = |at: At<'_>| match at.text()? {
        "None" => Some(None),
        "" => None,
        _ => at.parse(syntax::unicast).map(Some),
    };
    let listed: Option<Vec<Option<IpAddr>>> = spec.list("clusterIPs", address).filter(|l| !l.is_empty());
    let single: Option<Option<IpAddr>> = spec.field("clusterIP").and_then(address);
    if let (Some(single), Some(list)) = (single, &listed)
        && single != list[0]
    {
        spec.fault_of("clusterIP", "is not the first of clusterIPs");
    }
    let stated = listed.unwrap_or_else(|| single.into_iter().collect());
    // E2.49: a name in the DNS, whatever else is stated.
    if service.kind == ServiceType::ExternalName {
        return;
    }
    service.headless = stated.contains(&None);
    service.cluster_ips = stated.into_iter().flatten().collect();
    if service.headless && !service.cluster_ips.is_empty() {
        spec.fault_of("clusterIPs", "None excludes every address");
    }
    if service.headless && service.kind != ServiceType::ClusterIp {
        spec.fault_of("clusterIP", "may be None for type ClusterIP only");
    }
    let of_family = |v4| service.cluster_ips.iter().filter(|a| a.is_ipv4() == v4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        spec.fault_of("clusterIPs", "at most one address of each family");
    }
}

/// `ipFamilies` and `ipFamilyPolicy` decide nothing beside clusterIPs, but must not say otherwise.
fn families(spec: &At<'_>, service: &Service) {
    let policy = spec.word("ipFamilyPolicy", &[("SingleStack", false), ("PreferDualStack", true), ("RequireDualStack", true)]);
    let families = spec.list("ipFamilies", |item| item.parse(syntax::family)).unwrap_or_default();
    if let Some(family) = twice(&families) {
        spec.fault_of("ipFamilies", format!("{} stands twice", if *family == Family::V4 { "IPv4" } else { "IPv6" }));
    }
    if policy == Some(false) && families.len().max(service.cluster_ips.len()) > 1 {
        spec.fault_of("ipFamilyPolicy", "SingleStack excludes a second family");
    }
    for (address, family) in service.cluster_ips.iter().zip(families) {
        if address.is_ipv4() != (family == Family::V4) {
            spec.fault_of("ipFamilies", format!("{address} of clusterIPs is not of the family in its place"));
        }
    }
}

/// Fields that other fields exclude: who states one takes the Service for something that it is not.
fn excluded(spec: &At<'_>, service: &Service) {
    let stated = |key: &str| {
        spec.field(key).is_some_and(|field| match &field.node.value {
            Value::Str(text) => !text.is_empty(),
            Value::List(items) => !items.is_empty(),
            Value::Int(number) => *number != 0,
            _ => true,
        })
    };
    let load_balancer = service.kind == ServiceType::LoadBalancer;
    if stated("loadBalancerSourceRanges") && !load_balancer {
        spec.fault_of("loadBalancerSourceRanges", "is for type LoadBalancer only: it would keep nobody out");
    }
    // These keep nobody in or out. The API server refuses them when a Service is made, and drops them when its type changes.
    for (key, fits, whose) in [
        ("allocateLoadBalancerNodePorts", load_balancer, "type LoadBalancer"),
        ("externalTrafficPolicy", is_external(service), "type NodePort or LoadBalancer, or with externalIPs"),
        ("healthCheckNodePort", load_balancer && service.external_local, "type LoadBalancer with externalTrafficPolicy Local"),
    ] {
        if stated(key) && !fits {
            spec.warn(&format!("{key} says nothing: it is for Services of {whose}"));
        }
    }
    // The API server refuses these too; here they are taken, for whoever means the name (E2.49).
    if service.kind == ServiceType::ExternalName && ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"].into_iter().any(stated) {
        spec.warn("an ExternalName is a name in the DNS: what is said of its addresses counts for nothing (E2.49)");
    }
}

/// Tells whether a Service is reached from outside the cluster.
fn is_external(service: &Service) -> bool {
    match service.kind {
        ServiceType::NodePort | ServiceType::LoadBalancer => true,
        ServiceType::ClusterIp => !service.external_ips.is_empty(),
        ServiceType::ExternalName => false,
    }
}

/// What the control plane would allocate (E0.8): a ClusterIP must be stated, the rest does without.
fn unallocated(spec: &At<'_>, service: &Service) {
    let proxied = service.kind != ServiceType::ExternalName && !service.headless;
    if proxied && service.cluster_ips.is_empty() && spec.field("clusterIP").is_none_or(|c| c.node.str() == Some("")) {
        spec.fault_of("clusterIP", "is required: the control plane would allocate it; state an address, or None for a headless Service");
    }
    let allocates = spec.bool("allocateLoadBalancerNodePorts").unwrap_or(true);
    let node_ports = service.kind == ServiceType::NodePort || (service.kind == ServiceType::LoadBalancer && allocates);
    if node_ports && service.ports.iter().any(|p| p.node_port.is_none()) {
        spec.warn("a port without nodePort: the control plane would allocate one; no node port is served for it");
    }
    if service.kind == ServiceType::LoadBalancer && service.external_local && service.health_check_node_port.is_none() {
        spec.warn("no healthCheckNodePort: the control plane would allocate one; no health check is answered");
    }
}

fn port(item: &At<'_>, kind: ServiceType) -> Option<ServicePort> {
    if !item.is_map() {
        return None;
    }
    if item.field("port").is_none() {
        item.fault_of("port", "is required");
    }
    let (port, node_port) = (item.port("port", false), item.port("nodePort", true));
    let (name, protocol) = (item.str("name").unwrap_or_default().to_owned(), item.protocol());
    if !name.is_empty()
        && let Err(message) = syntax::label_name(&name)
    {
        item.fault_of("name", message);
    }
    if node_port.is_some() && kind == ServiceType::ClusterIp {
        item.fault_of("nodePort", "is for types NodePort and LoadBalancer only");
    }
    let target = match item.field("targetPort") {
        // E0.2: 0 and "" mean the Service's own port.
        Some(target) if !matches!(&target.node.value, Value::Int(0)) && target.node.str() != Some("") => match policy_port(&target)? {
            PolicyPort::Number(number) => Some(TargetPort::Number(number)),
            PolicyPort::Name(name) => Some(TargetPort::Name(name)),
        },
        _ => None,
    };
    let port = port?;
    Some(ServicePort { name, protocol, port, target: target.unwrap_or(TargetPort::Number(port)), node_port })
}

/// Several ports need names that differ; (protocol, port) and (protocol, nodePort) must be unique within the Service.
fn check_ports(spec: &At<'_>, ports: &[ServicePort]) {
    let standing_twice = |what: &dyn Fn(&ServicePort, &ServicePort) -> bool| {
        ports.iter().enumerate().find(|(n, p)| ports[..*n].iter().any(|before| what(before, p))).map(|(_, p)| p)
    };
    if ports.len() > 1 && ports.iter().any(|p| p.name.is_empty()) {
        spec.fault_of("ports", "each of several ports needs a name");
    }
    if let Some(port) = standing_twice(&|a, b| !a.name.is_empty() && a.name == b.name) {
        spec.fault_of("ports", format!("the name {:?} stands twice", port.name));
    }
    if let Some(port) = standing_twice(&|a, b| (a.protocol, a.port) == (b.protocol, b.port)) {
        spec.fault_of("ports", format!("{} port {} stands twice", protocol_name(port.protocol), port.port));
    }
    if let Some((port, number)) = standing_twice(&|a, b| a.node_port.is_some() && (a.protocol, a.node_port) == (b.protocol, b.node_port))
        .and_then(|p| Some((p, p.node_port?)))
    {
        spec.fault_of("ports", format!("{} nodePort {number} stands twice", protocol_name(port.protocol)));
    }
}

/// How the API spells a protocol.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// The affinity's timeout, if there is an affinity (E0.3, E2.34).
fn affinity(spec: &At<'_>) -> Option<u32> {
    let wanted = spec.word("sessionAffinity", &[("None", false), ("ClientIP", true)]).unwrap_or(false);
    let config = spec.map("sessionAffinityConfig");
    if !wanted {
        // The API server drops it without a word (CDEF).
        if config.is_some() {
            spec.warn("sessionAffinityConfig says nothing without sessionAffinity: ClientIP");
        }
        return None;
    }
    let client = config.as_ref().and_then(|c| c.map("clientIP"));
    let timeout = client.and_then(|c| c.int("timeoutSeconds", 1..=AFFINITY_TIMEOUT_SECS_MAX));
    Some(timeout.map_or(AFFINITY_TIMEOUT_SECS, |secs| secs as u32))
}

/// Addresses of the load balancer that are served here: those with ipMode VIP (E2.3).
fn load_balancer_ips(at: &At<'_>) -> Vec<IpAddr> {
    let Some(status) = at.map("status") else { return Vec::new() };
    let Some(balancer) = status.map("loadBalancer") else { return Vec::new() };
    let ingress = balancer.list("ingress", |item| {
        let mode = item.is_map().then(|| item.word("ipMode", &[("VIP", true), ("Proxy", false)]))?;
        if mode.is_some() && item.str("ip").is_none() {
            item.fault_of("ipMode", "is said of an ip, and there is none");
        }
        let vip = mode.unwrap_or(true);
        let address = item.str("ip").and_then(|_| item.field("ip")?.parse(syntax::unicast));
        address.filter(|_| vip)
    });
    ingress.unwrap_or_default()
}
