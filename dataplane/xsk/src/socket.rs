//! One port: the four rings of its socket, which frames are in them, and what is said to the kernel about them.
//!
//! Moves descriptors between the memory and one socket; which port has its turn is decided in `port.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use rustix::net::{SendFlags, send};
use tracing::debug;

use crate::arena::{Arena, Checksum, Frame};
use crate::memory::{METADATA_BYTES, Memory, Owner};
use crate::port::SystemCalls;
use crate::ring::Rings;

/// One socket.
pub(crate) struct Port {
    pub(crate) interface: String,
    pub(crate) queue: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) rings: Rings,
    /// Entries of each ring.
    pub(crate) ring: u32,
    /// Frames that wait for packets when all is quiet, and how many they may become.
    pub(crate) waiting: u32,
    pub(crate) waiting_max: u32,
    /// Slots with the kernel for receiving (fill, rx) and for sending (tx, completion).
    pub(crate) in_fill: u32,
    pub(crate) in_tx: u32,
    /// The buffers so far of a packet whose last one is still to come, and how many they are.
    pub(crate) partial: Option<Frame>,
    pub(crate) in_partial: u32,
    /// Is in `Ports::sending`.
    pub(crate) sending: bool,
    /// Is in the epoll set.
    pub(crate) watched: bool,
}

/// Frames that wait at a port at first, while such ports take less than a quarter of all, and where there are more ports. Idle
/// ports keep what they have, and what waits at one port cannot be sent by another.
pub(crate) const WAITING_FIRST: u32 = 256;
pub(crate) const WAITING_LEAST: u32 = 64;

/// Has the kernel, or the device, finish a packet's checksum: `struct xsk_tx_metadata` in front of it, to which the options of its
/// first descriptor point (Documentation/networking/xsk-tx-metadata.rst).
fn write_metadata(arena: &Arena, frame: &mut Frame, checksum: Checksum) -> XdpDescOptions {
    const BYTES: usize = METADATA_BYTES as usize;
    if !arena.push_front(frame, BYTES) {
        return XdpDescOptions::empty(); // not reached: `tx` takes no packet without this room
    }
    let metadata = &mut arena.bytes_mut(frame)[..BYTES];
    metadata.fill(0);
    metadata[..8].copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes());
    metadata[8..10].copy_from_slice(&checksum.start.to_ne_bytes());
    metadata[10..12].copy_from_slice(&checksum.field.to_ne_bytes());
    frame.pull_front(BYTES);
    XdpDescOptions::from_bits_retain(libc::XDP_TX_METADATA)
}

