//! The daemon: owns the ports, the workers and the state in force, and keeps them in step with the node.
//!
//! Three things change what workers do: a new state from control, a port that comes or goes, and the kernel's routes and
//! neighbours. Each compiles new tables away from the workers and hands them over; nothing else touches a worker. When the
//! daemon ends, everything that it made goes with it, and no pod is left reachable another way: see [`weir_host::guard`].

mod host_pair;
mod http;
mod metrics;
mod server;
mod underlay;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::Sender;
use weir_host::{Monitor, Net, Picture, offload};
use weir_xsk::{AttachMode, PortConfig, PortRole, Redirect, UmemConfig, UplinkFilter};

use self::host_pair::HostPair;
use self::http::Http;
use crate::admin::protocol::{ConnectionCounts, PortStatus, Status, WorkerStatus};
use crate::conntrack::{self, ConnTable, TableConfig, Ticks};
use crate::counters::Counters;
use crate::io::PortId;
use crate::model::{FrontendKind, MacAddr, Node, NodeConfig, NodeState, OverlayMode, PodPort, XdpMode};
use crate::overlay::vxlan::mtu_overhead;
use crate::pipeline::{is_orphaned_flow, is_stale_service_flow};
use crate::runtime::{Port, PortKind, Runtime, Underlay};
use crate::service::{self, Affinity};
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::worker::{Handle, Report, Setup};

pub use server::{Server, take_over};

/// Most ports at a time: pods (kubelet's own limit is 110), the uplink and the host port. A worker's 16,384 frames suffice for so
/// many: the n-th port gets 4096/n, at most 512 and at least 64, and an idle one keeps it when n grows; that makes 15,957 for
/// 120 ports. With more, idle pods would starve the uplink.
pub const PORTS_MAX: u16 = 120;
/// Frames that wait for packets at each port and queue, as far as there are enough for all ports.
const WAITING: u32 = 512;
/// Entries of the connection table that are looked at between two quiescent points.
const SWEEP: u32 = 4096;
/// No pod's flows, its own and those to it, may fill more than this part of the connection table.
const POD_SHARE: u32 = 4;
/// How often workers are asked for destinations without a next hop.
const TICK: Duration = Duration::from_millis(200);
/// How often the node's network is looked at without any event: next hops are confirmed then. Less than the kernel's own
/// time until a neighbour is stale (15 s and more), and rare enough to cost nothing.
const LOOK: Duration = Duration::from_secs(3);
/// The offload by which an interface hands VLAN tags over beside the packet, as the kernel spells it.
const VLAN_STRIPPING: &str = "rx-vlan-hw-parse";
/// How long tables may take to be in force on every worker before the daemon says so in its log.
const IN_FORCE: Duration = Duration::from_secs(5);

/// Why a daemon ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By a signal.
    Signal(nix::sys::signal::Signal),
    /// Another daemon asked for it.
    Asked,
    /// It cannot go on.
    Failed(String),
}

/// The running dataplane of one node.
pub struct Daemon {
    config: NodeConfig,
    started: Instant,
    workers: Vec<Handle>,
    connections: Arc<ConnTable>,
    stopping: AtomicBool,
    ends: Sender<End>,
    inner: Mutex<Inner>,
}

/// What changes while the daemon runs.
struct Inner {
    net: Net,
    /// What the workers work by.
    tables: Arc<Tables>,
    /// The node as it is.
    runtime: Runtime,
    /// The node as it was when `tables` was compiled.
    published: Runtime,
    /// Generation of the last state that control sent; 0 before the first one.
    applied: u32,
    redirect: Redirect,
    /// The daemon's own handles on the connection table: to remove flows, and to find them.
    sweeper: conntrack::Worker,
    reader: conntrack::Reader,
    host: HostPair,
    http: Http,
    /// How each port is attached, beside `tables.runtime.ports`.
    attached: BTreeMap<u16, Attached>,
    /// The uplink took VLAN tags off and shall again when the daemon ends.
    vlan_stripping: bool,
}

