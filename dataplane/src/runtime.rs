//! What the node looks like right now: its ports, its addresses, the kernel's routes and neighbours.
//!
//! The other input of [`Tables::compile`](crate::tables::Tables::compile) beside the desired state. Plain data: the daemon
//! fills it from netlink, offline use makes it up with [`Runtime::offline`].

use std::net::IpAddr;

use ipnet::IpNet;

use crate::io::PortId;
use crate::model::{MacAddr, NodeConfig, NodeState, OverlayMode};
use crate::overlay::vxlan::mtu_overhead;

/// The node as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// What the operator decided.
    pub config: NodeConfig,
    /// The attached ports; a [`PortId`] is an index of this list.
    pub ports: Vec<Port>,
    /// The network below the overlay.
    pub underlay: Underlay,
}

/// One attached port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Who is at the other end.
    pub kind: PortKind,
    /// The interface's name, or the pod's offline.
    pub name: String,
    /// MAC of the other end: the pod's interface, the node's end of the host pair; of the uplink, its own. `None` = unknown, as in
    /// captures: no MAC is checked, and frames to it carry [`MacAddr::from_ip`] of their destination.
    pub mac: Option<MacAddr>,
    /// The largest IP packet it takes, in bytes.
    pub mtu: u16,
    /// What it sends may carry unfinished transport checksums (a veth whose mark was lost); they are finished here.
    pub unfinished_checksums: bool,
}

/// Who is at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A pod of this node.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The network of the nodes.
    Uplink,
    /// The node's own stack.
    Host,
    /// Nobody: the port was detached and its number waits for another.
    Vacant,
}

impl Port {
    /// `namespace/name` of the pod at the other end.
    pub fn pod_name(&self) -> Option<String> {
        match &self.kind {
            PortKind::Pod { namespace, name } => Some(format!("{namespace}/{name}")),
            PortKind::Uplink | PortKind::Host | PortKind::Vacant => None,
        }
    }
    /// A port that is not there.
    pub fn vacant() -> Self {
        Self { kind: PortKind::Vacant, name: String::new(), mac: None, mtu: 0, unfinished_checksums: false }
    }
}

/// The network below the overlay, as the kernel sees it: the kernel is the routing control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// MAC of the uplink.
    pub mac: MacAddr,
    /// The largest IP packet that the uplink takes, in bytes.
    pub mtu: u16,
    /// Every address of the node, on any interface.
    pub addresses: Vec<IpAddr>,
    /// The kernel's routes by the uplink.
    pub routes: Vec<Route>,
    /// Resolved neighbours of the uplink.
    pub neighbours: Vec<(IpAddr, MacAddr)>,
}

/// One route by the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub prefix: IpNet,
    /// Next hop; `None` = the destination itself is a neighbour.
    pub via: Option<IpAddr>,
}

impl Runtime {
    /// Makes up the node of `state` for offline use: port 0 is the uplink, port 1 the host, then a port for each local pod in
    /// the order of `state.endpoints`. No MAC is checked; every next hop is a neighbour with [`MacAddr::from_ip`].
    pub fn offline(state: &NodeState, config: NodeConfig) -> Self {
        let uplink_mtu = 1500;
        let pod_mtu = match config.overlay.mode {
            OverlayMode::Vxlan => uplink_mtu - mtu_overhead(false) as u16,
            OverlayMode::Native => uplink_mtu,
        };
        let port = |kind, name: String, mtu| Port { kind, name, mac: None, mtu, unfinished_checksums: false };
        let mut ports = vec![port(PortKind::Uplink, "uplink".into(), uplink_mtu), port(PortKind::Host, "host".into(), pod_mtu)];
        for endpoint in state.endpoints.iter().filter(|e| e.node == state.this_node && !e.host_network) {
            let kind = PortKind::Pod { namespace: endpoint.namespace.clone(), name: endpoint.name.clone() };
            ports.push(port(kind, format!("{}/{}", endpoint.namespace, endpoint.name), pod_mtu));
        }
        let this = state.nodes.get(state.this_node as usize);
        let addresses: Vec<IpAddr> = this.map(|n| n.addresses.clone()).unwrap_or_default();
        let mut underlay = Underlay { mtu: uplink_mtu, addresses: addresses.clone(), ..Underlay::default() };
        underlay.mac = addresses.first().map(|a| MacAddr::from_ip(*a)).unwrap_or_default();
        for gateway in [crate::model::GATEWAY_V4, crate::model::GATEWAY_V6] {
            let any = if gateway.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
            if let Ok(prefix) = IpNet::new(any, 0) {
                underlay.routes.push(Route { prefix, via: Some(gateway) });
                underlay.neighbours.push((gateway, MacAddr::from_ip(gateway)));
            }
        }
        let this_node = state.this_node as usize;
        for (_, node) in state.nodes.iter().enumerate().filter(|(index, _)| *index != this_node) {
            for address in &node.addresses {
                underlay.routes.push(Route { prefix: IpNet::from(*address), via: None });
                underlay.neighbours.push((*address, MacAddr::from_ip(*address)));
                let pods = node.pod_cidrs.iter().filter(|cidr| Some(*address) == node.primary(cidr.addr().is_ipv4()));
                underlay.routes.extend(pods.map(|cidr| Route { prefix: *cidr, via: Some(*address) }));
            }
        }
        Self { config, ports, underlay }
    }

    /// The first port of a kind.
    pub fn port(&self, matches: impl Fn(&PortKind) -> bool) -> Option<PortId> {
        self.ports.iter().position(|p| matches(&p.kind)).map(|index| PortId(index as u16))
    }
    /// The uplink.
    pub fn uplink(&self) -> Option<PortId> {
        self.port(|kind| matches!(kind, PortKind::Uplink))
    }
    /// The host port.
    pub fn host(&self) -> Option<PortId> {
        self.port(|kind| matches!(kind, PortKind::Host))
    }
    /// The port of a pod.
    pub fn pod(&self, of_namespace: &str, of_name: &str) -> Option<PortId> {
        self.port(|kind| matches!(kind, PortKind::Pod { namespace, name } if namespace == of_namespace && name == of_name))
    }
}
