//! Binding a socket to one queue of an interface, on any thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use tracing::debug;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use crate::error::PortError;
use crate::link::Link;
use crate::memory::{Memory, Queues};
use crate::port::PortConfig;

/// A queue is free again 10 to 20 ms after its last socket was closed; we give it ten times that.
const PATIENCE: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_millis(5);

/// Makes sockets on the memory of one worker, on any thread and in that thread's network namespace.
#[derive(Clone)]
pub struct Binder {
    umem: Umem,
    arena: u32,
    ring: u32,
}

/// A socket that is bound and belongs to no [`Ports`](crate::Ports) yet. Dropped, it is closed.
pub struct Bound {
    pub(crate) arena: u32,
    pub(crate) interface: String,
    pub(crate) queue: u32,
    pub(crate) waiting: u32,
    pub(crate) tx: TxQueue,
    pub(crate) rx: RxQueue,
    pub(crate) fill: FillQueue,
    pub(crate) completion: CompQueue,
}

impl Bound {
    /// The socket, for the redirect program's map.
    pub fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the queues live, and they live as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl Binder {
    pub(crate) fn new(memory: &Memory, ring: u32) -> Self {
        Self { umem: memory.umem.clone(), arena: memory.arena.id(), ring }
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
        // EBUSY: the kernel still has a socket there. EINVAL, or no rings: so has libxdp, and would share that one's rings.
        let (tx, rx, fill, completion) = loop {
            let error = match self.try_bind(&interface, queue) {
                Ok((tx, rx, Some((fill, completion)))) => break (tx, rx, fill, completion),
                Ok((_, _, None)) => io::Error::from_raw_os_error(libc::EBUSY),
                Err(error) => error,
            };
            if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL)) || Instant::now() >= deadline {
                return Err(PortError::of_bind(&interface, queue, error));
            }
            std::thread::sleep(RETRY);
        };
        raise_tx_budget(rx.fd().as_raw_fd(), self.ring);
        Ok(Bound { arena: self.arena, interface, queue, waiting: *waiting, tx, rx, fill, completion })
    }

    fn try_bind(&self, interface: &str, queue: u32) -> io::Result<Queues> {
        let ring = QueueSize::new(self.ring).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let name: Interface = interface.parse().map_err(io::Error::other)?;
        // SAFETY: program loading is inhibited, which is all that is asked where the queue is bound already.
        unsafe { Socket::new(config, &self.umem, &name, queue) }.map_err(|error| {
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
            source.and_then(io::Error::raw_os_error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
        })
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
