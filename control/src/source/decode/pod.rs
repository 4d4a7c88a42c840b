//! v1 Pod.

use weir_dataplane::model::Protocol;
use weir_dataplane::yaml::Node;

use super::protocol_name;
use crate::source::objects::{ContainerPort, Meta, Pod};
use crate::source::read::{At, twice};
use crate::source::syntax;

const PHASES: [(&str, &str); 5] =
    [("Pending", "Pending"), ("Running", "Running"), ("Succeeded", "Succeeded"), ("Failed", "Failed"), ("Unknown", "Unknown")];

pub(super) fn pod(at: &At<'_>, meta: Meta) -> Pod {
    let mut pod = Pod { meta, ..Pod::default() };
    if let Some(metadata) = at.field("metadata") {
        pod.terminating = metadata.field("deletionTimestamp").is_some();
    }
    match at.map("spec") {
        Some(spec) => {
            pod.node = spec.name("nodeName");
            pod.host_network = spec.bool("hostNetwork").unwrap_or(false);
            let containers = spec.list("containers", |item| Some(ports(&item, pod.host_network))).unwrap_or_default();
            let init = spec.list("initContainers", |item| {
                // Only init containers that keep running serve anything once the pod is up.
                let ports = ports(&item, pod.host_network);
                (item.node.field("restartPolicy").and_then(Node::str) == Some("Always")).then_some(ports)
            });
            pod.ports = containers.into_iter().chain(init.unwrap_or_default()).flatten().collect();
        }
        None => at.fault_of("spec", "is required"),
    }
    let phase = at.map("status").map(|status| self::status(&status, &mut pod));
    pod.finished = matches!(phase, Some(Some("Succeeded" | "Failed")));
    pod
}

/// Reads `status`; gives the phase.
fn status(status: &At<'_>, pod: &mut Pod) -> Option<&'static str> {
    let phase = status.word("phase", &PHASES);
    let addresses = status.list("podIPs", |item| item.is_map().then(|| item.field("ip")?.parse(syntax::unicast))?);
    let first = status.str("podIP").and_then(|_| status.field("podIP")?.parse(syntax::unicast));
    pod.addresses = addresses.filter(|a| !a.is_empty()).unwrap_or_else(|| first.into_iter().collect());
    if let (Some(first), Some(of_list)) = (first, pod.addresses.first())
        && first != *of_list
    {
        status.fault_of("podIP", format!("{first} is not the first of podIPs, {of_list}"));
    }
    for v4 in [true, false] {
        if pod.addresses.iter().filter(|a| a.is_ipv4() == v4).count() > 1 {
            status.fault_of("podIPs", "at most one address of each family");
        }
    }
    let ready = status.list("conditions", |item| {
        let text = |key| item.node.field(key).and_then(Node::str);
        (text("type") == Some("Ready")).then(|| text("status") == Some("True"))
    });
    let stated = ready.and_then(|r| r.first().copied());
    pod.ready = stated.unwrap_or(matches!(phase, None | Some("Running")));
    phase
}

fn ports(container: &At<'_>, host_network: bool) -> Vec<ContainerPort> {
    if !container.is_map() {
        return Vec::new();
    }
    let mut names = Vec::new();
    let ports = container.list("ports", |item| {
        let name = item.str("name").map(str::to_owned);
        // No policy can name such a port, so it does no harm.
        if let Some(Err(message)) = name.as_deref().map(syntax::port_name) {
            item.warn(&message);
        }
        let (host, port) = (item.port("hostPort", true), item.port("containerPort", false));
        if item.field("containerPort").is_none() {
            item.fault_of("containerPort", "is required");
        }
        match (host, port) {
            // E0.6: on the host network the two are the same port.
            (Some(host), Some(port)) if host_network && host != port => {
                item.fault_of("hostPort", format!("must equal containerPort ({port}) on the host network"));
            }
            (Some(_), _) if !host_network => {
                item.fault_of(
                    "hostPort",
                    "is not supported: no port of the node is forwarded to a pod; use a NodePort Service or hostNetwork",
                );
            }
            _ => {}
        }
        let protocol: Protocol = item.protocol();
        names.extend(name.clone().map(|name| (name, protocol)));
        Some(ContainerPort { name, protocol, port: port? })
    });
    // The API server refuses one name for two protocols too; here they are two ports (E1.27).
    if let Some((name, protocol)) = twice(&names) {
        container.fault_of("ports", format!("{name:?} names two {} ports", protocol_name(*protocol)));
    }
    ports.unwrap_or_default()
}
