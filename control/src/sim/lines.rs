//! The lines of `weir replay -o json`, written fast: the bytes that serde makes of a [`Row`](super::row::Row), without making one.
//!
//! Names come quoted from tables, addresses are written digit by digit, and only what policy says of a flow's first packet goes
//! through serde. Most packets of a capture with many short flows are of a flow that was never seen: nothing is kept but names.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;
use weir_dataplane::flows::{Namer, PacketHead};
use weir_dataplane::io::PortId;
use weir_dataplane::io::pcap::Note;
use weir_dataplane::model::{Ip, ServiceIndex};
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::DropReason;

use super::fate::Fate;
use super::row::{protocol, timestamp};

/// Writes lines by the names of one node.
pub struct Lines {
    namer: Namer,
    /// Names of ports and nodes, as JSON strings.
    ports: Vec<String>,
    nodes: Vec<String>,
    /// Services that were met, as JSON.
    services: HashMap<ServiceIndex, String>,
    clock: Clock,
    line: Vec<u8>,
}

impl Lines {
    /// Names by these tables.
    pub fn new(tables: Arc<Tables>) -> Self {
        let namer = Namer::new(tables.clone());
        let ports = (0..tables.runtime.ports.len() as u16).map(|port| json(&namer.port(PortId(port)))).collect();
        let nodes = tables.state.nodes.iter().map(|node| json(&node.name)).collect();
        Self { namer, ports, nodes, services: HashMap::new(), clock: Clock::default(), line: Vec::with_capacity(1024) }
    }

    /// Writes the line of a packet, with its end.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, out: &mut impl Write, note: &Note, fate: &Fate) -> io::Result<()> {
        let packet = fate.headers.as_ref().map(PacketHead::from);
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(b"{\"n\":");
        number(line, note.number);
        line.extend_from_slice(b",\"time\":\"");
        self.clock.write(line, note.time);
        line.extend_from_slice(b"\",\"in\":");
        raw(line, self.ports.get(usize::from(fate.in_port.0)).map(String::as_str));
        key(line, "verdict");
        quoted(line, Some(fate.verdict_name()));
        key(line, "reason");
        quoted(line, fate.reason().map(DropReason::name));
        key(line, "out");
        raw(line, fate.out_port().and_then(|port| self.ports.get(usize::from(port.0))).map(String::as_str));
        key(line, "src");
        end(line, packet.as_ref().map(|p| (p, p.tuple.src, p.tuple.sport)));
        key(line, "dst");
        end(line, packet.as_ref().map(|p| (p, p.tuple.dst, p.tuple.dport)));
        key(line, "proto");
        match &packet {
            Some(packet) => quoted(line, Some(&protocol(packet.tuple.proto))),
            None => quoted(line, None),
        }
        key(line, "service");
        let namer = &self.namer;
        let service = fate.trail.service.map(|index| self.services.entry(index).or_insert_with(|| json(&namer.service(index))));
        raw(line, service.map(|text| text.as_str()));
        key(line, "backend");
        match fate.trail.backend {
            Some(backend) => socket(line, backend.address, backend.port),
            None => quoted(line, None),
        }
        key(line, "policy");
        match self.namer.policy(fate) {
            Some(side) => serde_json::to_writer(&mut *line, &side)?,
            None => quoted(line, None),
        }
        key(line, "reason_code");
        match fate.reason() {
            Some(reason) => number(line, reason.code().into()),
            None => quoted(line, None),
        }
        key(line, "state");
        quoted(line, fate.trail.state.name());
        let after = packet.as_ref().zip(fate.trail.after);
        for (name, before, now) in [
            ("snat", packet.as_ref().map(|p| (p.tuple.src, p.tuple.sport)), after.map(|(_, after)| (after.src, after.sport))),
            ("dnat", packet.as_ref().map(|p| (p.tuple.dst, p.tuple.dport)), after.map(|(_, after)| (after.dst, after.dport))),
        ] {
            key(line, name);
            let changed = now.filter(|now| Some(*now) != before);
            end(line, packet.as_ref().zip(changed).map(|(packet, (ip, port))| (packet, ip, port)));
        }
        key(line, "encap");
        match self.namer.encap(fate) {
            Some(encap) => serde_json::to_writer(&mut *line, &encap)?,
            None => quoted(line, None),
        }
        key(line, "decap");
        raw(line, fate.decap.and_then(|node| self.nodes.get(node as usize)).map(String::as_str));
        key(line, "mtu");
        match fate.trail.mtu {
            Some(mtu) => number(line, mtu.into()),
            None => quoted(line, None),
        }
        line.extend_from_slice(b"}\n");
        out.write_all(line)
    }
}

