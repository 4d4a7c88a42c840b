//! Nodes and the address ranges of the cluster: what the overlay and masquerading need.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ipnet::IpNet;
use weir_dataplane::model::{MacAddr, Node, NodeConfig, NodeIndex};

use crate::source::objects::{Pod, Snapshot};

/// The name under which pods stand that are not scheduled although they have an address.
const UNSCHEDULED: &str = "";

/// Makes all nodes, sorted by name. A node that only pods mention is here too, without addresses: nothing can be sent to
/// it, but its pods are peers of policies.
pub(super) fn nodes(snapshot: &Snapshot) -> Vec<Node> {
    let mut nodes: BTreeMap<&str, Node> = BTreeMap::new();
    for node in &snapshot.nodes {
        let mut made = Node {
            name: node.meta.name.clone(),
            addresses: node.addresses.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
            vtep_mac: MacAddr::default(),
        };
        let primary = made.primary(true).or_else(|| made.primary(false));
        made.vtep_mac = node.vtep_mac.or_else(|| primary.map(MacAddr::from_ip)).unwrap_or_default();
        nodes.insert(&node.meta.name, made);
    }
    for pod in &snapshot.pods {
        if let Entry::Vacant(entry) = nodes.entry(node_name(pod))
            && !is_nobody(pod)
        {
            entry.insert(Node { name: node_name(pod).into(), ..Node::default() });
        }
    }
    nodes.into_values().collect()
}

/// Tells whether a pod does not make its node known: it has finished, or has no address.
pub(super) fn is_nobody(pod: &Pod) -> bool {
    pod.finished || pod.addresses.is_empty()
}

/// The name in `nodes` of the node that `pod` runs on.
pub(super) fn node_name(pod: &Pod) -> &str {
    pod.node.as_deref().unwrap_or(UNSCHEDULED)
}

/// Finds a node by its name.
pub(super) fn find(nodes: &[Node], name: &str) -> Option<NodeIndex> {
    nodes.binary_search_by(|n| n.name.as_str().cmp(name)).ok().map(|index| index as NodeIndex)
}

/// Where pods live: as configured, else the Nodes' ranges; `None` where neither tells (E2.27).
pub(super) fn pod_cidrs(nodes: &[Node], config: &NodeConfig) -> Option<Vec<IpNet>> {
    let configured = &config.cluster.pod_cidrs;
    let ranges: Vec<IpNet> =
        if configured.is_empty() { nodes.iter().flat_map(|n| n.pod_cidrs.iter().copied()).collect() } else { configured.clone() };
    if ranges.is_empty() { None } else { Some(sorted(ranges)) }
}

/// Where ClusterIPs live, as configured.
pub(super) fn service_cidrs(config: &NodeConfig) -> Vec<IpNet> {
    sorted(config.cluster.service_cidrs.clone())
}

fn sorted(mut ranges: Vec<IpNet>) -> Vec<IpNet> {
    for range in &mut ranges {
        *range = range.trunc();
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
