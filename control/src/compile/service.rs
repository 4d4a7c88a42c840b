//! Services as one node sees them: frontends, and endpoint sets filtered by readiness, locality and topology hints.
//!
//! Semantics: E2.1 to E2.3, E2.8 to E2.14, E2.17 to E2.25, E2.32, E2.36.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weir_dataplane::model::{Backend, Family, Frontend, FrontendKind, Node, NodeConfig, Protocol, Service};

use super::{CompileError, overlay};
use crate::source::objects::{self, EndpointSlice, Pod, ServicePort, ServiceType, Snapshot, TargetPort, TrafficDistribution};
use crate::source::{fault, protocol_name};

/// Compiles all Services that are proxied (E2.1), one entry per port and family, sorted by namespace, name, port, protocol
/// and family.
pub(super) fn compile(snapshot: &Snapshot, this: &Node, config: &NodeConfig) -> Result<Vec<Arc<Service>>, CompileError> {
    Cluster::new(snapshot, this, config, |_, _| true).services(snapshot)
}

/// `(namespace, name)` of a Service.
pub(super) type Name<'s> = (&'s str, &'s str);

/// Compiles these Services anew, which may be gone, for nodes that are as they were.
pub(super) fn compile_some<'s>(
    snapshot: &'s Snapshot,
    names: &BTreeSet<Name<'s>>,
    this: &Node,
    config: &NodeConfig,
) -> BTreeMap<Name<'s>, Vec<Arc<Service>>> {
    let mut made: BTreeMap<Name<'s>, Vec<Arc<Service>>> = names.iter().map(|name| (*name, Vec::new())).collect();
    if names.is_empty() {
        return made;
    }
    let cluster = Cluster::new(snapshot, this, config, |namespace, name| names.contains(&(namespace, name)));
    for object in snapshot.services.iter().filter(|s| is_proxied(s)) {
        if let Some(made) = made.get_mut(&name_of(&object.meta)) {
            let mut services = Vec::new();
            cluster.service(object, &mut services);
            *made = services.into_iter().map(Arc::new).collect();
        }
    }
    made
}

/// The Services whose endpoints are found among the pods, those of `pods` among them: with a selector that selects one and without a
/// slice.
pub(super) fn selecting<'s>(snapshot: &'s Snapshot, pods: &[&Pod]) -> BTreeSet<Name<'s>> {
    let mut by_namespace: HashMap<&str, Vec<&Pod>> = HashMap::new();
    pods.iter().for_each(|pod| by_namespace.entry(&pod.meta.namespace).or_default().push(pod));
    let selects = |s: &&objects::Service| {
        let pods = by_namespace.get(&*s.meta.namespace);
        pods.is_some_and(|pods| pods.iter().any(|pod| is_subset(&s.selector, &pod.meta.labels)))
    };
    let selecting = snapshot.services.iter().filter(|s| is_proxied(s) && !s.selector.is_empty()).filter(selects);
    let mut names: BTreeSet<Name<'s>> = selecting.map(|s| name_of(&s.meta)).collect();
    if !names.is_empty() {
        for slice in snapshot.slices.iter().filter(|s| !s.headless) {
            if let Some(service) = &slice.service {
                names.remove(&(&*slice.meta.namespace, &**service));
            }
        }
    }
    names
}

fn name_of(meta: &objects::Meta) -> Name<'_> {
    (&meta.namespace, &meta.name)
}

/// Every ClusterIP of a proxied Service, sorted: other ports of it are refused (E2.4).
pub(super) fn cluster_ips(snapshot: &Snapshot) -> Vec<IpAddr> {
    let proxied = snapshot.services.iter().filter(|s| is_proxied(s));
    let mut addresses: Vec<IpAddr> = proxied.flat_map(|s| s.cluster_ips.iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Tells whether it has a frontend (E2.1).
pub(super) fn is_proxied(service: &objects::Service) -> bool {
    !service.headless && !service.other_proxy && service.kind != ServiceType::ExternalName
}

/// Tells whether it is served in a family: in that of a ClusterIP (E2.2).
pub(super) fn has_family(service: &objects::Service, family: Family) -> bool {
    service.cluster_ips.iter().any(|&address| family_of(address) == family)
}

/// What the endpoint sets of all Services depend on.
struct Cluster<'s> {
    slices: HashMap<Name<'s>, Vec<&'s EndpointSlice>>,
    /// Living pods by namespace and labels, sorted by name, where a Service without slices selects among them.
    pods: HashMap<&'s str, BTreeMap<&'s objects::Labels, Vec<&'s Pod>>>,
    zones: HashMap<&'s str, &'s str>,
    this: &'s Node,
    zone: &'s str,
    node_port_addresses: Vec<IpAddr>,
}

/// An endpoint before it is known whether this node may use it.
#[derive(Clone)]
struct Candidate<'s> {
    address: IpAddr,
    port: u16,
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    for_zones: Hints<'s>,
    for_nodes: Hints<'s>,
}