/// What of an attached port is nobody's business but the daemon's.
struct Attached {
    /// The interface's number: one that was made anew under the same name is another one.
    index: u32,
    /// `copy` or `skb`.
    mode: &'static str,
}

impl Daemon {
    /// Attaches everything that `config` names and starts the workers. Should it not be able to go on, it says so by `ends`.
    ///
    /// # Errors
    /// The first thing that is not as the configuration says; everything already made is taken back.
    pub fn start(config: NodeConfig, ends: Sender<End>) -> anyhow::Result<Self> {
        let net = Net::open()?;
        let uplink = config.uplink.as_ref().context("node.yaml: uplink: missing: which interface leads to the other nodes?")?;
        let link = net
            .find_link(&uplink.interface)?
            .with_context(|| format!("node.yaml: uplink.interface: there is no interface {}\n  try: ip link", uplink.interface))?;
        let cores = cores(&config)?;
        let queues = cores.len() as u32;

        let redirect = Redirect::load(PORTS_MAX, queues as u16)?;
        let host_mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        let host_mtu =
            if config.overlay.mode == OverlayMode::Vxlan { host_mtu.saturating_sub(mtu_overhead(false) as u16) } else { host_mtu };
        let host = HostPair::create(&config.host.interface, host_mtu, queues)?;

        let state = Arc::new(NodeState { nodes: vec![Node { name: config.node.clone(), ..Node::default() }], ..NodeState::default() });
        let runtime = Arc::new(Runtime { config: config.clone(), ports: Vec::new(), underlay: Underlay::default() });
        let tables = Arc::new(Tables::compile_shared(state, runtime, 0, None));
        let connections = Arc::new(
            ConnTable::new(&TableConfig {
                max: config.tables.connections,
                key: u128::from_ne_bytes(entropy()?),
                // One more: the daemon itself removes flows.
                workers: queues + 1,
                owners: PORTS_MAX.into(),
                share: (config.tables.connections / POD_SHARE).max(1),
            })
            .context("cannot make the connection table\n  try: a smaller tables.connections in node.yaml")?
            .with_counters(service::counters(config.services.scheduler)),
        );
        let affinity = Arc::new(Affinity::new(config.tables.connections / 16, u64::from_ne_bytes(entropy()?)));
        let epoch = Instant::now();
        let mut workers = Vec::new();
        for core in cores {
            let setup = Setup {
                core,
                idle: config.workers.idle,
                umem: UmemConfig::default(),
                connections: connections.clone(),
                affinity: affinity.clone(),
                tables: tables.clone(),
                fragments: config.tables.fragments,
                seed: u64::from_ne_bytes(entropy()?),
                epoch,
            };
            workers.push(Handle::start(setup)?);
        }
        let mut sweeper = connections.worker().context("the connection table has no room for the daemon")?;
        connections.park(&mut sweeper);
        let reader = connections.reader().context("the connection table has no room for the daemon")?;
        let inner = Inner {
            net,
            sweeper,
            reader,
            published: Runtime::clone(&tables.runtime),
            runtime: Runtime::clone(&tables.runtime),
            tables,
            applied: 0,
            redirect,
            host,
            http: Http::start()?,
            attached: BTreeMap::new(),
            vlan_stripping: false,
        };
        let daemon =
            Self { config, started: epoch, workers, connections, stopping: AtomicBool::new(false), ends, inner: Mutex::new(inner) };
        daemon.attach_first()?;
        Ok(daemon)
    }

    /// Attaches the uplink, the host port and the pods of the configuration, in this order.
    fn attach_first(&self) -> anyhow::Result<()> {
        let mut inner = self.lock();
        self.open_uplink(&mut inner)?;
        let (host, mac) = (inner.host.port_end.clone(), inner.host.mac);
        self.open_port(&mut inner, PortKind::Host, &host, Some(mac), AttachMode::Auto)?;
        for port in &self.config.pods {
            self.open_pod(&mut inner, port)?;
        }
        self.look(&mut inner)
    }

