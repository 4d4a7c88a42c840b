//! `weir lab`: a cluster on one machine, out of network namespaces.
//!
//! Weir's node has the daemon and a namespace per pod; every other node is a plain kernel with a bridge, VXLAN devices and
//! its pods. All nodes, and a host outside the cluster, are joined by one bridge:
//!
//! ```text
//!   pod   pod            pod   pod
//!    │     │              │     │
//!  ┌─┴─────┴──────┐     ┌─┴cni0─┴──────┐
//!  │ weir-dataplane│    │ flannel.1     │    outside
//!  └──────eth1────┘     └─────eth1──────┘      eth1
//!          └────────── br0 ─────┴────────────────┘
//! ```
//!
//! Each part is a namespace of its own, named after the lab. [`up`] makes what is missing, remakes what the snapshot
//! changed and removes what it no longer has; what is as recorded stays untouched, with its connections. The machine's own
//! namespace, its interfaces and its firewall are never changed. What is in the way after a crash is made anew: a part is
//! recorded only when it is whole.

mod build;
mod daemon;
mod names;
mod plan;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use weir_dataplane::admin::protocol::Request;
use weir_dataplane::model::{NodeConfig, NodeState, PodPort, UplinkConfig, XdpMode};
use weir_host::Netns;

use daemon::Daemon;
pub use names::{InvalidLabName, LabName};
pub use plan::{LabNode, LabPlan, LabPod, PlanError};

/// What [`up`] shall bring up.
#[derive(Clone, Debug)]
pub struct Up {
    /// The lab's name.
    pub name: LabName,
    /// The cluster as Weir's node sees it.
    pub state: NodeState,
    /// The daemon's configuration; node, socket, uplink and pods are the lab's to set.
    pub config: NodeConfig,
    /// The daemon's binary; `None` = make the network only.
    pub daemon: Option<PathBuf>,
}

/// What [`up`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Namespaces made or made anew.
    pub made: usize,
    /// Namespaces left as they were.
    pub kept: usize,
    /// Namespaces removed because the snapshot no longer has them.
    pub removed: usize,
    /// What the cluster has and the lab leaves out.
    pub left_out: Vec<String>,
    /// What the daemon said to the state.
    pub applied: Option<String>,
}

/// What is there, as `lab.json` has it: only parts that are whole.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Weir's node.
    node: String,
    /// By the name of the namespace.
    parts: BTreeMap<String, Part>,
    /// The daemon's configuration without its pods, with which it was started.
    config: Option<NodeConfig>,
}

/// The file of a [`Record`] in the lab's folder.
const RECORD: &str = "lab.json";
/// The file by which one `weir lab` at a time has a lab.
const LOCK: &str = "lock";

/// One namespace of a lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    role: Role,
    /// Hash of everything that decides what it looks like inside.
    fingerprint: u64,
}

/// What a namespace is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Underlay,
    Outside,
    Node { name: String },
    Pod { node: String, place: String },
}

/// A lab's files and its lock; one `weir lab` at a time changes a lab.
struct Lab {
    name: LabName,
    dir: PathBuf,
    daemon: Daemon,
    record: Record,
    _lock: Flock<File>,
}