/// For which zones or nodes an endpoint is meant.
#[derive(Clone, Copy)]
enum Hints<'s> {
    Listed(&'s [String]),
    One(Option<&'s str>),
}

impl Hints<'_> {
    fn is_empty(self) -> bool {
        match self {
            Self::Listed(names) => names.is_empty(),
            Self::One(name) => name.is_none(),
        }
    }
    fn names(self, wanted: &str) -> bool {
        match self {
            Self::Listed(names) => names.iter().any(|n| n == wanted),
            Self::One(name) => name == Some(wanted),
        }
    }
}

impl Candidate<'_> {
    fn falls_back(&self) -> bool {
        self.serving && self.terminating
    }
}

impl<'s> Cluster<'s> {
    /// `wanted` tells of which Services the endpoints are needed.
    fn new(snapshot: &'s Snapshot, this: &'s Node, config: &NodeConfig, wanted: impl Fn(&str, &str) -> bool) -> Self {
        let mut slices: HashMap<_, Vec<&EndpointSlice>> = HashMap::new();
        for slice in &snapshot.slices {
            if let Some(service) = &slice.service
                && !slice.headless
                && wanted(&slice.meta.namespace, service)
            {
                slices.entry((slice.meta.namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        let alone = |s: &&objects::Service| is_proxied(s) && !s.selector.is_empty() && wanted(&s.meta.namespace, &s.meta.name);
        let alone = snapshot.services.iter().filter(alone).filter(|s| !slices.contains_key(&name_of(&s.meta)));
        let mut pods: HashMap<_, BTreeMap<_, Vec<&Pod>>> = alone.map(|s| (&*s.meta.namespace, BTreeMap::new())).collect();
        if !pods.is_empty() {
            for pod in snapshot.pods.iter().filter(|p| !p.finished) {
                pods.entry(&*pod.meta.namespace).and_modify(|pods| pods.entry(&pod.meta.labels).or_default().push(pod));
            }
            pods.values_mut().flat_map(BTreeMap::values_mut).for_each(|pods| pods.sort_unstable_by_key(|p| &p.meta.name));
        }
        let zones: HashMap<&str, &str> = snapshot.nodes.iter().filter_map(|n| n.zone().map(|zone| (n.meta.name.as_str(), zone))).collect();
        let zone = zones.get(this.name.as_str()).copied().unwrap_or_default();
        Self { slices, pods, zones, this, zone, node_port_addresses: node_port_addresses(this, config) }
    }

    fn services(&self, snapshot: &Snapshot) -> Result<Vec<Arc<Service>>, CompileError> {
        let mut objects: Vec<&objects::Service> = snapshot.services.iter().filter(|s| is_proxied(s)).collect();
        objects.sort_unstable_by_key(|s| (s.meta.namespace.as_str(), s.meta.name.as_str()));
        let mut services = Vec::new();
        for object in objects {
            self.service(object, &mut services);
        }
        let services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
        refuse_taken(&services, snapshot)?;
        Ok(services)
    }

    fn service(&self, object: &objects::Service, services: &mut Vec<Service>) {
        let first = services.len();
        let mut ports: Vec<&ServicePort> = object.ports.iter().collect();
        ports.sort_unstable_by_key(|p| (p.port, p.protocol, p.name.as_str()));
        for (port, family) in ports.iter().flat_map(|port| [(port, Family::V4), (port, Family::V6)]) {
            if has_family(object, family) {
                services.push(self.port(object, port, family));
            }
        }
        if object.health_check_node_port.is_some() {
            for family in [Family::V4, Family::V6] {
                let local_ready = self.local_ready(object, family);
                services[first..].iter_mut().filter(|s| s.family == family).for_each(|s| s.local_ready = local_ready);
            }
        }
    }

    fn port(&self, object: &objects::Service, port: &ServicePort, family: Family) -> Service {
        let candidates = self.candidates(object, port, family);
        let sets = Sets::choose(&candidates, &self.this.name, self.zone);
        // Each family by itself, as kube-proxy has it (`newBaseServiceInfo` filters by family, and without a range of the family
        // the proxier makes no firewall chain: SPI, NFT `usesFWChain`): ranges of the other family alone guard nothing here.
        let source_ranges: Vec<_> =
            object.source_ranges.iter().map(ipnet::IpNet::trunc).filter(|r| family_of(r.addr()) == family).collect();
        Service {
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
            port_name: port.name.clone(),
            protocol: port.protocol,
            family,
            frontends: self.frontends(object, port, family),
            backends: sets.backends,
            cluster: sets.cluster,
            local: sets.local,
            any_usable: candidates.iter().any(|c| c.ready || c.falls_back()),
            internal_local: object.internal_local,
            external_local: object.external_local,
            affinity_timeout_secs: object.affinity_timeout_secs,
            source_ranges: sorted(source_ranges),
            health_check_port: object.health_check_node_port,
            local_ready: 0,
        }
    }

    fn frontends(&self, object: &objects::Service, port: &ServicePort, family: Family) -> Vec<Frontend> {
        let reached = |addresses: &[IpAddr], port: u16, kind: FrontendKind| -> Vec<Frontend> {
            let own = addresses.iter().filter(|&&a| family_of(a) == family);
            own.map(|&address| Frontend { address, port, kind }).collect()
        };
        let mut frontends = reached(&object.cluster_ips, port.port, FrontendKind::ClusterIp);
        frontends.extend(reached(&object.external_ips, port.port, FrontendKind::ExternalIp));
        frontends.extend(reached(&object.load_balancer_ips, port.port, FrontendKind::LoadBalancer));
        if let Some(node_port) = port.node_port {
            frontends.extend(reached(&self.node_port_addresses, node_port, FrontendKind::NodePort));
        }
        // One address may be named as an external and as a load balancer's one: the latter, which guards more, counts.
        frontends.sort_unstable_by(|a, b| (a.address, a.port).cmp(&(b.address, b.port)).then(b.kind.cmp(&a.kind)));
        frontends.dedup_by_key(|f| (f.address, f.port));
        frontends.sort_unstable();
        frontends
    }

    /// All endpoints of a port in a family, sorted by address and port, each once (E2.8).
    fn candidates(&self, object: &'s objects::Service, port: &ServicePort, family: Family) -> Vec<Candidate<'s>> {
        let mut candidates = Vec::new();
        match self.slices.get(&(object.meta.namespace.as_str(), object.meta.name.as_str())) {
            Some(slices) => {
                for slice in slices.iter().filter(|s| s.family == Some(family)) {
                    for served in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
                        candidates.extend(slice.endpoints.iter().map(|e| Candidate {
                            address: e.address,
                            port: served.port,
                            local: e.node.as_ref() == Some(&self.this.name),
                            ready: e.ready,
                            serving: e.serving,
                            terminating: e.terminating,
                            for_zones: Hints::Listed(&e.hint_zones),
                            for_nodes: Hints::Listed(&e.hint_nodes),
                        }));
                    }
                }
            }
            None if !object.selector.is_empty() => candidates = self.candidates_from_pods(object, port, family),
            None => {}
        }
        // Of an endpoint that stands in several slices the local one counts, then the one that can do more.
        candidates.sort_by(|a, b| {
            let rank = |c: &Candidate<'_>| (!c.local, !c.ready, !c.serving, c.terminating);
            (a.address, a.port).cmp(&(b.address, b.port)).then_with(|| rank(a).cmp(&rank(b)))
        });
        candidates.dedup_by_key(|c| (c.address, c.port));
        candidates
    }

    /// What the control plane would write into slices, for a Service with a selector that has none (E2.11, E2.22).
    fn candidates_from_pods(&self, object: &objects::Service, port: &ServicePort, family: Family) -> Vec<Candidate<'s>> {
        let pods = self.pods.get(&*object.meta.namespace).into_iter().flatten();
        let selected = pods.filter(|(labels, _)| is_subset(&object.selector, labels)).flat_map(|(_, pods)| pods);
        selected.filter_map(|pod| self.candidate(object, port, family, pod)).collect()
    }

    fn candidate(&self, object: &objects::Service, port: &ServicePort, family: Family, pod: &'s Pod) -> Option<Candidate<'s>> {
        let node = overlay::node_name(pod);
        let port = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => pod.named_port(name, port.protocol)?,
        };
        let hinted = object.traffic_distribution.is_some();
        let same_node = object.traffic_distribution == Some(TrafficDistribution::SameNode);
        Some(Candidate {
            // What the pod itself states: without an address it is no endpoint, also on the host network (E2.12).
            address: pod.addresses.iter().copied().find(|&a| family_of(a) == family)?,
            port,
            local: node == self.this.name,
            ready: object.publish_not_ready_addresses || (pod.ready && !pod.terminating),
            serving: pod.ready,
            terminating: pod.terminating,
            for_zones: Hints::One(self.zones.get(node).copied().filter(|_| hinted)),
            // A pod of no node has no hint, and then nobody's counts (E2.24).
            for_nodes: Hints::One(pod.node.as_deref().filter(|_| same_node)),
        })
    }

    /// Distinct addresses on this node, over all ports, that are ready and stay (E2.36).
    fn local_ready(&self, object: &objects::Service, family: Family) -> u32 {
        let all = object.ports.iter().flat_map(|port| self.candidates(object, port, family));
        let mut addresses: Vec<IpAddr> = all.filter(|c| c.local && c.ready && !c.terminating).map(|c| c.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.len() as u32
    }
}

/// The endpoint sets of one Service port.
struct Sets {
    backends: Vec<Backend>,
    cluster: Vec<u32>,
    local: Vec<u32>,
}

impl Sets {
    /// Chooses as kube-proxy's `pkg/proxy/topology.go` does. Besides the two sets, endpoints that merely serve are kept
    /// among the backends: UDP entries towards them stay (E2.39).
    fn choose(candidates: &[Candidate<'_>], node: &str, zone: &str) -> Self {
        let topology = Topology::of(candidates, node, zone);
        let ready_here = |c: &Candidate<'_>| c.ready && topology.admits(c, node, zone);
        let use_ready = candidates.iter().any(ready_here);
        let use_local_ready = candidates.iter().any(|c| c.local && c.ready);

        let mut sets = Self { backends: Vec::new(), cluster: Vec::new(), local: Vec::new() };
        for candidate in candidates {
            // Hints have no say in the fallback (E2.25), and the two sets fall back independently (E2.10).
            let in_cluster = if use_ready { ready_here(candidate) } else { candidate.falls_back() };
            let in_local = candidate.local && if use_local_ready { candidate.ready } else { candidate.falls_back() };
            let index = sets.backends.len() as u32;
            if in_cluster {
                sets.cluster.push(index);
            }
            if in_local {
                sets.local.push(index);
            }
            if in_cluster || in_local || candidate.serving {
                let Candidate { address, port, local, serving, .. } = *candidate;
                sets.backends.push(Backend { address, port, local, serving });
            }
        }
        sets
    }
}

/// Which hints are followed (E2.23, E2.24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Everywhere,
    SameZone,
    SameNode,
}

impl Topology {
    /// Hints count only where every ready endpoint has one and some endpoint is meant for us; those for nodes go first.
    fn of(candidates: &[Candidate<'_>], node: &str, zone: &str) -> Self {
        let ready = || candidates.iter().filter(|c| c.ready);
        let hinted = |hints: fn(&Candidate<'_>) -> bool| ready().all(|c| !hints(c));
        if hinted(|c| c.for_nodes.is_empty()) && ready().any(|c| c.for_nodes.names(node)) {
            Self::SameNode
        } else if hinted(|c| c.for_zones.is_empty()) && ready().any(|c| c.for_zones.names(zone)) {
            Self::SameZone
        } else {
            Self::Everywhere
        }
    }

    fn admits(self, candidate: &Candidate<'_>, node: &str, zone: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameZone => candidate.for_zones.names(zone),
            Self::SameNode => candidate.for_nodes.names(node),
        }
    }
}

/// On which of a node's addresses NodePorts are served: those in `nodePortCIDRs`, else the primary ones (E2.30).
pub(super) fn node_port_addresses(node: &Node, config: &NodeConfig) -> Vec<IpAddr> {
    let ranges = &config.services.node_port_cidrs;
    if ranges.is_empty() {
        return [true, false].into_iter().filter_map(|v4| node.primary(v4)).collect();
    }
    node.addresses.iter().copied().filter(|address| ranges.iter().any(|range| range.contains(address))).collect()
}

/// Refuses two Service ports in one place. The entries are sorted, so that the same pairs are named whatever the order.
pub(super) fn refuse_taken(services: &[Arc<Service>], snapshot: &Snapshot) -> Result<(), CompileError> {
    let mut owners: HashMap<(IpAddr, Protocol, u16), &Service> = HashMap::with_capacity(services.len());
    let mut taken = Vec::new();
    for service in services {
        for &Frontend { address, port, .. } in &service.frontends {
            if let Some(owner) = owners.insert((address, service.protocol, port), service) {
                taken.push((owner, &**service, address, port));
            }
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let objects: HashMap<Name<'_>, &objects::Meta> = snapshot.services.iter().map(|s| (name_of(&s.meta), &s.meta)).collect();
    let object = |service: &Service| objects.get(&(&*service.namespace, &*service.name)).copied();
    let clash = |(first, second, address, port): &(&Service, &Service, IpAddr, u16)| {
        let protocol = protocol_name(second.protocol);
        let (first, second) = (object(first)?, object(second)?);
        let message = format!("is reached at {address}, {protocol} port {port}, where Service {first} is ({})", first.origin);
        Some(fault("Service", second, "spec.ports", message))
    };
    let mut faults: Vec<_> = taken.iter().filter_map(clash).collect();
    faults.sort();
    Err(CompileError::FrontendTaken(faults.into()))
}

fn is_subset(selector: &objects::Labels, labels: &objects::Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn sorted(mut ranges: Vec<ipnet::IpNet>) -> Vec<ipnet::IpNet> {
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

pub(super) fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}
