//! What keeps a snapshot from being compiled, for whichever of its nodes.
//!
//! Stands beside [`compile`](super::compile()), for who asks about the whole cluster. What two objects cannot both have wherever they are
//! met, `Snapshot::check` finds when it is loaded; what is left is where a node's own addresses come in: a Service that states one
//! as its own (E2.3) cannot have a port there that is another's nodePort (E2.30).

use std::collections::HashMap;
use std::net::IpAddr;

use weir_dataplane::model::{NodeConfig, Protocol};
use weir_dataplane::yaml::Fault;

use super::overlay;
use super::service::{family_of, has_family, is_proxied, node_port_addresses};
use crate::source::objects::{Service, ServicePort, Snapshot};
use crate::source::{fault, protocol_name};

/// Finds everything for which a node of `snapshot` would be refused, each once, in the order of files and lines.
pub fn check(snapshot: &Snapshot) -> Vec<Fault> {
    let mut node_ports: HashMap<(Protocol, u16), (&Service, &ServicePort)> = HashMap::new();
    let mut stated: HashMap<IpAddr, Vec<(&Service, &str)>> = HashMap::new();
    for service in snapshot.services.iter().filter(|s| is_proxied(s)) {
        for port in &service.ports {
            port.node_port.map(|number| node_ports.entry((port.protocol, number)).or_insert((service, port)));
        }
        let places = [
            ("spec.clusterIPs", &service.cluster_ips),
            ("spec.externalIPs", &service.external_ips),
            ("status.loadBalancer.ingress", &service.load_balancer_ips),
        ];
        for (path, addresses) in places {
            addresses.iter().for_each(|address| stated.entry(*address).or_default().push((service, path)));
        }
    }
    let mut faults = Vec::new();
    for node in overlay::nodes(snapshot) {
        for address in node_port_addresses(&node, &NodeConfig::offline(&node.name)) {
            for (service, path) in stated.get(&address).into_iter().flatten().filter(|(s, _)| has_family(s, family_of(address))) {
                for port in &service.ports {
                    let Some((other, taken)) = node_ports.get(&(port.protocol, port.port)) else { continue };
                    if std::ptr::eq(*taken, port) || !has_family(other, family_of(address)) {
                        continue;
                    }
                    let message = format!(
                        "{address} is an address of Node {}, where {} {} is the nodePort of Service {} ({})",
                        node.name,
                        protocol_name(port.protocol),
                        port.port,
                        other.meta,
                        other.meta.origin
                    );
                    faults.push(fault("Service", &service.meta, path, message));
                }
            }
        }
    }
    faults.sort();
    faults.dedup();
    faults
}