    fn open_uplink(&self, inner: &mut Inner) -> anyhow::Result<()> {
        let Some(uplink) = &self.config.uplink else { return Ok(()) };
        let mode = match uplink.mode {
            XdpMode::Auto => AttachMode::Auto,
            XdpMode::Zerocopy => AttachMode::ZeroCopy,
            XdpMode::Copy => AttachMode::Copy,
            XdpMode::Skb => AttachMode::Skb,
        };
        let mac = inner.net.link(&uplink.interface)?.mac.map(MacAddr);
        self.open_port(inner, PortKind::Uplink, &uplink.interface, mac, mode)?;
        inner.vlan_stripping = stop_vlan_stripping(&uplink.interface);
        Ok(())
    }

    /// Takes up a pod's port.
    ///
    /// # Errors
    /// Where the interface is not as it must be; nothing has changed then.
    pub fn attach_pod(&self, port: &PodPort) -> anyhow::Result<()> {
        let mut inner = self.lock();
        self.open_pod(&mut inner, port)?;
        self.look(&mut inner)
    }

    /// Gives a pod's port up. One that is not there is fine.
    ///
    /// # Errors
    /// Where the workers do not take the new tables.
    pub fn detach_pod(&self, pod: &str) -> anyhow::Result<()> {
        let mut inner = self.lock();
        let (namespace, name) = pod_name(pod)?;
        if let Some(port) = inner.runtime.pod(namespace, name) {
            self.close_port(&mut inner, port);
            self.look(&mut inner)?;
        }
        Ok(())
    }

    fn open_pod(&self, inner: &mut Inner, port: &PodPort) -> anyhow::Result<()> {
        let (namespace, name) = pod_name(&port.pod)?;
        if let Some(open) = inner.runtime.pod(namespace, name) {
            let index = inner.attached.get(&open.0).map(|attached| attached.index);
            if inner.runtime.ports[usize::from(open.0)].name == port.interface && index == Some(inner.net.link(&port.interface)?.index) {
                return Ok(());
            }
            // The pod was made anew behind another interface.
            self.close_port(inner, open);
        }
        weir_host::guard(&port.interface)?;
        let kind = PortKind::Pod { namespace: namespace.into(), name: name.into() };
        self.open_port(inner, kind, &port.interface, port.mac, AttachMode::Auto)
    }

    /// Opens sockets on every worker, attaches the program, and enters the port into the runtime; packets flow with the next
    /// tables. Nothing is left behind on failure.
    fn open_port(&self, inner: &mut Inner, kind: PortKind, interface: &str, mac: Option<MacAddr>, mode: AttachMode) -> anyhow::Result<()> {
        let link = inner.net.link(interface)?;
        let ports = &mut inner.runtime.ports;
        let port = PortId(ports.iter().position(|port| port.kind == PortKind::Vacant).unwrap_or(ports.len()) as u16);
        anyhow::ensure!(port.0 < PORTS_MAX, "cannot attach to {interface}: all {PORTS_MAX} ports are taken");
        let role = match kind {
            PortKind::Uplink => PortRole::Uplink,
            PortKind::Host => PortRole::Host,
            PortKind::Pod { .. } | PortKind::Vacant => PortRole::Pod,
        };
        // Sockets first: while the program is attached and a socket is missing, packets for it are lost.
        let opened = self.open_sockets(&mut inner.redirect, port, interface);
        let attached = match opened.and_then(|()| Ok(inner.redirect.attach(port.0, interface, role, mode)?)) {
            Ok(attached) => attached,
            Err(error) => {
                self.workers.iter().for_each(|worker| worker.detach(port));
                return Err(error);
            }
        };
        tracing::info!(interface, ?kind, mode = attached.name(), "port attached");
        inner.attached.insert(port.0, Attached { index: link.index, mode: attached.name() });
        let new = Port {
            kind,
            name: interface.into(),
            mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            unfinished_checksums: link.kind.as_deref() == Some("veth"),
        };
        match ports.get_mut(usize::from(port.0)) {
            Some(vacant) => *vacant = new,
            None => ports.push(new),
        }
        Ok(())
    }

