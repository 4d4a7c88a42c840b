//! The table of `weir replay`: a line per packet for people, and in its last column why the packet ended as it did.

use std::io::{self, Write};

use weir_dataplane::conntrack::Tuple;
use weir_dataplane::flows::{Flow, PacketHead};
use weir_dataplane::model::Ip;
use weir_dataplane::verdict::DropReason;

use super::bytes::{self, Clock, number, text};
use super::row::protocol;

/// Names and widths of the columns; the number of the packet is before them, the reason after them.
const COLUMNS: [(&str, usize); 7] =
    [("TIME", 15), ("IN", 20), ("SOURCE", 24), ("DESTINATION", 24), ("PROTO", 6), ("VERDICT", 8), ("OUT", 20)];
/// Width of the packet's number, which stands to the right.
const NUMBER: usize = 6;

/// Writes lines.
#[derive(Debug, Default)]
pub struct Table {
    clock: Clock,
    line: Vec<u8>,
}

impl Table {
    /// Writes the names of the columns.
    ///
    /// # Errors
    /// What the writer says.
    pub fn header(&mut self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "{:>NUMBER$} ", "N")?;
        COLUMNS.iter().try_for_each(|(name, width)| write!(out, "{name:<width$} "))?;
        writeln!(out, "WHY")
    }

    /// Writes the line of packet number `n`, with its end.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, out: &mut impl Write, n: u64, flow: &Flow) -> io::Result<()> {
        let [time, in_port, source, destination, proto, verdict, out_port] = COLUMNS.map(|(_, width)| width);
        let packet = flow.packet.as_ref();
        let (line, clock) = (&mut self.line, &mut self.clock);
        line.clear();
        let digits = n.checked_ilog10().unwrap_or(0) as usize + 1;
        line.resize(NUMBER.saturating_sub(digits), b' ');
        number(line, n);
        line.push(b' ');
        column(line, time, |line| clock.time_of_day(line, flow.time));
        column(line, in_port, |line| text(line, &flow.in_port));
        column(line, source, |line| end(line, packet, |tuple| (tuple.src, tuple.sport)));
        column(line, destination, |line| end(line, packet, |tuple| (tuple.dst, tuple.dport)));
        column(line, proto, |line| text(line, packet.map(|p| protocol(p.tuple.proto)).as_deref().unwrap_or("-")));
        column(line, verdict, |line| text(line, flow.outcome.verdict()));
        column(line, out_port, |line| text(line, flow.out_port.as_deref().unwrap_or("-")));
        why(line, flow);
        line.truncate(line.trim_ascii_end().len());
        line.push(b'\n');
        out.write_all(line)
    }
}

/// What `write` adds, and spaces up to the width of its column.
fn column(line: &mut Vec<u8>, width: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = line.len();
    write(line);
    line.resize(line.len().max(start + width), b' ');
    line.push(b' ');
}

fn end(line: &mut Vec<u8>, packet: Option<&PacketHead>, of: fn(&Tuple) -> (Ip, u16)) {
    let Some(packet) = packet else { return text(line, "-") };
    let (ip, port) = of(&packet.tuple);
    bytes::end(line, packet, ip, port);
}

/// Why a packet ended as it did, in a line: the reason, the policy, the service, the way.
pub fn why(line: &mut Vec<u8>, flow: &Flow) {
    let start = line.len();
    let comma = |line: &mut Vec<u8>| text(line, if line.len() > start { ", " } else { "" });
    if let Some(reason) = flow.reason.map(DropReason::name) {
        text(line, reason);
    }
    if let Some(side) = &flow.policy {
        comma(line);
        // Writing to a Vec cannot fail.
        drop(write!(line, "{side}"));
    }
    if let Some(service) = &flow.service {
        comma(line);
        for piece in ["svc/", &service.namespace, "/", &service.name] {
            text(line, piece);
        }
        if let Some(port) = &service.port {
            text(line, ":");
            text(line, port);
        }
    }
    if let Some((packet, after)) = flow.packet.as_ref().zip(flow.after.as_ref()) {
        let before = &packet.tuple;
        for (word, before, after) in
            [("to ", (before.dst, before.dport), (after.dst, after.dport)), ("from ", (before.src, before.sport), (after.src, after.sport))]
        {
            if before != after {
                comma(line);
                text(line, word);
                bytes::end(line, packet, after.0, after.1);
            }
        }
    }
    if let Some(encap) = &flow.encap {
        comma(line);
        for piece in ["vxlan ", &encap.vtep, " vni "] {
            text(line, piece);
        }
        number(line, encap.vni.into());
    }
    if let Some(node) = &flow.decap {
        comma(line);
        text(line, "from node ");
        text(line, node);
    }
    if let Some(mtu) = flow.mtu {
        comma(line);
        text(line, "mtu ");
        number(line, mtu.into());
    }
}
