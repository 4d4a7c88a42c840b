//! The other threads' end of a worker: what it can be told and asked, through a mailbox that it looks into once per batch.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use weir_xsk::{Binder, Bound, FrameCounts, PortConfig, PortError, PortStatistics, SystemCalls, Waker};

use super::{Setup, Worker};
use crate::counters::{Counters, Stages};
use crate::flows::Ledger;
use crate::io::PortId;
use crate::model::Ip;
use crate::tables::Tables;
use crate::tap::Tap;

/// Commands that can wait for a worker.
const MAILBOX: usize = 16;
/// How often who waits for an answer looks whether the worker is still there.
const ALIVE: Duration = Duration::from_millis(100);

/// What a worker is told between two batches.
pub(super) enum Command {
    /// Work by these tables from the next batch on.
    Publish(Arc<Tables>),
    /// Take over a port's socket.
    Attach(PortId, Box<Bound>, Sender<Result<(), PortError>>),
    /// Close a port; its frames come back.
    Detach(PortId, Sender<()>),
    /// Fill in the report and send it back.
    Report(Box<Report>, Sender<Box<Report>>),
    /// Copy frames into the tap from the next batch on. Answers whether there is room for another one.
    Tap(Arc<Tap>, Sender<bool>),
    /// Copy no more frames into the tap.
    Untap(Arc<Tap>, Sender<()>),
    /// End.
    Stop,
}

/// What a worker has done so far, taken between two batches: all sums in it meet.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Verdicts and reasons.
    pub counters: Counters,
    /// Frames received.
    pub rx: u64,
    /// Frames given to a port.
    pub tx: u64,
    /// Batches that were not empty.
    pub batches: u64,
    /// What its time went to.
    pub stages: Stages,
    /// Where the frames are.
    pub frames: FrameCounts,
    /// What it asked of the kernel to move them.
    pub system_calls: SystemCalls,
    /// What the kernel lost at the ports, summed.
    pub kernel: PortStatistics,
    /// What was discarded and refused since the report before, of all of `counters`.
    pub ledger: Ledger,
}

/// The other threads' end of a worker.
pub struct Handle {
    /// The core that it is pinned to.
    pub core: usize,
    mailbox: Arc<Mailbox>,
    waker: Waker,
    binder: Binder,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub(super) struct Mailbox {
    pub(super) commands: ArrayQueue<Command>,
    /// Generation of the tables that the worker works by.
    pub(super) in_force: AtomicU32,
    /// Destinations whose next hop is no known neighbour; the oldest give way.
    pub(super) unresolved: ArrayQueue<Ip>,
}

impl Handle {
    /// Starts a worker and waits until it has its memory.
    ///
    /// # Errors
    /// Where the memory cannot be registered, the core does not exist or the thread cannot start.
    pub fn start(setup: Setup) -> anyhow::Result<Self> {
        let core = setup.core;
        let mailbox = Arc::new(Mailbox {
            commands: ArrayQueue::new(MAILBOX),
            in_force: AtomicU32::new(setup.tables.generation),
            unresolved: ArrayQueue::new(MAILBOX),
        });
        let (ready, started) = bounded(1);
        let its_mailbox = mailbox.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{core}")).spawn(move || match Worker::new(setup, its_mailbox) {
            Ok(mut worker) => {
                let _ = ready.send(Ok((worker.io.ports().waker(), worker.io.ports().binder())));
                drop(ready);
                worker.run();
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        })?;
        let (waker, binder) = started.recv()??;
        Ok(Self { core, mailbox, waker, binder, thread: Some(thread) })
    }

    /// Generation of the tables that the worker works by.
    pub fn in_force(&self) -> u32 {
        self.mailbox.in_force.load(Ordering::Acquire)
    }

    /// Hands over new tables; they are in force once [`in_force`](Self::in_force) says so. The caller keeps its `Arc` until
    /// then, so that the worker never has to free the old ones.
    pub fn publish(&self, tables: Arc<Tables>) {
        self.tell(Command::Publish(tables));
    }