    fn open_sockets(&self, redirect: &mut Redirect, port: PortId, interface: &str) -> anyhow::Result<()> {
        for (queue, worker) in self.workers.iter().enumerate() {
            let config = PortConfig { interface: interface.into(), queue: queue as u32, waiting: WAITING };
            worker.attach(port, &config, |socket| Ok(redirect.set_socket(port.0, queue as u16, socket)?))?;
        }
        Ok(())
    }

    fn close_port(&self, inner: &mut Inner, port: PortId) {
        let old = std::mem::replace(&mut inner.runtime.ports[usize::from(port.0)], Port::vacant());
        inner.redirect.detach(port.0);
        inner.attached.remove(&port.0);
        // First nobody sends there any more, then it goes.
        self.put_in_force(inner, None);
        self.workers.iter().for_each(|worker| worker.detach(port));
        tracing::info!(interface = old.name, "port detached");
    }

    /// Puts a new state in force. Gives its generation and whether every worker has it.
    ///
    /// # Errors
    /// Each thing that is wrong with the state; nothing has changed then.
    pub fn apply(&self, state: NodeState, wait: Option<Duration>) -> Result<(u32, bool), Vec<String>> {
        let faults = self.faults(&state);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut inner = self.lock();
        let deadline = Instant::now() + wait.unwrap_or_default();
        let generation = self.put_in_force(&mut inner, Some(state));
        inner.applied = generation;
        let Inner { http, tables, .. } = &mut *inner;
        http.follow(&tables.state, &self.config.services.node_port_cidrs);
        if let Err(error) = self.look(&mut inner) {
            tracing::error!(%error, "cannot follow the node's network");
        }
        drop(inner);
        Ok((generation, self.in_force(generation, deadline)))
    }

    /// Removes flows that `tables` make invalid: of addresses that are another pod's now, or nobody's, and UDP flows that point
    /// where their service no longer does (E2.39).
    fn forget_flows(&self, inner: &mut Inner, tables: &Tables) {
        let mut next = Some(0);
        while let Some(from) = next {
            // What is found from here on keeps its number until this handle is quiescent again.
            self.connections.quiescent(&mut inner.sweeper);
            let mut stale = Vec::new();
            next = self.connections.dump(&mut inner.reader, from, SWEEP, self.now(), |flow| {
                let older = [&flow.original, &flow.reply].iter().any(|way| way.generation != tables.generation);
                if is_stale_service_flow(tables, &flow.original) || older && is_orphaned_flow(tables, &flow.original) {
                    stale.push(flow.entry);
                }
            });
            for entry in stale {
                self.connections.remove(&mut inner.sweeper, entry);
            }
        }
        self.reclaim(inner);
    }

    /// Gives back what was removed as soon as no worker can hold it; called now and then.
    fn reclaim(&self, inner: &mut Inner) {
        self.connections.quiescent(&mut inner.sweeper);
        self.connections.park(&mut inner.sweeper);
    }

