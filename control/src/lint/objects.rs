//! Services without endpoints, ports that resolve nowhere, ranges that overlap.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Finding;
use crate::sim::reach::World;
use crate::source::objects::{Pod, Service, ServiceType, Snapshot, TargetPort};

pub(super) fn check(snapshot: &Snapshot, world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in snapshot.services.iter().filter(|s| s.kind != ServiceType::ExternalName && !s.other_proxy) {
        endpoints(snapshot, world, service, &mut findings);
        target_ports(snapshot, service, &mut findings);
    }
    ranges(snapshot, &mut findings);
    findings
}

/// The pods that a Service selects.
pub(super) fn selected<'a>(snapshot: &'a Snapshot, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
    let pods = snapshot.pods.iter().filter(|pod| !service.selector.is_empty() && pod.meta.namespace == service.meta.namespace);
    pods.filter(|pod| !pod.finished && service.selector.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value)))
}

fn endpoints(snapshot: &Snapshot, world: &World, service: &Service, findings: &mut Vec<Finding>) {
    let compiled = &world.state().services;
    let mine: Vec<_> = compiled.iter().filter(|s| (&s.namespace, &s.name) == (&service.meta.namespace, &service.meta.name)).collect();
    if service.headless || mine.is_empty() || mine.iter().any(|port| port.any_usable) {
        return;
    }
    let text: Vec<String> = service.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let text = text.join(",");
    let (why, fix) = match selected(snapshot, service).count() {
        _ if text.is_empty() => {
            ("has no selector and no EndpointSlice with a usable endpoint".to_owned(), "add a selector or an EndpointSlice".to_owned())
        }
        0 => (
            format!("{text} matches no pod in {}: nobody answers", service.meta.namespace),
            format!("label the pods {text}, or select what they have"),
        ),
        count => (format!("none of its {count} pods is usable: nobody answers"), "look at the pods' readiness".to_owned()),
    };
    findings.push(Finding::new("service-without-endpoints", "Service", &service.meta, "spec.selector".into(), why, fix));
}

fn target_ports(snapshot: &Snapshot, service: &Service, findings: &mut Vec<Finding>) {
    let pods: Vec<&Pod> = selected(snapshot, service).collect();
    for (index, port) in service.ports.iter().enumerate() {
        let TargetPort::Name(name) = &port.target else { continue };
        if !pods.is_empty() && pods.iter().all(|pod| pod.named_port(name, port.protocol).is_none()) {
            let why = format!("no pod that it selects has a {:?} port called {name}", port.protocol);
            let fix = format!("name a container port {name}, or give the number");
            findings.push(Finding::new(
                "named-port-nowhere",
                "Service",
                &service.meta,
                format!("spec.ports[{index}].targetPort"),
                why,
                fix,
            ));
        }
    }
}

/// Ranges in which one address would have two owners. Two nodes' pod ranges that overlap are refused before.
fn ranges(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let within = |cidr: &IpNet, addresses: &[IpAddr]| addresses.iter().copied().find(|a| cidr.contains(a));
    for node in &snapshot.nodes {
        for cidr in &node.pod_cidrs {
            let mut found = |why: String, fix: &str| {
                findings.push(Finding::new("ranges-overlap", "Node", &node.meta, "spec.podCIDRs".into(), why, fix.into()));
            };
            for other in &snapshot.nodes {
                if let Some(address) = within(cidr, &other.addresses) {
                    found(format!("{cidr} holds {address}, an address of Node {}", other.meta), "keep pod and node ranges apart");
                }
            }
            for service in &snapshot.services {
                if let Some(address) = within(cidr, &service.cluster_ips) {
                    found(format!("{cidr} holds {address}, the address of Service {}", service.meta), "keep pod and service ranges apart");
                }
            }
        }
    }
    for pod in snapshot.pods.iter().filter(|pod| !pod.host_network && !pod.finished) {
        let Some(node) = snapshot.nodes.iter().find(|n| Some(&n.meta.name) == pod.node.as_ref()) else { continue };
        let stray = |a: &IpAddr| {
            let mut cidrs = node.pod_cidrs.iter().filter(|c| c.addr().is_ipv4() == a.is_ipv4()).peekable();
            cidrs.peek().is_some() && !cidrs.any(|c| c.contains(a))
        };
        if let Some(address) = pod.addresses.iter().copied().find(stray) {
            let why = format!("{address} is in no pod range of its node {}: other nodes' overlay drops what it sends", node.meta);
            let fix = "correct the node's podCIDRs, or look at who gave out the address".into();
            findings.push(Finding::new("address-outside-range", "Pod", &pod.meta, "status.podIPs".into(), why, fix));
        }
    }
}