    /// Opens a port on `queue` of an interface: the socket is bound on the calling thread, which may take 10 ms and more, and
    /// shown to `bound` before the worker takes it over.
    ///
    /// # Errors
    /// As [`Binder::bind`], what `bound` says, or that the worker has ended; the socket is closed then.
    pub fn attach(
        &self,
        port: PortId,
        config: &PortConfig,
        bound: impl FnOnce(BorrowedFd<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let socket = self.binder.bind(config)?;
        bound(socket.socket())?;
        let (answer, answered) = bounded(1);
        self.tell(Command::Attach(port, Box::new(socket), answer));
        Ok(self.await_answer(&answered).with_context(|| format!("the worker on core {} has ended", self.core))??)
    }

    /// Closes a port.
    pub fn detach(&self, port: PortId) {
        let (answer, answered) = bounded(1);
        self.tell(Command::Detach(port, answer));
        // A worker that has ended has closed its ports.
        let _ = self.await_answer(&answered);
    }

    /// Lends a tap to the worker; `false` where it has as many as it can serve, or has ended.
    pub fn tap(&self, tap: Arc<Tap>) -> bool {
        let (answer, answered) = bounded(1);
        self.tell(Command::Tap(tap, answer));
        self.await_answer(&answered).unwrap_or(false)
    }

    /// Takes a tap back. The caller still has it, so the worker frees nothing.
    pub fn untap(&self, tap: &Arc<Tap>) {
        let (answer, answered) = bounded(1);
        self.tell(Command::Untap(tap.clone(), answer));
        // A worker that has ended copies nothing.
        let _ = self.await_answer(&answered);
    }

    /// Tells whether [`unresolved`](Self::unresolved) has something.
    pub fn has_unresolved(&self) -> bool {
        !self.mailbox.unresolved.is_empty()
    }

    /// Takes a destination that could not be reached for want of a neighbour.
    pub fn unresolved(&self) -> Option<IpAddr> {
        self.mailbox.unresolved.pop().map(Ip::to_std)
    }

    /// What the worker has done so far; `None` if it has ended.
    pub fn report(&self) -> Option<Box<Report>> {
        let (answer, answered) = bounded(1);
        self.tell(Command::Report(Box::default(), answer));
        self.await_answer(&answered)
    }

    /// Tells whether the worker has ended, which it does of itself only when it is broken.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Ends the worker and waits for it; its ports are closed then.
    pub fn stop(mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Waits for the answer to a command; `None` where the worker ends without it. The mailbox outlives the worker and keeps the
    /// other end of the channel, so its closing alone would not tell.
    fn await_answer<T>(&self, answered: &Receiver<T>) -> Option<T> {
        loop {
            let ended = self.has_ended();
            match answered.recv_timeout(ALIVE) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if !ended => {}
                Err(_) => return None,
            }
        }
    }

    fn tell(&self, mut command: Command) {
        while let Err(back) = self.mailbox.commands.push(command) {
            if self.has_ended() {
                return;
            }
            command = back;
            self.waker.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use weir_xsk::{Ports, UmemConfig};

    use super::*;

    #[test]
    fn nobody_waits_for_a_worker_that_has_ended() {
        let commands = ArrayQueue::new(MAILBOX);
        let (answer, answered) = bounded::<()>(1);
        assert!(commands.push(Command::Detach(PortId(0), answer)).is_ok());
        let mailbox = Arc::new(Mailbox { commands, in_force: AtomicU32::new(0), unresolved: ArrayQueue::new(1) });
        let Ok(ports) = Ports::new(UmemConfig { slots: 64, ..UmemConfig::default() }) else { return };
        let thread = std::thread::spawn(|| {});
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        let worker = Handle { core: 0, mailbox, waker: ports.waker(), binder: ports.binder(), thread: Some(thread) };
        assert!(worker.has_ended());
        assert_eq!(worker.await_answer(&answered), None);
        worker.detach(PortId(1));
        for _ in 0..2 * MAILBOX {
            worker.tell(Command::Stop);
        }
        worker.stop();
    }
}
