//! Service load balancing: frontend address -> backend address.
//!
//! Sits after conntrack, before policy. Runs for new flows only; the choice is kept in the flow's entry, so established traffic
//! never comes here (E2.16). Never edits a packet. Semantics: E2.3 to E2.35, as kube-proxy's nftables mode has them.

mod affinity;
mod scheduler;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

pub use affinity::Affinity;

use crate::conntrack::{NOT_COUNTED, Tuple};
use crate::model::{self, FrontendKind, Ip, NodeConfig, NodeState, Scheduler, ServiceIndex, proto};
use crate::verdict::DropReason;

/// Backends whose connections can be counted, for `least-connections`: those of a cluster of 250,000 endpoints and their
/// successors. More have none and are taken to have no connection.
pub const COUNTERS: u32 = 1 << 20;

/// How many counters a connection table needs for a scheduler.
pub const fn counters(scheduler: Scheduler) -> u32 {
    if matches!(scheduler, Scheduler::LeastConnections) { COUNTERS } else { 0 }
}

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
    Backend(Chosen),
}

/// The backend of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The chosen one.
    pub backend: Backend,
    /// Its source becomes the node (E2.27).
    pub masquerade: bool,
    /// The service that was asked for.
    pub service: ServiceIndex,
    /// Where the backend's connections are counted, or [`NOT_COUNTED`].
    pub counter: u32,
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

/// All services of one generation. 300 bytes per service port, 32 to 64 per backend and set, 48 per frontend; a service that did
/// not change is shared with the generation before.
#[derive(Debug)]
pub struct Services {
    frontends: HashMap<FrontendKey, (ServiceIndex, FrontendKind)>,
    services: Vec<Arc<Entry>>,
    cluster_ips: HashSet<Ip>,
    /// Cluster IPs with a usable endpoint (E2.6).
    pingable: HashSet<Ip>,
    external_cluster_ip: bool,
    masquerade_all: bool,
    scheduler: Scheduler,
    /// How many generations of services were before.
    turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FrontendKey {
    address: Ip,
    proto: u8,
    port: u16,
}

/// The backends of one policy, and what the scheduler needs of them.
#[derive(Debug)]
struct Set {
    backends: Box<[Backend]>,
    /// Maglev table, 2 bytes an entry, about 100 entries a backend; empty for other schedulers.
    maglev: Box<[u16]>,
    /// Where the connections of each backend are counted; empty for other schedulers.
    counters: Box<[u32]>,
    /// The turn at which each backend came into one of the service's two sets, to stay since; empty without session affinity.
    since: Box<[u32]>,
}

#[derive(Debug)]
struct Entry {
    /// What it was compiled from.
    service: Arc<model::Service>,
    /// What of it every new flow asks for, as [`Service`](model::Service) has it: that lies elsewhere.
    internal_local: bool,
    external_local: bool,
    any_usable: bool,
    affinity_timeout_secs: Option<u32>,
    cluster: Set,
    local: Set,
    /// Endpoints to which a UDP entry is good, sorted (E2.39).
    serving: Box<[Backend]>,
    /// The counter of each of the service's backends, chosen or not; empty where nothing is counted.
    numbers: Box<[u32]>,
    /// Names this service port across generations.
    fingerprint: u64,
}

/// Tells whether a flow comes back to where it came from (E2.27).
pub fn hairpin(source: Ip, backend: &Backend) -> bool {
    backend.address == source
}

impl Services {
    /// Lays the services out for lookup. What did not change since `before` is shared with it. `counted` tells how many
    /// connections a counter has now, `None` beyond the last one: the counter of a backend that is gone is given to another
    /// once it has none.
    pub fn compile(state: &NodeState, config: &NodeConfig, before: Option<&Self>, counted: &dyn Fn(u32) -> Option<u32>) -> Self {
        let scheduler = config.services.scheduler;
        let turn = before.map_or(0, |b| b.turn.wrapping_add(1));
        let before = before.filter(|b| b.scheduler == scheduler);
        let mut counters = Counters::new(before.filter(|_| scheduler == Scheduler::LeastConnections), counted);
        let mut services = Self {
            frontends: HashMap::with_capacity(before.map_or(0, |b| b.frontends.len())),
            services: Vec::with_capacity(state.services.len()),
            cluster_ips: state.cluster_ips.iter().map(|a| Ip::from(*a)).collect(),
            pingable: HashSet::with_capacity(before.map_or(0, |b| b.pingable.len())),
            external_cluster_ip: config.services.external_cluster_ip,
            masquerade_all: config.masquerade.all,
            scheduler,
            turn,
        };
        // Both lists are sorted by namespace and name; were they not, less would be shared.
        let mut old = before.map_or(&[][..], |b| &b.services);
        for (index, service) in state.services.iter().enumerate() {
            for frontend in &service.frontends {
                let key = FrontendKey { address: frontend.address.into(), proto: service.protocol.number(), port: frontend.port };
                services.frontends.insert(key, (index as ServiceIndex, frontend.kind));
                if frontend.kind == FrontendKind::ClusterIp && !service.cluster.is_empty() {
                    services.pingable.insert(key.address);
                }
            }
            while old.first().is_some_and(|e| object_of(&e.service) < object_of(service)) {
                old = &old[1..];
            }
            let its_ports = old.iter().take_while(|e| object_of(&e.service) == object_of(service));
            let same = its_ports.into_iter().find(|e| port_of(&e.service) == port_of(service));
            services.services.push(match same {
                Some(entry) if entry.service == *service => entry.clone(),
                _ => Arc::new(Entry::compile(service, scheduler, turn, same.map(|e| &**e), &mut counters)),
            });
        }
        services
    }

