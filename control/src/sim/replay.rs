//! A capture through one node, on the capture's own clock.
//!
//! A frame enters by the port that a hint names for its interface, else by that of the local pod that owns its source
//! address, else by the uplink. An interface that is named like a port (as in files that `--write` made) is its own hint.
//! On a real node the redirect program leaves frames on the uplink that are none of ours to the kernel; here they reach the
//! pipeline, which counts them as `OTHER_HOST`.

use std::collections::{BTreeMap, HashMap};
use std::io;

use serde::Serialize;
use weir_dataplane::capture::{Capture, CaptureError, Interface};
use weir_dataplane::counters::Counters;
use weir_dataplane::io::pcap::{Note, PcapIo, PortOf};
use weir_dataplane::io::{BATCH_MAX, Batch, PacketIo, PortId};
use weir_dataplane::model::Ip;
use weir_dataplane::parse::{Parsed, parse};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::verdict::DropReason;

use super::fate::{Fate, Fates};
use super::node::SimNode;

/// `--port-of IFACE=PORT`: frames of the capture's interface enter by this port. `*` means every interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Name of the interface in the capture, or `*`.
    pub interface: String,
    /// `uplink`, `host` or `namespace/pod`.
    pub port: String,
}

impl std::str::FromStr for Hint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (interface, port) = text.split_once('=').ok_or_else(|| format!("{text:?} is not IFACE=PORT"))?;
        Ok(Self { interface: interface.into(), port: port.into() })
    }
}

/// A packet after the pipeline.
pub struct Taken<'a> {
    /// What the capture says of it.
    pub note: &'a Note,
    /// What became of it.
    pub fate: &'a Fate,
    /// The frame as it came in.
    pub before: &'a [u8],
    /// The frame as it left; `None` where it was dropped.
    pub after: Option<&'a [u8]>,
}

/// How a replay ended.
#[derive(Debug)]
pub struct Ended {
    /// How the packets ended.
    pub summary: Summary,
    /// Why the capture could not be read to its end.
    pub fault: Option<CaptureError>,
    /// Records that were passed over, by link type.
    pub foreign: Vec<(String, u64)>,
    /// Records that were passed over because the same packet is there as it came in.
    pub copies: u64,
}

/// The last line of `weir replay -o json`. `packets = forward + host + reply + drop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All records.
    pub packets: u64,
    /// To a pod, or out by the uplink.
    pub forward: u64,
    /// To the node's own stack.
    pub host: u64,
    /// Answered.
    pub reply: u64,
    /// Discarded.
    pub drop: u64,
    /// Discarded, by reason; they sum up to `drop`.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Refused with an answer, by reason; part of `reply`.
    pub rejects: BTreeMap<&'static str, u64>,
}

impl Summary {
    fn new(counters: &Counters) -> Self {
        let named = |count: &dyn Fn(DropReason) -> u64| {
            DropReason::ALL.iter().map(|reason| (reason.name(), count(*reason))).filter(|(_, count)| *count > 0).collect()
        };
        Self {
            packets: counters.received,
            forward: counters.forward,
            host: counters.host,
            reply: counters.reply,
            drop: counters.drop,
            reasons: named(&|reason| counters.dropped(reason)),
            rejects: named(&|reason| counters.rejected(reason)),
        }
    }
}

/// Takes packets as they come out of the pipeline.
pub type Watcher<'a> = dyn FnMut(&Taken<'_>) -> io::Result<()> + 'a;

