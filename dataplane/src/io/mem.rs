//! Ports over queues in memory, for tests and benches.

use std::collections::VecDeque;
use std::io;

use weir_xsk::{Arena, Frame};

use super::{BATCH_MAX, Batch, Packet, PacketIo, PortId};
use crate::verdict::{DropReason, Verdict};

/// Headroom of every frame: the outer headers of VXLAN over IPv6 and some.
const HEADROOM_BYTES: u32 = 128;

/// Ports in memory: what is pushed comes in, what is sent is kept until taken.
pub struct MemIo {
    arena: Arena,
    free: Vec<Frame>,
    waiting: VecDeque<(PortId, Frame)>,
    sent: Vec<(PortId, Vec<u8>)>,
}

impl MemIo {
    /// An arena of `frames` frames of up to `frame_bytes` bytes each.
    ///
    /// # Errors
    /// What mmap says.
    pub fn new(frames: u32, frame_bytes: u32) -> io::Result<Self> {
        let (arena, free) = Arena::heap(frames, frame_bytes + HEADROOM_BYTES, HEADROOM_BYTES)?;
        Ok(Self { arena, free, waiting: VecDeque::new(), sent: Vec::new() })
    }

    /// Lets a frame arrive at a port. Tells whether there was a free frame that is long enough.
    pub fn push(&mut self, port: PortId, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.free.pop() else { return false };
        let fits = self.arena.fill(&mut frame, bytes);
        if fits {
            self.waiting.push_back((port, frame));
        } else {
            self.free.push(frame);
        }
        fits
    }

    /// Takes what was sent, in order.
    pub fn take_sent(&mut self) -> Vec<(PortId, Vec<u8>)> {
        std::mem::take(&mut self.sent)
    }

    /// Frames that are neither waiting nor in a batch.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }
}

impl PacketIo for MemIo {
    fn arena(&self) -> &Arena {
        &self.arena
    }
    fn rx(&mut self, batch: &mut Batch) -> io::Result<()> {
        while batch.len() < BATCH_MAX
            && let Some((in_port, frame)) = self.waiting.pop_front()
        {
            batch.push(Packet { frame, in_port, verdict: Verdict::Drop(DropReason::PortUnavailable) });
        }
        Ok(())
    }
    fn tx(&mut self, port: PortId, frame: Frame) -> bool {
        self.sent.push((port, self.arena.bytes(&frame).to_vec()));
        self.free(frame);
        true
    }
    fn free(&mut self, mut frame: Frame) {
        self.arena.reset(&mut frame);
        self.free.push(frame);
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
