//! What is the same on every node, so that no node's own tables are needed to tell it.
//!
//! Nodes differ in which addresses they have, in Services that keep traffic on a node or follow hints, and in which Services
//! hide the client. Where none of that is at stake a pod's way to a pod is its policies' matter alone.

use std::collections::HashSet;

use weir_dataplane::model::{FrontendKind, Ip, NodeConfig, NodeState, OverlayMode};
use weir_dataplane::tables::Owner;

use crate::source::objects::Snapshot;

pub(super) struct Plain {
    /// Virtual addresses, ClusterIPs alone, whose backends are the same for every pod.
    virtuals: HashSet<Ip>,
    /// All addresses at which a Service answers.
    frontends: HashSet<Ip>,
    /// Whether there are no Services but at such addresses.
    alike: bool,
    /// Nodes that have an overlay to each other: IPv4 addresses.
    nodes: Vec<bool>,
}

impl Plain {
    pub(super) fn new(snapshot: &Snapshot, config: &NodeConfig, state: &NodeState) -> Self {
        let endpoints = || snapshot.slices.iter().flat_map(|slice| &slice.endpoints);
        let hinted = endpoints().any(|e| !e.hint_zones.is_empty() || !e.hint_nodes.is_empty())
            || snapshot.services.iter().any(|service| service.traffic_distribution.is_some());
        let (mut virtuals, mut others, mut frontends) = (HashSet::new(), HashSet::new(), HashSet::new());
        for service in &state.services {
            for frontend in &service.frontends {
                let same = frontend.kind == FrontendKind::ClusterIp && !service.internal_local && !hinted && !config.masquerade.all;
                let list = if same { &mut virtuals } else { &mut others };
                list.insert(Ip::from(frontend.address));
                frontends.insert(Ip::from(frontend.address));
            }
        }
        let alike = others.is_empty() && !hinted && !config.masquerade.all;
        virtuals.retain(|address| !others.contains(address));
        frontends.extend(state.cluster_ips.iter().map(|address| Ip::from(*address)));
        let overlay = config.overlay.mode == OverlayMode::Vxlan;
        let nodes = state.nodes.iter().map(|node| overlay && node.primary(true).is_some()).collect();
        Self { virtuals, frontends, alike, nodes }
    }

    /// Tells whether every node has the same Services with the same backends: which of those are its own matters to none.
    pub(super) fn services_are_alike(&self) -> bool {
        self.alike
    }

    /// Tells whether a pod that asks a Service at this address has the backends that every pod has.
    pub(super) fn is_virtual(&self, address: Ip) -> bool {
        self.virtuals.contains(&address)
    }

    /// Tells whether a pod of a node is reached from another node, or from its own, without a look at their tables.
    pub(super) fn is_pod(&self, from: usize, to: usize, address: Ip, owner: &Owner) -> bool {
        !owner.in_services && !self.frontends.contains(&address) && (from == to || self.nodes[from] && self.nodes[to])
    }
}