impl Lab {
    fn open(name: &LabName) -> anyhow::Result<Self> {
        let dir = name.run_dir();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}; run it as root", dir.display()))?;
        let lock = File::create(dir.join(LOCK)).with_context(|| format!("cannot write in {}; run it as root", dir.display()))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).context("cannot lock the lab")?;
        let record = fs::read(dir.join(RECORD)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok(Self { name: name.clone(), daemon: Daemon::new(dir.clone()), dir, record, _lock: lock })
    }

    fn save(&self) -> anyhow::Result<()> {
        let new = self.dir.join("lab.json.new");
        fs::write(&new, serde_json::to_vec_pretty(&self.record)?)
            .and_then(|()| fs::rename(&new, self.dir.join(RECORD)))
            .with_context(|| format!("cannot write in {}", self.dir.display()))
    }

    /// Removes one namespace with what it has elsewhere. A daemon that runs gives the pod's port up first.
    fn remove(&mut self, netns: &str) -> anyhow::Result<()> {
        match self.record.parts.remove(netns).map(|part| part.role) {
            Some(Role::Pod { node, place }) => {
                // One that does not answer, or is about to end, is started anew later.
                if node == self.record.node
                    && let Some(mut client) = self.daemon.responsive()
                    && client.call(&Request::DetachPod { pod: place.clone() }).is_err()
                {
                    self.daemon.stop()?;
                }
                build::unplug_pod(&self.name, &node, &place)?;
            }
            Some(Role::Node { name }) => {
                if name == self.record.node {
                    self.daemon.stop()?;
                }
                build::unplug_node(&self.name, &name)?;
            }
            Some(Role::Outside) => build::unplug_node(&self.name, "outside")?,
            Some(Role::Underlay) | None => {}
        }
        Netns::delete(netns)?;
        self.save()
    }
}

/// Brings a lab up, or changes one that is up into what the cluster is now.
///
/// # Errors
/// Says what could not be made; what was made stays, and a second `up` goes on from there.
pub fn up(request: Up) -> anyhow::Result<Outcome> {
    let plan = LabPlan::new(&request.state, &request.config)?;
    let mut lab = Lab::open(&request.name)?;
    let mut outcome = Outcome { left_out: plan.left_out.clone(), ..Outcome::default() };
    let wanted = parts(&lab.name, &plan);
    let this_node = plan.nodes[plan.this_node].name.clone();
    if lab.record.node != this_node {
        // Another node becomes Weir's: its namespace changes its kind, and so does that of the former one.
        lab.daemon.stop()?;
        lab.record = Record { node: this_node, ..Record::default() };
        lab.save()?;
    }

    let mut kept: Vec<&str> = Vec::new();
    for (netns, part) in &wanted {
        let base = match &part.role {
            Role::Underlay => None,
            Role::Outside | Role::Node { .. } => Some(lab.name.underlay()),
            Role::Pod { node, .. } => Some(lab.name.node(node)),
        };
        let stands = base.is_none_or(|base| kept.contains(&base.as_str()));
        if stands && lab.record.parts.get(netns) == Some(part) && Netns::exists(netns) {
            kept.push(netns);
        }
    }
    for netns in Netns::list(&lab.name.prefix())?.into_iter().rev() {
        if !kept.contains(&netns.as_str()) {
            outcome.removed += usize::from(!wanted.iter().any(|(name, _)| *name == netns));
            lab.remove(&netns)?;
        }
    }
    outcome.kept = kept.len();
    let mut new_pods = Vec::new();
    for (netns, part) in wanted.iter().filter(|(netns, _)| !kept.contains(&netns.as_str())) {
        make(&lab.name, &plan, part, &mut new_pods).with_context(|| format!("cannot make {netns}"))?;
        lab.record.parts.insert(netns.clone(), part.clone());
        lab.save()?;
        outcome.made += 1;
    }
    for index in 0..plan.nodes.len() {
        build::routes(&lab.name, &plan, index)?;
    }
    build::outside_routes(&lab.name, &plan)?;

    if let Some(binary) = &request.daemon {
        start(&mut lab, &plan, &request.config, binary, &new_pods)?;
        outcome.applied = Some(lab.daemon.apply(request.state)?);
    }
    Ok(outcome)
}

