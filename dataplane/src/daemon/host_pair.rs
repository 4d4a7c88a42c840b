//! The veth pair by which the node's own stack reaches pods and services, and the routes that lead into it.
//!
//! The node's end carries no address: routes to pods and services name the pods' gateway as next hop, whose MAC is known for
//! good, and the node's own address as source. The other end is a port of the dataplane. When the daemon ends the pair goes,
//! and all routes with it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Context;
use ipnet::IpNet;
use weir_host::{Net, NewRoute, VethEnd};

use crate::model::{FrontendKind, GATEWAY_V4, GATEWAY_V6, MacAddr, NodeState};

/// The pair; taken down when dropped.
pub(super) struct HostPair {
    /// The end that the node uses.
    pub(super) node_end: String,
    /// The end that is a port of the dataplane.
    pub(super) port_end: String,
    /// MAC of the node's end.
    pub(super) mac: MacAddr,
    net: Net,
    routes: BTreeSet<(IpNet, Option<IpAddr>)>,
}

impl HostPair {
    /// Makes the pair; one that a crashed daemon left behind is replaced.
    ///
    /// # Errors
    /// Where an interface of that name is something else, or the kernel refuses.
    pub(super) fn create(node_end: &str, mtu: u16, queues: u32) -> anyhow::Result<Self> {
        let port_end = format!("{node_end}p");
        let net = Net::open()?;
        if let Some(old) = net.find_link(node_end)? {
            let other = net.find_link(&port_end)?;
            anyhow::ensure!(
                old.kind.as_deref() == Some("veth") && other.is_some(),
                "cannot make {node_end}: there is an interface of that name that is not ours\n  try: another host.interface in node.yaml"
            );
            anyhow::ensure!(
                other.and_then(|link| link.xdp_program).is_none(),
                "cannot make {node_end}: another weir-dataplane, with another socket, has it\n  try: stop that one, or another host.interface in node.yaml"
            );
            net.delete_link(node_end)?;
        }
        let end = |name| VethEnd { name, mac: None, mtu: mtu.into(), queues, netns: None };
        net.create_veth(&end(node_end), &end(&port_end)).with_context(|| format!("cannot make {node_end}"))?;
        let mut pair = Self { node_end: node_end.into(), port_end, mac: MacAddr::default(), net: Net::open()?, routes: BTreeSet::new() };
        weir_host::guard(&pair.port_end)?;
        // Replies come back by this end although the node's routes may point elsewhere.
        weir_host::sysctl::set_all(&[(&format!("net/ipv4/conf/{node_end}/rp_filter"), "2")])?;
        weir_host::offload::switch_off(node_end)?;
        pair.net.set_up(node_end)?;
        pair.net.set_up(&pair.port_end)?;
        for gateway in [GATEWAY_V4, GATEWAY_V6] {
            let set = pair.net.set_neighbour(node_end, gateway, MacAddr::GATEWAY.0);
            // A kernel without IPv6 is fine.
            if gateway.is_ipv4() {
                set?
            } else if let Err(error) = set {
                tracing::warn!(%error, "no IPv6 to pods from this node")
            }
        }
        pair.mac = pair.net.link(node_end)?.mac.map(MacAddr).context("the host pair has no MAC")?;
        Ok(pair)
    }

    /// Leads the node's own traffic to all that the dataplane serves into the pair, and nothing that it no longer serves.
    ///
    /// A route that the kernel refuses is reported and tried again with the next state; the others stand.
    pub(super) fn lead(&mut self, state: &NodeState, local: &[IpAddr]) {
        let this = state.nodes.get(state.this_node as usize);
        let source = |to: &IpNet| this.and_then(|n| n.primary(to.addr().is_ipv4())).filter(|address| local.contains(address));
        let wanted: BTreeSet<_> = destinations(state).into_iter().map(|to| (to, source(&to))).collect();
        for (to, source) in self.routes.difference(&wanted) {
            if let Err(error) = self.net.remove_route(&route(to, *source, &self.node_end)) {
                tracing::warn!(%to, %error, "cannot remove a route");
            }
        }
        let mut standing: BTreeSet<_> = self.routes.intersection(&wanted).copied().collect();
        for (to, source) in wanted.difference(&self.routes) {
            match self.net.replace_route(&route(to, *source, &self.node_end)) {
                Ok(()) => drop(standing.insert((*to, *source))),
                Err(error) => tracing::warn!(%to, %error, "cannot make a route"),
            }
        }
        self.routes = standing;
    }
}

impl Drop for HostPair {
    fn drop(&mut self) {
        if let Err(error) = self.net.delete_link(&self.node_end) {
            tracing::warn!(interface = self.node_end, %error, "cannot remove the host pair");
        }
    }
}

fn route<'a>(to: &IpNet, source: Option<IpAddr>, dev: &'a str) -> NewRoute<'a> {
    let gateway = if to.addr().is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 };
    NewRoute { via: Some(gateway), onlink: true, source, ..NewRoute::direct(*to, dev) }
}

/// What the node's own stack must find in the dataplane: pods, ClusterIPs, and service addresses from outside. Node ports
/// are at the node's own addresses, which the kernel never sends anywhere.
fn destinations(state: &NodeState) -> BTreeSet<IpNet> {
    let mut ranges: BTreeSet<IpNet> = state.cluster.service_cidrs.iter().copied().collect();
    ranges.extend(state.cluster.pod_cidrs.iter().flatten());
    ranges.extend(state.nodes.iter().flat_map(|node| &node.pod_cidrs));
    let pods = state.endpoints.iter().filter(|e| !e.host_network).flat_map(|e| e.addresses.iter().copied());
    let frontends = state.services.iter().flat_map(|service| &service.frontends);
    let services = frontends.filter(|f| f.kind != FrontendKind::NodePort).map(|f| f.address);
    let single: Vec<IpNet> = pods.chain(services).filter(|a| !ranges.iter().any(|r| r.contains(a))).map(IpNet::from).collect();
    ranges.extend(single);
    // The most general ones are enough.
    IpNet::aggregate(&ranges.into_iter().collect()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cluster, Endpoint, Node};

    #[test]
    fn ranges_are_led_whole_and_strays_one_by_one() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let pod = |address: &str| Endpoint {
            namespace: "shop".into(),
            name: address.into(),
            node: 0,
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            identity: 0,
        };
        let node = Node { name: "a".into(), addresses: vec![], pod_cidrs: vec![net("10.244.1.0/24")], vtep_mac: MacAddr::default() };
        let state = NodeState {
            cluster: Cluster { pod_cidrs: None, service_cidrs: vec![net("10.96.0.0/12")] },
            nodes: vec![node],
            endpoints: vec![pod("10.244.1.5"), pod("192.168.7.7")].into(),
            ..NodeState::default()
        };
        let found = destinations(&state);
        assert_eq!(found, [net("10.96.0.0/12"), net("10.244.1.0/24"), net("192.168.7.7/32")].into());
    }
}
