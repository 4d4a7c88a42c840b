//! Random questions, biased to hit: addresses of pods, nodes and Services, the neighbours of block boundaries, ports that
//! somebody wrote down and those beside them.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use weir_control::source::objects::{ClusterPeer, Peer, Snapshot};
use weir_dataplane::model::{Direction, PortMatch, PortSpec, Protocol, proto};

use crate::cluster::{PORTS, one_in, pick};
use crate::policies::edges;
use crate::policy::Flow;

/// One question; both judges answer it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    /// What policies say at one end.
    Side(Flow, Direction),
    /// What the Services of a node do, `node` by its place in the snapshot.
    Service { node: usize, from: IpAddr, to: SocketAddr, protocol: Protocol },
}

/// What questions about a snapshot are made of.
pub(crate) struct Pool {
    addresses: [Vec<IpAddr>; 2],
    /// Where Services may be.
    service_addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    service_ports: Vec<u16>,
    /// Where Services are.
    pub(crate) frontends: Vec<(SocketAddr, Protocol)>,
    /// A few of each family, who come again.
    pub(crate) clients: [Vec<IpAddr>; 2],
    nodes: usize,
}

impl Pool {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let mut all: Vec<IpAddr> = ["203.0.113.7", "198.51.100.9", "2001:db8::7"].map(|a| a.parse().unwrap()).to_vec();
        let nodes: Vec<IpAddr> = snapshot.nodes.iter().flat_map(|n| n.addresses.clone()).collect();
        let pods: Vec<IpAddr> = snapshot.pods.iter().flat_map(|p| p.addresses.clone()).collect();
        // Pods several times: they are what policies are about.
        (0..3).for_each(|_| all.extend(&pods));
        all.extend(&nodes);
        let mut ports = vec![0, 1, 65_535];
        let mut note = |items: &[PortMatch]| {
            for item in items {
                if let PortSpec::Range(first, last) = item.port {
                    ports.extend([first.wrapping_sub(1), first, last, last.wrapping_add(1)]);
                }
            }
        };
        for rule in snapshot.network_policies.iter().flat_map(|p| [&p.ingress, &p.egress]).flatten().flatten() {
            note(&rule.ports);
            for peer in &rule.peers {
                if let Peer::Block { cidr, except } = peer {
                    all.extend(std::iter::once(cidr).chain(except).flat_map(edges));
                }
            }
        }
        for rule in snapshot.cluster_policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)) {
            note(&rule.ports);
            for peer in &rule.peers {
                if let ClusterPeer::Networks(networks) = peer {
                    all.extend(networks.iter().flat_map(edges));
                }
            }
        }
        ports.extend((0..3).flat_map(|_| PORTS));
        ports.extend(snapshot.pods.iter().flat_map(|p| &p.ports).map(|p| p.port));
        let mut service_addresses = nodes;
        let mut service_ports = PORTS.to_vec();
        let mut frontends = Vec::new();
        for service in &snapshot.services {
            let places = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
            for port in &service.ports {
                frontends.extend(places.clone().map(|a| (SocketAddr::new(*a, port.port), port.protocol)));
                let nodes = snapshot.nodes.iter().flat_map(|n| &n.addresses).filter_map(|a| Some(SocketAddr::new(*a, port.node_port?)));
                frontends.extend(nodes.map(|at| (at, port.protocol)));
            }
            service_addresses.extend(places);
            service_ports.extend(service.ports.iter().map(|p| p.port));
            service_ports.extend(service.ports.iter().filter_map(|p| p.node_port));
        }
        service_addresses.extend(["10.96.255.1", "203.0.113.7"].map(|a| a.parse::<IpAddr>().unwrap()));
        // An IPv6 packet with a mapped address is refused long before anybody asks.
        all.retain(|a| !matches!(a, IpAddr::V6(a) if a.to_ipv4_mapped().is_some()));
        let pods = snapshot.pods.iter().flat_map(|p| p.addresses.clone());
        let clients: Vec<IpAddr> = pods.take(6).chain(all[..3].iter().copied()).chain(service_addresses[..1].iter().copied()).collect();
        let by_family = |all: Vec<IpAddr>| <[Vec<IpAddr>; 2]>::from(all.into_iter().partition(IpAddr::is_ipv4));
        let (addresses, clients) = (by_family(all), by_family(clients));
        Self { addresses, clients, service_addresses, ports, service_ports, frontends, nodes: snapshot.nodes.len() }
    }

    /// Two addresses of one family.
    fn pair(&self, random: &mut Rng) -> (IpAddr, IpAddr) {
        let family = &self.addresses[usize::from(one_in(random, 3))];
        (pick(random, family), pick(random, family))
    }

    /// A question about policies.
    pub(crate) fn flow(&self, random: &mut Rng) -> Flow {
        let (from, to) = self.pair(random);
        let icmp = if from.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
        let protocol = match random.u32(0..16) {
            0 => icmp,
            1 => 47,
            2..5 => proto::UDP,
            5..8 => proto::SCTP,
            _ => proto::TCP,
        };
        let port = if one_in(random, 10) { random.u16(..) } else { pick(random, &self.ports) };
        Flow { from, to, protocol, port, via_service: one_in(random, 5) }
    }

    /// A question about Services.
    pub(crate) fn service(&self, random: &mut Rng) -> Question {
        let (to, protocol) = if self.frontends.is_empty() || one_in(random, 4) {
            let port = if one_in(random, 8) { random.u16(..) } else { pick(random, &self.service_ports) };
            let protocol = pick(random, &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
            (SocketAddr::new(pick(random, &self.service_addresses), port), protocol)
        } else {
            pick(random, &self.frontends)
        };
        let from = pick(random, &self.addresses[usize::from(!to.is_ipv4())]);
        Question::Service { node: random.usize(0..self.nodes), from, to, protocol }
    }
}
