//! The packet memory of one worker: which slots exist, who has each, and how a frame becomes a descriptor and back.
//!
//! Every slot is in exactly one place: in `free`, in the hands of the caller as a [`Frame`], or with the kernel through one
//! port, in its fill ring (and from there its rx ring) or its tx ring (and from there its completion ring). `owner` says
//! which. A descriptor that the kernel returns makes a handle only if the slot was given to just that ring: so no two
//! handles ever name one slot, whatever stands in memory that is shared with the kernel.
//!
//! The UMEM's first socket decides how all others bind, and once its device is gone nobody can join any more
//! (`xsk_bind` in net/xdp/xsk.c: `xsk_is_bound(umem_xs)`). Pods come and go, so the first socket is an anchor that no packet
//! ever meets: on the loopback device of a network namespace that nothing else is in and that goes when the socket closes.

use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};
use xsk_rs::config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig as XskUmemConfig};
use xsk_rs::{FrameDesc, Socket, Umem};

use crate::arena::{Arena, Frame};
use crate::error::PortError;

/// Bytes of a slot: the largest chunk that the kernel knows without huge pages (`xdp_umem_reg`: at most a page).
pub const SLOT_BYTES: u32 = 4096;
/// Bytes in front of a received packet: what the kernel leaves for XDP programs (`XDP_PACKET_HEADROOM`) is ours once the
/// packet is in our hands, and more than any encapsulation needs (VXLAN over IPv6: 70).
pub const HEADROOM_BYTES: u32 = 256;
/// Bytes of a packet that fit a slot, Ethernet header included. The kernel fills each buffer of a longer one but the last.
pub const BUFFER_BYTES: u32 = SLOT_BYTES - HEADROOM_BYTES;
/// Most buffers of a packet: what a socket buffer of the kernel's holds (`MAX_SKB_FRAGS`, its default).
pub const BUFFERS_MAX: u32 = 17;
/// Longest packet, Ethernet header included.
pub const PACKET_BYTES_MAX: u32 = BUFFER_BYTES * BUFFERS_MAX;

/// The queues of a socket, as xsk-rs gives them.
pub(crate) type Queues = (xsk_rs::TxQueue, xsk_rs::RxQueue, Option<(xsk_rs::FillQueue, xsk_rs::CompQueue)>);

/// Ports have lower numbers, sockets on their way out these and higher ones, up to 0x7ffe.
pub(crate) const CLOSING_FIRST: u16 = 0x7000;
pub(crate) const CLOSING_COUNT: u16 = 0x0fff;

/// Where a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u16);

impl Owner {
    /// In the free list or in the caller's hands.
    pub(crate) const OURS: Self = Self(u16::MAX);
    /// With the kernel, to be received on this port.
    pub(crate) fn fill(port: u16) -> Self {
        Self(port)
    }
    /// With the kernel, to be sent by this port.
    pub(crate) fn tx(port: u16) -> Self {
        Self(port | 0x8000)
    }
    /// With the kernel until the socket is closed; `id` from [`CLOSING_FIRST`] on.
    fn closing(id: u16) -> Self {
        Self(id)
    }
}

/// Slots, their owners and the registered memory.
pub(crate) struct Memory {
    pub(crate) arena: Arena,
    pub(crate) free: Vec<Frame>,
    owner: Vec<Owner>,
    /// Descriptors that named a slot which the ring did not have; 0 unless the shared rings are corrupt.
    pub(crate) faults: u64,
    pub(crate) umem: Umem,
    /// Offset of the address within a [`FrameDesc`].
    address_at: usize,
    _anchor: Queues,
}

impl Memory {
    /// Maps and registers `slots` slots with rings of `ring` descriptors for every port to come.
    pub(crate) fn new(slots: u32, ring: u32) -> Result<Self, PortError> {
        let invalid = |words: String| PortError::Config(words);
        let count = NonZeroU32::new(slots).ok_or_else(|| invalid("0 slots".into()))?;
        let ring = QueueSize::new(ring).map_err(|_| invalid(format!("rings of {ring} descriptors: only powers of two work")))?;
        let frame_size = FrameSize::new(SLOT_BYTES).map_err(|error| invalid(error.to_string()))?;
        let config = XskUmemConfig::builder()
            .frame_size(frame_size)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let address_at = address_offset().ok_or_else(|| invalid("this build of xsk-rs keeps descriptors in an unknown form".into()))?;

        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => PortError::Permission { what: "make the packet memory".into(), source },
            _ => PortError::Memory { slots, slot_bytes: SLOT_BYTES, source },
        };
        let made = thread::scope(|scope| scope.spawn(|| anchored(config, count)).join());
        let (umem, anchor) = made.map_err(|_| failed(io::Error::other("the thread that makes it died")))?.map_err(failed)?;