impl Port {
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Hands the kernel frames to receive into, up to `waiting` and never more than the ring has room for: otherwise
    /// descriptors are overwritten and packets arrive twice. Does nothing for less than a few, to work in batches.
    pub(crate) fn refill(&mut self, index: u16, memory: &mut Memory, calls: &mut SystemCalls) {
        let waiting = self.waiting;
        let missing = waiting.saturating_sub(self.in_fill);
        if missing < (waiting / 4).clamp(1, 16) {
            return;
        }
        let (fill, before) = (&mut self.rings.fill, self.in_fill);
        for _ in 0..fill.room(missing).min(missing) {
            let Some(frame) = memory.free.pop() else { break };
            let address = memory.give(frame, Owner::fill(index));
            if fill.push(address) {
                self.in_fill += 1;
            } else if let Some(frame) = memory.take(address, 0, Owner::fill(index)) {
                // Not reached while `room` told the truth; the frame is not lost in any case.
                memory.put(frame);
            }
        }
        if self.in_fill == before {
            return;
        }
        fill.publish();
        if fill.needs_wakeup() {
            calls.fill += 1;
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&Timespec::default()));
        }
    }

    /// Adds a received buffer to its packet; gives the packet once it is whole.
    #[inline]
    pub(crate) fn join(&mut self, frame: Frame, has_more: bool, arena: &Arena) -> Option<Frame> {
        if !has_more && self.partial.is_none() {
            return Some(frame);
        }
        let packet = match self.partial.take() {
            Some(mut packet) => {
                arena.append(&mut packet, frame);
                packet
            }
            None => frame,
        };
        if has_more {
            self.in_partial += 1;
            self.partial = Some(packet);
            return None;
        }
        self.in_partial = 0;
        Some(packet)
    }

    /// Tells whether the ring takes so many more buffers. What the kernel has completed may still be in the ring: before Linux 6.17
    /// it moved its index only where a call ended well. What is not completed may come back to it (`xskq_cons_cancel_n`).
    #[inline]
    pub(crate) fn has_room(&mut self, buffers: u32) -> bool {
        self.in_tx + buffers <= self.ring && self.rings.tx.room(buffers) >= buffers
    }

    /// Writes a packet's descriptors, for which [there is room](Self::has_room), into the ring, where the kernel sees them at the next [`send`](Self::send).
    #[inline]
    pub(crate) fn stage(&mut self, index: u16, mut frame: Frame, memory: &mut Memory) {
        let mut goes_on = frame.is_chain();
        let mut options = XdpDescOptions::empty();
        if goes_on && let Some(checksum) = memory.arena.left_checksum(&frame) {
            options = write_metadata(&memory.arena, &mut frame, checksum);
        }
        while let Some(rest) = memory.arena.split(&mut frame) {
            if !goes_on {
                // Cut off: no part of the packet.
                memory.put(rest);
                break;
            }
            self.stage_buffer(index, frame, options | XdpDescOptions::XDP_PKT_CONTD, memory);
            options = XdpDescOptions::empty();
            goes_on = rest.is_chain();
            frame = rest;
        }
        self.stage_buffer(index, frame, options, memory);
    }

    #[inline]
    fn stage_buffer(&mut self, index: u16, frame: Frame, options: XdpDescOptions, memory: &mut Memory) {
        let len = frame.len() as u32;
        let addr = memory.give(frame, Owner::tx(index));
        if self.rings.tx.push(XdpDesc { addr, len, options }) {
            self.in_tx += 1;
        } else if let Some(frame) = memory.take(addr, len, Owner::tx(index)) {
            // Not reached: there was room for the whole packet.
            memory.put(frame);
        }
    }

    /// Has the kernel send what is staged, and takes back what is sent.
    pub(crate) fn send(&mut self, index: u16, memory: &mut Memory, calls: &mut SystemCalls) {
        self.rings.tx.publish();
        // 32 descriptors a call where the kernel does not let us raise its budget.
        for _ in 0..=self.rings.tx.pending() / 32 {
            if self.rings.tx.pending() == 0 || !self.rings.tx.needs_wakeup() {
                break;
            }
            match self.kick(calls) {
                Ok(has_more) if has_more => {}
                Ok(_) => break,
                Err(error) => {
                    // The device is gone or being changed: its port will be removed, and that recovers the frames.
                    debug!(interface = self.interface, %error, "cannot send");
                    break;
                }
            }
        }
        self.reap(index, memory);
    }

    /// Has the kernel look into the ring. Tells whether it wants to be asked again for what is left.
    fn kick(&self, calls: &mut SystemCalls) -> io::Result<bool> {
        calls.send += 1;
        match send(&self.socket, &[], SendFlags::DONTWAIT) {
            Ok(_) => Ok(false),
            Err(Errno::AGAIN) => Ok(true),
            // It has sent what it could for now.
            Err(Errno::BUSY | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes back what is sent.
    fn reap(&mut self, index: u16, memory: &mut Memory) {
        if self.rings.completion.ready() == 0 {
            return;
        }
        while let Some(address) = self.rings.completion.pop() {
            if let Some(frame) = memory.take(address, 0, Owner::tx(index)) {
                self.in_tx -= 1;
                memory.put(frame);
            }
        }
        self.rings.completion.release();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::ring::tests::{SIZE, pair};

    #[test]
    fn what_is_completed_and_not_consumed_still_takes_its_place() {
        let mut memory = Memory::new(64).unwrap();
        let (rx, tx, fill, completion) = (pair(), pair(), pair(), pair());
        let (mut consumed, mut completed) = (tx.1, completion.0);
        let rings = Rings { rx: rx.1, tx: tx.0, fill: fill.0, completion: completion.1 };
        let mut port = Port {
            interface: "none".into(),
            queue: 0,
            // Nothing is said to the kernel here.
            socket: eventfd(0, EventfdFlags::empty()).unwrap(),
            rings,
            ring: SIZE,
            waiting: 0,
            waiting_max: 0,
            in_fill: 0,
            in_tx: 0,
            partial: None,
            in_partial: 0,
            sending: false,
            watched: false,
        };
        for _ in 0..SIZE {
            assert!(port.has_room(1) && !port.has_room(SIZE + 1));
            let mut frame = memory.free.pop().unwrap();
            assert!(memory.arena.set_len(&mut frame, 60));
            port.stage(0, frame, &mut memory);
        }
        assert!(!port.has_room(1));
        port.rings.tx.publish();
        // As before Linux 6.17: all is sent and completed, and the index is where it was.
        assert_eq!(consumed.ready(), SIZE);
        while let Some(desc) = consumed.pop() {
            assert!(desc.len == 60 && completed.push(desc.addr));
        }
        completed.publish();
        port.reap(0, &mut memory);
        assert_eq!((port.in_tx, memory.free.len()), (0, 64));
        assert!(!port.has_room(1), "a descriptor would be lost");
        consumed.release();
        assert!(port.has_room(SIZE));
        drop((port, completed));
    }
}