    /// Finds what a new flow may be sent to.
    pub fn candidates(&self, tuple: &Tuple, origin: Origin, in_services: bool) -> Candidates<'_> {
        match self.candidate_set(tuple, origin, || in_services) {
            Ok(found) => Candidates::Backends { backends: &found.set.backends, masquerade: found.masquerade, service: found.index },
            Err(refused) => refused,
        }
    }

    /// The same, with what the scheduler needs.
    fn candidate_set(&self, tuple: &Tuple, origin: Origin, in_services: impl FnOnce() -> bool) -> Result<Found<'_>, Candidates<'static>> {
        let Some(found) = self.frontend(tuple, origin) else { return Err(self.no_frontend(tuple, in_services())) };
        match self.refusal(&found, tuple, origin) {
            Some(refusal) => Err(refusal),
            None => Ok(found),
        }
    }

    /// What belongs to the frontend that a flow asks for.
    #[inline(always)]
    fn frontend(&self, tuple: &Tuple, origin: Origin) -> Option<Found<'_>> {
        let key = FrontendKey { address: tuple.dst, proto: tuple.proto, port: tuple.dport };
        let (index, kind) = *self.frontends.get(&key)?;
        let entry = &*self.services[index as usize];
        let (local_only, masquerade) = self.handling(entry, kind, origin);
        let set = if local_only { &entry.local } else { &entry.cluster };
        Some(Found { entry, set, kind, masquerade, index })
    }

    /// Why nobody may be asked.
    #[inline(always)]
    fn refusal(&self, found: &Found<'_>, tuple: &Tuple, origin: Origin) -> Option<Candidates<'static>> {
        let Found { entry, set, kind, index, .. } = *found;
        // E2.32: checked before anything else, for clients inside the cluster too.
        if kind == FrontendKind::LoadBalancer && !entry.passes_source_ranges(tuple.src) {
            return Some(Candidates::Drop(DropReason::LbSourceRange, Some(index)));
        }
        // E2.7
        if kind == FrontendKind::ClusterIp && origin == Origin::External && !self.external_cluster_ip {
            return Some(Candidates::Drop(DropReason::ServiceNotExternal, Some(index)));
        }
        set.backends.is_empty().then(|| match self.handling(entry, kind, origin) {
            (true, _) if entry.any_usable => Candidates::Drop(DropReason::ServiceNoLocalBackend, Some(index)),
            _ => Candidates::Refuse(DropReason::ServiceBackendNotFound, Some(index)),
        })
    }

    /// What [`select`](Self::select) would choose with the same randomness, where that depends on nothing else: not on who was here
    /// before, nor on who else comes.
    #[inline(always)]
    pub fn foresee(&self, tuple: &Tuple, origin: Origin, random: &mut fastrand::Rng) -> Option<Chosen> {
        let found = self.frontend(tuple, origin)?;
        let depends = found.entry.affinity_timeout_secs.is_some() || self.scheduler == Scheduler::LeastConnections;
        if depends || self.refusal(&found, tuple, origin).is_some() {
            return None;
        }
        Some(found.chosen(self.choose(found.set, tuple, |_| 0, random), tuple))
    }

    /// Chooses the backend of a new flow. `in_services` tells whether it asks for an address in the range of ClusterIPs,
    /// `connections` how many are open at a counter; `now_secs` and `random` are the caller's clock and randomness.
    #[allow(clippy::too_many_arguments)] // each is what the pipeline alone has
    pub fn select(
        &self,
        tuple: &Tuple,
        origin: Origin,
        in_services: impl FnOnce() -> bool,
        affinity: &Affinity,
        connections: impl Fn(u32) -> u32,
        now_secs: u32,
        random: &mut fastrand::Rng,
    ) -> Selection {
        let found = match self.candidate_set(tuple, origin, in_services) {
            Ok(found) => found,
            Err(Candidates::Refuse(reason, service)) => return Selection::Refuse(reason, service),
            Err(Candidates::Drop(reason, service)) => return Selection::Drop(reason, service),
            Err(_) => return Selection::NotService,
        };
        let Found { entry, set, .. } = found;
        let chosen = match entry.affinity_timeout_secs {
            None => self.choose(set, tuple, connections, random),
            Some(timeout_secs) => {
                let client = affinity::Client { service: entry.fingerprint, address: tuple.src };
                // E2.35: what is remembered counts only while it is among the candidates.
                let kept = affinity.find(&client, &set.backends, &set.since, timeout_secs, now_secs);
                let chosen = kept.unwrap_or_else(|| self.choose(set, tuple, connections, random));
                affinity.remember(&client, &set.backends[chosen], set.since[chosen], now_secs);
                chosen
            }
        };
        Selection::Backend(found.chosen(chosen, tuple))
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
        let entry = self.services.get(service as usize);
        entry.is_some_and(|entry| entry.serving.binary_search(&Backend { address, port }).is_ok())
    }

    /// Finds the service that owns (address, protocol, port).
    pub fn service_at(&self, address: Ip, proto: u8, port: u16) -> Option<ServiceIndex> {
        self.frontends.get(&FrontendKey { address, proto, port }).map(|(service, _)| *service)
    }

    /// E2.4 to E2.6: LoadBalancer and external IPs are not owned, ClusterIPs and their range are.
    fn no_frontend(&self, tuple: &Tuple, in_services: bool) -> Candidates<'static> {
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

    /// The place of the backend in its set, which is not empty.
    #[inline(always)]
    fn choose(&self, set: &Set, tuple: &Tuple, connections: impl Fn(u32) -> u32, random: &mut fastrand::Rng) -> usize {
        let chosen = match self.scheduler {
            Scheduler::SourceHash => Some(scheduler::rendezvous(&set.backends, tuple.src)),
            Scheduler::Maglev => scheduler::maglev(&set.maglev, tuple),
            Scheduler::LeastConnections => scheduler::least(&set.counters, connections, random),
            Scheduler::Random => None,
        };
        chosen.filter(|index| *index < set.backends.len()).unwrap_or_else(|| random.usize(..set.backends.len()))
    }
}

