//! Nodes in memory: the whole pipeline over queues, with hand-made states.

#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weir_dataplane::conntrack::{ConnTable, TableConfig, Tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::events::{Event, Observer, Trail};
use weir_dataplane::io::mem::MemIo;
use weir_dataplane::io::{Batch, PacketIo, PortId};
use weir_dataplane::model::*;
use weir_dataplane::parse::{Headers, Parsed, parse};
use weir_dataplane::pipeline::{Cx, Local, process};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::Affinity;
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::{DropReason, Verdict};

pub const UPLINK: PortId = PortId(0);
pub const HOST: PortId = PortId(1);

pub fn ip(text: &str) -> Ip {
    addr(text).into()
}
pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}
pub fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| panic!("{text} is no prefix"))
}

/// `10.0.0.1:80` or `[fd00::1]:80`.
pub fn place(text: &str) -> (Ip, u16) {
    let at: std::net::SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text} is no address and port"));
    (at.ip().into(), at.port())
}

pub fn tuple(proto: u8, from: &str, to: &str) -> Tuple {
    let ((src, sport), (dst, dport)) = (place(from), place(to));
    Tuple { src, dst, sport, dport, proto }
}

/// Two nodes `a` (10.0.0.10) and `b` (10.0.0.11), both families; pods `web` (10.244.1.5) and `client` (10.244.1.6) on `a`, `db`
/// (10.244.2.7) on `b`; service `web` at 10.96.0.10:80 to the pods' port 8080.
pub fn cluster(this_node: NodeIndex) -> NodeState {
    let node = |name: &str, n: u8, pods: u8| {
        let addresses = vec![addr(&format!("10.0.0.{n}")), addr(&format!("fd00::{n}"))];
        Node {
            name: name.into(),
            vtep_mac: MacAddr::from_ip(addresses[0]),
            addresses,
            pod_cidrs: vec![net(&format!("10.244.{pods}.0/24")), net(&format!("fd00:244:{pods}::/64"))],
        }
    };
    let pod = |name: &str, node, identity, at: (u8, u8)| Endpoint {
        namespace: "shop".into(),
        name: name.into(),
        node,
        addresses: vec![addr(&format!("10.244.{}.{}", at.0, at.1)), addr(&format!("fd00:244:{}::{}", at.0, at.1))],
        host_network: false,
        identity,
    };
    let identity = |label: &str| Identity { namespace: 0, labels: [("app".into(), label.into())].into(), named_ports: Vec::new() };
    let mut state = NodeState {
        this_node,
        cluster: Cluster {
            pod_cidrs: Some(vec![net("10.244.0.0/16"), net("fd00:244::/32")]),
            service_cidrs: vec![net("10.96.0.0/16"), net("fd00:96::/112")],
        },
        nodes: vec![node("a", 10, 1), node("b", 11, 2)],
        namespaces: vec!["shop".into()],
        identities: Arc::new([identity("web"), identity("client"), identity("db")].map(Arc::new).into()),
        endpoints: vec![pod("client", 0, 1, (1, 6)), pod("db", 1, 2, (2, 7)), pod("web", 0, 0, (1, 5))].into(),
        ..NodeState::default()
    };
    add_service(&mut state, "web", Protocol::Tcp, &["10.96.0.10:80"], &["10.244.1.5:8080"]);
    state
}

/// Adds a ClusterIP service with these frontends and backends.
pub fn add_service(state: &mut NodeState, name: &str, protocol: Protocol, frontends: &[&str], backends: &[&str]) {
    let this = &state.nodes[state.this_node as usize].pod_cidrs;
    let backends: Vec<Backend> = backends
        .iter()
        .map(|text| {
            let (ip, port) = place(text);
            let address = ip.to_std();
            Backend { address, port, local: this.iter().any(|cidr| cidr.contains(&address)), serving: true }
        })
        .collect();
    let all = 0..backends.len() as u32;
    let frontends: Vec<Frontend> = frontends
        .iter()
        .map(|text| Frontend { address: place(text).0.to_std(), port: place(text).1, kind: FrontendKind::ClusterIp })
        .collect();
    state.cluster_ips.extend(frontends.iter().map(|f| f.address));
    let service = Service {
        namespace: "shop".into(),
        name: name.into(),
        protocol,
        family: frontends.first().map_or(Family::V4, |f| Ip::from(f.address).family()),
        frontends,
        local: all.clone().filter(|i| backends[*i as usize].local).collect(),
        cluster: all.collect(),
        any_usable: !backends.is_empty(),
        backends,
        ..Service::default()
    };
    state.services.push(service.into());
}

