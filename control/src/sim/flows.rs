//! Packets gathered into flows, for `--per flow`.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::flows::Flow as NamedFlow;
use weir_dataplane::io::PortId;
use weir_dataplane::verdict::DropReason;

use super::fate::Fate;
use super::row::{Namer, Row};

/// One line of `weir replay --per flow -o json`: the first packet, and what became of all.
#[derive(Debug, Serialize)]
pub struct FlowRow {
    /// The first packet of the flow.
    #[serde(flatten)]
    pub first: Row,
    /// How many packets it had, both ways.
    pub packets: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// When the last one came.
    pub last: String,
    /// Packets by verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// Packets dropped or refused, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
}

/// The flows seen so far. Memory grows with their number, not with that of packets.
#[derive(Debug, Default)]
pub struct Flows {
    index: HashMap<Key, usize>,
    flows: Vec<Flow>,
}

/// Packets of one flow are alike in this. Packets without an IP header are one flow per port and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Tuple(Tuple),
    Other(PortId, Option<DropReason>),
}

#[derive(Debug)]
struct Flow {
    number: u64,
    first: Fate,
    first_time: u64,
    last_time: u64,
    packets: u64,
    bytes: u64,
    verdicts: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
}

impl Flows {
    /// Adds one packet.
    pub fn add(&mut self, number: u64, time: u64, bytes: u64, fate: &Fate) {
        let index = *self.index.entry(key(fate)).or_insert_with(|| {
            let (verdicts, reasons) = Default::default();
            self.flows.push(Flow { number, first: *fate, first_time: time, last_time: time, packets: 0, bytes: 0, verdicts, reasons });
            self.flows.len() - 1
        });
        let flow = &mut self.flows[index];
        flow.last_time = flow.last_time.max(time);
        flow.packets += 1;
        flow.bytes += bytes;
        *flow.verdicts.entry(fate.verdict_name()).or_default() += 1;
        if let Some(reason) = fate.reason() {
            *flow.reasons.entry(reason.name()).or_default() += 1;
        }
    }

    /// All flows in the order of their first packets.
    pub fn rows<'a>(&'a self, namer: &'a mut Namer) -> impl Iterator<Item = FlowRow> + 'a {
        self.flows.iter().map(|flow| FlowRow {
            first: Row::new(flow.number, &namer.flow(flow.first_time, &flow.first)),
            packets: flow.packets,
            bytes: flow.bytes,
            last: super::row::timestamp(flow.last_time),
            verdicts: flow.verdicts.clone(),
            reasons: flow.reasons.clone(),
        })
    }

    /// The first packet of each flow, in order.
    pub fn firsts<'a>(&'a self, namer: &'a mut Namer) -> impl Iterator<Item = NamedFlow> + 'a {
        self.flows.iter().map(|flow| namer.flow(flow.first_time, &flow.first))
    }
}

/// The tuple by which the flow was opened: of a reply, the inverse of what it was translated back to.
fn key(fate: &Fate) -> Key {
    let Some(headers) = &fate.headers else { return Key::Other(fate.in_port, fate.reason()) };
    match fate.is_reply() {
        Some(true) => Key::Tuple(fate.trail.after.unwrap_or(headers.tuple).inverse()),
        _ => Key::Tuple(headers.tuple),
    }
}
