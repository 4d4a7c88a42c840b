//! The cluster of a case, compiled: the only place where cases meet the dataplane's tables.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weir_dataplane::conntrack::{FlowState, FlowView, Leg, Tuple};
use weir_dataplane::model::{Direction, Family, Ip, NodeConfig, NodeState, OverlayMode, Protocol};
use weir_dataplane::pipeline::is_stale_service_flow;
use weir_dataplane::policy::{Explained, Query, explain};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::{Affinity, Candidates, Chosen, Selection, hairpin};
use weir_dataplane::tables::Tables;

use super::case::{Config, FlowVerdict, HealthAnswer, PolicyVerdict, Snat};
use crate::compile::{CompileError, compile};
use crate::source::objects::{Meta, Namespace, Pod, Snapshot};

/// One state of a case's objects, with the tables of every node whose judgement was asked for.
pub(super) struct World {
    snapshot: Snapshot,
    config: NodeConfig,
    detector: bool,
    proxy_healthy: bool,
    /// Addresses of each living pod, by `namespace/name`.
    pods: HashMap<String, Vec<IpAddr>>,
    /// Where policies are enforced for an address: the node of the pod that has it.
    enforced_at: HashMap<Ip, String>,
    nodes: BTreeMap<String, OnceCell<Tables>>,
}

/// Both sides of a flow.
pub(super) struct Sides {
    pub(super) egress: bool,
    pub(super) ingress: bool,
}

impl Sides {
    pub(super) fn verdict(&self) -> PolicyVerdict {
        if self.egress && self.ingress { PolicyVerdict::Allow } else { PolicyVerdict::Deny }
    }
}

/// What a service would do with a flow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServiceAnswer {
    pub(super) verdict: FlowVerdict,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) snat: Option<Snat>,
    pub(super) reason: &'static str,
}

impl World {
    /// Takes a snapshot for packets: natively routed, with a pod for every address of `clients` that nobody has.
    ///
    /// Cases leave out pods that only act as clients. Those whose address no slice gives to another node are this node's.
    pub(super) fn with_clients(mut snapshot: Snapshot, case: Option<&Config>, clients: &[IpAddr]) -> Self {
        let this = case.map_or("", |c| c.this_node.as_str());
        let inside = |a: &IpAddr| case.and_then(|c| c.cluster_cidrs.as_ref()).is_some_and(|cidrs| cidrs.iter().any(|c| c.contains(a)));
        for client in clients.iter().filter(|a| inside(a)) {
            let known = snapshot.pods.iter().any(|p| p.addresses.contains(client));
            let endpoint = snapshot.slices.iter().flat_map(|s| &s.endpoints).find(|e| e.address == *client);
            if !known && endpoint.is_none_or(|e| e.node.as_deref() == Some(this)) {
                let meta = Meta { name: format!("client-{client}"), namespace: "default".into(), ..Meta::default() };
                snapshot.pods.push(Pod { meta, node: Some(this.into()), addresses: vec![*client], ..Pod::default() });
            }
        }
        if snapshot.namespaces.iter().all(|n| n.meta.name != "default") {
            let meta = Meta { name: "default".into(), ..Meta::default() };
            snapshot.namespaces.push(Namespace { meta });
        }
        let mut world = Self::new(snapshot, case);
        world.config.overlay.mode = OverlayMode::Native;
        world
    }

    /// Takes a snapshot. Cases without `config` are judged with the defaults.
    pub(super) fn new(snapshot: Snapshot, case: Option<&Config>) -> Self {
        let mut config = NodeConfig::offline(case.map_or("", |c| c.this_node.as_str()));
        if let Some(case) = case {
            config.masquerade.all = case.masquerade_all;
            config.services.node_port_cidrs = case.nodeport_addresses.clone();
            config.cluster.pod_cidrs = case.cluster_cidrs.clone().unwrap_or_default();
            config.cluster.service_cidrs = case.service_cidrs.clone();
            // kube-proxy always serves ClusterIPs to the outside; E2.7 leaves it open.
            config.services.external_cluster_ip = true;
        }
        let live = || snapshot.pods.iter().filter(|p| !p.finished && !p.addresses.is_empty());
        let pods = live().map(|p| (p.meta.to_string(), p.addresses.clone())).collect();
        let mut enforced_at = HashMap::new();
        for pod in live().filter(|p| !p.host_network) {
            let node = pod.node.clone().unwrap_or_default();
            enforced_at.extend(pod.addresses.iter().map(|&a| (Ip::from(a), node.clone())));
        }
        let nodes = snapshot.nodes.iter().map(|n| (n.meta.name.clone(), OnceCell::new())).collect();
        let detector = case.is_none_or(|c| c.cluster_cidrs.is_some());
        let proxy_healthy = case.is_none_or(|c| c.proxy_healthy);
        Self { snapshot, config, detector, proxy_healthy, pods, enforced_at, nodes }
    }

