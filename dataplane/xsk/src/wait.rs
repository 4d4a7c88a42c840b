//! Sleeping until a port has something: one epoll set and an event descriptor to end a sleep from another thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

const WAKER: u64 = 1;
const SOCKET: u64 = 0;

/// Ends a worker's sleep from another thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Ends the current sleep, or the next one if there is none.
    pub fn wake(&self) {
        // Fails only where 2^64 - 2 wakes are pending: then the sleep ends anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

pub(crate) struct Sleeper {
    epoll: OwnedFd,
    waker: Waker,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?));
        epoll::add(&epoll, &waker.0, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        Ok(Self { epoll, waker })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(crate) fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(SOCKET), epoll::EventFlags::IN)?)
    }

    /// Takes a socket out of the set; one that is not in it is no mistake.
    pub(crate) fn forget(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Tells whether a [`Waker`] ended the sleep.
    pub(crate) fn sleep(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        let mut events = [MaybeUninit::uninit(); 8];
        let (events, _) = match epoll::wait(self.epoll.as_fd(), &mut events, Some(&timeout)) {
            Ok(events) => events,
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let woken = events.iter().any(|event| event.data.u64() == WAKER);
        if woken {
            let _ = rustix::io::read(&self.waker.0, &mut [0; 8]);
        }
        Ok(woken)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_waker_ends_the_sleep_and_is_used_up_by_it() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        let start = Instant::now();
        assert!(sleeper.sleep(Duration::from_secs(10)).unwrap());
        assert!(start.elapsed() < Duration::from_secs(5));
        let start = Instant::now();
        assert!(!sleeper.sleep(Duration::from_millis(20)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
