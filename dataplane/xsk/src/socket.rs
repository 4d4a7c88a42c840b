//! One port: the four rings of its socket, which frames are in them, and what is said to the kernel about them.
//!
//! Moves descriptors between the memory and one socket; which port has its turn is decided in `port.rs`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tracing::debug;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::arena::{Arena, Frame};
use crate::memory::{Memory, Owner};
use crate::port::SystemCalls;

/// Set in all descriptors of a packet but the last (`include/uapi/linux/if_xdp.h`).
const XDP_PKT_CONTD: u32 = 1;

/// One socket.
pub(crate) struct Port {
    pub(crate) interface: String,
    pub(crate) queue: u32,
    pub(crate) tx: TxQueue,
    pub(crate) rx: RxQueue,
    pub(crate) fill: FillQueue,
    pub(crate) completion: CompQueue,
    pub(crate) ring: u32,
    /// Frames that wait for packets when all is quiet, and how many they may become.
    pub(crate) waiting: u32,
    pub(crate) waiting_max: u32,
    /// Slots with the kernel for receiving (fill, rx) and for sending (staged, tx, completion).
    pub(crate) in_fill: u32,
    pub(crate) in_tx: u32,
    /// Taken by `tx` and not yet in the ring.
    pub(crate) staged: Vec<FrameDesc>,
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

impl Port {
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the queues live, and they live as long as the borrow of this port.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Hands the kernel frames to receive into, up to `waiting` and never more than the ring has room for: otherwise
    /// descriptors are overwritten and packets arrive twice. Does nothing for less than a few, to work in batches.
    pub(crate) fn refill(&mut self, index: u16, memory: &mut Memory, scratch: &mut [FrameDesc], calls: &mut SystemCalls) {
        let waiting = self.waiting;
        if waiting.saturating_sub(self.in_fill) < (waiting / 4).clamp(1, 16) {
            return;
        }
        loop {
            let missing = waiting.saturating_sub(self.in_fill).min(scratch.len() as u32);
            let room = self.fill.nb_free(missing).min(missing) as usize;
            let mut count = 0;
            while count < room
                && let Some(frame) = memory.free.pop()
            {
                scratch[count] = memory.give(frame, Owner::fill(index));
                count += 1;
            }
            if count == 0 {
                break;
            }
            // SAFETY: each slot was free, is marked as the kernel's now, and lies in the UMEM of this socket.
            let produced = unsafe { self.fill.produce(&scratch[..count]) };
            self.in_fill += produced as u32;
            for desc in &scratch[produced..count] {
                // Not reached while `nb_free` told the truth; the frames are not lost in any case.
                if let Some(frame) = memory.take(desc, Owner::fill(index)) {
                    memory.put(frame);
                }
            }
            if produced < count {
                break;
            }
        }
        if self.fill.needs_wakeup() {
            calls.fill += 1;
            let _ = self.rx.poll(0);
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

    /// Makes the descriptors of a packet.
    #[inline]
    pub(crate) fn stage(&mut self, index: u16, mut frame: Frame, memory: &mut Memory) {
        let mut goes_on = frame.is_chain();
        while let Some(rest) = memory.arena.split(&mut frame) {
            if !goes_on {
                // Cut off: no part of the packet.
                memory.put(rest);
                break;
            }
            let mut desc = memory.give(frame, Owner::tx(index));
            desc.set_options(XDP_PKT_CONTD);
            self.staged.push(desc);
            goes_on = rest.is_chain();
            frame = rest;
        }
        self.staged.push(memory.give(frame, Owner::tx(index)));
    }

    /// Puts what is staged into the ring, has the kernel send it, takes back what is sent.
    pub(crate) fn send(&mut self, index: u16, memory: &mut Memory, scratch: &mut [FrameDesc], calls: &mut SystemCalls) {
        // 32 descriptors a call where the kernel does not let us raise its budget, and one call to see the ring empty.
        for _ in 0..self.ring / 32 + 1 {
            let room = self.tx.nb_free(self.staged.len() as u32) as usize;
            let count = room.min(self.staged.len());
            if count > 0 {
                // SAFETY: each slot is marked as this ring's, was given up by its holder, and lies in the UMEM of this socket.
                let produced = unsafe { self.tx.produce(&self.staged[..count]) };
                self.staged.drain(..produced);
            }
            let free = self.tx.nb_free_exact();
            if free < self.ring
                && self.tx.needs_wakeup()
                && let Err(error) = self.kick(calls)
            {
                // The device is gone or being changed: its port will be removed, and that recovers the frames.
                debug!(interface = self.interface, %error, "cannot send");
                break;
            }
            self.reap(index, memory, scratch);
            let free_now = self.tx.nb_free_exact();
            if free_now == free || (self.staged.is_empty() && free_now == self.ring) {
                break;
            }
        }
    }

    /// Has the kernel look into the ring.
    fn kick(&self, calls: &mut SystemCalls) -> io::Result<()> {
        calls.send += 1;
        self.tx.wakeup()
    }

    /// Takes back what is sent.
    fn reap(&mut self, index: u16, memory: &mut Memory, scratch: &mut [FrameDesc]) {
        while self.in_tx > 0 {
            // SAFETY: the descriptors are overwritten before they are read, from the ring of a socket on our UMEM.
            let got = unsafe { self.completion.consume(scratch) };
            for desc in &scratch[..got] {
                if let Some(frame) = memory.take(desc, Owner::tx(index)) {
                    self.in_tx -= 1;
                    memory.put(frame);
                }
            }
            if got < scratch.len() {
                break;
            }
        }
    }
}