        // SAFETY: an empty view of the memory's start, which is mapped as long as `umem` lives.
        let base = unsafe { umem.data(&FrameDesc::default()) }.contents().as_ptr();
        // The mapping's address went to the kernel in XDP_UMEM_REG and so is exposed: the whole mapping may be reached by it.
        let base = NonNull::new(std::ptr::with_exposed_provenance_mut(base.expose_provenance()))
            .ok_or_else(|| failed(io::Error::other("mapped at address 0")))?;
        // SAFETY: `umem` maps `slots * SLOT_BYTES` bytes from `base` until it is dropped, and lives beside the arena, which is
        // only lent out. The kernel touches only slots given to it, of which no frame exists (module head). Nothing is
        // unmapped by the arena.
        let (arena, free) = unsafe { Arena::over(base, slots, SLOT_BYTES, HEADROOM_BYTES, 0) };
        Ok(Self { arena, free, owner: vec![Owner::OURS; slots as usize], faults: 0, umem, address_at, _anchor: anchor })
    }

    /// Gives the slot of `frame`, which is no chain, to the kernel and makes the descriptor that says so.
    pub(crate) fn give(&mut self, frame: Frame, to: Owner) -> FrameDesc {
        let address = self.arena.address(&frame);
        self.owner[frame.slot() as usize] = to;
        let mut desc = FrameDesc::default();
        // SAFETY: `address_offset` found that an aligned `usize` at this offset within a `FrameDesc` is its address.
        unsafe { std::ptr::from_mut(&mut desc).cast::<u8>().add(self.address_at).cast::<usize>().write(address) };
        // SAFETY: `address` is within the slot of `frame`, which belongs to this UMEM; we hold the frame, so nobody else
        // looks at the slot.
        unsafe { self.umem.data_mut(&mut desc) }.cursor().set_pos(frame.len());
        desc
    }

    /// Takes a slot back that the kernel returned through the ring `from`; `None` if that ring never had it.
    pub(crate) fn take(&mut self, desc: &FrameDesc, from: Owner) -> Option<Frame> {
        let slot = desc.addr() / SLOT_BYTES as usize;
        let start = (desc.addr() % SLOT_BYTES as usize) as u32;
        let len = desc.lengths().data() as u32;
        match self.owner.get_mut(slot) {
            Some(owner) if *owner == from && len <= SLOT_BYTES - start => {
                *owner = Owner::OURS;
                // SAFETY: the slot was with the kernel, so no handle exists, and it has just come back.
                Some(unsafe { self.arena.reclaim(slot as u32, start, len) })
            }
            _ => {
                self.faults += 1;
                None
            }
        }
    }

    /// Puts a frame, with all buffers of its chain, into the free list.
    pub(crate) fn put(&mut self, mut frame: Frame) {
        loop {
            let rest = self.arena.split(&mut frame);
            self.arena.reset(&mut frame);
            self.free.push(frame);
            match rest {
                Some(rest) => frame = rest,
                None => return,
            }
        }
    }

    /// Marks every slot that the kernel has of a port as to be recovered when its socket is closed.
    pub(crate) fn close(&mut self, port: u16, id: u16) {
        for owner in &mut self.owner {
            if *owner == Owner::fill(port) || *owner == Owner::tx(port) {
                *owner = Owner::closing(id);
            }
        }
    }

    /// Takes back every slot that was marked with `id`.
    ///
    /// # Safety
    /// The socket must be closed: the kernel neither reads nor writes these slots any more.
    pub(crate) unsafe fn recover(&mut self, id: u16) -> usize {
        let before = self.free.len();
        for (slot, owner) in self.owner.iter_mut().enumerate() {
            if *owner == Owner::closing(id) {
                *owner = Owner::OURS;
                // SAFETY: the slot was with the kernel, so no handle exists, and the caller says the kernel is done with it.
                self.free.push(unsafe { self.arena.reclaim(slot as u32, HEADROOM_BYTES, 0) });
            }
        }
        self.free.len() - before
    }

    /// How many slots the kernel has; for tests, against the ports' own counts.
    #[cfg(test)]
    pub(crate) fn with_kernel(&self) -> usize {
        self.owner.iter().filter(|owner| **owner != Owner::OURS).count()
    }
}

