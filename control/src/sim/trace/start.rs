//! Where a made-up packet enters the cluster: at its source's port, or by the uplink of the node that it comes in at.

use std::net::IpAddr;

use weir_dataplane::io::PortId;
use weir_dataplane::model::{Ip, NodeState, Protocol, proto};

use super::{Question, Tracer};
use crate::sim::place::Place;
use crate::sim::row::{endpoint_of, protocol};

/// Where a packet starts: the node, the port, the address.
pub(super) struct Start {
    pub(super) node: String,
    pub(super) port: PortId,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// Finds where the packet starts, and in which family it can be sent.
pub(super) fn start(cluster: &mut Tracer<'_>, state: &NodeState, question: &Question) -> Result<Start, String> {
    if let Place::Service { .. } = question.from {
        return Err(format!("{} sends nothing by itself; --from takes one of its pods", question.from));
    }
    let sources = question.from.addresses(state)?;
    let destinations = question.to.addresses(state)?;
    let fits = |a: &IpAddr| question.family.is_none_or(|family| Ip::from(*a).family() == family);
    let pair = destinations.iter().filter(|d| fits(d)).find_map(|d| Some((*sources.iter().find(|s| s.is_ipv4() == d.is_ipv4())?, *d)));
    let (source, destination) = pair.ok_or_else(|| format!("{} and {} have no address of a common family", question.from, question.to))?;
    if question.proto == if source.is_ipv4() { proto::ICMPV6 } else { proto::ICMP } {
        return Err(format!("{} is not spoken between {source} and {destination}", protocol(question.proto)));
    }
    if let Some(pod) = endpoint_of(state, source).and_then(|index| state.endpoints.get(index as usize)) {
        let node = state.nodes[pod.node as usize].name.clone();
        let runtime = cluster.node(&node)?.runtime();
        let port =
            runtime.pod(&pod.namespace, &pod.name).ok_or_else(|| format!("node {node} has no port for {}/{}", pod.namespace, pod.name))?;
        return Ok(Start { node, port, source, destination });
    }
    // A pod on the host network is its node (E1.30).
    if let Some(node) = state.nodes.iter().find(|n| n.addresses.contains(&source)).map(|n| n.name.clone()) {
        let port = cluster.node(&node)?.runtime().host().unwrap_or(PortId(1));
        return Ok(Start { node, port, source, destination });
    }
    let owner = state.nodes.iter().find(|n| n.addresses.contains(&destination)).map(|n| n.name.clone());
    let node = owner.or_else(|| pod_node(state, destination.into())).unwrap_or_else(|| cluster.config.node.clone());
    let port = cluster.node(&node)?.runtime().uplink().unwrap_or(PortId(0));
    Ok(Start { node, port, source, destination })
}

/// The name of the node on which a pod with this address runs.
pub(super) fn pod_node(state: &NodeState, address: Ip) -> Option<String> {
    let pod = state.endpoints.get(endpoint_of(state, address.to_std())? as usize)?;
    Some(state.nodes.get(pod.node as usize)?.name.clone())
}

/// The first port that a Service at `address` has for the protocol, else 80.
pub(super) fn default_port(state: &NodeState, address: IpAddr, number: u8) -> u16 {
    let of_protocol = |p: Protocol| p.number() == number;
    let frontends = state.services.iter().filter(|s| of_protocol(s.protocol)).flat_map(|s| &s.frontends);
    frontends.filter(|f| f.address == address).map(|f| f.port).next().unwrap_or(80)
}
