//! One live capture: a [`Tap`] at every worker, emptied and sent to whoever asked for it until they have gone.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Daemon;
use crate::admin::protocol::{CAPTURE_HEARTBEAT, CapturedInterface, CapturedPacket, Response, send};
use crate::capture::Direction;
use crate::flows::Namer;
use crate::io::PortId;
use crate::model::Ip;
use crate::runtime::{Port, PortKind};
use crate::tap::{Choice, Slot, Tap};

/// Frames that wait at a worker for being sent: what it moves in some milliseconds.
const SLOTS: usize = 4096;
/// Bytes of a frame that are kept at most: a whole frame of memory.
const SNAPLEN_MAX: u32 = 4096;
/// How often the workers' taps are emptied.
const TURN: Duration = Duration::from_millis(5);
/// Packets in one message at most.
const PER_MESSAGE: usize = 1024;

/// Captures by the ports of these names (a pod's, an interface's, `uplink`, `host`; none = all) until the reader has gone.
pub(super) fn capture(stream: &mut UnixStream, daemon: &Weak<Daemon>, ports: &[String], snaplen: u32) -> io::Result<()> {
    let begun = match daemon.upgrade() {
        Some(daemon) => daemon.begin_capture(ports, snaplen),
        None => return Ok(()),
    };
    let mut running = match begun {
        Ok(running) => running,
        Err(error) => return send(stream, &Response::Error { message: format!("{error:#}") }),
    };
    let end = running.run(stream, daemon);
    if let Some(daemon) = daemon.upgrade() {
        for (worker, tap) in daemon.workers.iter().zip(&running.taps) {
            worker.untap(tap);
        }
    }
    end
}

impl Daemon {
    fn begin_capture(&self, names: &[String], snaplen: u32) -> anyhow::Result<Running> {
        let (choice, chosen) = {
            let inner = self.lock();
            let ports = &inner.runtime.ports;
            let mut choice = Choice::default();
            for name in names {
                let index = ports.iter().position(|port| is_called(port, name));
                let index = index.ok_or_else(|| {
                    let known: Vec<String> = ports.iter().filter(|port| port.kind != PortKind::Vacant).map(called).collect();
                    anyhow::anyhow!("no port is called {name:?}; there are: {}", known.join(", "))
                })?;
                choice.ports.push(PortId(index as u16));
                if let PortKind::Pod { namespace, name } = &ports[index].kind {
                    let pod = inner.tables.state.endpoints.iter().find(|e| e.namespace == *namespace && e.name == *name);
                    choice.addresses.extend(pod.iter().flat_map(|pod| &pod.addresses).copied().map(Ip::from));
                }
            }
            let wanted = |index: usize| choice.ports.is_empty() || choice.ports.contains(&PortId(index as u16));
            let chosen = ports.iter().enumerate().filter(|(index, port)| wanted(*index) && port.kind != PortKind::Vacant);
            let chosen: BTreeMap<u16, String> = chosen.map(|(index, port)| (index as u16, called(port))).collect();
            (choice, chosen)
        };
        let mut taps: Vec<Arc<Tap>> = Vec::new();
        for worker in &self.workers {
            let tap = Arc::new(Tap::new(choice.clone(), SLOTS, snaplen.clamp(1, SNAPLEN_MAX) as usize));
            if !worker.tap(tap.clone()) {
                self.workers.iter().zip(&taps).for_each(|(worker, tap)| worker.untap(tap));
                anyhow::bail!("too many captures at a time\n  try: end another one first");
            }
            taps.push(tap);
        }
        Ok(Running { taps, interfaces: chosen, namer: None, started: self.started, lost: 0 })
    }
}

/// A port's name: of a pod's, the pod's.
fn called(port: &Port) -> String {
    port.pod_name().unwrap_or_else(|| port.name.clone())
}

fn is_called(port: &Port, name: &str) -> bool {
    match port.kind {
        PortKind::Vacant => false,
        PortKind::Uplink if name == "uplink" => true,
        PortKind::Host if name == "host" => true,
        _ => port.name == name || called(port) == name,
    }
}

struct Running {
    taps: Vec<Arc<Tap>>,
    /// What the reader knows of ports.
    interfaces: BTreeMap<u16, String>,
    /// Names by the tables of the latest frame.
    namer: Option<Namer>,
    /// The instant that workers count time from.
    started: Instant,
    lost: u64,
}

impl Running {
    fn run(&mut self, stream: &mut UnixStream, daemon: &Weak<Daemon>) -> io::Result<()> {
        let known = self.interfaces.iter().map(|(port, name)| CapturedInterface { port: *port, name: name.clone() }).collect();
        send(stream, &Response::Captured { interfaces: known, packets: Vec::new(), lost: 0 })?;
        let mut sent = Instant::now();
        while daemon.strong_count() > 0 {
            std::thread::sleep(TURN);
            let lost: u64 = self.taps.iter().map(|tap| tap.lost()).sum();
            let (interfaces, packets) = self.gather();
            if !packets.is_empty() || lost > self.lost || sent.elapsed() >= CAPTURE_HEARTBEAT {
                send(stream, &Response::Captured { interfaces, packets, lost: lost - self.lost })?;
                (self.lost, sent) = (lost, Instant::now());
            }
        }
        Ok(())
    }

    /// Empties the taps, as far as one message goes; oldest first.
    fn gather(&mut self) -> (Vec<CapturedInterface>, Vec<CapturedPacket>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        // The workers' clock never jumps, the calendar may.
        let epoch = now.saturating_sub(self.started.elapsed().as_nanos() as u64);
        let (mut interfaces, mut packets) = (Vec::new(), Vec::new());
        for tap in self.taps.clone() {
            let slots = std::iter::from_fn(|| tap.take()).take(PER_MESSAGE);
            for slot in slots {
                packets.extend(self.packet(&slot, epoch, &mut interfaces));
                tap.give_back(slot);
            }
        }
        packets.sort_by_key(|packet| (packet.time, packet.id, packet.out));
        (interfaces, packets)
    }

    fn packet(&mut self, slot: &Slot, epoch: u64, interfaces: &mut Vec<CapturedInterface>) -> Option<CapturedPacket> {
        let tables = slot.tables.as_ref()?;
        let namer = match &mut self.namer {
            Some(namer) if namer.generation() == tables.generation => namer,
            older => older.insert(Namer::new(tables.clone())),
        };
        let name = namer.port(slot.port);
        if self.interfaces.get(&slot.port.0).is_none_or(|known| **known != *name) {
            self.interfaces.insert(slot.port.0, name.to_string());
            interfaces.push(CapturedInterface { port: slot.port.0, name: name.to_string() });
        }
        let time = epoch + slot.time;
        Some(CapturedPacket {
            time,
            port: slot.port.0,
            out: slot.direction == Direction::Out,
            id: slot.packet,
            wire_len: slot.wire_len,
            bytes: STANDARD.encode(slot.bytes()),
            flow: slot.fate.map(|fate| Box::new(namer.flow(time, &fate))),
        })
    }
}