/// Isolates the pods of an identity for ingress: only `peers` may come, on TCP `port`.
pub fn isolate(state: &mut NodeState, identity: IdentityIndex, peers: Vec<IdentityIndex>, port: u16) {
    let pods =
        |identities: Vec<IdentityIndex>| Selection::Pods { namespaces: vec![0], identities, namespace_text: None, pod_text: String::new() };
    let first = state.selections.len() as u32;
    state.selections.extend([pods(vec![identity]), pods(peers)]);
    let ports = Some(vec![PortMatch { protocol: Some(Protocol::Tcp), port: PortSpec::Range(port, port) }]);
    state.policies.push(Policy {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: "isolate".into(),
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: first,
        ingress: Some(vec![Rule { name: None, action: Action::Allow, peers: Some(vec![first + 1]), ports }]),
        egress: None,
    });
}

/// What an observer was told.
#[derive(Clone, Debug)]
pub struct Seen {
    pub verdict: Verdict,
    pub trail: Trail,
    pub decap: Option<NodeIndex>,
}

#[derive(Default)]
struct Recorder(Vec<Seen>);

impl Observer for Recorder {
    fn packet(&mut self, event: &Event<'_>) {
        self.0.push(Seen { verdict: event.verdict, trail: *event.trail, decap: event.decap });
    }
}

/// One node.
pub struct TestNode {
    pub tables: Tables,
    pub conns: ConnTable,
    pub affinity: Affinity,
    pub local: Local,
    pub io: MemIo,
    pub now: u64,
    /// Events of the last [`run`](Self::run).
    pub seen: Vec<Seen>,
}

impl TestNode {
    pub fn new(state: &NodeState) -> Self {
        Self::with(state, |_| {})
    }

    /// A node whose ports have MACs, after `change` has seen to its runtime.
    pub fn with(state: &NodeState, change: impl FnOnce(&mut Runtime)) -> Self {
        let runtime = runtime(state, change);
        let config = TableConfig { max: 4096, key: 7, workers: 2, owners: 64, share: 4096 };
        let conns = ConnTable::new(&config).unwrap().with_counters(64);
        let local = Local::new(conns.worker().unwrap(), 64, 1);
        Self {
            tables: Tables::compile(state, &runtime, 1),
            affinity: Affinity::new(64, 1),
            local,
            conns,
            io: MemIo::new(256, 9216).unwrap(),
            now: 1_000_000_000_000,
            seen: Vec::new(),
        }
    }

    /// Puts a new state in force.
    pub fn publish(&mut self, state: &NodeState) {
        let runtime = (*self.tables.runtime).clone();
        let (state, generation) = (Arc::new(state.clone()), self.tables.generation + 1);
        let counted = |counter| self.conns.counted(counter);
        self.tables = Tables::compile_next(state, Arc::new(runtime), generation, Some(&self.tables), &counted);
    }

    pub fn pod(&self, name: &str) -> PortId {
        self.tables.runtime.pod("shop", name).unwrap()
    }

    /// Frames as the pod, the node or the network at a port sends them.
    pub fn craft(&self, port: PortId, tuple: Tuple) -> Craft {
        let entry = &self.tables.runtime.ports[usize::from(port.0)];
        let (src_mac, dst_mac) = match port {
            UPLINK => (MacAddr([2, 0, 0, 0, 0, 99]), entry.mac.unwrap()),
            _ => (entry.mac.unwrap(), MacAddr::GATEWAY),
        };
        Craft { src_mac, dst_mac, ..Craft::new(tuple) }
    }

