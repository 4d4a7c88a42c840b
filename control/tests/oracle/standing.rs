//! Open connections through changes of the cluster: which go on as they are, which begin anew, which end (E1.37, E1.40, E2.16, E2.39
//! to E2.42). Real packets through one node's pipeline, against what the objects before and after say of them.

use std::net::SocketAddr;
use std::sync::Arc;

use fastrand::Rng;
use serde_json::Value;
use weir_control::sim::fate::{Fate, Fates};
use weir_dataplane::conntrack::{ConnTable, TableConfig, Ticks, Tuple};
use weir_dataplane::io::mem::MemIo;
use weir_dataplane::io::{BATCH_MAX, Batch, PacketIo, PortId};
use weir_dataplane::model::{NodeConfig, OnChange, OverlayMode, Protocol};
use weir_dataplane::parse::{Parsed, parse};
use weir_dataplane::pipeline::{Cx, Local, is_orphaned_flow, is_stale_service_flow, process};
use weir_dataplane::runtime::{Port, Runtime};
use weir_dataplane::service::Affinity;
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::{DropReason, Verdict};

use crate::compare::Court;
use crate::packets::{self, Arrival};
use crate::policy::Flow;
use crate::question::Pool;
use crate::who::Who;

/// Connections that the table has room for.
const CONNECTIONS_MAX: u32 = 4096;

/// One node that lives on while its cluster changes.
pub(crate) struct Standing {
    node: String,
    conns: ConnTable,
    local: Local,
    affinity: Affinity,
    tables: Option<Arc<Tables>>,
    io: MemIo,
    open: Vec<Open>,
    now: u64,
    sport: u16,
    tally: Tally,
}

/// What became of open connections after a change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kept: u64,
    pub(crate) anew: u64,
    pub(crate) cut: u64,
}

/// A connection, and how its packets leave.
#[derive(Clone, Copy, Debug)]
struct Open {
    arrival: Arrival,
    left: Tuple,
    /// Who had its addresses: source, asked, and after translation.
    owners: [Option<u64>; 3],
}

impl Standing {
    /// A node that has seen nothing.
    pub(crate) fn new(node: &str, seed: u64) -> Self {
        let size = TableConfig { max: CONNECTIONS_MAX, key: seed.into(), workers: 1, owners: 256, share: CONNECTIONS_MAX };
        let conns = ConnTable::new(&size).unwrap();
        let local = Local::new(conns.worker().unwrap(), 16, seed);
        let (affinity, io) = (Affinity::new(CONNECTIONS_MAX, seed), MemIo::new(BATCH_MAX as u32, 2048).unwrap());
        let tally = Tally::default();
        Self { node: node.into(), conns, local, affinity, tables: None, io, open: Vec::new(), now: 1_000_000_000_000, sport: 1024, tally }
    }

