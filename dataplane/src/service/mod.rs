//! Service load balancing: frontend address -> backend address.
//!
//! Sits after conntrack, before policy. Runs for new flows only; the choice is kept in the flow's entry, so established traffic
//! never comes here (E2.16). Never edits a packet. Semantics: E2.3 to E2.35, as kube-proxy's nftables mode has them.

mod affinity;
mod scheduler;
#[cfg(test)]
mod tests;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

pub use affinity::Affinity;

use crate::conntrack::Tuple;
use crate::model::{FrontendKind, Ip, NodeConfig, NodeState, Scheduler, ServiceIndex, proto};
use crate::verdict::DropReason;

/// Where a flow comes from, as services see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of the cluster.
    Pod,
    /// This node itself, hostNetwork pods included (E2.21). `detector` = pod addresses can be told from others.
    Node {
        /// The cluster's pod CIDRs are known.
        detector: bool,
    },
    /// Anybody else.
    External,
    /// There is no way to tell pods from others: nobody counts as off-cluster.
    Unknown,
}

/// A backend as packets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its address.
    pub address: Ip,
    /// Its port.
    pub port: u16,
}

/// The answer for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// No service address: leave it alone.
    NotService,
    /// Answer with RST or an ICMP error.
    Refuse(DropReason, Option<ServiceIndex>),
    /// Discard in silence.
    Drop(DropReason, Option<ServiceIndex>),
    /// Send it there.
    Backend {
        /// The chosen one.
        backend: Backend,
        /// Its source becomes the node (E2.27).
        masquerade: bool,
        /// The service that was asked for.
        service: ServiceIndex,
    },
}

/// What could be answered for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates<'a> {
    /// As in [`Selection`].
    NotService,
    /// As in [`Selection`].
    Refuse(DropReason, Option<ServiceIndex>),
    /// As in [`Selection`].
    Drop(DropReason, Option<ServiceIndex>),
    /// The choice is free among these, at least one.
    Backends {
        /// All of them.
        backends: &'a [Backend],
        /// The source becomes the node whichever is chosen; in a hairpin it does in any case ([`hairpin`]).
        masquerade: bool,
        /// The service that was asked for.
        service: ServiceIndex,
    },
}

/// All services of one generation. 64 bytes per service port, 32 per backend and set, 48 per frontend.
#[derive(Debug)]
pub struct Services {
    frontends: HashMap<FrontendKey, (ServiceIndex, FrontendKind)>,
    services: Vec<Entry>,
    backends: Vec<Backend>,
    /// Maglev tables, 2 bytes an entry, about 100 entries a backend.
    maglev: Vec<u16>,
    source_ranges: Vec<IpNet>,
    cluster_ips: HashSet<Ip>,
    /// Cluster IPs with a usable endpoint (E2.6).
    pingable: HashSet<Ip>,
    /// Endpoints to which a UDP entry is good (E2.39).
    serving: HashSet<(ServiceIndex, Backend)>,
    external_cluster_ip: bool,
    masquerade_all: bool,
    scheduler: Scheduler,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FrontendKey {
    address: Ip,
    proto: u8,
    port: u16,
}

/// A slice of a flat list.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    end: u32,
}

impl Span {
    fn push<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Self {
        let first = list.len() as u32;
        list.extend(items);
        Self { first, end: list.len() as u32 }
    }
    fn of<T>(self, list: &[T]) -> &[T] {
        &list[self.first as usize..self.end as usize]
    }
}

/// The backends of one policy, and their Maglev table where that is the scheduler.
#[derive(Clone, Copy, Debug)]
struct Set {
    backends: Span,
    maglev: Span,
}

#[derive(Debug)]
struct Entry {
    cluster: Set,
    local: Set,
    source_ranges: Span,
    any_usable: bool,
    internal_local: bool,
    external_local: bool,
    source_ranges_deny_all: bool,
    affinity_timeout_secs: Option<u32>,
    /// Names this service port across generations.
    fingerprint: u64,
}

/// Tells whether a flow comes back to where it came from (E2.27).
pub fn hairpin(source: Ip, backend: &Backend) -> bool {
    backend.address == source
}

