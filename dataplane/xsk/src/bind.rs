//! Binding a socket to one queue of an interface, on any thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tracing::debug;

use crate::error::PortError;
use crate::link::Link;
use crate::memory::Memory;
use crate::port::PortConfig;
use crate::ring::Rings;

/// A queue is free again 10 to 20 ms after its last socket was closed; we give it ten times that.
const PATIENCE: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_millis(5);

/// Makes sockets on the memory of one worker, on any thread and in that thread's network namespace.
#[derive(Clone)]
pub struct Binder {
    /// The socket that the memory is registered with.
    anchor: Arc<OwnedFd>,
    arena: u32,
    ring: u32,
}

/// A socket that is bound and belongs to no [`Ports`](crate::Ports) yet. Dropped, it is closed.
pub struct Bound {
    pub(crate) arena: u32,
    pub(crate) interface: String,
    pub(crate) queue: u32,
    pub(crate) waiting: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) rings: Rings,
}

impl Bound {
    /// The socket, for the redirect program's map.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Binder {
    pub(crate) fn new(memory: &Memory, ring: u32) -> Self {
        Self { anchor: Arc::clone(&memory.anchor), arena: memory.arena.id(), ring }
    }

    /// Binds a socket. A queue that was in use a moment ago is waited for, up to 250 ms.
    ///
    /// # Errors
    /// All but `Memory` and `IndexTaken`.
    pub fn bind(&self, config: &PortConfig) -> Result<Bound, PortError> {
        let PortConfig { interface, queue, waiting } = config;
        let (interface, queue) = (interface.clone(), *queue);
        let link = Link::query(&interface).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PortError::NoInterface { interface: interface.clone(), queue },
            _ => PortError::of_bind(&interface, queue, error),
        })?;
        if queue >= link.rx_queues {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(PortError::NoQueue { interface, queue, queues: link.rx_queues, source });
        }
        let deadline = Instant::now() + PATIENCE;
        let (socket, rings) = loop {
            let error = match self.try_bind(link.ifindex, queue) {
                Ok(bound) => break bound,
                Err(error) => error,
            };
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
                return Err(PortError::of_bind(&interface, queue, error));
            }
            std::thread::sleep(RETRY);
        };
        raise_tx_budget(socket.as_raw_fd(), self.ring);
        Ok(Bound { arena: self.arena, interface, queue, waiting: *waiting, socket, rings })
    }

    fn try_bind(&self, ifindex: u32, queue: u32) -> io::Result<(OwnedFd, Rings)> {
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let rings = Rings::new(&socket, self.ring)?;
        // How it copies and wakes is the anchor's affair (`memory`).
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, ifindex, queue);
        bind(&socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: self.anchor.as_fd() })?;
        Ok((socket, rings))
    }
}

/// Has the kernel send a whole ring per call rather than 32 descriptors (XDP_MAX_TX_SKB_BUDGET, Linux 6.17).
fn raise_tx_budget(socket: i32, ring: u32) {
    const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
    // SAFETY: the socket is open; the value is a `u32` that outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, (&raw const ring).cast(), size_of::<u32>() as libc::socklen_t)
    };
    if result != 0 {
        debug!("this kernel sends 32 frames per call at most: {}", io::Error::last_os_error());
    }
}
