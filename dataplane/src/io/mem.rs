//! Ports over queues in memory, for tests and benches.

use std::collections::VecDeque;
use std::io;

use weir_xsk::{Arena, Checksum, Frame};

use super::{BATCH_MAX, Batch, Packet, PacketIo, PortId};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum;

/// Headroom of every frame: the outer headers of VXLAN over IPv6 and some.
const HEADROOM_BYTES: u32 = 128;

/// Ports in memory: what is pushed comes in, what is sent is kept until taken.
pub struct MemIo {
    arena: Arena,
    free: Vec<Frame>,
    waiting: VecDeque<(PortId, Frame)>,
    sent: Vec<(PortId, Vec<u8>)>,
    /// How many checksums were left to it.
    finished: u32,
}

impl MemIo {
    /// An arena of `frames` frames of up to `frame_bytes` bytes each.
    ///
    /// # Errors
    /// What mmap says.
    pub fn new(frames: u32, frame_bytes: u32) -> io::Result<Self> {
        let (arena, free) = Arena::heap(frames, frame_bytes + HEADROOM_BYTES, HEADROOM_BYTES)?;
        Ok(Self { arena, free, waiting: VecDeque::new(), sent: Vec::new(), finished: 0 })
    }

    /// Lets a packet arrive at a port: one that is longer than a frame in a chain of them. Tells whether there were enough free
    /// frames.
    pub fn push(&mut self, port: PortId, bytes: &[u8]) -> bool {
        let buffer_bytes = (self.arena.slot_bytes() - self.arena.headroom_bytes()) as usize;
        if bytes.len().div_ceil(buffer_bytes).max(1) > self.free.len() {
            return false;
        }
        let (first, rest) = bytes.split_at(bytes.len().min(buffer_bytes));
        let mut packet = self.filled(first);
        for bytes in rest.chunks(buffer_bytes) {
            let more = self.filled(bytes);
            self.arena.append(&mut packet, more);
        }
        self.waiting.push_back((port, packet));
        true
    }

    fn filled(&mut self, bytes: &[u8]) -> Frame {
        let mut frame = self.free.pop().unwrap_or_else(|| unreachable!("counted before"));
        let _fits = self.arena.fill(&mut frame, bytes);
        frame
    }

    /// Takes what was sent, in order.
    pub fn take_sent(&mut self) -> Vec<(PortId, Vec<u8>)> {
        std::mem::take(&mut self.sent)
    }

    /// Finishes checksums that are left to it from now on, as the kernel does.
    pub fn finish_checksums(&mut self) {
        self.arena.finish_checksums();
    }
    /// How many it has finished.
    pub fn finished(&self) -> u32 {
        self.finished
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
        let mut bytes = self.arena.buffers(&frame).collect::<Vec<_>>().concat();
        if let Some(Checksum { start, field }) = self.arena.left_checksum(&frame) {
            let covered = &mut bytes[usize::from(start)..];
            let value = checksum::full(covered, 0);
            covered[usize::from(field)..][..2].copy_from_slice(&value.to_be_bytes());
            self.finished += 1;
        }
        self.sent.push((port, bytes));
        self.free(frame);
        true
    }
    fn free(&mut self, mut frame: Frame) {
        while let Some(rest) = self.arena.split(&mut frame) {
            self.free.push(std::mem::replace(&mut frame, rest));
        }
        self.free.push(frame);
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
