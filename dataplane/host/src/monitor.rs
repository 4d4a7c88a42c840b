//! Noticing that the kernel's network changed, and the whole picture of it.
//!
//! The kernel is the routing control plane: routes and neighbours come from whoever configures them (an operator, a BGP
//! daemon). Events are only a sign to look again; the picture is always read whole, so a lost event loses nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::address::Address;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::neighbour::Neighbour;
use crate::net::Net;
use crate::route::Route;

/// `enum rtnetlink_groups`: links, neighbours, addresses and routes of both families.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// Changes within this time of each other are reported as one …
const QUIET: Duration = Duration::from_millis(5);
/// … but none waits longer than this.
const PATIENCE: Duration = Duration::from_millis(50);

/// Everything of a namespace's network that decides where packets go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Interfaces.
    pub links: Vec<Link>,
    /// The namespace's own addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Net {
    /// Reads the whole picture.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn picture(&self) -> Result<Picture> {
        Ok(Picture { links: self.links()?, addresses: self.addresses()?, routes: self.routes()?, neighbours: self.neighbours()? })
    }
}

/// A subscription to changes of links, addresses, routes and neighbours.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes in the namespace of the calling thread. Read the [`Picture`] after this, not before.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn open() -> Result<Self> {
        let action = "subscribe to changes of the network";
        let subscribe = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self { socket: subscribe().map_err(|e| Error::io(action, e))? })
    }

    /// Waits until something changed, at most `timeout`. Changes that follow closely are one. Returns whether there was any.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        if !self.readable(timeout)? {
            return Ok(false);
        }
        let first = Instant::now();
        loop {
            self.drain()?;
            if first.elapsed() >= PATIENCE || !self.readable(QUIET)? {
                return Ok(true);
            }
        }
    }

    fn readable(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait of less than a millisecond must not become a busy loop.
            let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(0) if left.is_zero() || Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(Error::errno("wait for changes of the network", errno)),
            }
        }
    }

    fn drain(&self) -> Result<()> {
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // More changes than the socket's buffer holds: that there were some is all we want to know.
                Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(e) => return Err(Error::io("read changes of the network", e)),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
