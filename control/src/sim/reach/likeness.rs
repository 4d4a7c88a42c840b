//! What tells two places apart, gathered once for a cluster.
//!
//! Nodes are alike where no rule names their addresses and no Service treats them differently; pods are alike where policies
//! and Services are, and their nodes are. So a question about a large cluster is one about its kinds of pods. What is left of
//! nodes is whether two ends share one: [`Group::pairs`](super::Group::pairs) asks for both.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weir_dataplane::model::{FrontendKind, Ip, Selection, Service};
use weir_dataplane::tables::OwnerKind;

use super::World;

/// All that is known of a world's addresses beside its policies.
pub(super) struct Likeness<'a> {
    world: &'a World,
    /// Frontends and backends at an address.
    services: HashMap<IpAddr, Vec<u64>>,
    /// Source ranges of load balancers, and whose they are.
    ranges: Vec<(IpNet, u64)>,
    /// Equal for nodes that are alike.
    nodes: Vec<u64>,
}

impl<'a> Likeness<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let state = &world.everywhere.state;
        let mut services: HashMap<IpAddr, Vec<u64>> = HashMap::new();
        let mut ranges = Vec::new();
        for (index, service) in shapes(&state.services).into_iter().zip(&state.services) {
            let mark = |kind: u64, port: u16| kind << 48 | index << 16 | u64::from(port);
            // NodePorts are at every node's own address; which of them serve is the nodes' matter.
            for frontend in service.frontends.iter().filter(|f| f.kind != FrontendKind::NodePort) {
                services.entry(frontend.address).or_default().push(mark(8 + frontend.kind as u64, frontend.port));
            }
            for backend in &service.backends {
                services.entry(backend.address).or_default().push(mark(1, backend.port));
            }
            ranges.extend(service.source_ranges.iter().map(|range| (*range, mark(2, 0))));
        }
        Self { world, services, ranges, nodes: nodes(world) }
    }

    /// Everything that sets an address apart. Equal lists: no flow fares otherwise, but for which other places are on its node.
    pub(super) fn of(&self, ip: Ip) -> Vec<u64> {
        let owner = self.world.everywhere.owner(ip);
        let flags = u64::from(owner.in_cluster) | u64::from(owner.in_services) << 1 | u64::from(owner.keeps_source) << 2;
        let node = self.world.homes.get(&ip).map(|(node, _)| *node);
        let mut marks = match owner.kind {
            OwnerKind::LocalPod { subject, .. } => vec![0, owner.class.into(), owner.own_class.into(), subject.into()],
            // Who a node is to policies is in the nodes' marks.
            OwnerKind::OwnNode | OwnerKind::OtherNode(_) => vec![1],
            // Pods that are none of the gathered ones do not exist.
            OwnerKind::RemotePod { node, .. } => vec![2, node.into()],
            OwnerKind::Nobody(node) => vec![3, owner.class.into(), node.map_or(u64::MAX, u64::from)],
        };
        marks.push(flags);
        marks.push(node.map_or(u64::MAX, |node| self.nodes[node]));
        let address = ip.to_std();
        let mut services = self.services.get(&address).cloned().unwrap_or_default();
        services.sort_unstable();
        services.dedup();
        marks.extend(services);
        marks.extend(self.ranges.iter().filter(|(range, _)| range.contains(&address)).map(|(_, mark)| *mark));
        marks
    }
}

/// Numbers Services: those that answer alike, but at addresses of their own, share a number.
fn shapes(services: &[Arc<Service>]) -> Vec<u64> {
    let mut known: HashMap<String, u64> = HashMap::new();
    let number = |service: &Arc<Service>| {
        let mut shape = Service::clone(service);
        (shape.namespace, shape.name, shape.port_name) = Default::default();
        shape.frontends.clear();
        let next = known.len() as u64;
        *known.entry(serde_json::to_string(&shape).unwrap_or_default()).or_insert(next)
    };
    services.iter().map(number).collect()
}

/// Numbers nodes: alike ones share a number.
fn nodes(world: &World) -> Vec<u64> {
    let state = &world.everywhere.state;
    let mut known: HashMap<Vec<u64>, u64> = HashMap::new();
    let mut marks: Vec<Vec<u64>> = state.nodes.iter().map(|_| Vec::new()).collect();
    for (node, marks) in state.nodes.iter().zip(&mut marks) {
        let served = &world.config.services.node_port_cidrs;
        for address in &node.addresses {
            marks.push(u64::from(address.is_ipv4()) | u64::from(served.iter().any(|range| range.contains(address))) << 1);
            marks.extend(world.everywhere.services.is_cluster_ip(Ip::from(*address)).then_some(2));
        }
    }
    for (index, selection) in (8_u64..).zip(&state.selections) {
        match selection {
            Selection::Pods { .. } => {}
            Selection::Nodes { nodes, .. } => nodes.iter().for_each(|node| marks[*node as usize].push(index)),
            Selection::Block { cidr, except } => {
                let within = |address: &IpAddr| cidr.contains(address) && !except.iter().any(|hole| hole.contains(address));
                for (node, marks) in state.nodes.iter().zip(&mut marks) {
                    marks.extend(node.addresses.iter().filter(|address| within(address)).map(|_| index));
                }
            }
        }
    }
    // Where an endpoint stands matters to Services that stay on a node, or that hide the client behind it.
    let mut stands: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    let by_name: HashMap<&str, usize> = state.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
    for endpoint in world.snapshot.slices.iter().flat_map(|slice| &slice.endpoints) {
        let node = endpoint.node.as_ref().and_then(|node| by_name.get(node.as_str()));
        stands.entry(endpoint.address).or_default().extend(node);
    }
    let masquerades = world.config.masquerade.all;
    let depends = |service: &Service| {
        let beyond = service.frontends.iter().any(|f| f.kind != FrontendKind::ClusterIp);
        masquerades || beyond || service.internal_local || service.external_local
    };
    for (index, service) in shapes(&state.services).into_iter().zip(&state.services).filter(|(_, service)| depends(service)) {
        for backend in &service.backends {
            let home = world.homes.get(&Ip::from(backend.address)).map(|(node, _)| *node);
            let told = stands.get(&backend.address).into_iter().flatten().copied();
            told.chain(home).for_each(|node| marks[node].push(1 << 62 | index << 16 | u64::from(backend.port)));
        }
    }
    // Hints mean zones or nodes; whoever uses them tells nodes apart by these.
    let hinted =
        world.snapshot.slices.iter().flat_map(|slice| &slice.endpoints).any(|e| !e.hint_zones.is_empty() || !e.hint_nodes.is_empty())
            || world.snapshot.services.iter().any(|service| service.traffic_distribution.is_some());
    if hinted {
        (0_u64..).zip(&mut marks).for_each(|(index, marks)| marks.push(1 << 63 | index));
    }
    let number = |marks: Vec<u64>| {
        let next = known.len() as u64;
        *known.entry(marks).or_insert(next)
    };
    marks.into_iter().map(number).collect()
}
