//! The daemon: owns the ports, the workers and the state in force, and keeps them in step with the node.
//!
//! Three things change what workers do: a new state from control, a port that comes or goes, and the kernel's routes and
//! neighbours. Each compiles new tables away from the workers and hands them over; nothing else touches a worker. When the
//! daemon ends, everything that it made goes with it, and no pod is left reachable another way: see [`weir_host::guard`].

mod capture;
mod clocks;
mod follow;
mod host_pair;
mod http;
mod metrics;
mod ports;
mod publish;
mod report;
mod server;
mod underlay;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use crossbeam::channel::Sender;
use weir_host::Net;
use weir_xsk::{Redirect, UmemConfig};

use self::clocks::Baseline;
use self::host_pair::HostPair;
use self::http::Http;
use self::ports::{Attached, resume_vlan_stripping};
use crate::conntrack::{self, ConnTable, TableConfig};
use crate::flows::{self, Drops, Hub};
use crate::model::{Node, NodeConfig, NodeState, OverlayMode};
use crate::overlay::vxlan::mtu_overhead;
use crate::runtime::{Runtime, Underlay};
use crate::service::{self, Affinity};
use crate::tables::Tables;
use crate::worker::{Handle, Setup};

pub use ports::PORTS_MAX;
pub use server::{Server, take_over};

/// No pod's flows, its own and those to it, may fill more than this part of the connection table.
const POD_SHARE: u32 = 4;
/// Records that wait in a worker's ring, 3 MB: what it forwards in the 5 ms between two looks of the [`Hub`], and then some.
const NOTES: usize = 8192;

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
    /// Tells it from any other daemon on its socket.
    instance: String,
    workers: Vec<Handle>,
    connections: Arc<ConnTable>,
    /// What the workers note, and who wants to know.
    flows: Arc<Hub>,
    /// The thread that gathers it.
    gatherer: std::thread::JoinHandle<()>,
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
    /// What the workers discarded and refused, by name.
    drops: Drops,
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
    /// From where the workers' figures are told.
    baseline: Baseline,
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
        let everything = Arc::new(AtomicBool::new(false));
        let (mut workers, mut readers) = (Vec::new(), Vec::new());
        for core in cores {
            let (notes, reader) = flows::ring(NOTES);
            readers.push(reader);
            let setup = Setup {
                core,
                idle: config.workers.idle,
                umem: UmemConfig::default(),
                connections: connections.clone(),
                affinity: affinity.clone(),
                tables: tables.clone(),
                fragments: config.tables.fragments,
                seed: u64::from_ne_bytes(entropy()?),
                notes,
                everything: everything.clone(),
                epoch,
            };
            workers.push(Handle::start(setup)?);
        }
        let mut sweeper = connections.worker().context("the connection table has no room for the daemon")?;
        connections.park(&mut sweeper);
        let reader = connections.reader().context("the connection table has no room for the daemon")?;
        let flows = Arc::new(Hub::new(readers, epoch, everything, tables.clone()));
        let gatherer = std::thread::Builder::new().name("flows".into()).spawn({
            let flows = flows.clone();
            move || flows.run()
        })?;
        let inner = Inner {
            net,
            sweeper,
            reader,
            published: Runtime::clone(&tables.runtime),
            runtime: Runtime::clone(&tables.runtime),
            tables,
            applied: 0,
            drops: Drops::default(),
            redirect,
            host,
            http: Http::start()?,
            attached: BTreeMap::new(),
            vlan_stripping: false,
            baseline: Baseline::new(epoch),
        };
        let stopping = AtomicBool::new(false);
        let inner = Mutex::new(inner);
        let instance = format!("{:016x}", u64::from_ne_bytes(entropy()?));
        let daemon = Self { config, started: epoch, instance, workers, connections, flows, gatherer, stopping, ends, inner };
        daemon.attach_first()?;
        Ok(daemon)
    }

    /// Serves metrics and health where the configuration says, from now on.
    pub fn serve_metrics(self: &Arc<Self>) {
        self.lock().http.serve_metrics(&self.config.metrics.listen, Arc::downgrade(self));
    }

    /// The path of the socket that control talks to.
    pub fn socket(&self) -> &Path {
        &self.config.socket
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
        if let Some(uplink) = self.config.uplink.as_ref().filter(|_| inner.vlan_stripping) {
            resume_vlan_stripping(&uplink.interface);
        }
        // The programs go first: what still arrives then meets a guarded interface, not a half-closed worker.
        drop(inner);
        self.workers.into_iter().for_each(Handle::stop);
        self.flows.end();
        // If it panicked, that is why we are here.
        let _ = self.gatherer.join();
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