/// Where a new flow may go.
struct Found<'a> {
    entry: &'a Entry,
    set: &'a Set,
    kind: FrontendKind,
    masquerade: bool,
    index: ServiceIndex,
}

impl Found<'_> {
    /// The backend at a place of the set, for a flow with this tuple.
    #[inline(always)]
    fn chosen(&self, at: usize, tuple: &Tuple) -> Chosen {
        let backend = self.set.backends[at];
        let counter = self.set.counters.get(at).copied().unwrap_or(NOT_COUNTED);
        Chosen { backend, masquerade: self.masquerade || hairpin(tuple.src, &backend), service: self.index, counter }
    }
}

/// What names a Service.
fn object_of(service: &model::Service) -> (&str, &str) {
    (&service.namespace, &service.name)
}

/// What names one of its entries.
fn port_of(service: &model::Service) -> (&str, model::Protocol, model::Family) {
    (&service.port_name, service.protocol, service.family)
}

fn backend_of(backend: &model::Backend) -> Backend {
    Backend { address: backend.address.into(), port: backend.port }
}

impl Entry {
    /// `before` is the same service port, as it was.
    fn compile(service: &Arc<model::Service>, scheduler: Scheduler, turn: u32, before: Option<&Self>, counters: &mut Counters<'_>) -> Self {
        let numbers = match scheduler {
            Scheduler::LeastConnections => counters.numbers(service.backends.iter().map(backend_of), before),
            _ => Vec::new(),
        };
        let sticky = service.affinity_timeout_secs.is_some();
        let known: HashMap<Backend, u32> = before.filter(|_| sticky).map(Self::members).into_iter().flatten().collect();
        let set = |members: &[u32]| {
            let backends: Box<[Backend]> = members.iter().map(|index| backend_of(&service.backends[*index as usize])).collect();
            let maglev = if scheduler == Scheduler::Maglev { scheduler::maglev_table(&backends) } else { Vec::new() };
            let counters = members.iter().filter_map(|index| numbers.get(*index as usize).copied()).collect();
            let since = backends.iter().filter(|_| sticky).map(|backend| known.get(backend).copied().unwrap_or(turn)).collect();
            Set { backends, maglev: maglev.into(), counters, since }
        };
        let is_udp = service.protocol.number() == proto::UDP;
        let mut serving: Vec<Backend> = service.backends.iter().filter(|b| is_udp && b.serving).map(backend_of).collect();
        serving.sort_unstable();
        let name = format!("{}/{}/{}/{:?}/{:?}", service.namespace, service.name, service.port_name, service.protocol, service.family);
        Self {
            cluster: set(&service.cluster),
            local: set(&service.local),
            serving: serving.into(),
            numbers: numbers.into(),
            fingerprint: before.map_or_else(|| affinity::fingerprint(name.as_bytes()), |before| before.fingerprint),
            internal_local: service.internal_local,
            external_local: service.external_local,
            any_usable: service.any_usable,
            affinity_timeout_secs: service.affinity_timeout_secs,
            service: service.clone(),
        }
    }