impl Services {
    /// Lays the services out for lookup.
    pub fn compile(state: &NodeState, config: &NodeConfig) -> Self {
        let mut services = Self {
            frontends: HashMap::new(),
            services: Vec::with_capacity(state.services.len()),
            backends: Vec::new(),
            maglev: Vec::new(),
            source_ranges: Vec::new(),
            cluster_ips: state.cluster_ips.iter().map(|a| Ip::from(*a)).collect(),
            pingable: HashSet::new(),
            serving: HashSet::new(),
            external_cluster_ip: config.services.external_cluster_ip,
            masquerade_all: config.masquerade.all,
            scheduler: config.services.scheduler,
        };
        for (index, service) in state.services.iter().enumerate() {
            for frontend in &service.frontends {
                let key = FrontendKey { address: frontend.address.into(), proto: service.protocol.number(), port: frontend.port };
                services.frontends.insert(key, (index as ServiceIndex, frontend.kind));
                if frontend.kind == FrontendKind::ClusterIp && !service.cluster.is_empty() {
                    services.pingable.insert(key.address);
                }
            }
            if service.protocol.number() == proto::UDP {
                let serving = service.backends.iter().filter(|b| b.serving);
                let serving = serving.map(|b| (index as ServiceIndex, Backend { address: b.address.into(), port: b.port }));
                services.serving.extend(serving);
            }
            let cluster = services.push_set(service, &service.cluster);
            let local = services.push_set(service, &service.local);
            let source_ranges = Span::push(&mut services.source_ranges, service.source_ranges.iter().copied());
            let name = format!("{}/{}/{}/{:?}/{:?}", service.namespace, service.name, service.port_name, service.protocol, service.family);
            services.services.push(Entry {
                cluster,
                local,
                source_ranges,
                any_usable: service.any_usable,
                internal_local: service.internal_local,
                external_local: service.external_local,
                source_ranges_deny_all: service.source_ranges_deny_all,
                affinity_timeout_secs: service.affinity_timeout_secs,
                fingerprint: affinity::fingerprint(name.as_bytes()),
            });
        }
        services
    }

    fn push_set(&mut self, service: &crate::model::Service, members: &[u32]) -> Set {
        let backend = |index: &u32| {
            let backend = &service.backends[*index as usize];
            Backend { address: backend.address.into(), port: backend.port }
        };
        let backends = Span::push(&mut self.backends, members.iter().map(backend));
        let table = match self.scheduler {
            Scheduler::Maglev => scheduler::maglev_table(backends.of(&self.backends)),
            _ => Vec::new(),
        };
        Set { backends, maglev: Span::push(&mut self.maglev, table) }
    }

