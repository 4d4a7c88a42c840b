//! The cluster that the benches run in: one node of ours with 64 pods, four remote nodes, 256 service ports, policies.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use weir_dataplane::model::*;
use weir_dataplane::runtime::{Port, Runtime};
use weir_dataplane::tables::Tables;

/// Pods of this node.
pub const PODS: u32 = 64;
/// Services; each has a TCP and a UDP port.
pub const SERVICES: u32 = 128;
/// Backends of each service port, all on remote nodes.
pub const BACKENDS: u32 = 10;
/// The remote nodes.
pub const REMOTE_NODES: u32 = 4;
/// The port that services are asked for.
pub const SERVICE_PORT: u16 = 80;
/// The port that backends listen on.
pub const BACKEND_PORT: u16 = 8080;
/// Distinct address blocks that policy rules name, at most.
pub const BLOCKS_MAX: u32 = 1_000;
/// Pages of the port range that the rules of one block share.
const PORTS_PER_RULE: u16 = 100;

/// Address of a local pod.
pub fn pod(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0af4_0100 + 2 + index)
}
/// Address of a service.
pub fn service(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + 1 + index)
}
/// Address of a remote pod: `BACKENDS` for each service, spread over the remote nodes.
pub fn backend(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0af5_0000 + ((index % REMOTE_NODES) << 16) + 2 + index / REMOTE_NODES)
}
/// An address of the block that rules with this number name.
pub fn outside(block: u32, host: u8) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + (block << 8) + u32::from(host))
}
/// Underlay address of a node; 0 is this one.
pub fn node(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_000a + index)
}
/// MAC of the interface of a local pod.
pub fn pod_mac(index: u32) -> MacAddr {
    MacAddr::from_ip(pod(index).into())
}
/// MAC of this node's uplink.
pub fn uplink_mac() -> MacAddr {
    MacAddr([2, 0, 0, 0, 0xaa, 0])
}

fn net(address: u32, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(address), len))
}

/// The desired state, with `rules` egress rules for the local pods beside the one that admits their way to the backends.
pub fn state(rules: u32) -> NodeState {
    let mut state = NodeState {
        cluster: Cluster { pod_cidrs: Some(vec![net(0x0af4_0000, 14)]), service_cidrs: vec![net(0x0a60_0000, 16)] },
        namespaces: vec!["bench".into()],
        identities: ["client", "server"].map(identity).into(),
        ..NodeState::default()
    };
    state.nodes = (0..=REMOTE_NODES)
        .map(|index| remote(index, if index == 0 { net(0x0af4_0100, 24) } else { net(0x0af4_0000 + (index << 16), 16) }))
        .collect();
    state.endpoints = (0..PODS).map(|index| endpoint(format!("client-{index:02}"), 0, 0, pod(index))).collect();
    state
        .endpoints
        .extend((0..SERVICES * BACKENDS).map(|index| endpoint(format!("server-{index:04}"), index % REMOTE_NODES + 1, 1, backend(index))));
    for index in 0..SERVICES {
        state.cluster_ips.push(service(index).into());
        state.services.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| service_port(index, protocol).into()));
    }
    add_policy(&mut state, rules);
    state
}

fn identity(app: &str) -> Identity {
    Identity { namespace: 0, labels: [("app".into(), app.into())].into(), named_ports: Vec::new() }
}

fn remote(index: u32, pods: IpNet) -> Node {
    let address = IpAddr::from(node(index));
    Node { name: format!("node-{index}"), addresses: vec![address], pod_cidrs: vec![pods], vtep_mac: MacAddr::from_ip(address) }
}

fn endpoint(name: String, node: NodeIndex, identity: IdentityIndex, address: Ipv4Addr) -> Endpoint {
    Endpoint { namespace: "bench".into(), name, node, addresses: vec![address.into()], host_network: false, identity }
}

fn service_port(index: u32, protocol: Protocol) -> Service {
    let address = |n| backend(index * BACKENDS + n).into();
    Service {
        namespace: "bench".into(),
        name: format!("service-{index:03}"),
        port_name: String::new(),
        protocol,
        family: Family::V4,
        frontends: vec![Frontend { address: service(index).into(), port: SERVICE_PORT, kind: FrontendKind::ClusterIp }],
        backends: (0..BACKENDS).map(|n| Backend { address: address(n), port: BACKEND_PORT, local: false, serving: true }).collect(),
        cluster: (0..BACKENDS).collect(),
        local: Vec::new(),
        any_usable: true,
        internal_local: false,
        external_local: false,
        affinity_timeout_secs: None,
        source_ranges: Vec::new(),
        health_check_port: None,
        local_ready: 0,
    }
}

/// Isolates the local pods for egress: they may talk to the servers, and to `rules` pairs of an address block and a range of ports.
fn add_policy(state: &mut NodeState, rules: u32) {
    let pods =
        |identity| Selection::Pods { namespaces: vec![0], identities: vec![identity], namespace_text: None, pod_text: String::new() };
    state.selections.extend([pods(0), pods(1)]);
    let blocks = rules.clamp(1, BLOCKS_MAX);
    let first = state.selections.len() as SelectionIndex;
    state.selections.extend((0..blocks).map(|block| Selection::Block { cidr: net(outside(block, 0).into(), 24), except: Vec::new() }));
    let allow = |peer, ports| Rule { name: None, action: Action::Allow, peers: Some(vec![peer]), ports };
    let mut egress = vec![allow(first - 1, None)];
    egress.extend((0..rules).map(|rule| {
        let start = (rule / blocks) as u16 * 2 * PORTS_PER_RULE;
        let port = PortSpec::Range(start, start + PORTS_PER_RULE - 1);
        allow(first + rule % blocks, Some(vec![PortMatch { protocol: Some(Protocol::Tcp), port }]))
    }));
    state.policies.push(Policy {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("bench".into()),
        name: "clients".into(),
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: first - 2,
        ingress: None,
        egress: Some(egress),
    });
}

/// The node as it is: every port has its MAC, so that all checks of the link are made.
pub fn runtime(state: &NodeState) -> Runtime {
    let mut runtime = Runtime::offline(state, NodeConfig::offline("node-0"));
    runtime.underlay.mac = uplink_mac();
    let mut pods = 0..;
    for Port { kind, mac, .. } in &mut runtime.ports {
        use weir_dataplane::runtime::PortKind;
        *mac = Some(match kind {
            PortKind::Pod { .. } => pod_mac(pods.next().unwrap_or_default()),
            _ => uplink_mac(),
        });
    }
    runtime
}

/// The tables of generation 1.
pub fn tables(rules: u32) -> Tables {
    let state = state(rules);
    Tables::compile(&state, &runtime(&state), 1)
}