    /// The backends of both sets, and since when they are there; none without session affinity.
    fn members(&self) -> impl Iterator<Item = (Backend, u32)> {
        [&self.cluster, &self.local].into_iter().flat_map(|set| set.backends.iter().copied().zip(set.since.iter().copied()))
    }

    fn passes_source_ranges(&self, source: Ip) -> bool {
        let ranges = &self.service.source_ranges;
        let source = source.to_std();
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&source))
    }
}

/// Gives counters to backends that have none.
struct Counters<'a> {
    /// Those of the generation before: workers may still count at them.
    taken: HashSet<u32>,
    counted: &'a dyn Fn(u32) -> Option<u32>,
    next: u32,
}

impl<'a> Counters<'a> {
    fn new(before: Option<&Services>, counted: &'a dyn Fn(u32) -> Option<u32>) -> Self {
        let taken = before.iter().flat_map(|b| &b.services).flat_map(|entry| entry.numbers.iter().copied()).collect();
        Self { taken, counted, next: 0 }
    }

    /// The counters of a service's backends: those that they had in `before`, else free ones, else none.
    fn numbers(&mut self, backends: impl Iterator<Item = Backend>, before: Option<&Entry>) -> Vec<u32> {
        let old = before.iter().flat_map(|entry| entry.service.backends.iter().map(backend_of).zip(entry.numbers.iter().copied()));
        let old: HashMap<Backend, u32> = old.collect();
        backends.map(|backend| old.get(&backend).copied().unwrap_or_else(|| self.free())).collect()
    }

    fn free(&mut self) -> u32 {
        while let Some(count) = (self.counted)(self.next) {
            let number = self.next;
            self.next += 1;
            if count == 0 && !self.taken.contains(&number) {
                return number;
            }
        }
        NOT_COUNTED
    }
}
