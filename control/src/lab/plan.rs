//! What a lab consists of, worked out from the cluster without touching anything.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weir_dataplane::model::{FrontendKind, MacAddr, NodeConfig, NodeState, OverlayMode};

/// MTU of the network between the nodes, bytes.
const UNDERLAY_MTU: u32 = 1500;
/// MTU between pods of Weir's node: 60 kB in one go, as the kernel's own segmentation offload has it, and within what a chain of
/// the dataplane's buffers holds.
const LOCAL_MTU: u32 = 60_000;
/// What VXLAN over IPv4 takes of it: outer IPv4, UDP, VXLAN, inner Ethernet.
const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
/// What VXLAN over IPv6 takes of it.
const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

/// Everything that a lab is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabPlan {
    /// Encapsulated or routed.
    pub mode: OverlayMode,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
    /// MTU of the uplinks.
    pub underlay_mtu: u32,
    /// MTU of the pods of kernel nodes, and of all paths that leave Weir's node.
    pub pod_mtu: u32,
    /// MTU between the pods of Weir's node.
    pub local_mtu: u32,
    /// Queues of the uplink and of the pods on Weir's node: one per worker.
    pub queues: u32,
    /// The host outside the cluster: an address in each of the nodes' subnets, with the subnet's prefix.
    pub outside: Vec<IpNet>,
    /// Addresses of Services that the outside reaches by Weir's node: load balancers' and external ones.
    pub vips: Vec<IpAddr>,
    /// Index in `nodes` of the node that Weir serves.
    pub this_node: usize,
    /// All nodes that have an address.
    pub nodes: Vec<LabNode>,
    /// What the cluster has and the lab leaves out, in a person's words.
    pub left_out: Vec<String>,
}

/// A node of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabNode {
    /// Its name.
    pub name: String,
    /// Its primary addresses, with the prefix of the subnet of all nodes; then its other ones.
    pub addresses: Vec<IpNet>,
    /// The MAC of its VTEP.
    pub vtep_mac: MacAddr,
    /// Where its pods live: its pod CIDRs, and pods that are in none of them.
    pub pod_cidrs: Vec<IpNet>,
    /// Its pods.
    pub pods: Vec<LabPod>,
}

/// A pod of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabPod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses; never empty.
    pub addresses: Vec<IpAddr>,
}

impl LabPod {
    /// `namespace/name`.
    pub fn place(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl LabNode {
    /// The node's primary address of a family.
    pub(super) fn primary(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == v4)
    }

    /// Whether VXLAN between this node and another has outer headers of IPv4, for inner packets of both families alike: where
    /// both nodes have it, as Weir has it too. `None` where they have no family in common.
    pub(super) fn outer_v4(&self, other: &Self) -> Option<bool> {
        [true, false].into_iter().find(|&v4| self.primary(v4).is_some() && other.primary(v4).is_some())
    }

    /// The gateway of a kernel node's pods: the first address of its first pod CIDR of the family that no pod has.
    pub(super) fn gateways(&self) -> Vec<IpNet> {
        let taken = |ip: &IpAddr| self.pods.iter().any(|pod| pod.addresses.contains(ip));
        let of_family = |v4: bool| {
            let cidr = self.pod_cidrs.iter().find(|c| c.addr().is_ipv4() == v4 && c.prefix_len() < c.max_prefix_len())?;
            let gateway = cidr.hosts().filter(|ip| *ip != cidr.network()).find(|ip| !taken(ip))?;
            IpNet::new(gateway, cidr.prefix_len()).ok()
        };
        [true, false].into_iter().filter_map(of_family).collect()
    }

    /// By what other nodes address it inside the overlay, as flannel does: the network address of its first pod CIDR.
    pub(super) fn overlay_address(&self, v4: bool) -> Option<IpAddr> {
        self.pod_cidrs.iter().find(|c| c.addr().is_ipv4() == v4).map(IpNet::network)
    }
}

/// The cluster cannot be made into a lab.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Weir's node has no address.
    #[error("node {0} has no InternalIP\n  its Node object must be in the snapshot, with status.addresses")]
    NoAddress(String),
    /// The nodes cannot be joined by one bridge.
    #[error("the nodes' addresses have no subnet in common: {0}\n  a lab joins all nodes by one network")]
    NoSubnet(String),
}