    /// The addresses of a place: those of a pod by its name, or the one that is written there.
    pub(super) fn addresses(&self, place: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(addresses) = self.pods.get(place) {
            return Ok(addresses.clone());
        }
        place.parse().map(|address| vec![address]).map_err(|_| format!("{place} is neither a living pod with an address nor an address"))
    }

    /// The state of the node under test.
    pub(super) fn this(&self) -> Result<&Tables, String> {
        self.tables(&self.config.node)
    }

    /// The tables of a node, compiled when first asked for.
    fn tables(&self, node: &str) -> Result<&Tables, String> {
        let cell = self.nodes.get(node).ok_or_else(|| format!("the case has no Node {node:?}"))?;
        if let Some(tables) = cell.get() {
            return Ok(tables);
        }
        let (state, runtime) = self.compile(node).map_err(|error| error.to_string())?;
        Ok(cell.get_or_init(|| Tables::compile(&state, &runtime, 1)))
    }

    /// Compiles the snapshot for a node.
    pub(super) fn compile(&self, node: &str) -> Result<(NodeState, Runtime), CompileError> {
        let config = NodeConfig { node: node.into(), ..self.config.clone() };
        let mut state = compile(&self.snapshot, node, &config)?;
        if !self.detector {
            state.cluster.pod_cidrs = None;
        }
        let runtime = Runtime::offline(&state, config);
        Ok((state, runtime))
    }

    /// Judges both ends of a new connection, each by the tables of its own node.
    pub(super) fn judge(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16, via_service: bool) -> Result<Sides, String> {
        let side = |pod: IpAddr, direction, peer: IpAddr| match self.enforced_at.get(&Ip::from(pod)) {
            None => Ok(true),
            Some(node) => {
                let tables = self.tables(node)?;
                Ok::<_, String>(tables.judge(pod.into(), direction, peer.into(), protocol.number(), port, via_service).allowed)
            }
        };
        Ok(Sides { egress: side(from, Direction::Egress, to)?, ingress: side(to, Direction::Ingress, from)? })
    }