    /// Finds what a new flow may be sent to.
    pub fn candidates(&self, tuple: &Tuple, origin: Origin, in_services: bool) -> Candidates<'_> {
        self.candidate_set(tuple, origin, in_services).0
    }

    /// The same, with the Maglev table of the backends.
    fn candidate_set(&self, tuple: &Tuple, origin: Origin, in_services: bool) -> (Candidates<'_>, &[u16]) {
        let key = FrontendKey { address: tuple.dst, proto: tuple.proto, port: tuple.dport };
        let Some((index, kind)) = self.frontends.get(&key).copied() else {
            return (self.no_frontend(tuple, in_services), &[]);
        };
        let service = &self.services[index as usize];
        // E2.32: checked before anything else, for clients inside the cluster too.
        if kind == FrontendKind::LoadBalancer && !self.passes_source_ranges(service, tuple.src) {
            return (Candidates::Drop(DropReason::LbSourceRange, Some(index)), &[]);
        }
        // E2.7
        if kind == FrontendKind::ClusterIp && origin == Origin::External && !self.external_cluster_ip {
            return (Candidates::Drop(DropReason::ServiceNotExternal, Some(index)), &[]);
        }
        let (local_only, masquerade) = self.handling(service, kind, origin);
        let set = if local_only { service.local } else { service.cluster };
        let backends = set.backends.of(&self.backends);
        let candidates = match (backends.is_empty(), local_only && service.any_usable) {
            (false, _) => Candidates::Backends { backends, masquerade, service: index },
            (true, true) => Candidates::Drop(DropReason::ServiceNoLocalBackend, Some(index)),
            (true, false) => Candidates::Refuse(DropReason::ServiceBackendNotFound, Some(index)),
        };
        (candidates, set.maglev.of(&self.maglev))
    }

    /// Chooses the backend of a new flow. `now_secs` and `random` are the caller's clock and randomness.
    pub fn select(
        &self,
        tuple: &Tuple,
        origin: Origin,
        in_services: bool,
        affinity: &Affinity,
        now_secs: u32,
        random: &mut fastrand::Rng,
    ) -> Selection {
        let (candidates, table) = self.candidate_set(tuple, origin, in_services);
        let (backends, masquerade, index) = match candidates {
            Candidates::NotService => return Selection::NotService,
            Candidates::Refuse(reason, service) => return Selection::Refuse(reason, service),
            Candidates::Drop(reason, service) => return Selection::Drop(reason, service),
            Candidates::Backends { backends, masquerade, service } => (backends, masquerade, service),
        };
        let service = &self.services[index as usize];
        let backend = match service.affinity_timeout_secs {
            None => self.choose(backends, table, tuple, random),
            Some(timeout_secs) => {
                let client = affinity::Client { service: service.fingerprint, address: tuple.src };
                // E2.35: what is remembered counts only while it is among the candidates.
                let kept = affinity.find(&client, backends, timeout_secs, now_secs);
                let backend = kept.unwrap_or_else(|| self.choose(backends, table, tuple, random));
                affinity.remember(&client, &backend, now_secs);
                backend
            }
        };
        Selection::Backend { backend, masquerade: masquerade || hairpin(tuple.src, &backend), service: index }
    }

    /// Tells whether an address is a ClusterIP.
    pub fn is_cluster_ip(&self, address: Ip) -> bool {
        self.cluster_ips.contains(&address)
    }

    /// Tells whether an address is a ClusterIP with a usable endpoint.
    pub fn is_pingable(&self, address: Ip) -> bool {
        self.pingable.contains(&address)
    }

    /// Tells whether an endpoint of a UDP service still serves.
    pub fn is_serving(&self, service: ServiceIndex, address: Ip, port: u16) -> bool {
        self.serving.contains(&(service, Backend { address, port }))
    }

    /// Finds the service that owns (address, protocol, port).
    pub fn service_at(&self, address: Ip, proto: u8, port: u16) -> Option<ServiceIndex> {
        self.frontends.get(&FrontendKey { address, proto, port }).map(|(service, _)| *service)
    }

    /// E2.4 to E2.6: LoadBalancer and external IPs are not owned, ClusterIPs and their range are.
    fn no_frontend(&self, tuple: &Tuple, in_services: bool) -> Candidates<'_> {
        let has_ports = matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP);
        match (self.cluster_ips.contains(&tuple.dst), in_services) {
            (true, _) if has_ports => Candidates::Refuse(DropReason::ServicePortNotFound, None),
            (true, _) => Candidates::Drop(DropReason::ServiceNotProxied, None),
            (false, true) => Candidates::Drop(DropReason::ServiceAddressUnallocated, None),
            (false, false) => Candidates::NotService,
        }
    }

    /// Which set of endpoints (true = the local ones only), and whether the source is masqueraded (E2.17 to E2.20, E2.27).
    fn handling(&self, service: &Entry, kind: FrontendKind, origin: Origin) -> (bool, bool) {
        match (kind, origin) {
            (FrontendKind::ClusterIp, Origin::Node { detector }) => (service.internal_local, self.masquerade_all || detector),
            (FrontendKind::ClusterIp, Origin::External) => (service.internal_local, true),
            (FrontendKind::ClusterIp, Origin::Pod | Origin::Unknown) => (service.internal_local, self.masquerade_all),
            (_, _) if !service.external_local => (false, true),
            // E2.19: from inside, the short circuit; the node's own address must not be a pod's peer by a VIP that it owns.
            (_, Origin::Pod) => (false, false),
            (_, Origin::Node { .. }) => (false, true),
            (_, Origin::External | Origin::Unknown) => (true, false),
        }
    }

    fn passes_source_ranges(&self, service: &Entry, source: Ip) -> bool {
        let ranges = service.source_ranges.of(&self.source_ranges);
        let source = source.to_std();
        !service.source_ranges_deny_all && (ranges.is_empty() || ranges.iter().any(|range| range.contains(&source)))
    }

    fn choose(&self, backends: &[Backend], table: &[u16], tuple: &Tuple, random: &mut fastrand::Rng) -> Backend {
        let hashed = match self.scheduler {
            Scheduler::SourceHash => Some(scheduler::rendezvous(backends, tuple.src)),
            Scheduler::Maglev => scheduler::maglev(table, backends, tuple),
            Scheduler::Random | Scheduler::LeastConnections => None,
        };
        hashed.unwrap_or_else(|| backends[random.usize(..backends.len())])
    }
}
