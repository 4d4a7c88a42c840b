//! What would change: two snapshots, compared by what becomes of traffic.
//!
//! Over all classes of traffic ([`compare`]): every group of places that no table of either snapshot tells apart, times every
//! range of ports likewise, is asked of both. Over a capture ([`replayed`]): every packet goes through both, each with its own
//! connections. A pod's traffic to itself never reaches the dataplane and is not compared, nor is what goes by from outside to
//! outside.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Serialize;
use weir_dataplane::capture::{Capture, CaptureError};
use weir_dataplane::model::{Family, Ip, NodeConfig, proto};

use crate::compile::compile;
use crate::sim::node::SimNode;
use crate::sim::reach::{Flow, Group, Kind, Outcome, Span, World, cuts, groups, named, spans, traffic};
use crate::sim::replay::{self, Hint, Summary, Taken};
use crate::sim::row::{Namer, Row};
use crate::source::objects::Snapshot;

/// What differs between two snapshots.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// Nothing differs.
    pub same: bool,
    /// Pods and nodes that only the old one has: `namespace/pod`, `node/name`.
    pub removed: Vec<String>,
    /// Likewise the new one.
    pub added: Vec<String>,
    /// Flows between places that both have.
    pub changes: Vec<Change>,
}

/// Flows that end otherwise than before.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Who opens them: places that no rule tells apart.
    pub from: Vec<String>,
    /// To whom, likewise.
    pub to: Vec<String>,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// Protocols and ports, for people.
    pub traffic: String,
    /// Protocols and ports.
    pub ports: Vec<Ports>,
    /// How they ended.
    pub old: Side,
    /// How they would end.
    pub new: Side,
}

/// A range of ports.
#[derive(Debug, Serialize)]
pub struct Ports {
    /// `tcp`, `udp`, `sctp`, or `other` for everything without ports.
    pub proto: String,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl From<&Span> for Ports {
    fn from(span: &Span) -> Self {
        let proto = if span.proto == proto::ICMP { "other".into() } else { crate::sim::row::protocol(span.proto) };
        Self { proto, first: span.first, last: span.last }
    }
}

/// How flows end in one snapshot.
#[derive(Debug, Serialize)]
pub struct Side {
    /// `forward`, `host`, `reject`, `drop`, or `mixed` where it depends on the backend.
    pub verdict: &'static str,
    /// In what ways.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Which rules or reasons say so.
    pub why: String,
}

/// Compares over all classes of traffic.
pub fn compare(old: &World, new: &World) -> Diff {
    let worlds = [old, new];
    let only = |world: usize| {
        let places = named(&worlds).into_iter().filter(|place| place.addresses[1 - world].is_none());
        let mut names: Vec<String> = places.map(|place| place.name).collect();
        names.dedup();
        names
    };
    let (removed, added) = (only(0), only(1));
    let spans: Vec<Span> = spans(&cuts(&worlds)).collect();
    let groups = groups(&worlds);
    let mut changes = Vec::new();
    for from in groups.iter().filter(|group| group.kind != Kind::Service) {
        for to in groups.iter().filter(|to| (from.kind, to.kind) != (Kind::Outside, Kind::Outside)) {
            changes.extend(changed(&worlds, from, to, &spans));
        }
    }
    Diff { same: changes.is_empty() && removed.is_empty() && added.is_empty(), removed, added, changes }
}

/// The flow of a protocol and port between two places in one world.
pub fn flow(from: Ip, to: Ip, span: &Span) -> Flow {
    let proto = if span.proto == proto::ICMP && !from.is_v4() { proto::ICMPV6 } else { span.proto };
    Flow { src: from, dst: to, proto, port: span.first }
}

fn changed(worlds: &[&World; 2], from: &Group, to: &Group, spans: &[Span]) -> Vec<Change> {
    let Some((a, b)) = from.pair(to).filter(|(a, b)| a.family == b.family) else { return Vec::new() };
    let flow = |world: usize, span: &Span| Some(flow(a.addresses[world]?, b.addresses[world]?, span));
    let mut by_outcome: BTreeMap<(Outcome, Outcome), Vec<Span>> = BTreeMap::new();
    // Virtual addresses answer pings themselves or not at all: no rule decides.
    for span in spans.iter().filter(|span| b.kind != Kind::Service || span.proto != proto::ICMP) {
        let (Some(old), Some(new)) = (flow(0, span), flow(1, span)) else { continue };
        let (old, new) = (worlds[0].reach(&old), worlds[1].reach(&new));
        if old != new {
            by_outcome.entry((old, new)).or_default().push(*span);
        }
    }
    let side = |world: usize, outcome: Outcome, span: &Span| {
        let why = flow(world, span).map(|flow| worlds[world].why(&flow, &outcome)).unwrap_or_default();
        Side { verdict: outcome.verdict(), outcome, why }
    };
    let change = |((old, new), ports): ((Outcome, Outcome), Vec<Span>)| Change {
        from: from.names().into_iter().map(str::to_owned).collect(),
        to: to.names().into_iter().map(str::to_owned).collect(),
        family: a.family,
        traffic: traffic(&ports),
        old: side(0, old, &ports[0]),
        new: side(1, new, &ports[0]),
        ports: ports.iter().map(Ports::from).collect(),
    };
    by_outcome.into_iter().map(change).collect()
}

/// What differs between two snapshots over a capture.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// Nothing differs.
    pub same: bool,
    /// Packets that end otherwise, at most as many as were asked for.
    pub packets: Vec<PacketChange>,
    /// How many do.
    pub changed: u64,
    /// How all packets end with the old snapshot.
    pub old: Summary,
    /// How all would end with the new one.
    pub new: Summary,
}

