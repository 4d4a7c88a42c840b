//! A direction of a live flow, read and written where it lies.
//!
//! [`ConnTable::flow`](super::ConnTable::flow) decodes a line into values that any stage can use; the hot lane of the pipeline
//! takes from the line only what it writes into the packet, in the form in which both have it.

use super::flow::Ticks;
use super::line::{Line, partner_index, slot_of};

/// A direction that was found by its key. Good until the worker's next quiescent point.
pub(crate) struct Direction<'a> {
    line: &'a Line,
    /// All lines, and the number of this one.
    lines: &'a [Line],
    at: u32,
}

impl<'a> Direction<'a> {
    #[inline(always)]
    pub(super) fn new(line: &'a Line, lines: &'a [Line], at: u32) -> Self {
        Self { line, lines, at }
    }

    /// Tells whether a packet with these TCP flags leaves the flow's state as it is.
    #[inline(always)]
    pub(crate) fn is_steady(&self, flags: u8) -> bool {
        self.line.state().is_steady(slot_of(self.at).dir(), flags)
    }
    /// As in [`Leg::exit`](super::Leg), and the generation that decided it.
    #[inline(always)]
    pub(crate) fn exit(&self) -> (u32, u32) {
        self.line.exit()
    }
    /// An IPv4 packet's source and destination afterwards, source and destination port, and the delta of the header's checksum.
    #[inline(always)]
    pub(crate) fn translated_v4(&self) -> (u64, u32, u16) {
        self.line.translated_v4()
    }
    /// An IPv6 packet's source and destination afterwards, in two words each, and the ports.
    #[inline(always)]
    pub(crate) fn translated_v6(&self) -> ([u64; 4], u32) {
        self.line.translated_v6(&self.lines[partner_index(self.at) as usize])
    }
    /// The delta of the transport checksum.
    #[inline(always)]
    pub(crate) fn l4_delta(&self) -> u16 {
        self.line.l4_delta()
    }
    /// Counts a packet and renews the flow.
    #[inline(always)]
    pub(crate) fn count(&self, bytes: u32, now: Ticks) {
        self.line.count(bytes, now);
    }
}
