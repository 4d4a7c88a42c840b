//! The cluster that the benches run in: one node of ours with 64 clients and 128 servers, four remote nodes, services whose
//! backends are all here or all there, policies. Everything has an address of both families; nodes talk over IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use weir_dataplane::io::PortId;
use weir_dataplane::model::*;
use weir_dataplane::runtime::{Port, PortKind, Runtime};
use weir_dataplane::tables::Tables;

/// Pods of this node that ask.
pub const PODS: u32 = 64;
/// Pods of this node that answer.
pub const SERVERS: u32 = 128;
/// Services with remote backends, and as many with local ones; each has a TCP and a UDP port in each family.
pub const SERVICES: u32 = 128;
/// Backends of each service port.
pub const BACKENDS: u32 = 10;
/// The remote nodes.
pub const REMOTE_NODES: u32 = 4;
/// The port that services are asked for.
pub const SERVICE_PORT: u16 = 80;
/// The port that pods listen on when they are asked directly, or as backends of a service with remote backends.
pub const BACKEND_PORT: u16 = 8080;
/// The first of the ports that local backends listen on: one for each service, because the services share the pods.
const LOCAL_PORT: u16 = 9000;
/// Distinct address blocks that policy rules name, at most.
pub const BLOCKS_MAX: u32 = 1_000;
/// The uplink.
pub const UPLINK: PortId = PortId(0);
/// Behind the uplink and the host port ([`Runtime::offline`]).
const FIRST_POD_PORT: u16 = 2;
/// Pages of the port range that the rules of one block share.
const PORTS_PER_RULE: u16 = 100;

/// An address of the cluster in a family: the IPv6 one has the same last 32 bits.
pub fn in_family(family: Family, address: Ipv4Addr) -> IpAddr {
    match family {
        Family::V4 => address.into(),
        Family::V6 => Ipv6Addr::from(0xfd00 << 112 | u128::from(u32::from(address))).into(),
    }
}
fn in_both(address: Ipv4Addr) -> [IpAddr; 2] {
    [Family::V4, Family::V6].map(|family| in_family(family, address))
}

/// Address of a local pod that asks.
pub fn pod(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0af4_0100 + 2 + index)
}
/// Address of a local pod that answers.
pub fn server(index: u32) -> Ipv4Addr {
    pod(PODS + index)
}
/// Address of a service. From `SERVICES` on its backends are local.
pub fn service(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + 1 + index)
}
/// A backend of a service: its address, its port.
pub fn backend_of(service: u32, n: u32) -> (Ipv4Addr, u16) {
    match service.checked_sub(SERVICES) {
        None => (backend(service * BACKENDS + n), BACKEND_PORT),
        Some(local) => (server((local * BACKENDS + n) % SERVERS), LOCAL_PORT + local as u16),
    }
}
/// Address of a remote pod: `BACKENDS` for each service, spread over the remote nodes.
pub fn backend(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0af5_0000 + ((index % REMOTE_NODES) << 16) + 2 + index / REMOTE_NODES)
}
/// The number of the node that has a remote pod.
pub fn node_of(backend: Ipv4Addr) -> u32 {
    ((u32::from(backend) - 0x0af5_0000) >> 16) + 1
}
/// An address of the block that rules with this number name.
pub fn outside(block: u32, host: u8) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + (block << 8) + u32::from(host))
}
/// Underlay address of a node; 0 is this one.
pub fn node(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_000a + index)
}
/// MAC of the interface of a local pod, by its IPv4 address.
pub fn pod_mac(pod: Ipv4Addr) -> MacAddr {
    MacAddr::from_ip(pod.into())
}
/// Port of the interface of a local pod, by its IPv4 address.
pub fn pod_port(pod: Ipv4Addr) -> PortId {
    PortId(FIRST_POD_PORT + (u32::from(pod) - u32::from(self::pod(0))) as u16)
}
/// MAC of this node's uplink.
pub fn uplink_mac() -> MacAddr {
    MacAddr([2, 0, 0, 0, 0xaa, 0])
}

