//! Where frames come from and go to. Never sees the pipeline.

pub mod mem;
pub mod pcap;
pub mod xsk;

use std::io;

use weir_xsk::{Arena, Frame};

use crate::verdict::Verdict;

/// Frames moved at once; the knee of every curve is at 32, and more than 64 is slower (`fast-path`).
pub const BATCH_MAX: usize = 64;

/// A port of the dataplane: index into `Tables`' ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// A frame on its way, the port where it came in and, after the pipeline, how it ends.
pub struct Packet {
    /// The bytes.
    pub frame: Frame,
    /// Where it came in.
    pub in_port: PortId,
    /// How it ends; set by the pipeline.
    pub verdict: Verdict,
}

/// Packets that are processed together: at most [`BATCH_MAX`], in order of arrival, from any ports.
pub type Batch = Vec<Packet>;

/// A set of ports. Implemented by AF_XDP sockets, captures and memory.
pub trait PacketIo {
    /// The memory that the frames live in.
    fn arena(&self) -> &Arena;
    /// Appends what has arrived to `batch`, up to [`BATCH_MAX`] in all, and has asked for the memory of its headers
    /// ([`Arena::prefetch`]), where another core wrote them.
    ///
    /// # Errors
    /// Only where the source as a whole is broken; a port that vanished is not an error.
    fn rx(&mut self, batch: &mut Batch) -> io::Result<()>;
    /// Takes `frame` for `port`; it leaves at the next [`flush`](Self::flush) at the latest. Tells whether the port took it.
    fn tx(&mut self, port: PortId, frame: Frame) -> bool;
    /// Takes back a frame that goes nowhere.
    fn free(&mut self, frame: Frame);
    /// Sends what was taken: at most one system call per port.
    ///
    /// # Errors
    /// As [`rx`](Self::rx).
    fn flush(&mut self) -> io::Result<()>;
}