impl LabPlan {
    /// Works out a lab for the cluster that `state` describes; `config` is the daemon's.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(state: &NodeState, config: &NodeConfig) -> Result<Self, PlanError> {
        let mut left_out = Vec::new();
        let mut nodes = Vec::new();
        let mut this_node = None;
        let subnets = [true, false].map(|v4| {
            let primaries: Vec<IpAddr> = state.nodes.iter().filter_map(|n| n.primary(v4)).collect();
            if primaries.is_empty() { Ok(None) } else { subnet(&primaries).map(Some) }
        });
        let [v4, v6] = subnets;
        let subnets: Vec<Subnet> = [v4?, v6?].into_iter().flatten().collect();
        for (index, node) in state.nodes.iter().enumerate() {
            let is_this = index == state.this_node as usize;
            if node.addresses.is_empty() {
                if is_this {
                    return Err(PlanError::NoAddress(node.name.clone()));
                }
                left_out.push(format!("node {} and its pods: it has no address", node.name));
                continue;
            }
            let mut addresses: Vec<IpNet> = Vec::new();
            for subnet in &subnets {
                let primary = node.primary(subnet.net.addr().is_ipv4());
                addresses.extend(primary.and_then(|ip| IpNet::new(ip, subnet.net.prefix_len()).ok()));
            }
            for &ip in &node.addresses {
                if !addresses.iter().any(|net| net.addr() == ip) {
                    addresses.push(ip.into());
                }
            }
            let mut pods = Vec::new();
            for endpoint in state.endpoints.iter().filter(|e| e.node as usize == index && !e.host_network) {
                if endpoint.addresses.is_empty() {
                    left_out.push(format!("pod {}/{}: it has no address", endpoint.namespace, endpoint.name));
                    continue;
                }
                pods.push(LabPod {
                    namespace: endpoint.namespace.clone(),
                    name: endpoint.name.clone(),
                    addresses: endpoint.addresses.clone(),
                });
            }
            let mut pod_cidrs = node.pod_cidrs.clone();
            for &ip in pods.iter().flat_map(|pod| &pod.addresses) {
                if !pod_cidrs.iter().any(|cidr| cidr.contains(&ip)) {
                    pod_cidrs.push(ip.into());
                }
            }
            if is_this {
                this_node = Some(nodes.len());
            }
            nodes.push(LabNode { name: node.name.clone(), addresses, vtep_mac: node.vtep_mac, pod_cidrs, pods });
        }
        let vips = state.services.iter().flat_map(|s| &s.frontends);
        let vips = vips.filter(|f| matches!(f.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)).map(|f| f.address);
        let mut vips: Vec<IpAddr> = vips.collect();
        vips.sort_unstable();
        vips.dedup();
        let overhead = match config.overlay.mode {
            OverlayMode::Vxlan => OVERHEAD_V4,
            OverlayMode::Native => 0,
        };
        Ok(Self {
            mode: config.overlay.mode,
            vni: config.overlay.vni,
            port: config.overlay.port,
            underlay_mtu: UNDERLAY_MTU,
            pod_mtu: UNDERLAY_MTU - overhead,
            local_mtu: LOCAL_MTU,
            queues: u32::from(config.workers.count.max(1)),
            outside: subnets.iter().map(|subnet| subnet.outside).collect(),
            vips,
            this_node: this_node.ok_or_else(|| PlanError::NoAddress(config.node.clone()))?,
            nodes,
            left_out,
        })
    }

    /// MTU of a VXLAN device whose outer headers are of a family.
    pub(super) fn vxlan_mtu(&self, outer_v4: bool) -> u32 {
        self.underlay_mtu - if outer_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }
    }
}

/// The subnet of all nodes in one family.
struct Subnet {
    net: IpNet,
    /// The outside's address in it.
    outside: IpNet,
}