    /// The time that connections are dated by.
    fn now(&self) -> Ticks {
        Ticks::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    /// Serves metrics and health where the configuration says, from now on.
    pub fn serve_metrics(self: &Arc<Self>) {
        self.lock().http.serve_metrics(&self.config.metrics.listen, Arc::downgrade(self));
    }

    /// The path of the socket that control talks to.
    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    fn faults(&self, state: &NodeState) -> Vec<String> {
        match state.nodes.get(state.this_node as usize) {
            None => vec![format!("the state names node number {} as its own and has {} nodes", state.this_node, state.nodes.len())],
            Some(node) if node.name != self.config.node => {
                vec![format!("the state is for node {}; this is node {}", node.name, self.config.node)]
            }
            Some(_) => Vec::new(),
        }
    }

    /// Compiles and hands over; gives the new generation. The old tables are freed here once no worker has them.
    fn put_in_force(&self, inner: &mut Inner, state: Option<NodeState>) -> u32 {
        let before = inner.tables.clone();
        let generation = before.generation + 1;
        let state = state.map_or_else(|| before.state.clone(), Arc::new);
        let runtime = Arc::new(with_macs(&inner.runtime, &state));
        let tables =
            Arc::new(Tables::compile_next(state, runtime, generation, Some(&before), &|counter| self.connections.counted(counter)));
        self.workers.iter().for_each(|worker| worker.publish(tables.clone()));
        inner.tables = tables.clone();
        inner.published = inner.runtime.clone();
        if !self.in_force(generation, Instant::now() + IN_FORCE) {
            tracing::error!(generation, "a worker does not take new tables");
        }
        if !tables.reassigned.is_empty() || !Arc::ptr_eq(&tables.services, &before.services) {
            self.forget_flows(inner, &tables);
        }
        generation
    }

    fn in_force(&self, generation: u32, deadline: Instant) -> bool {
        loop {
            if self.workers.iter().all(|worker| worker.in_force() >= generation) {
                return true;
            }
            if Instant::now() >= deadline || self.workers.iter().any(Handle::has_ended) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks at the node's network and follows it: next hops, routes into the host pair, what of the uplink is ours, ports
    /// whose interface is gone.
    fn look(&self, inner: &mut Inner) -> anyhow::Result<()> {
        let picture = inner.net.picture()?;
        let gone = |attached: &Attached| !picture.links.iter().any(|link| link.index == attached.index);
        let lost: Vec<PortId> = inner.attached.iter().filter(|(_, at)| gone(at)).map(|(id, _)| PortId(*id)).collect();
        for port in lost {
            let old = &inner.runtime.ports[usize::from(port.0)];
            match old.kind {
                PortKind::Host => {
                    tracing::error!(interface = old.name, "the host pair is gone: the node reaches no pods until the daemon is restarted")
                }
                _ => tracing::warn!(interface = old.name, "the interface is gone"),
            }
            self.close_port(inner, port);
        }
        if let Some(uplink) = &self.config.uplink
            && inner.runtime.uplink().is_none()
            && picture.links.iter().any(|link| link.name == uplink.interface)
        {
            self.open_uplink(inner)?;
        }
        let uplink = self.config.uplink.as_ref().map(|uplink| uplink.interface.as_str());
        let underlay = underlay::read(&picture, uplink);
        inner.redirect.set_uplink(self.filter(&inner.tables.state, &underlay))?;
        inner.host.lead(&inner.tables.state, &underlay.addresses);
        if let Some(uplink) = uplink {
            self.probe(inner, &picture, &underlay, uplink);
        }
        inner.runtime.underlay = underlay;
        if inner.published != inner.runtime {
            self.put_in_force(inner, None);
        }
        let generation = inner.tables.generation;
        inner.http.set_healthy(self.workers.iter().all(|worker| !worker.has_ended() && worker.in_force() >= generation));
        if inner.http.lacks_ports() {
            let Inner { http, tables, .. } = inner;
            http.follow(&tables.state, &self.config.services.node_port_cidrs);
        }
        Ok(())
    }

    fn probe(&self, inner: &Inner, picture: &Picture, underlay: &Underlay, uplink: &str) {
        let state = &inner.tables.state;
        let others = state.nodes.iter().enumerate().filter(|(index, _)| *index != state.this_node as usize);
        let mut targets: Vec<IpAddr> = others.flat_map(|(_, node)| node.addresses.iter().copied()).collect();
        targets.extend(self.workers.iter().flat_map(|worker| std::iter::from_fn(|| worker.unresolved())));
        underlay::probe(&inner.net, picture, underlay, uplink, targets.into_iter());
    }

    /// What of the uplink's traffic is ours under a state.
    fn filter(&self, state: &NodeState, underlay: &Underlay) -> UplinkFilter {
        let config = &self.config;
        let (first, last) = config.masquerade.ports;
        let served = |kind| kind != FrontendKind::ClusterIp || config.services.external_cluster_ip;
        let cidrs = state.cluster.pod_cidrs.iter().flatten().chain(state.nodes.iter().flat_map(|node| &node.pod_cidrs));
        UplinkFilter {
            vtep_port: (config.overlay.mode == OverlayMode::Vxlan).then_some(config.overlay.port),
            masquerade: Some(first..=last),
            node_addresses: underlay.addresses.iter().copied().collect(),
            pod_cidrs: cidrs.map(|cidr| (cidr.network(), cidr.prefix_len())).collect(),
            frontends: state
                .services
                .iter()
                .flat_map(|s| s.frontends.iter().filter(|f| served(f.kind)).map(|f| (f.address, s.protocol.number(), f.port)))
                .collect(),
        }
    }

    /// Follows the kernel until [`stop`](Self::stop); runs on a thread of its own.
    ///
    /// # Errors
    /// Where the kernel's changes cannot be subscribed to, or a worker has ended: the daemon must end too, so that what it guards
    /// is not half served.
    pub fn follow(&self) -> anyhow::Result<()> {
        let monitor = Monitor::open()?;
        let mut looked = Instant::now();
        while !self.stopping.load(Ordering::Relaxed) {
            let changed = monitor.wait(TICK)?;
            if let Some(worker) = self.workers.iter().find(|worker| worker.has_ended()) {
                anyhow::bail!("the worker on core {} has ended", worker.core);
            }
            let mut inner = self.lock();
            self.reclaim(&mut inner);
            if !changed && looked.elapsed() < LOOK && !self.workers.iter().any(Handle::has_unresolved) {
                continue;
            }
            looked = Instant::now();
            if let Err(error) = self.look(&mut inner) {
                tracing::error!(error = format!("{error:#}"), "cannot follow the node's network");
            }
        }
        Ok(())
    }

    /// Asks whoever started the daemon to end it.
    fn end(&self, why: End) {
        let _ = self.ends.send(why);
    }

    /// Ends [`follow`](Self::follow) at its next turn.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Takes everything down: workers, sockets, programs, the host pair with its routes.
    pub fn shut_down(self) {
        let inner = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(uplink) = self.config.uplink.as_ref().filter(|_| inner.vlan_stripping)
            && let Err(error) = offload::switch(&uplink.interface, &[VLAN_STRIPPING], true)
        {
            tracing::warn!(%error, "the uplink stays without VLAN offload");
        }
        // The programs go first: what still arrives then meets a guarded interface, not a half-closed worker.
        drop(inner);
        self.workers.into_iter().for_each(Handle::stop);
    }

    /// How it goes; every sum in it meets, per worker.
    pub fn status(&self) -> Status {
        let reports: Vec<(&Handle, Box<Report>)> = self.workers.iter().filter_map(|worker| Some((worker, worker.report()?))).collect();
        let inner = self.lock();
        let mut status = Status {
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: inner.applied,
            uptime_secs: self.started.elapsed().as_secs(),
            connections: ConnectionCounts { used: self.connections.used().into(), max: self.connections.max().into() },
            ..Status::default()
        };
        for (worker, report) in &reports {
            let (rx, tx, batches) = (report.rx, report.tx, report.batches);
            status.workers.push(WorkerStatus { core: worker.core as u16, rx, tx, batches, generation: worker.in_force() });
            add_counters(&mut status, &report.counters);
            add_frames(&mut status, report);
        }
        for (id, port) in inner.runtime.ports.iter().enumerate() {
            let (kind, pod) = match &port.kind {
                PortKind::Uplink => ("uplink", None),
                PortKind::Host => ("host", None),
                PortKind::Pod { namespace, name } => ("pod", Some(format!("{namespace}/{name}"))),
                PortKind::Vacant => continue,
            };
            let mode = inner.attached.get(&(id as u16)).map(|attached| attached.mode).unwrap_or_default();
            status.ports.push(PortStatus { name: port.name.clone(), kind: kind.into(), mode: mode.into(), pod });
        }
        status
    }

    /// The state in force and its number.
    pub fn state(&self) -> (u32, Arc<NodeState>) {
        let inner = self.lock();
        (inner.applied, inner.tables.state.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cores to pin workers to.
fn cores(config: &NodeConfig) -> anyhow::Result<Vec<usize>> {
    let there: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let count = usize::from(config.workers.count);
    let wanted: Vec<usize> = if config.workers.cores.is_empty() {
        there.iter().rev().take(count).copied().collect()
    } else {
        config.workers.cores.iter().map(|core| usize::from(*core)).collect()
    };
    anyhow::ensure!(
        count > 0 && wanted.len() == count && wanted.iter().all(|core| there.contains(core)),
        "node.yaml: workers: {count} workers on cores {wanted:?}, but this node has cores {there:?}\n  try: as many cores as workers, each of them there"
    );
    Ok(wanted)
}

/// Random bytes of the kernel's: keys and seeds of this boot.
fn entropy<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes)
}

/// Has the uplink leave VLAN tags in their packets: one beside its packet is invisible to the redirect program, which would
/// take the packet for one of ours. Tells whether that is to be taken back.
fn stop_vlan_stripping(uplink: &str) -> bool {
    let stop = || {
        let strips = offload::active_features(uplink)?.contains(VLAN_STRIPPING);
        if strips {
            offload::switch(uplink, &[VLAN_STRIPPING], false)?;
        }
        weir_host::Result::Ok(strips)
    };
    stop().unwrap_or_else(|error: weir_host::Error| {
        tracing::warn!(%error, "the uplink may take VLAN tags off; what comes tagged is then taken for untagged");
        false
    })
}

/// Adds where one worker's frames are, and what the kernel lost in front of it.
fn add_frames(status: &mut Status, report: &Report) {
    let (sum, frames) = (&mut status.frames, &report.frames);
    for (sum, count) in [
        (&mut sum.total, frames.total),
        (&mut sum.free, frames.free),
        (&mut sum.fill, frames.fill),
        (&mut sum.rx, frames.rx),
        (&mut sum.tx, frames.tx),
        (&mut sum.completion, frames.completion),
        (&mut sum.lost, frames.lost()),
    ] {
        *sum += u64::from(count);
    }
    status.kernel.rx_ring_full += report.kernel.rx_ring_full;
    status.kernel.rx_dropped += report.kernel.rx_dropped;
    status.kernel.invalid_descriptors += report.kernel.invalid_descriptors;
}

/// Adds one worker's counters.
fn add_counters(status: &mut Status, counters: &Counters) {
    let packets = &mut status.packets;
    packets.received += counters.received;
    packets.forward += counters.forward;
    packets.host += counters.host;
    packets.reply += counters.reply;
    packets.drop += counters.drop;
    for reason in DropReason::ALL {
        for (ledger, count) in [(&mut status.drops, counters.dropped(*reason)), (&mut status.rejects, counters.rejected(*reason))] {
            if count > 0 {
                *ledger.entry(reason.name().into()).or_default() += count;
            }
        }
    }
}

/// The node as it is, with the MAC that a pod's interface has where nothing else is configured: that of its first address.
fn with_macs(runtime: &Runtime, state: &NodeState) -> Runtime {
    let first_address = |namespace: &str, name: &str| {
        let pod = state.endpoints.iter().find(|e| e.namespace == namespace && e.name == name);
        pod.and_then(|pod| pod.addresses.first()).copied()
    };
    let mut runtime = runtime.clone();
    for port in &mut runtime.ports {
        if let PortKind::Pod { namespace, name } = &port.kind {
            port.mac = port.mac.or_else(|| first_address(namespace, name).map(MacAddr::from_ip));
        }
    }
    runtime
}

/// Splits `namespace/name`.
fn pod_name(pod: &str) -> anyhow::Result<(&str, &str)> {
    pod.split_once('/').with_context(|| format!("{pod:?} names no pod\n  try: namespace/name"))
}