    /// Puts a generation in force, sends another packet of every open connection, and opens `count` more.
    ///
    /// # Errors
    /// The first packet that ends otherwise than it should.
    pub(crate) fn meet(&mut self, court: &Court, count: u16, random: &mut Rng) -> Result<(), (Arrival, String)> {
        let node = court.snapshot.nodes.iter().position(|n| n.meta.name == self.node).expect("nodes stay");
        self.publish(court, node);
        for open in std::mem::take(&mut self.open) {
            if let Some(wrong) = self.again(court, node, &open) {
                return Err((open.arrival, wrong));
            }
        }
        let pool = Pool::new(&court.snapshot);
        for _ in 0..count {
            self.sport += 1;
            if let Some(arrival) = packets::arrival(&pool, self.sport, OverlayMode::Native, random) {
                self.begin(court, node, arrival);
            }
        }
        Ok(())
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// As the daemon does it. Ports stay those of their pods.
    fn publish(&mut self, court: &Court, node: usize) {
        let state = &court.tables[node].state;
        let mut config = NodeConfig { node: self.node.clone(), ..court.config.clone() };
        config.overlay.mode = OverlayMode::Native;
        let mut runtime = Runtime::offline(state, config);
        if let Some(before) = &self.tables {
            let made = std::mem::take(&mut runtime.ports);
            let same = |a: &Port, b: &Port| a.kind == b.kind;
            let old = before.runtime.ports.iter();
            runtime.ports = old.map(|port| made.iter().find(|p| same(p, port)).cloned().unwrap_or_else(Port::vacant)).collect();
            let fresh = made.into_iter().filter(|port| !before.runtime.ports.iter().any(|old| same(old, port)));
            runtime.ports.extend(fresh.collect::<Vec<_>>());
        }
        let generation = self.tables.as_ref().map_or(1, |t| t.generation + 1);
        let tables = Tables::compile_shared(state.clone(), runtime.into(), generation, self.tables.as_deref());
        self.now += 1_000_000_000;
        let mut gone = Vec::new();
        let mut reader = self.conns.reader().unwrap();
        self.conns.dump(&mut reader, 0, CONNECTIONS_MAX + 1, Ticks::from_nanos(self.now), |flow| {
            if is_stale_service_flow(&tables, &flow.original) || is_orphaned_flow(&tables, &flow.original) {
                gone.push(flow.entry);
            }
        });
        for entry in gone {
            self.conns.remove(&mut self.local.conns, entry);
        }
        self.tables = Some(Arc::new(tables));
    }

    /// Opens a connection, if its first packet is sent on and remembered.
    fn begin(&mut self, court: &Court, node: usize, arrival: Arrival) -> Option<()> {
        let tables = self.tables.clone()?;
        let (port, _) = packets::enter(court, node, &tables.runtime, &arrival)?;
        let (_, bytes) = self.send(port, &arrival);
        let asked = tuple(&arrival);
        self.conns.lookup(self.conns.hash(&asked), &asked)?;
        let left = sent(&bytes)?;
        let owners = [arrival.from, arrival.to.ip(), left.dst.to_std()].map(|address| pod_at(court, address));
        self.open.push(Open { arrival, left, owners });
        Some(())
    }

    /// Sends the packet once more under new tables; says what is wrong with its end.
    fn again(&mut self, court: &Court, node: usize, open: &Open) -> Option<String> {
        let tables = self.tables.clone()?;
        let Open { arrival, left, owners } = *open;
        let to = SocketAddr::new(left.dst.to_std(), left.dport);
        let (port, sender) = packets::enter(court, node, &tables.runtime, &arrival)?;
        let (fate, bytes) = self.send(port, &arrival);
        let now = [arrival.from, arrival.to.ip(), to.ip()].map(|address| pod_at(court, address));
        let has_changed_hands = owners.iter().zip(&now).any(|(old, new)| old.is_some() && old != new);
        let translated = to != arrival.to;
        // Of TCP and SCTP nothing is stale (E2.40, E2.46).
        let stale = arrival.protocol == Protocol::Udp
            && match court.proxy(node).serves(arrival.to, arrival.protocol, to) {
                Some(serves) => !translated || !serves,
                None => translated,
            };
        // E1.40, E2.39: as if it had never been.
        if has_changed_hands || stale {
            self.tally.anew += 1;
            let wrong = packets::judge(court, node, &arrival, sender, &fate, &bytes);
            return wrong.map(|wrong| format!("it should begin anew: {wrong}; got {:?}, {:?}", fate.verdict, fate.trail));
        }
        let flow = Flow { from: arrival.from, to: to.ip(), protocol: arrival.protocol.number(), port: to.port(), via_service: translated };
        let on_change = court.config.policy.on_change;
        if on_change != OnChange::Keep && court.denied_at(node, &flow) {
            self.tally.cut += 1;
            let told = on_change == OnChange::Drain && arrival.protocol == Protocol::Tcp;
            let right = match fate.verdict {
                Verdict::Reply(Some(_)) => told,
                Verdict::Drop(DropReason::PolicyDenied | DropReason::PolicyDeny) => !told,
                _ => false,
            };
            return (!right).then(|| format!("E1.37: {on_change:?} should end it; got {:?}", fate.verdict));
        }
        let is_known = matches!(Who::at(&court.snapshot, to.ip()), Who::Pod(_) | Who::Node(_));
        match fate.verdict {
            Verdict::Forward(_) | Verdict::Host(_) if sent(&bytes) == Some(left) => {
                self.tally.kept += 1;
                // Who has its addresses now is who must not go: a pod may have come to one that was nobody's.
                self.open.push(Open { owners: now, ..*open });
                None
            }
            Verdict::Drop(DropReason::StaleOrUnroutableIp | DropReason::FibLookupFailed) if !is_known => None,
            _ => Some(format!("it should go on as {left:?}; got {:?}, {:?}", fate.verdict, fate.trail)),
        }
    }

    fn send(&mut self, port: PortId, arrival: &Arrival) -> (Fate, Vec<u8>) {
        let tables = self.tables.as_deref().expect("published");
        assert!(self.io.push(port, &arrival.frame()));
        let (mut batch, mut fates) = (Batch::new(), Fates::default());
        self.io.rx(&mut batch).unwrap();
        // Time enough for the limits of answers to recover.
        self.now += 1_000_000;
        let (conns, affinity, arena) = (&self.conns, &self.affinity, self.io.arena());
        process(&mut Cx { tables, conns, affinity, arena, local: &mut self.local, now: self.now }, &mut batch, &mut fates);
        let bytes = self.io.arena().bytes(&batch[0].frame).to_vec();
        batch.drain(..).for_each(|packet| self.io.free(packet.frame));
        (*fates.of(0).expect("it is told of"), bytes)
    }
}

fn tuple(arrival: &Arrival) -> Tuple {
    let Arrival { from, to, protocol, sport, .. } = *arrival;
    Tuple { src: from.into(), dst: to.ip().into(), sport, dport: to.port(), proto: protocol.number() }
}

fn sent(bytes: &[u8]) -> Option<Tuple> {
    match parse(bytes) {
        Ok(Parsed::Ip(headers)) => Some(headers.tuple),
        _ => None,
    }
}

/// Names the pod that has an address: another pod, or the same elsewhere, has another name.
fn pod_at(court: &Court, address: std::net::IpAddr) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let pod = Who::at(&court.snapshot, address).pod()?;
    let mut hasher = DefaultHasher::new();
    (&pod.meta.namespace, &pod.meta.name, &pod.node).hash(&mut hasher);
    Some(hasher.finish())
}

/// Opens one connection among the objects before and goes on with it among those after; gives what is wrong then.
pub(crate) fn through(before: &[Value], after: &[Value], config: &NodeConfig, node: &str, arrival: &Arrival, seed: u64) -> Option<String> {
    let mut standing = Standing::new(node, seed);
    let mut random = Rng::with_seed(seed);
    for (index, objects) in [before, after].into_iter().enumerate() {
        let court = Court::new(objects, config, None).ok()?;
        let at = court.snapshot.nodes.iter().position(|n| n.meta.name == node)?;
        match standing.meet(&court, 0, &mut random) {
            Err((_, wrong)) => return Some(wrong),
            Ok(()) if index == 0 => standing.begin(&court, at, *arrival)?,
            Ok(()) => {}
        }
    }
    None
}
