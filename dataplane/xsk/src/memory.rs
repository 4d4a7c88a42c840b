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
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

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

/// Bytes in front of a packet to be sent that the kernel may be told to read (`struct xsk_tx_metadata`).
pub(crate) const METADATA_BYTES: u32 = 24;

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
    /// The socket that the memory is registered with, whose descriptor others name to share it. The kernel has pinned the arena's
    /// pages and writes by a mapping of its own, so that a socket that outlives this does no harm.
    pub(crate) anchor: Arc<OwnedFd>,
    pub(crate) arena: Arena,
    pub(crate) free: Vec<Frame>,
    owner: Vec<Owner>,
    /// Descriptors that named a slot which the ring did not have; 0 unless the shared rings are corrupt.
    pub(crate) faults: u64,
}

impl Memory {
    /// Maps and registers `slots` slots.
    pub(crate) fn new(slots: u32) -> Result<Self, PortError> {
        if slots == 0 {
            return Err(PortError::Config("0 slots".into()));
        }
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => PortError::Permission { what: "make the packet memory".into(), source },
            _ => PortError::Memory { slots, slot_bytes: SLOT_BYTES, source },
        };
        let (mut arena, free) = Arena::heap(slots, SLOT_BYTES, HEADROOM_BYTES).map_err(failed)?;
        let made = thread::scope(|scope| scope.spawn(|| anchor(&arena)).join());
        let made = made.map_err(|_| failed(io::Error::other("the thread that registers it died")))?;
        let (anchor, has_metadata) = made.map_err(failed)?;
        if has_metadata {
            arena.finish_checksums();
        }
        let owner = vec![Owner::OURS; slots as usize];
        Ok(Self { anchor: Arc::new(anchor), arena, free, owner, faults: 0 })
    }

    /// Gives the slot of `frame`, which is no chain, to the kernel; gives the address of its first byte, as rings have it.
    #[inline]
    pub(crate) fn give(&mut self, frame: Frame, to: Owner) -> u64 {
        self.owner[frame.slot() as usize] = to;
        self.arena.address(&frame) as u64
    }

    /// Takes a slot back that the kernel returned through the ring `from`, with `len` bytes at `address`; `None` if that ring never
    /// had it.
    #[inline]
    pub(crate) fn take(&mut self, address: u64, len: u32, from: Owner) -> Option<Frame> {
        let slot = (address / u64::from(SLOT_BYTES)) as usize;
        let start = (address % u64::from(SLOT_BYTES)) as u32;
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

/// Registers the memory and binds the socket that holds it; changes the calling thread's network namespace for good. Tells whether
/// the kernel reads metadata.
fn anchor(arena: &Arena) -> io::Result<(OwnedFd, bool)> {
    // SAFETY: the thread was made for this and ends after it; a network namespace holds no memory of ours.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let has_metadata = register(&socket, arena, libc::XDP_UMEM_TX_METADATA_LEN)?;
    // A socket is bound only with a ring for packets and both of the memory's. No packet ever comes to these.
    sockopt::set_xdp_rx_ring_size(&socket, 2)?;
    sockopt::set_xdp_umem_fill_ring_size(&socket, 2)?;
    sockopt::set_xdp_umem_completion_ring_size(&socket, 2)?;
    let how = SocketAddrXdpFlags::XDP_COPY | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP | SocketAddrXdpFlags::XDP_USE_SG;
    bind(&socket, &SocketAddrXdp::new(how, LOOPBACK, 0))?;
    Ok((socket, has_metadata))
}

/// Registers the memory with a socket, with room for metadata by `flag` where the kernel knows that (since Linux 6.11). Tells whether.
fn register(socket: &OwnedFd, arena: &Arena, flag: u32) -> io::Result<bool> {
    let bytes = arena.memory();
    let plain = XdpUmemReg {
        addr: bytes.start,
        len: bytes.end - bytes.start,
        chunk_size: SLOT_BYTES,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    let with_room = XdpUmemReg { flags: XdpUmemRegFlags::from_bits_retain(flag), tx_metadata_len: METADATA_BYTES, ..plain };
    match sockopt::set_xdp_umem_reg(socket, with_room) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(sockopt::set_xdp_umem_reg(socket, plain).map(|()| false)?),
        Err(error) => Err(error.into()),
    }
}

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_becomes_a_descriptor_and_back_wherever_it_starts() {
        let mut memory = Memory::new(64).unwrap();
        let mut frame = memory.free.pop().unwrap();
        assert!(memory.arena.set_len(&mut frame, 100) && memory.arena.push_front(&mut frame, 50));
        let (slot, start) = (frame.slot(), frame.headroom_bytes());
        let address = memory.give(frame, Owner::tx(7));
        assert_eq!(address, u64::from(slot) * 4096 + 206);
        assert_eq!(memory.with_kernel(), 1);
        assert!(memory.take(address, 150, Owner::fill(7)).is_none(), "the fill ring never had it");
        assert!(memory.take(address, 150, Owner::tx(6)).is_none(), "another port never had it");
        assert!(memory.take(address, 3891, Owner::tx(7)).is_none(), "it would reach into the next slot");
        assert!(memory.take(64 * 4096, 0, Owner::tx(7)).is_none(), "there is no such slot");
        let frame = memory.take(address, 150, Owner::tx(7)).unwrap();
        assert_eq!((frame.slot(), frame.headroom_bytes(), frame.len()), (slot, start, 150));
        assert!(memory.take(address, 150, Owner::tx(7)).is_none(), "a slot comes back once");
        assert_eq!((memory.faults, memory.with_kernel()), (5, 0));
    }

    #[test]
    fn what_a_closed_port_had_is_recovered_and_nothing_else() {
        let mut memory = Memory::new(64).unwrap();
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
    fn a_kernel_that_does_not_know_metadata_takes_the_memory_without() {
        let (arena, _frames) = Arena::heap(64, SLOT_BYTES, HEADROOM_BYTES).unwrap();
        let socket = || socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        assert!(register(&socket(), &arena, libc::XDP_UMEM_TX_METADATA_LEN).unwrap(), "Linux 6.11");
        assert!(!register(&socket(), &arena, 1 << 30).unwrap(), "a flag that no kernel knows");
    }

    #[test]
    fn numbers_that_cannot_work_are_refused() {
        assert!(matches!(Memory::new(0), Err(PortError::Config(_))));
    }
}