fn json(value: &impl Serialize) -> String {
    // Names and numbers cannot fail to be written.
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

fn key(line: &mut Vec<u8>, name: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

/// What is JSON already.
fn raw(line: &mut Vec<u8>, json: Option<&str>) {
    line.extend_from_slice(json.unwrap_or("null").as_bytes());
}

/// Text in which nothing needs an escape.
fn quoted(line: &mut Vec<u8>, text: Option<&str>) {
    let Some(text) = text else { return raw(line, None) };
    line.push(b'"');
    line.extend_from_slice(text.as_bytes());
    line.push(b'"');
}

fn number(line: &mut Vec<u8>, value: u64) {
    const DIGITS: usize = 20; // of u64::MAX
    let (mut digits, mut at, mut rest) = ([0; DIGITS], DIGITS, value);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break line.extend_from_slice(&digits[at..]);
        }
    }
}

fn address(line: &mut Vec<u8>, ip: Ip) {
    match ip.to_std() {
        std::net::IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    line.push(b'.');
                }
                number(line, octet.into());
            }
        }
        // Writing to a Vec cannot fail.
        std::net::IpAddr::V6(v6) => drop(write!(line, "{v6}")),
    }
}

fn socket(line: &mut Vec<u8>, ip: Ip, port: u16) {
    let (open, close): (&[u8], &[u8]) = if ip.is_v4() { (b"\"", b":") } else { (b"\"[", b"]:") };
    line.extend_from_slice(open);
    address(line, ip);
    line.extend_from_slice(close);
    number(line, port.into());
    line.push(b'"');
}

/// `ip:port` where the protocol has ports, else the address alone.
fn end(line: &mut Vec<u8>, end: Option<(&PacketHead, Ip, u16)>) {
    match end {
        Some((packet, ip, port)) if packet.has_ports() => socket(line, ip, port),
        Some((_, ip, _)) => {
            line.push(b'"');
            address(line, ip);
            line.push(b'"');
        }
        None => quoted(line, None),
    }
}

/// Writes timestamps; packets of one second share all but the fraction.
#[derive(Default)]
struct Clock {
    second: Option<u64>,
    /// `2026-01-01T00:00:00`.
    text: String,
}

impl Clock {
    /// As [`timestamp`]: no zeros at the end of the fraction.
    fn write(&mut self, line: &mut Vec<u8>, time: u64) {
        const SECOND: u64 = 1_000_000_000;
        let (second, nanos) = (time / SECOND, time % SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = timestamp(second * SECOND).trim_end_matches('Z').to_owned();
        }
        line.extend_from_slice(self.text.as_bytes());
        if nanos > 0 {
            let digits: [u8; 9] = std::array::from_fn(|n| b'0' + (nanos / 10_u64.pow(8 - n as u32) % 10) as u8);
            let len = 9 - digits.iter().rev().take_while(|digit| **digit == b'0').count();
            line.push(b'.');
            line.extend_from_slice(&digits[..len]);
        }
        line.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use weir_dataplane::capture::Capture;
    use weir_dataplane::model::NodeConfig;

    use super::*;
    use crate::compile::compile;
    use crate::sim::node::SimNode;
    use crate::sim::replay::{self, Taken};
    use crate::sim::row::Row;

    #[test]
    fn times_are_written_as_timestamps_are() {
        let mut clock = Clock::default();
        for time in [0, 1, 999_999_999, 1_000_000_000, 1_767_225_600_010_000_000, 1_767_225_600_000_000_100, 1_767_225_601_123_456_789] {
            let mut text = Vec::new();
            clock.write(&mut text, time);
            assert_eq!(String::from_utf8(text).unwrap(), timestamp(time));
        }
    }

    #[test]
    fn lines_are_what_serde_makes_of_rows() {
        let shop = weir_fixtures::root().join("clusters/shop");
        let mut captures: Vec<_> = weir_fixtures::scenarios().into_iter().map(|f| (f.join("snapshot.yaml"), f.join("in.pcap"))).collect();
        let shared = weir_fixtures::shared_captures().expect("../shared/pcaps is missing: these captures are shared beside the project");
        let files = std::fs::read_dir(shared).unwrap().map(|file| file.unwrap().path()).filter(|p| p.to_string_lossy().contains(".pcap"));
        captures.extend(files.map(|file| (shop.clone(), file)));
        let mut compared = 0;
        for (snapshot, capture) in captures {
            let snapshot = crate::source::load(&[snapshot]).unwrap();
            let config = NodeConfig::offline("node-a");
            let state = compile(&snapshot, "node-a", &config).unwrap();
            let mut node = SimNode::new(&state, config, 1).unwrap();
            let port_of = replay::port_of(&node, &[]).unwrap();
            let (mut namer, mut lines) = (Namer::new(node.tables().clone()), Lines::new(node.tables().clone()));
            let mut watcher = |taken: &Taken<'_>| {
                let mut line = Vec::new();
                lines.write(&mut line, taken.note, taken.fate).unwrap();
                let row = Row::new(taken.note.number, &namer.flow(taken.note.time, taken.fate));
                assert_eq!(String::from_utf8(line).unwrap(), serde_json::to_string(&row).unwrap() + "\n", "{}", capture.display());
                compared += 1;
                Ok(())
            };
            replay::run(&mut node, Capture::open(&capture).unwrap(), port_of, Some(&mut watcher), |_, _| {}).unwrap();
        }
        assert!(compared > 5_000, "{compared}");
    }
}
