//! Writes packets with what became of them as pcapng, for Wireshark and tcpdump: an interface per port, the verdict and a comment
//! per packet. `weir replay --write` and `weir capture -w` write the same.

use std::collections::BTreeMap;
use std::io::{self, Write};

use weir_dataplane::capture::{Direction, PacketNote, PcapngWriter};
use weir_dataplane::flows::{Flow, Outcome};

use crate::sim::bytes::text;
use crate::sim::table::why;

/// A pcapng file under way.
pub struct Recorder<W> {
    out: PcapngWriter<W>,
    /// The file's number of each port's interface.
    interfaces: BTreeMap<u16, u32>,
    described: u32,
    comment: Vec<u8>,
}

/// One frame at one port.
pub struct Seen<'a> {
    /// Number of the packet, from 1; its copies at several ports share it.
    pub id: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// The port where it was seen.
    pub port: u16,
    /// On its way in, or out.
    pub direction: Direction,
    /// The frame, or its beginning.
    pub bytes: &'a [u8],
    /// The frame's whole length.
    pub wire_len: u32,
}

impl<W: Write> Recorder<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(out: W) -> io::Result<Self> {
        let out = PcapngWriter::new(out, concat!("weir ", env!("CARGO_PKG_VERSION")))?;
        Ok(Self { out, interfaces: BTreeMap::new(), described: 0, comment: Vec::new() })
    }

    /// Describes a port, or tells that its number belongs to another one from now on.
    ///
    /// # Errors
    /// What the file says.
    pub fn interface(&mut self, port: u16, name: &str) -> io::Result<()> {
        self.out.interface(name, "")?;
        self.interfaces.insert(port, self.described);
        self.described += 1;
        Ok(())
    }

    /// Writes a frame; `flow` says what became of the packet, in its first copy.
    ///
    /// # Errors
    /// What the file says.
    pub fn packet(&mut self, seen: &Seen<'_>, flow: Option<&Flow>) -> io::Result<()> {
        self.comment.clear();
        flow.inspect(|flow| comment(&mut self.comment, flow));
        let xdp_action = flow.map(|flow| xdp_action(flow.outcome));
        let note = PacketNote { id: seen.id, direction: seen.direction, wire_len: seen.wire_len, xdp_action, comment: &self.comment };
        let interface = self.interfaces.get(&seen.port).copied().unwrap_or_default();
        self.out.packet(interface, seen.time, seen.bytes, &note)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// What the file says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// `drop: POLICY_DENIED, ingress isolated by …, svc/shop/web:http`
fn comment(line: &mut Vec<u8>, flow: &Flow) {
    let verdict = flow.outcome.verdict();
    text(line, verdict);
    text(line, ": ");
    let start = line.len();
    why(line, flow);
    if line.len() == start {
        line.truncate(verdict.len());
    }
}

/// enum xdp_action (linux/bpf.h): drop 1, pass 2, send back 3, redirect 4.
fn xdp_action(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Drop => 1,
        Outcome::Host => 2,
        Outcome::Reply | Outcome::Reject => 3,
        Outcome::Forward | Outcome::Encap => 4,
    }
}