fn net(address: u32, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(address), len))
}

fn nets(address: u32, len: u8) -> Vec<IpNet> {
    let twin = IpNet::new(in_family(Family::V6, address.into()), 96 + len);
    [net(address, len)].into_iter().chain(twin.ok()).collect()
}

/// The desired state, with `rules` egress rules for the clients beside the one that admits their way to the servers, and `idle`
/// services of one endpoint each that nobody asks.
pub fn state(rules: u32, idle: u32) -> NodeState {
    let mut state = NodeState {
        cluster: Cluster { pod_cidrs: Some(nets(0x0af4_0000, 14)), service_cidrs: nets(0x0a60_0000, 16) },
        namespaces: vec!["bench".into()],
        identities: Arc::new(["client", "server"].map(|name| Arc::new(identity(name))).into()),
        ..NodeState::default()
    };
    state.nodes = (0..=REMOTE_NODES)
        .map(|index| machine(index, if index == 0 { nets(0x0af4_0100, 24) } else { nets(0x0af4_0000 + (index << 16), 16) }))
        .collect();
    let clients = (0..PODS).map(|index| endpoint(format!("client-{index:03}"), 0, 0, pod(index)));
    let local = (0..SERVERS).map(|index| endpoint(format!("local-{index:03}"), 0, 1, server(index)));
    let remote = (0..SERVICES * BACKENDS).map(|index| endpoint(format!("server-{index:04}"), index % REMOTE_NODES + 1, 1, backend(index)));
    state.endpoints = Arc::new(clients.chain(local).chain(remote).collect());
    for index in 0..2 * SERVICES + idle {
        state.cluster_ips.extend(in_both(service(index)));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            state.services.extend([Family::V4, Family::V6].map(|family| service_port(index, protocol, family).into()));
        }
    }
    add_policy(&mut state, rules);
    state
}

fn identity(app: &str) -> Identity {
    Identity { namespace: 0, labels: [("app".into(), app.into())].into(), named_ports: Vec::new() }
}

fn machine(index: u32, pod_cidrs: Vec<IpNet>) -> Node {
    let address = IpAddr::from(node(index));
    Node { name: format!("node-{index}"), addresses: vec![address], pod_cidrs, vtep_mac: MacAddr::from_ip(address) }
}

fn endpoint(name: String, node: NodeIndex, identity: IdentityIndex, address: Ipv4Addr) -> Endpoint {
    Endpoint { namespace: "bench".into(), name, node, addresses: in_both(address).into(), host_network: false, identity }
}

fn service_port(index: u32, protocol: Protocol, family: Family) -> Service {
    let backends = if index < 2 * SERVICES { BACKENDS } else { 1 };
    let backend = |n| {
        // The idle ones share backends, as nobody is sent there.
        let (address, port) = backend_of(index % (2 * SERVICES), n);
        Backend { address: in_family(family, address), port, local: index >= SERVICES, serving: true }
    };
    Service {
        namespace: "bench".into(),
        name: format!("service-{index:05}"),
        protocol,
        family,
        frontends: vec![Frontend { address: in_family(family, service(index)), port: SERVICE_PORT, kind: FrontendKind::ClusterIp }],
        backends: (0..backends).map(backend).collect(),
        cluster: (0..backends).collect(),
        any_usable: true,
        ..Service::default()
    }
}

/// Isolates the clients for egress: they may talk to the servers, and to `rules` pairs of an address block and a range of ports.
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
        *mac = Some(match kind {
            PortKind::Pod { .. } => pod_mac(pod(pods.next().unwrap_or_default())),
            _ => uplink_mac(),
        });
    }
    runtime
}

/// The tables of generation 1.
pub fn tables(rules: u32) -> Tables {
    let state = state(rules, 0);
    Tables::compile(&state, &runtime(&state), 1)
}
