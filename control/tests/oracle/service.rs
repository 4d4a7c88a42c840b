//! What Services do with a new flow on one node, straight from the objects: E2 read aloud.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use weir_control::source::objects::{Node, Service, ServicePort, ServiceType, SliceEndpoint, Snapshot, TargetPort, TrafficDistribution};
use weir_dataplane::model::{Family, Protocol};

use crate::who::Who;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No service address.
    Pass,
    /// Discarded in silence.
    Drop,
    /// Refused with an answer.
    Reject,
    /// Translated to one of these.
    Forward {
        endpoints: BTreeSet<SocketAddr>,
        /// Whichever is chosen; in a hairpin in any case.
        masquerade: bool,
    },
    /// The rules leave it open.
    Open,
}

/// The node that is asked, and what its operator decided.
pub(crate) struct Proxy<'s> {
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) node: &'s str,
    /// Where pods live; `None` = no way to tell.
    pub(crate) pod_cidrs: Option<Vec<IpNet>>,
    pub(crate) masquerade_all: bool,
    pub(crate) node_port_cidrs: Vec<IpNet>,
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) external_cluster_ip: bool,
}

/// By which address a Service was asked (E2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    ClusterIp,
    External,
    LoadBalancer,
    NodePort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod,
    ThisNode,
    Outside,
    /// Nobody can tell.
    Unknown,
}

