//! Clients that come again: what a node remembers of them, against a plain memory (E2.34, E2.35).
//!
//! Connections come at any second, also in the last one in which a choice holds and in the first in which it does not, by any
//! address of a Service, and through all changes of the cluster.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use serde_json::Value;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{NodeConfig, Protocol};
use weir_dataplane::service::{Affinity, Selection};
use weir_dataplane::tables::Tables;

use crate::cluster::{one_in, pick};
use crate::compare::Court;
use crate::question::Pool;
use crate::service::Answer;

/// Choices that a node may keep: so many more than there are that none has to give way.
const CHOICES_MAX: u32 = 1 << 16;

/// One new connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Connection {
    pub(crate) at_secs: u32,
    pub(crate) from: IpAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// A connection, and the generation of the cluster that it met.
pub(crate) type Visit = (usize, Connection);

/// The endpoint that a client was given, the connection that was given it first and the last one.
#[derive(Clone, Copy, Debug)]
struct Choice {
    endpoint: SocketAddr,
    first: Visit,
    last: Visit,
    /// The endpoint was gone since.
    gone: bool,
}

/// What a node remembers, and what it should.
struct Memory {
    real: Affinity,
    random: Rng,
    /// By Service port and client.
    plain: HashMap<(String, IpAddr), Choice>,
}

/// A connection that went elsewhere than it should.
pub(crate) struct Astray {
    pub(crate) node: String,
    /// Those before of this client to this Service port that count, and it.
    pub(crate) visits: Vec<Visit>,
    pub(crate) wrong: String,
}

/// All nodes of a cluster over its generations.
pub(crate) struct Sessions {
    nodes: HashMap<String, Memory>,
    random: Rng,
    now_secs: u32,
    /// Connections that got the endpoint of the one before.
    pub(crate) kept: u64,
    /// Connections that were given another choice because the one before was forgotten, or its endpoint cannot be used.
    pub(crate) anew: u64,
}

impl Sessions {
    /// Nobody has come yet.
    pub(crate) fn new(seed: u64) -> Self {
        Self { nodes: HashMap::new(), random: Rng::with_seed(seed), now_secs: 1_000_000, kept: 0, anew: 0 }
    }