    /// Says why both ends judge as they do.
    pub(super) fn explain(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> String {
        let sides = [("egress", from, Direction::Egress, to), ("ingress", to, Direction::Ingress, from)];
        let words = sides.iter().filter_map(|&(name, pod, direction, peer)| {
            let tables = self.tables(self.enforced_at.get(&Ip::from(pod))?).ok()?;
            let index = tables.owner(pod.into()).local_pod()?;
            let query = Query { pod: index, direction, peer: peer.into(), protocol: protocol.number(), port, via_service: false };
            Some(format!("{name}: {}", words(&explain(&tables.state, &tables.runtime, &query))))
        });
        words.collect::<Vec<_>>().join("; ")
    }

    /// What the node under test would do with a new flow.
    pub(super) fn service(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> Result<ServiceAnswer, String> {
        let tables = self.this()?;
        let tuple = tuple(from, to, protocol);
        let in_services = tables.owner(tuple.dst).in_services;
        let answer = |verdict, reason| ServiceAnswer { verdict, endpoints: Vec::new(), snat: None, reason };
        Ok(match tables.services.candidates(&tuple, tables.origin(tuple.src), in_services) {
            Candidates::NotService => answer(FlowVerdict::Pass, "no service address"),
            Candidates::Refuse(reason, _) => answer(FlowVerdict::Reject, reason.words()),
            Candidates::Drop(reason, _) => answer(FlowVerdict::Drop, reason.words()),
            Candidates::Backends { backends, masquerade, .. } => {
                // A client that is one endpoint of several is translated only when it is chosen itself.
                let translated = masquerade || backends.iter().all(|b| hairpin(tuple.src, b));
                let mut endpoints: Vec<SocketAddr> = backends.iter().map(|b| SocketAddr::new(b.address.to_std(), b.port)).collect();
                endpoints.sort_unstable();
                let snat = Some(if translated { Snat::NodeIp } else { Snat::None });
                ServiceAnswer { verdict: FlowVerdict::Forward, endpoints, snat, reason: "" }
            }
        })
    }

    /// The endpoint of a new connection, chosen with affinity.
    pub(super) fn choose(
        &self,
        from: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
        affinity: &Affinity,
        now_secs: u32,
        random: &mut fastrand::Rng,
    ) -> Result<Option<SocketAddr>, String> {
        let tables = self.this()?;
        let tuple = tuple(from, to, protocol);
        let in_services = tables.owner(tuple.dst).in_services;
        let selection = tables.services.select(&tuple, tables.origin(tuple.src), || in_services, affinity, |_| 0, now_secs, random);
        Ok(match selection {
            Selection::Backend(Chosen { backend, .. }) => Some(SocketAddr::new(backend.address.to_std(), backend.port)),
            _ => None,
        })
    }

    /// What the health check of a Service answers on a port of the node under test (E2.36).
    pub(super) fn health(&self, service: &str, port: u16) -> Result<HealthAnswer, String> {
        let state = &self.this()?.state;
        let found = state.services.iter().find(|s| s.health_check_port == Some(port) && format!("{}/{}", s.namespace, s.name) == service);
        Ok(match found {
            None => HealthAnswer { closed: true, ..HealthAnswer::default() },
            Some(service) => {
                let status = if service.local_ready > 0 && self.proxy_healthy { 200 } else { 503 };
                HealthAnswer { status: Some(status), local_endpoints: Some(service.local_ready), closed: false }
            }
        })
    }

    /// Tells whether the case says which node is tested.
    pub(super) fn has_node(&self) -> bool {
        !self.config.node.is_empty()
    }

    /// Where Services are reached on the node under test.
    pub(super) fn frontends(&self) -> Result<impl Iterator<Item = (SocketAddr, Protocol)>, String> {
        let services = &self.this()?.state.services;
        Ok(services.iter().flat_map(|s| s.frontends.iter().map(|f| (SocketAddr::new(f.address, f.port), s.protocol))))
    }

    /// Tells whether a tracked flow to `destination` that `endpoint` answers outlives the change to this state (E2.39 to E2.41).
    pub(super) fn keeps(&self, protocol: Protocol, destination: SocketAddr, endpoint: IpAddr) -> Result<bool, String> {
        let tables = self.this()?;
        let client = if destination.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let asked = tuple(client, destination, protocol);
        let service = tables.services.service_at(asked.dst, asked.proto, asked.dport).map(|s| &tables.state.services[s as usize]);
        let backend = service.and_then(|s| s.backends.iter().find(|b| b.address == endpoint));
        let to = Tuple { dst: endpoint.into(), dport: backend.map_or(asked.dport, |b| b.port), ..asked };
        let leg = Leg { exit: 0, l3_delta: 0, l4_delta: 0 };
        let state = FlowState::Replied;
        let flow = FlowView { tuple: asked, to, leg, generation: 0, state, nat_src: false, nat_dst: to.dst != asked.dst };
        Ok(!is_stale_service_flow(tables, &flow))
    }
}

fn tuple(from: IpAddr, to: SocketAddr, protocol: Protocol) -> Tuple {
    Tuple { src: from.into(), dst: to.ip().into(), sport: 40_000, dport: to.port(), proto: protocol.number() }
}

/// The family that two places are judged in: the one asked for, else the one both have, IPv4 first.
pub(super) fn pair(from: &[IpAddr], to: &[IpAddr], family: Option<Family>) -> Option<(IpAddr, IpAddr)> {
    let of = |addresses: &[IpAddr], v4: bool| addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    let families = match family {
        Some(Family::V4) => &[true][..],
        Some(Family::V6) => &[false],
        None => &[true, false],
    };
    families.iter().find_map(|&v4| Some((of(from, v4)?, of(to, v4)?)))
}

fn words(side: &Explained) -> String {
    let policy = |namespace: &Option<String>, name: &str| namespace.as_ref().map_or(name.to_owned(), |ns| format!("{ns}/{name}"));
    if let Some(rule) = &side.denied_by {
        return format!("denied by {} rule {}", policy(&rule.namespace, &rule.name), rule.rule);
    }
    if !side.by.is_empty() {
        let rules: Vec<_> = side.by.iter().map(|r| format!("{} rule {}", policy(&r.namespace, &r.name), r.rule)).collect();
        return format!("allowed by {}", rules.join(", "));
    }
    if !side.isolated {
        return "not isolated".into();
    }
    let isolating: Vec<_> = side.isolated_by.iter().map(|p| policy(&p.namespace, &p.name)).collect();
    let mut text = format!("isolated by {}", isolating.join(", "));
    if let Some(near) = &side.nearest {
        let rule = near.rule.map_or(String::new(), |rule| format!(" rule {rule}"));
        text.push_str(&format!(", nearest {}{rule} fails on {}: {}", policy(&near.namespace, &near.name), near.fails, near.detail));
    }
    text
}
