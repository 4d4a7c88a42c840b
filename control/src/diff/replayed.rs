//! What would change over a capture: every packet through both snapshots, side by side.
//!
//! The old snapshot's node runs on a thread of its own, a bounded number of packets ahead: memory does not grow with the
//! capture. A flow that the old one lets through and the new one would not open is told apart: what becomes of it if it is open
//! when the new one comes ([`World::held`]).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use serde::Serialize;
use weir_dataplane::capture::{Capture, CaptureError};
use weir_dataplane::events::CtState;
use weir_dataplane::model::NodeConfig;

use crate::compile::compile;
use crate::sim::fate::Fate;
use crate::sim::node::SimNode;
use crate::sim::reach::{End, Flow, Held, World};
use crate::sim::replay::{self, Hint, Summary, Taken};
use crate::sim::row::{Namer, Row};
use crate::source::objects::Snapshot;

/// How many packets the old snapshot may be ahead.
const AHEAD: usize = 4096;

/// What differs between two snapshots over a capture.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// Nothing differs.
    pub same: bool,
    /// Packets that end otherwise, at most as many as were asked for.
    pub packets: Vec<PacketChange>,
    /// How many do.
    pub changed: u64,
    /// Flows that could not be opened any more, likewise at most as many.
    pub open: Vec<FlowChange>,
    /// What becomes of all such flows if they are open when the new snapshot comes.
    pub held: BTreeMap<Held, u64>,
    /// How all packets end with the old snapshot.
    pub old: Summary,
    /// How all would end with the new one.
    pub new: Summary,
}

/// A packet that ends otherwise than before.
#[derive(Clone, Debug, Serialize)]
pub struct PacketChange {
    /// As it was.
    pub old: Row,
    /// As it would be.
    pub new: Row,
}

/// A flow that could not be opened any more.
#[derive(Debug, Serialize)]
pub struct FlowChange {
    /// Its first packet.
    #[serde(flatten)]
    pub opened: PacketChange,
    /// What becomes of it if it is open when the new snapshot comes.
    pub held: Held,
}

/// What of a row is compared: the end, the backend, the addresses after translation.
fn essence(row: &Row) -> impl PartialEq + use<> {
    let service = row.service.clone();
    let ends = (row.out.clone(), row.backend.clone(), row.snat.clone(), row.dnat.clone());
    (row.verdict, row.reason, ends, service, row.encap.clone(), row.mtu)
}

/// One snapshot on the node whose capture is replayed.
pub struct Case<'a> {
    /// The objects.
    pub snapshot: &'a Snapshot,
    /// The node and its operator's choices.
    pub config: &'a NodeConfig,
}

/// Why a capture could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read, or not to its end.
    #[error("{0}")]
    Capture(#[from] CaptureError),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Compares over a capture; keeps the first `kept` packets and flows that differ.
///
/// # Errors
/// Where the capture cannot be read, or a node cannot be made.
pub fn replayed(old: &Case<'_>, new: &Case<'_>, pcap: &Path, hints: &[Hint], seed: u64, kept: usize) -> Result<Replayed, ReplayError> {
    let (sender, before) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(move || {
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            rows_of(old, pcap, hints, seed, |row, fate| sender.send((row, *fate)).map_err(gone))
        });
        let (packets, open, held) = Default::default();
        let mut found = Found { cases: [old, new], worlds: None, kept, packets, changed: 0, open, held };
        let mut deserted = false;
        let summary = rows_of(new, pcap, hints, seed, |row, _| match before.recv() {
            Ok((old, fate)) => found.take(old, &fate, row).map_err(io::Error::other),
            Err(_) => {
                deserted = true;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
        // Without anybody who listens the other thread ends, wherever it is.
        drop(before);
        let ahead = ahead.join().map_err(|_| ReplayError::Other("the old snapshot's thread has panicked".into()))?;
        // Of two faults the one that made the other.
        let (old, new) = if deserted { (ahead?, summary?) } else { summary.and_then(|new| Ok((ahead?, new)))? };
        let Found { packets, changed, open, held, .. } = found;
        Ok(Replayed { same: changed == 0, packets, changed, open, held, old, new })
    })
}

/// What was found so far.
struct Found<'a> {
    cases: [&'a Case<'a>; 2],
    /// Both clusters, once a flow asks for them.
    worlds: Option<[World; 2]>,
    kept: usize,
    packets: Vec<PacketChange>,
    changed: u64,
    open: Vec<FlowChange>,
    held: BTreeMap<Held, u64>,
}

impl Found<'_> {
    fn take(&mut self, old: Row, fate: &Fate, new: Row) -> Result<(), String> {
        if essence(&old) == essence(&new) {
            return Ok(());
        }
        self.changed += 1;
        let passes = |row: &Row| matches!(row.verdict, "forward" | "host");
        let change = PacketChange { old, new };
        if fate.trail.state == CtState::New && passes(&change.old) && !passes(&change.new) {
            let held = self.held(fate)?;
            *self.held.entry(held).or_default() += 1;
            if self.open.len() < self.kept {
                self.open.push(FlowChange { opened: change.clone(), held });
            }
        }
        if self.packets.len() < self.kept {
            self.packets.push(change);
        }
        Ok(())
    }

    /// What becomes of the flow that a packet opened.
    fn held(&mut self, fate: &Fate) -> Result<Held, String> {
        let worlds = match &mut self.worlds {
            Some(worlds) => worlds,
            none => {
                let [old, new] = self.cases.map(|case| World::new(case.snapshot, case.config));
                none.insert([old?, new?])
            }
        };
        let tuple = fate.headers.map(|headers| headers.tuple).ok_or("a flow without headers")?;
        let flow = Flow { src: tuple.src, dst: tuple.dst, proto: tuple.proto, port: tuple.dport };
        let backend = fate.trail.backend.map(|backend| SocketAddr::new(backend.address.to_std(), backend.port));
        let snat = fate.trail.after.map(|after| after.src).filter(|src| *src != tuple.src).map(|src| src.to_std());
        let end = End { verdict: fate.verdict_name(), reason: None, backend, snat };
        Ok(worlds[1].held(&worlds[0], &flow, &end, fate.trail.service.is_some()))
    }
}

fn rows_of(
    case: &Case<'_>,
    pcap: &Path,
    hints: &[Hint],
    seed: u64,
    mut take: impl FnMut(Row, &Fate) -> io::Result<()>,
) -> Result<Summary, ReplayError> {
    let other = |error: &dyn std::fmt::Display| ReplayError::Other(error.to_string());
    let state = compile(case.snapshot, &case.config.node, case.config).map_err(|e| other(&e))?;
    let mut node = SimNode::new(&state, case.config.clone(), seed).map_err(|e| other(&e))?;
    let port_of = replay::port_of(&node, hints).map_err(ReplayError::Other)?;
    let mut namer = Namer::new(node.tables().clone());
    let mut watcher = |taken: &Taken<'_>| take(Row::new(taken.note.number, &namer.flow(taken.note.time, taken.fate)), taken.fate);
    let ended = replay::run(&mut node, Capture::open(pcap)?, port_of, Some(&mut watcher), |_, _| {}).map_err(|e| other(&e))?;
    match ended.fault {
        Some(fault) => Err(fault.into()),
        None => Ok(ended.summary),
    }
}