/// All parts of a plan in the order in which they can be made.
fn parts(lab: &LabName, plan: &LabPlan) -> Vec<(String, Part)> {
    let network = format!("{:?} {} {} {:?}", plan.mode, plan.vni, plan.port, plan.outside);
    let part = |role, look: String| Part { role, fingerprint: names::hash(&format!("{network} {look}")) };
    let mut parts = vec![(lab.underlay(), part(Role::Underlay, String::new())), (lab.outside(), part(Role::Outside, String::new()))];
    for (index, node) in plan.nodes.iter().enumerate() {
        // Not its pods: they come and go without their node, unless they change the ranges or the gateway of a kernel node.
        let look = if index == plan.this_node {
            format!("{:?} weir {}", node.addresses, plan.queues)
        } else {
            format!("{:?} {} {:?} {:?}", node.addresses, node.vtep_mac, node.pod_cidrs, node.gateways())
        };
        parts.push((lab.node(&node.name), part(Role::Node { name: node.name.clone() }, look)));
    }
    for (index, node) in plan.nodes.iter().enumerate() {
        for pod in &node.pods {
            let role = Role::Pod { node: node.name.clone(), place: pod.place() };
            let near = (index == plan.this_node).then_some((plan.local_mtu, &node.pod_cidrs));
            parts.push((lab.pod(&pod.namespace, &pod.name), part(role, format!("{:?} {near:?}", pod.addresses))));
        }
    }
    parts
}

fn make<'a>(lab: &LabName, plan: &'a LabPlan, part: &Part, new_pods: &mut Vec<&'a LabPod>) -> anyhow::Result<()> {
    match &part.role {
        Role::Underlay => build::underlay(lab, plan)?,
        Role::Outside => build::outside(lab, plan)?,
        Role::Node { name } => {
            let index = plan.nodes.iter().position(|node| node.name == *name).context("no such node in the plan")?;
            build::node(lab, plan, index)?;
        }
        Role::Pod { node, place } => {
            let index = plan.nodes.iter().position(|n| n.name == *node).context("no such node in the plan")?;
            let pod = plan.nodes[index].pods.iter().find(|pod| pod.place() == *place).context("no such pod in the plan")?;
            build::pod(lab, plan, index, pod)?;
            if index == plan.this_node {
                new_pods.push(pod);
            }
        }
    }
    Ok(())
}

/// Starts the daemon, or tells the one that runs of pods that are new.
fn start(lab: &mut Lab, plan: &LabPlan, config: &NodeConfig, binary: &Path, new_pods: &[&LabPod]) -> anyhow::Result<()> {
    let node = &plan.nodes[plan.this_node];
    let port = |pod: &LabPod| PodPort { pod: pod.place(), interface: build::host_end(pod), mac: Some(build::pod_mac(pod)) };
    let bare = NodeConfig {
        node: node.name.clone(),
        socket: lab.daemon.socket(),
        uplink: Some(UplinkConfig {
            interface: build::UPLINK.into(),
            mode: config.uplink.as_ref().map_or(XdpMode::default(), |uplink| uplink.mode),
        }),
        pods: Vec::new(),
        ..config.clone()
    };
    let full = NodeConfig { pods: node.pods.iter().map(port).collect(), ..bare.clone() };
    let text = serde_saphyr::to_string(&full).context("cannot write the daemon's configuration")?;
    fs::write(lab.daemon.config(), text).with_context(|| format!("cannot write {}", lab.daemon.config().display()))?;
    if lab.record.config.as_ref() == Some(&bare)
        && let Some(mut client) = lab.daemon.responsive()
    {
        for pod in new_pods {
            client.call(&Request::AttachPod { port: port(pod) }).with_context(|| format!("cannot attach {}", pod.place()))?;
        }
        return Ok(());
    }
    lab.daemon.stop()?;
    lab.daemon.start(binary, &Netns::open(&lab.name.node(&node.name))?)?;
    lab.record.config = Some(bare);
    lab.save()
}