/// Makes the memory and binds its anchor; changes the calling thread's network namespace for good.
fn anchored(config: XskUmemConfig, count: NonZeroU32) -> io::Result<(Umem, Queues)> {
    // SAFETY: the thread was made for this and ends after it; a network namespace holds no memory of ours.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
    let source = |error: &dyn std::error::Error| {
        let errno = error.source().and_then(|source| source.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
        errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
    };
    // Huge pages where the node has reserved some; the mapping fails at once where it has none.
    let (umem, _) = Umem::new(config, count, true).or_else(|_| Umem::new(config, count, false)).map_err(|error| source(&error))?;
    let ring = QueueSize::new(64).map_err(|error| source(&error))?;
    let socket = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_USE_SG)
        .build();
    let loopback = "lo".parse().map_err(|_| io::Error::other("an interface name with a 0 in it"))?;
    // SAFETY: the namespace is fresh, so nothing is bound to its loopback device.
    let anchor = unsafe { Socket::new(socket, &umem, &loopback, 0) }.map_err(|error| source(&error))?;
    Ok((umem, anchor))
}

/// Finds where a [`FrameDesc`] keeps its address.
///
/// xsk-rs 0.11 has no setter for it: without one, a packet that starts elsewhere than where it was received (encapsulation,
/// decapsulation) would have to be moved before it is sent. All fields of the type are integers.
fn address_offset() -> Option<usize> {
    const MARK: usize = 0x1234_5678_9abc_d000;
    const { assert!(align_of::<FrameDesc>() == align_of::<usize>()) };
    (0..size_of::<FrameDesc>()).step_by(size_of::<usize>()).find(|at| {
        let mut desc = FrameDesc::default();
        // SAFETY: in bounds, as the size is a multiple of the alignment; aligned, as both have the same alignment; any bits
        // are valid where integers or padding are.
        unsafe { std::ptr::from_mut(&mut desc).cast::<u8>().add(*at).cast::<usize>().write(MARK) };
        desc.addr() == MARK
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_becomes_a_descriptor_and_back_wherever_it_starts() {
        let mut memory = Memory::new(64, 64).unwrap();
        let mut frame = memory.free.pop().unwrap();
        assert!(memory.arena.set_len(&mut frame, 100) && memory.arena.push_front(&mut frame, 50));
        let (slot, start) = (frame.slot(), frame.headroom_bytes());
        let desc = memory.give(frame, Owner::tx(7));
        assert_eq!(desc.addr(), slot as usize * 4096 + 206);
        assert_eq!((desc.lengths().data(), desc.options()), (150, 0));
        assert_eq!(memory.with_kernel(), 1);
        assert!(memory.take(&desc, Owner::fill(7)).is_none(), "the fill ring never had it");
        assert!(memory.take(&desc, Owner::tx(6)).is_none(), "another port never had it");
        let frame = memory.take(&desc, Owner::tx(7)).unwrap();
        assert_eq!((frame.slot(), frame.headroom_bytes(), frame.len()), (slot, start, 150));
        assert!(memory.take(&desc, Owner::tx(7)).is_none(), "a slot comes back once");
        assert_eq!((memory.faults, memory.with_kernel()), (3, 0));
    }

    #[test]
    fn what_a_closed_port_had_is_recovered_and_nothing_else() {
        let mut memory = Memory::new(64, 64).unwrap();
        for n in 0..30u16 {
            let frame = memory.free.pop().unwrap();
            memory.give(frame, if n % 2 == 0 { Owner::fill(n % 3) } else { Owner::tx(n % 3) });
        }
        memory.close(1, CLOSING_FIRST);
        assert_eq!((memory.with_kernel(), memory.free.len()), (30, 34));
        // SAFETY: no ring ever saw these descriptors.
        assert_eq!(unsafe { memory.recover(CLOSING_FIRST) }, 10);
        assert_eq!((memory.with_kernel(), memory.free.len()), (20, 44));
    }

    #[test]
    fn numbers_that_cannot_work_are_refused() {
        assert!(matches!(Memory::new(0, 64), Err(PortError::Config(_))));
        assert!(matches!(Memory::new(64, 100), Err(PortError::Config(_))));
    }
}