/// Finds the smallest subnet, at most a /24 or /64, that holds all `members` and has room for the outside.
fn subnet(members: &[IpAddr]) -> Result<Subnet, PlanError> {
    let no_subnet = || PlanError::NoSubnet(members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let first = members.first().ok_or_else(no_subnet)?;
    let longest = if first.is_ipv4() { 24 } else { 64 };
    for prefix_len in (1..=longest).rev() {
        let Ok(net) = IpNet::new(*first, prefix_len) else { continue };
        let usable = |ip: &IpAddr| net.contains(ip) && *ip != net.network() && (ip.is_ipv6() || *ip != net.broadcast());
        if !members.iter().all(usable) {
            continue;
        }
        if let Some(ip) = outside_candidates(&net).find(|ip| usable(ip) && !members.contains(ip)) {
            let outside = IpNet::new(ip, prefix_len).map_err(|_| no_subnet())?;
            return Ok(Subnet { net: net.trunc(), outside });
        }
    }
    Err(no_subnet())
}

/// `.254` and `::fe`, then downwards.
fn outside_candidates(net: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let (start, v4) = match net {
        IpNet::V4(net) => (u128::from(u32::from(net.broadcast())) - 1, true),
        IpNet::V6(net) => (u128::from(net.network()) | 0xfe, false),
    };
    (0..254).filter_map(move |back| {
        let value = start.checked_sub(back)?;
        if v4 { Some(std::net::Ipv4Addr::from(u32::try_from(value).ok()?).into()) } else { Some(std::net::Ipv6Addr::from(value).into()) }
    })
}

#[cfg(test)]
mod tests {
    use weir_dataplane::model::{Endpoint, Node};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            vtep_mac: MacAddr::default(),
        }
    }
    fn pod(name: &str, node: u32, addresses: &[&str]) -> Endpoint {
        let addresses = addresses.iter().map(|a| ip(a)).collect();
        Endpoint { namespace: "shop".into(), name: name.into(), node, addresses, host_network: false, identity: 0 }
    }
    fn plan(state: &NodeState) -> Result<LabPlan, PlanError> {
        LabPlan::new(state, &NodeConfig::offline("a"))
    }

    #[test]
    fn nodes_of_one_subnet_share_it_with_an_outside_host() {
        let state = NodeState {
            nodes: vec![
                node("a", &["10.0.0.10", "fd00:10::10"], &["10.244.1.0/24", "fd00:244:1::/64"]),
                node("b", &["10.0.0.254", "fd00:10::11", "203.0.113.5"], &["10.244.2.0/24", "fd00:244:2::/64"]),
                node("c", &[], &[]),
            ],
            endpoints: vec![
                pod("web-0", 0, &["10.244.1.1", "fd00:244:1::2"]),
                pod("web-1", 1, &["10.244.2.1", "fd00:244:2::1"]),
                pod("odd", 1, &["172.30.0.9"]),
                Endpoint { host_network: true, ..pod("agent", 0, &["10.0.0.10"]) },
            ]
            .into(),
            ..NodeState::default()
        };
        let plan = plan(&state).unwrap();
        assert_eq!(plan.outside, ["10.0.0.253/24".parse().unwrap(), "fd00:10::fe/64".parse().unwrap()]);
        assert_eq!((plan.pod_mtu, plan.this_node, plan.nodes.len(), plan.left_out.len()), (1450, 0, 2, 1));
        let b = &plan.nodes[1];
        let texts: Vec<String> = b.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.254/24", "fd00:10::11/64", "203.0.113.5/32"]);
        assert_eq!(b.pod_cidrs.len(), 3, "a pod outside the node's range is routed to on its own");
        let gateways: Vec<String> = b.gateways().iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["10.244.2.2/24", "fd00:244:2::2/64"], "not an address that a pod has");
        assert_eq!(plan.nodes[0].pods.len(), 1, "pods on the host network have no namespace");
    }

    #[test]
    fn far_nodes_widen_the_subnet_until_there_is_none() {
        let far = |other: &str| NodeState { nodes: vec![node("a", &["10.0.0.10"], &[]), node("b", &[other], &[])], ..NodeState::default() };
        assert_eq!(plan(&far("10.0.1.10")).unwrap().nodes[0].addresses[0].prefix_len(), 23);
        assert_eq!(plan(&far("10.0.0.255")).unwrap().nodes[0].addresses[0].prefix_len(), 23, "no node has the broadcast address");
        assert!(matches!(plan(&far("192.168.0.1")), Err(PlanError::NoSubnet(_))));
        let alone = NodeState { nodes: vec![node("a", &[], &[])], ..NodeState::default() };
        assert!(matches!(plan(&alone), Err(PlanError::NoAddress(_))));
    }

    #[test]
    fn the_overlay_takes_the_family_that_both_nodes_have() {
        let addresses = |name, texts: &[&str]| node(name, texts, &[]);
        let state = NodeState {
            nodes: vec![
                addresses("a", &["10.0.0.10", "fd00::10"]),
                addresses("b", &["fd00::11", "10.0.0.11"]),
                addresses("c", &["fd00::12"]),
            ],
            ..NodeState::default()
        };
        let plan = plan(&state).unwrap();
        let [a, b, c] = &plan.nodes[..] else { panic!("three nodes") };
        assert_eq!((a.outer_v4(b), a.outer_v4(c), c.outer_v4(b)), (Some(true), Some(false), Some(false)));
        assert_eq!((plan.vxlan_mtu(true), plan.vxlan_mtu(false)), (1450, 1430));
    }
}