/// Takes a lab down: its daemon, all its namespaces, its files. Fine if there is none. Returns the processes that still
/// run in its namespaces, started by others and left alone: number and name.
///
/// # Errors
/// Says what could not be removed.
pub fn down(name: &LabName) -> anyhow::Result<Vec<(i32, String)>> {
    // A folder with neither record nor lock is no lab's, perhaps of a daemon that somebody started by hand. A lab whose record was
    // lost still has its lock, and a daemon to be ended.
    let ours = [RECORD, LOCK].iter().any(|file| name.run_dir().join(file).exists());
    let lab = if ours { Some(Lab::open(name)?) } else { None };
    if let Some(lab) = &lab {
        lab.daemon.stop()?;
    }
    let mut inodes = Vec::new();
    let namespaces = Netns::list(&name.prefix())?;
    for netns in &namespaces {
        // What a crash left half made is no namespace, and has no processes.
        inodes.extend(Netns::open(netns).and_then(|netns| netns.inode()).ok());
    }
    for netns in &namespaces {
        Netns::delete(netns)?;
    }
    if let Some(lab) = &lab {
        fs::remove_dir_all(&lab.dir).with_context(|| format!("cannot remove {}", lab.dir.display()))?;
        if let Some(parent) = lab.dir.parent() {
            // Only while it is empty: other labs and the machine's own daemon live there too.
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(processes_in(&inodes))
}

/// Finds processes in network namespaces by the namespaces' inodes.
fn processes_in(inodes: &[u64]) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ends meanwhile is not there: that is the answer wanted.
        if fs::metadata(entry.path().join("ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino())) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim_end().to_owned()));
        }
    }
    found
}

/// Runs a command in a pod (`namespace/pod`), on a node (`node/NAME`) or on the host outside the cluster (`outside`), in
/// place of this process. Its files are the machine's; only its network is the place's.
///
/// # Errors
/// There is no such place, or the command cannot be run. Does not return otherwise.
pub fn exec(name: &LabName, place: &str, command: &[String]) -> anyhow::Result<std::convert::Infallible> {
    let netns = match place.split_once('/') {
        None if place == "outside" => name.outside(),
        Some(("node", node)) => name.node(node),
        Some((namespace, pod)) => name.pod(namespace, pod),
        None => bail!("{place:?} is no place in a lab\n  try: NAMESPACE/POD, node/NAME or outside"),
    };
    let Some((program, arguments)) = command.split_first() else { bail!("no command to run in {place}") };
    match Netns::open(&netns) {
        Ok(netns) => netns.enter()?,
        Err(e) if e.is_absent() => bail!("there is no {place} in lab {name}\n  try: weir lab status --name {name}"),
        Err(e) => return Err(e.into()),
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}

/// What `weir lab status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The lab.
    pub name: String,
    /// Weir's node; `None` where there is no lab of that name.
    pub node: Option<String>,
    /// The daemon's process number; `None` where it does not run.
    pub daemon: Option<i32>,
    /// Number of the state in force; `None` where the daemon does not answer.
    pub generation: Option<u32>,
    /// Places to run commands in.
    pub places: Vec<Place>,
}

/// A place in a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// As `weir lab exec` takes it.
    pub place: String,
    /// The node that it is, or is on.
    pub node: Option<String>,
    /// Its network namespace, as `ip netns` takes it.
    pub netns: String,
    /// It is there. Otherwise `weir lab up` makes it anew.
    pub present: bool,
}

/// Looks at a lab.
///
/// # Errors
/// The lab's files cannot be read.
pub fn status(name: &LabName) -> anyhow::Result<Status> {
    let path = name.run_dir().join("lab.json");
    let record: Record = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Record::default(),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let daemon = Daemon::new(name.run_dir());
    let running = daemon.running();
    let generation = daemon.responsive().and_then(|mut client| client.status().ok()).map(|status| status.generation);
    let places = record.parts.iter().filter_map(|(netns, part)| {
        let (place, node) = match &part.role {
            Role::Underlay => return None,
            Role::Outside => ("outside".into(), None),
            Role::Node { name } => (format!("node/{name}"), Some(name.clone())),
            Role::Pod { node, place } => (place.clone(), Some(node.clone())),
        };
        Some(Place { place, node, netns: netns.clone(), present: Netns::exists(netns) })
    });
    Ok(Status {
        name: name.to_string(),
        node: (!record.node.is_empty()).then(|| record.node.clone()),
        daemon: running,
        generation,
        places: places.collect(),
    })
}