/// A packet that ends otherwise than before.
#[derive(Debug, Serialize)]
pub struct PacketChange {
    /// As it was.
    pub old: Row,
    /// As it would be.
    pub new: Row,
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

/// Compares over a capture; keeps the first `kept` packets that differ.
///
/// # Errors
/// Where the capture cannot be read, or a node cannot be made.
pub fn replayed(old: &Case<'_>, new: &Case<'_>, pcap: &Path, hints: &[Hint], seed: u64, kept: usize) -> Result<Replayed, ReplayError> {
    let (mut rows, mut packets, mut changed) = (Vec::new(), Vec::new(), 0);
    let old = rows_of(old, pcap, hints, seed, |row| {
        rows.push(row);
        Ok(())
    })?;
    let mut before = rows.into_iter();
    let new = rows_of(new, pcap, hints, seed, |row| {
        if let Some(old) = before.next().filter(|old| essence(old) != essence(&row)) {
            changed += 1;
            if packets.len() < kept {
                packets.push(PacketChange { old, new: row });
            }
        }
        Ok(())
    })?;
    Ok(Replayed { same: changed == 0, packets, changed, old, new })
}

fn rows_of(
    case: &Case<'_>,
    pcap: &Path,
    hints: &[Hint],
    seed: u64,
    mut take: impl FnMut(Row) -> io::Result<()>,
) -> Result<Summary, ReplayError> {
    let other = |error: &dyn std::fmt::Display| ReplayError::Other(error.to_string());
    let state = compile(case.snapshot, &case.config.node, case.config).map_err(|e| other(&e))?;
    let mut node = SimNode::new(&state, case.config.clone(), seed).map_err(|e| other(&e))?;
    let port_of = replay::port_of(&node, hints).map_err(ReplayError::Other)?;
    let runtime = node.runtime().clone();
    let mut namer = Namer::new(&state, &runtime);
    let mut watcher = |taken: &Taken<'_>| take(namer.row(taken.note.number, taken.note.time, taken.fate));
    let ended = replay::run(&mut node, Capture::open(pcap)?, port_of, Some(&mut watcher), |_, _| {}).map_err(|e| other(&e))?;
    match ended.fault {
        Some(fault) => Err(fault.into()),
        None => Ok(ended.summary),
    }
}