impl Proxy<'_> {
    /// Answers for the first packet of a flow.
    pub(crate) fn ask(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> Answer {
        if let Some((service, port, entry)) = self.asked(to, protocol) {
            return self.enter(service, port, entry, from, to.ip());
        }
        if self.proxied().any(|s| s.cluster_ips.contains(&to.ip())) {
            // E2.4. To the outside the address may as well not be there (E2.7).
            return if self.is_refused_outside(from) { Answer::Open } else { Answer::Reject };
        }
        if self.service_cidrs.iter().any(|c| c.contains(&to.ip())) {
            // Another proxy's address is neither ours nor unallocated.
            let others = self.snapshot.services.iter().any(|s| s.cluster_ips.contains(&to.ip()));
            return if others { Answer::Open } else { Answer::Drop };
        }
        Answer::Pass
    }

    /// The Service port of an address with session affinity, by whichever of its addresses it is asked, and the seconds that a
    /// choice is remembered (E2.34). Each family is served by a proxy of its own.
    pub(crate) fn sticky(&self, to: SocketAddr, protocol: Protocol) -> Option<(String, u32)> {
        let (service, port, _) = self.asked(to, protocol)?;
        Some((port_name(service, port, to.is_ipv4()), service.affinity_timeout_secs?))
    }

    /// The endpoints that clients of each Service port with session affinity can be given, under whichever policy, by the name that
    /// [`sticky`](Self::sticky) gives.
    pub(crate) fn given(&self) -> HashMap<String, BTreeSet<SocketAddr>> {
        let mut given = HashMap::new();
        for service in self.proxied().filter(|s| s.affinity_timeout_secs.is_some()) {
            for (port, v4) in service.ports.iter().flat_map(|port| [(port, true), (port, false)]) {
                if service.cluster_ips.iter().any(|a| a.is_ipv4() == v4) {
                    let endpoints = self.endpoints(service, port, v4);
                    let local = usable_of(endpoints.iter().filter(|e| e.local));
                    let all = self.cluster_set(&endpoints).into_iter().chain(local).map(|e| e.at).collect();
                    given.insert(port_name(service, port, v4), all);
                }
            }
        }
        given
    }

    /// Tells whether an endpoint of the Service port that is reached at an address serves, ready or not; `None` where none is reached.
    pub(crate) fn serves(&self, to: SocketAddr, protocol: Protocol, endpoint: SocketAddr) -> Option<bool> {
        let (service, port, _) = self.asked(to, protocol)?;
        Some(self.endpoints(service, port, to.is_ipv4()).iter().any(|e| e.at == endpoint && e.serving))
    }

    fn proxied(&self) -> impl Iterator<Item = &Service> {
        self.snapshot.services.iter().filter(|s| is_proxied(s))
    }

    /// The Service port that is reached at an address.
    fn asked(&self, to: SocketAddr, protocol: Protocol) -> Option<(&Service, &ServicePort, Entry)> {
        // A Service is of the families of its clusterIPs, by whatever address it is asked (E2.2; kube-proxy, one proxier a family).
        let of_family = |s: &&Service| s.cluster_ips.iter().any(|a| a.is_ipv4() == to.is_ipv4());
        let ports = self.proxied().filter(of_family).flat_map(|s| s.ports.iter().map(move |p| (s, p)));
        ports.filter(|(_, p)| p.protocol == protocol).find_map(|(s, p)| Some((s, p, self.entry(s, p, to)?)))
    }

    fn is_refused_outside(&self, from: IpAddr) -> bool {
        self.client(from) == Client::Outside && !self.external_cluster_ip
    }

    fn entry(&self, service: &Service, port: &ServicePort, to: SocketAddr) -> Option<Entry> {
        let address = to.ip();
        if to.port() == port.port {
            let lists = [
                (&service.cluster_ips, Entry::ClusterIp),
                (&service.external_ips, Entry::External),
                (&service.load_balancer_ips, Entry::LoadBalancer),
            ];
            if let Some((_, entry)) = lists.iter().find(|(list, _)| list.contains(&address)) {
                return Some(*entry);
            }
        }
        (port.node_port == Some(to.port()) && self.serves_node_ports(address)).then_some(Entry::NodePort)
    }

    fn this(&self) -> Option<&Node> {
        self.snapshot.nodes.iter().find(|n| n.meta.name == self.node)
    }

    /// The primary address of each family, unless told otherwise (E2.30).
    fn serves_node_ports(&self, address: IpAddr) -> bool {
        let Some(node) = self.this() else { return false };
        if self.node_port_cidrs.is_empty() {
            return node.addresses.iter().find(|a| a.is_ipv4() == address.is_ipv4()) == Some(&address);
        }
        node.addresses.contains(&address) && self.node_port_cidrs.iter().any(|c| c.contains(&address))
    }

    fn client(&self, from: IpAddr) -> Client {
        let who = Who::at(self.snapshot, from);
        match &self.pod_cidrs {
            _ if who.is_node(self.node) => Client::ThisNode, // E2.21
            None => Client::Unknown,
            Some(cidrs) if who.pod().is_some() || cidrs.iter().any(|c| c.contains(&from)) => Client::Pod,
            Some(_) => Client::Outside,
        }
    }

    fn enter(&self, service: &Service, port: &ServicePort, entry: Entry, from: IpAddr, to: IpAddr) -> Answer {
        let client = self.client(from);
        let endpoints = self.endpoints(service, port, to.is_ipv4());
        let usable = |e: &&Endpoint| e.ready || e.serving && e.terminating;
        let any = endpoints.iter().any(|e| usable(&e));
        if entry == Entry::ClusterIp && self.is_refused_outside(from) {
            return Answer::Drop; // E2.7
        }
        // Each family has ranges of its own, and where it has none nobody is kept out (E2.2; kube-proxy sorts them by family).
        let guarded = service.source_ranges.iter().any(|r| r.addr().is_ipv4() == to.is_ipv4());
        if entry == Entry::LoadBalancer && guarded {
            match self.is_in_ranges(service, from, client) {
                Some(true) => {}
                Some(false) if any => return Answer::Drop, // E2.32
                // Which of two refusals comes first is nowhere said.
                _ => return Answer::Open,
            }
        }
        let (local, masquerade) = match entry {
            Entry::ClusterIp => {
                // A pod keeps its address (E2.26); who is none is masqueraded where pods can be told from others (E2.27).
                let outsider = self.pod_cidrs.is_some() && client != Client::Pod;
                (service.internal_local, self.masquerade_all || outsider)
            }
            _ if !service.external_local => (false, true),
            // E2.19, E2.20: short circuit from inside.
            _ => (matches!(client, Client::Outside | Client::Unknown), client == Client::ThisNode),
        };
        let chosen = if local { usable_of(endpoints.iter().filter(|e| e.local)) } else { self.cluster_set(&endpoints) };
        match chosen.is_empty() {
            true if any => Answer::Drop, // E2.14
            true => Answer::Reject,      // E2.13
            false => Answer::Forward { endpoints: chosen.iter().map(|e| e.at).collect(), masquerade },
        }
    }

    /// `None` where it hangs on which of the node's addresses is meant.
    fn is_in_ranges(&self, service: &Service, from: IpAddr, client: Client) -> Option<bool> {
        let inside = |a: IpAddr| service.source_ranges.iter().any(|r| r.contains(&a));
        if client == Client::ThisNode {
            let own = self.this()?.addresses.iter().filter(|a| a.is_ipv4() == from.is_ipv4()).map(|a| inside(*a));
            let answers: BTreeSet<bool> = own.chain([inside(from)]).collect();
            return if answers.len() == 1 { answers.first().copied() } else { None };
        }
        Some(inside(from))
    }

    /// E2.10, E2.23 to E2.25.
    fn cluster_set<'e>(&self, endpoints: &'e [Endpoint]) -> Vec<&'e Endpoint> {
        let ready: Vec<&Endpoint> = endpoints.iter().filter(|e| e.ready).collect();
        if ready.is_empty() {
            return usable_of(endpoints.iter());
        }
        let here = |names: &[String], me: &str| names.iter().any(|n| n == me);
        let all_have = |hints: fn(&Endpoint) -> &[String]| ready.iter().all(|e| !hints(e).is_empty());
        if all_have(|e| &e.hint_nodes) && ready.iter().any(|e| here(&e.hint_nodes, self.node)) {
            return ready.into_iter().filter(|e| here(&e.hint_nodes, self.node)).collect();
        }
        let zone = self.this().and_then(Node::zone).unwrap_or_default();
        if !zone.is_empty() && all_have(|e| &e.hint_zones) && ready.iter().any(|e| here(&e.hint_zones, zone)) {
            return ready.into_iter().filter(|e| here(&e.hint_zones, zone)).collect();
        }
        ready
    }

    /// All endpoints of a Service port in one family (E2.2, E2.8, E2.9).
    fn endpoints(&self, service: &Service, port: &ServicePort, v4: bool) -> Vec<Endpoint> {
        let family = if v4 { Family::V4 } else { Family::V6 };
        let meta = &service.meta;
        let own = |s: &&weir_control::source::objects::EndpointSlice| {
            !s.headless && s.meta.namespace == meta.namespace && s.service.as_ref() == Some(&meta.name)
        };
        let mut slices = self.snapshot.slices.iter().filter(own).peekable();
        if slices.peek().is_none() && !service.selector.is_empty() {
            return self.selected(service, port, v4);
        }
        let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
        for slice in slices.filter(|s| s.family == Some(family)) {
            for number in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
                for endpoint in &slice.endpoints {
                    let endpoint = self.of_slice(endpoint, number.port);
                    if endpoint.local || !found.contains_key(&endpoint.at) {
                        found.insert(endpoint.at, endpoint);
                    }
                }
            }
        }
        found.into_values().collect()
    }

    fn of_slice(&self, endpoint: &SliceEndpoint, port: u16) -> Endpoint {
        Endpoint {
            at: SocketAddr::new(endpoint.address, port),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(self.node),
            hint_zones: endpoint.hint_zones.clone(),
            hint_nodes: endpoint.hint_nodes.clone(),
        }
    }

    /// What the control plane would make of the selector (E2.11, E2.12, E2.22).
    fn selected(&self, service: &Service, port: &ServicePort, v4: bool) -> Vec<Endpoint> {
        let pods = self.snapshot.pods.iter().filter(|p| !p.finished && p.meta.namespace == service.meta.namespace);
        let pods = pods.filter(|p| service.selector.iter().all(|(k, v)| p.meta.labels.get(k) == Some(v)));
        let endpoint = |pod: &weir_control::source::objects::Pod| {
            let address = *pod.addresses.iter().find(|a| a.is_ipv4() == v4)?;
            let number = match &port.target {
                TargetPort::Number(number) => *number,
                TargetPort::Name(name) => pod.ports.iter().find(|p| p.name.as_ref() == Some(name) && p.protocol == port.protocol)?.port,
            };
            let node = self.snapshot.nodes.iter().find(|n| Some(&n.meta.name) == pod.node.as_ref());
            let zone = node.and_then(Node::zone).map(str::to_owned);
            let hints = service.traffic_distribution;
            Some(Endpoint {
                at: SocketAddr::new(address, number),
                ready: service.publish_not_ready_addresses || pod.ready && !pod.terminating,
                serving: pod.ready,
                terminating: pod.terminating,
                local: pod.node.as_deref() == Some(self.node),
                hint_zones: hints.and(zone).into_iter().collect(),
                hint_nodes: pod.node.clone().filter(|_| hints == Some(TrafficDistribution::SameNode)).into_iter().collect(),
            })
        };
        pods.filter_map(endpoint).collect()
    }
}

struct Endpoint {
    at: SocketAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    hint_zones: Vec<String>,
    hint_nodes: Vec<String>,
}

/// The ready ones, else those that still serve while they end (E2.10).
fn usable_of<'e>(all: impl Iterator<Item = &'e Endpoint> + Clone) -> Vec<&'e Endpoint> {
    let ready: Vec<_> = all.clone().filter(|e| e.ready).collect();
    if ready.is_empty() { all.filter(|e| e.serving && e.terminating).collect() } else { ready }
}

fn port_name(service: &Service, port: &ServicePort, v4: bool) -> String {
    format!("{}:{}/{:?}/{v4}", service.meta, port.name, port.protocol)
}

/// E2.1.
fn is_proxied(service: &Service) -> bool {
    !service.headless && !service.other_proxy && service.kind != ServiceType::ExternalName
}