/// Drives `capture` through `node`. `watcher`, if there is one, sees every packet in order; `progress` is told after every
/// batch how far the file was read and how long it is.
///
/// # Errors
/// What the watcher says, and where there is no memory. A fault of the capture is no error but part of [`Ended`].
pub fn run(
    node: &mut SimNode,
    capture: Capture,
    port_of: PortOf,
    mut watcher: Option<&mut Watcher<'_>>,
    mut progress: impl FnMut(u64, Option<u64>),
) -> io::Result<Ended> {
    let mut io = PcapIo::new(capture, port_of)?;
    let mut batch = Batch::with_capacity(BATCH_MAX);
    let mut fates = Fates::default();
    // The frames of a batch as they came in, one after the other, and where each ends.
    let (mut before, mut ends) = (Vec::new(), Vec::new());
    let fault = loop {
        if let Err(error) = io.rx(&mut batch) {
            break Some(error.downcast::<CaptureError>()?);
        }
        if batch.is_empty() {
            break None;
        }
        match &mut watcher {
            None => node.process(&io, io.now(), &mut batch, &mut ()),
            Some(watcher) => {
                before.clear();
                ends.clear();
                for packet in &batch {
                    before.extend_from_slice(io.arena().bytes(&packet.frame));
                    ends.push(before.len());
                }
                fates.clear();
                node.process(&io, io.now(), &mut batch, &mut fates);
                let mut start = 0;
                for (index, packet) in batch.iter().enumerate() {
                    let bytes = &before[start..ends[index]];
                    start = ends[index];
                    // The pipeline tells of every packet of a batch.
                    let Some(fate) = fates.of(index) else { continue };
                    let fate = with_headers(fate, bytes);
                    let after = fate.out_port().map(|_| io.arena().bytes(&packet.frame));
                    watcher(&Taken { note: &io.notes()[index], fate: &fate, before: bytes, after })?;
                }
            }
        }
        for packet in batch.drain(..) {
            io.free(packet.frame);
        }
        let (read, whole) = io.capture().progress();
        progress(read, whole);
    };
    let foreign = io.capture().foreign().iter().map(|(link, count)| (link.to_string(), *count)).collect();
    Ok(Ended { summary: Summary::new(node.counters()), fault, foreign, copies: io.copies() })
}

/// A packet that ended before its headers mattered still has some, which people want to see.
fn with_headers(fate: &Fate, bytes: &[u8]) -> Fate {
    let mut fate = *fate;
    if fate.headers.is_none()
        && let Ok(Parsed::Ip(headers)) = parse(bytes)
    {
        fate.headers = Some(headers);
    }
    fate
}

/// Builds the rule by which frames enter.
///
/// # Errors
/// Where a hint names a port that the node does not have.
pub fn port_of(node: &SimNode, hints: &[Hint]) -> Result<PortOf, String> {
    let runtime = node.runtime();
    let by_name: HashMap<String, PortId> = (0..).zip(&runtime.ports).map(|(n, port)| (port.name.clone(), PortId(n))).collect();
    let mut hinted = HashMap::new();
    for hint in hints {
        let port = by_name.get(&hint.port).ok_or_else(|| unknown_port(runtime, &hint.port))?;
        hinted.insert(hint.interface.clone(), *port);
    }
    let mut owners = HashMap::new();
    for endpoint in &*node.state().endpoints {
        if let Some(port) = runtime.pod(&endpoint.namespace, &endpoint.name) {
            owners.extend(endpoint.addresses.iter().map(|address| (Ip::from(*address), port)));
        }
    }
    let uplink = runtime.uplink().unwrap_or(PortId(0));
    Ok(Box::new(move |interface: Option<&Interface>, out: bool, bytes: &[u8]| {
        let name = interface.and_then(|i| i.name.as_deref());
        // What went out by one of our ports came in by another one.
        let named = name.and_then(|name| hinted.get(name).or_else(|| by_name.get(name).filter(|_| !out)));
        if let Some(port) = named.or_else(|| hinted.get("*")) {
            return *port;
        }
        let source = match parse(bytes) {
            Ok(Parsed::Ip(headers)) => headers.tuple.src,
            Ok(Parsed::Arp(arp)) => arp.sender_ip,
            Err(_) => return uplink,
        };
        owners.get(&source).copied().unwrap_or(uplink)
    }))
}

fn unknown_port(runtime: &Runtime, port: &str) -> String {
    let known: Vec<&str> = runtime.ports.iter().map(|p| p.name.as_str()).collect();
    format!("node {} has no port {port:?}; it has: {}", runtime.config.node, known.join(", "))
}