    /// Lets frames arrive together and gives what leaves; checks that nothing is lost or counted twice.
    pub fn run(&mut self, frames: &[(PortId, Vec<u8>)]) -> Vec<(PortId, Vec<u8>)> {
        let free = self.io.free_count();
        for (port, frame) in frames {
            assert!(self.io.push(*port, frame), "no room for a frame of {} bytes", frame.len());
        }
        self.seen.clear();
        loop {
            let mut batch = Batch::new();
            self.io.rx(&mut batch).unwrap();
            if batch.is_empty() {
                break;
            }
            let mut recorder = Recorder::default();
            self.process(&mut batch, &mut recorder);
            self.seen.extend(recorder.0);
            for packet in batch {
                match packet.verdict {
                    Verdict::Forward(port) | Verdict::Encap(port) | Verdict::Host(port) => assert!(self.io.tx(port, packet.frame)),
                    Verdict::Reply(_) => assert!(self.io.tx(packet.in_port, packet.frame)),
                    Verdict::Drop(_) => self.io.free(packet.frame),
                }
            }
        }
        assert!(self.local.counters.balanced(), "{:?}", self.local.counters);
        assert_eq!(self.io.free_count(), free, "frames were lost");
        assert_eq!(self.seen.len(), frames.len());
        self.io.take_sent()
    }

    /// Takes a batch of our frames through the pipeline.
    pub fn process(&mut self, batch: &mut Batch, observer: &mut impl Observer) {
        let (tables, conns, affinity, arena) = (&self.tables, &self.conns, &self.affinity, self.io.arena());
        let mut cx = Cx { tables, conns, affinity, arena, local: &mut self.local, now: self.now };
        process(&mut cx, batch, observer);
    }

    /// Lets one frame arrive.
    pub fn one(&mut self, port: PortId, frame: Vec<u8>) -> (Verdict, Option<Vec<u8>>) {
        let mut sent = self.run(&[(port, frame)]);
        (self.seen[0].verdict, sent.pop().map(|(_, frame)| frame))
    }

    /// Lets one frame arrive that must leave by `out`; gives it.
    pub fn passes(&mut self, port: PortId, frame: Vec<u8>, out: PortId) -> Vec<u8> {
        let sent = self.run(&[(port, frame)]);
        let verdict = self.seen[0].verdict;
        let (by, frame) = sent.into_iter().next().unwrap_or_else(|| panic!("{verdict:?}"));
        assert_eq!(by, out, "{verdict:?}");
        frame
    }

    /// Lets one frame arrive that must be discarded for this reason.
    pub fn drops(&mut self, port: PortId, frame: Vec<u8>, reason: DropReason) {
        let (verdict, _) = self.one(port, frame);
        assert_eq!(verdict, Verdict::Drop(reason));
    }
}

/// The made-up runtime of `state`, with the MACs of a real one.
pub fn runtime(state: &NodeState, change: impl FnOnce(&mut Runtime)) -> Runtime {
    let mut runtime = Runtime::offline(state, NodeConfig::offline(&state.nodes[state.this_node as usize].name));
    let own = state.nodes[state.this_node as usize].addresses[0];
    for port in &mut runtime.ports {
        let pod = state.endpoints.iter().find(|e| port.name == format!("{}/{}", e.namespace, e.name));
        port.mac = Some(MacAddr::from_ip(pod.map_or(own, |p| p.addresses[0])));
    }
    runtime.underlay.mac = MacAddr::from_ip(own);
    change(&mut runtime);
    runtime
}

/// The headers of a frame, whose checksums must be right.
pub fn headers(frame: &[u8]) -> Headers {
    let Ok(Parsed::Ip(headers)) = parse(frame) else { panic!("no IP packet: {frame:02x?}") };
    check_sums(frame);
    headers
}

/// Verifies every checksum with another implementation.
pub fn check_sums(frame: &[u8]) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap(), "TCP");
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap(), "UDP");
                }
                _ => {}
            }
        }
        (Some(NetSlice::Ipv6(ip)), transport) => {
            let header = ip.header().to_header();
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap(), "TCP");
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap(), "UDP");
                }
                _ => {}
            }
        }
        _ => {}
    }
}