    /// Lets `count` clients come to each node of a generation, or nobody.
    ///
    /// # Errors
    /// The first that goes elsewhere than it should.
    pub(crate) fn come(&mut self, court: &Court, generation: usize, count: u32) -> Result<(), Box<Astray>> {
        let pool = Pool::new(&court.snapshot);
        // What comes and goes meanwhile, no client sees.
        let count = if one_in(&mut self.random, 3) { 0 } else { count };
        for (index, node) in court.snapshot.nodes.iter().enumerate() {
            let proxy = court.proxy(index);
            let mut ports: BTreeMap<(String, u32), Vec<(SocketAddr, Protocol)>> = BTreeMap::new();
            for &(to, protocol) in &pool.frontends {
                if let Some(port) = proxy.sticky(to, protocol) {
                    ports.entry(port).or_default().push((to, protocol));
                }
            }
            let ports: Vec<_> = ports.into_iter().collect();
            let memory = self.nodes.entry(node.meta.name.clone()).or_insert_with(|| Memory::new(self.random.u64(..)));
            memory.meet(court, index);
            for _ in 0..if ports.is_empty() { 0 } else { count } {
                let ((port, timeout_secs), addresses) = pick(&mut self.random, &ports);
                let (to, protocol) = pick(&mut self.random, &addresses);
                let from = pick(&mut self.random, &pool.clients[usize::from(!to.is_ipv4())]);
                let before = memory.plain.get(&(port, from)).copied();
                self.now_secs += match (self.random.u32(0..6), before) {
                    (0..3, _) => 0,
                    (3, Some(Choice { last: (_, last), .. })) => {
                        let edge = last.at_secs + timeout_secs - 1 + self.random.u32(0..3);
                        edge.saturating_sub(self.now_secs)
                    }
                    _ => self.random.u32(1..5),
                };
                let connection = Connection { at_secs: self.now_secs, from, to, protocol };
                let visit = (generation, connection);
                match memory.connect(court, index, visit) {
                    Ok(kept) => *if kept == Some(true) { &mut self.kept } else { &mut self.anew } += u64::from(kept.is_some()),
                    Err(wrong) => {
                        let mut visits: Vec<Visit> = before.iter().flat_map(|choice| [choice.first, choice.last]).chain([visit]).collect();
                        visits.dedup();
                        return Err(Box::new(Astray { node: node.meta.name.clone(), visits, wrong }));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Memory {
    fn new(seed: u64) -> Self {
        Self { real: Affinity::new(CHOICES_MAX, seed), random: Rng::with_seed(seed), plain: HashMap::new() }
    }

    /// Takes a generation into account: an endpoint that is gone takes its clients with it, also when it comes back (E2.34).
    fn meet(&mut self, court: &Court, node: usize) {
        let given = court.proxy(node).given();
        for ((port, _), choice) in &mut self.plain {
            choice.gone |= given.get(port).is_none_or(|endpoints| !endpoints.contains(&choice.endpoint));
        }
    }

    /// Opens a connection at a node. Tells whether the client got the endpoint of its connection before, `None` where it had none.
    ///
    /// # Errors
    /// What is wrong with the choice.
    fn connect(&mut self, court: &Court, node: usize, visit: Visit) -> Result<Option<bool>, String> {
        let (_, connection) = visit;
        let Connection { at_secs, from, to, protocol } = connection;
        let (proxy, tables) = (court.proxy(node), &court.tables[node]);
        let Some((port, timeout_secs)) = proxy.sticky(to, protocol) else { return Ok(None) };
        let Answer::Forward { endpoints, .. } = proxy.ask(from, to, protocol) else { return Ok(None) };
        let before = self.plain.get(&(port.clone(), from)).copied();
        let idle = |choice: &Choice| at_secs - choice.last.1.at_secs;
        let held = before.filter(|choice| !choice.gone && idle(choice) < timeout_secs && endpoints.contains(&choice.endpoint));
        // Who is not remembered is given what somebody is given who never came.
        let stranger = choose(tables, &connection, &Affinity::new(1, 0), &mut self.random.clone());
        let chosen = choose(tables, &connection, &self.real, &mut self.random);
        let expected = held.map_or(stranger, |choice| Some(choice.endpoint));
        let Some(endpoint) = chosen.filter(|endpoint| chosen == expected && endpoints.contains(endpoint)) else {
            let past = before.map(|choice| format!("{} {} s before, of {timeout_secs}", choice.endpoint, idle(&choice)));
            return Err(format!("{expected:?} of {endpoints:?}, after {past:?}; got {chosen:?}"));
        };
        let first = held.map_or(visit, |choice| choice.first);
        self.plain.insert((port, from), Choice { endpoint, first, last: visit, gone: false });
        Ok(before.map(|_| held.is_some()))
    }
}

fn choose(tables: &Tables, connection: &Connection, affinity: &Affinity, random: &mut Rng) -> Option<SocketAddr> {
    let Connection { at_secs, from, to, protocol } = *connection;
    let tuple = Tuple { src: from.into(), dst: to.ip().into(), sport: 40_000, dport: to.port(), proto: protocol.number() };
    match tables.services.select(&tuple, tables.origin(tuple.src), || false, affinity, |_| 0, at_secs, random) {
        Selection::Backend(chosen) => Some(SocketAddr::new(chosen.backend.address.to_std(), chosen.backend.port)),
        _ => None,
    }
}

/// Opens connections one after the other, each at a node of these objects; gives what is wrong with the last one. Between two there
/// may be objects that no client meets.
pub(crate) fn again(steps: &[(Vec<Value>, Option<Connection>)], config: &NodeConfig, node: &str, seed: u64) -> Option<String> {
    let mut memory = Memory::new(seed);
    let mut wrong = None;
    let mut before = None;
    for (objects, connection) in steps {
        let court = Court::new(objects, config, before.as_ref()).ok()?;
        let index = court.snapshot.nodes.iter().position(|n| n.meta.name == node)?;
        memory.meet(&court, index);
        wrong = connection.and_then(|connection| memory.connect(&court, index, (0, connection)).err());
        before = Some(court);
    }
    wrong
}
