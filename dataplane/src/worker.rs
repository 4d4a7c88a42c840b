//! One worker: a pinned thread that takes a batch from its ports, runs it through the pipeline, and sends it on.
//!
//! Everything that the pipeline takes as an argument is owned here: the clock, the random numbers, the ports, the handle on
//! the connection table. The rest of the daemon talks to a worker by [`Command`]s in its mailbox, which it looks into once per
//! batch; so new tables take effect at a batch boundary, whole or not at all.

mod stopwatch;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use weir_xsk::{Binder, Bound, FrameCounts, PortConfig, PortError, PortStatistics, Ports, SystemCalls, UmemConfig, Waker};

use crate::conntrack::ConnTable;
use crate::counters::{Counters, PortCounters, Stage, Stages};
use crate::flows::{Ledger, Watch, Writer};
use crate::io::xsk::XskIo;
use crate::io::{BATCH_MAX, Batch, PacketIo, PortId};
use crate::model::{Idle, Ip};
use crate::pipeline::{self, Cx, Local};
use crate::service::Affinity;
use crate::tables::Tables;
use crate::tap::{Tap, Taps};
use crate::verdict::Verdict;
use stopwatch::{Stopwatch, Timed};

/// How long an adaptive worker looks at its rings after the last frame before it sleeps. A wake-up across cores costs about
/// 20 µs, so looking on for a little longer than that pays.
const SPIN: Duration = Duration::from_micros(50);
/// Time between two looks at the rings while little arrives. Looking without a pause makes batches of two, which costs
/// 10 to 16 % of the rate, because every batch costs a system call.
const PAUSE: Duration = Duration::from_micros(3);
/// A batch of this size is worth being processed at once.
const BATCH_GOOD: usize = 8;
/// Longest sleep: expiry goes on meanwhile.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Most entries that the clock hand passes before a sleep: more than are due after the longest one in a table of 1 Mi.
const EXPIRY_PER_SLEEP: u32 = 16_384;
/// Commands that can wait for a worker.
const MAILBOX: usize = 16;
/// How often who waits for an answer looks whether the worker is still there.
const ALIVE: Duration = Duration::from_millis(100);

/// What a worker is told between two batches.
pub enum Command {
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

struct Mailbox {
    commands: ArrayQueue<Command>,
    /// Generation of the tables that the worker works by.
    in_force: AtomicU32,
    /// Destinations whose next hop is no known neighbour; the oldest give way.
    unresolved: ArrayQueue<Ip>,
}

/// What a worker is made of.
pub struct Setup {
    /// The core to pin it to.
    pub core: usize,
    /// What it does without work.
    pub idle: Idle,
    /// Its memory.
    pub umem: UmemConfig,
    /// The node's connections.
    pub connections: Arc<ConnTable>,
    /// The node's remembered clients of services.
    pub affinity: Arc<Affinity>,
    /// What it works by at first.
    pub tables: Arc<Tables>,
    /// Datagrams whose fragments are followed at most.
    pub fragments: u32,
    /// Seed of its random numbers.
    pub seed: u64,
    /// Where it notes what it decided.
    pub notes: Writer,
    /// Set while somebody wants to know of every packet, not of decisions alone.
    pub everything: Arc<AtomicBool>,
    /// The instant that all workers count time from.
    pub epoch: Instant,
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

struct Worker {
    io: XskIo,
    mailbox: Arc<Mailbox>,
    tables: Arc<Tables>,
    connections: Arc<ConnTable>,
    affinity: Arc<Affinity>,
    local: Local,
    notes: Writer,
    ledger: Ledger,
    everything: Arc<AtomicBool>,
    epoch: Instant,
    idle: Idle,
    rx: u64,
    tx: u64,
    batches: u64,
    stopwatch: Stopwatch,
    taps: Taps,
}

impl Worker {
    fn new(setup: Setup, mailbox: Arc<Mailbox>) -> anyhow::Result<Self> {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: setup.core });
        anyhow::ensure!(pinned, "cannot pin a worker to core {}: no such core, or not ours\n  try: workers.cores in node.yaml", setup.core);
        let flows = setup.connections.worker().context("the connection table has no room for another worker")?;
        Ok(Self {
            io: XskIo::new(Ports::new(setup.umem)?),
            mailbox,
            tables: setup.tables,
            connections: setup.connections,
            affinity: setup.affinity,
            local: Local::new(flows, setup.fragments, setup.seed),
            notes: setup.notes,
            ledger: Ledger::default(),
            everything: setup.everything,
            epoch: setup.epoch,
            idle: setup.idle,
            rx: 0,
            tx: 0,
            batches: 0,
            stopwatch: Stopwatch::start(),
            taps: Taps::new(setup.core as u16),
        })
    }
}

impl Worker {
    fn run(&mut self) {
        let mut batch: Batch = Vec::with_capacity(BATCH_MAX);
        let mut last_frame = Instant::now();
        loop {
            if !self.commands() {
                return;
            }
            self.stopwatch.begin();
            let looked = Instant::now();
            if let Err(error) = self.io.rx(&mut batch) {
                tracing::error!(%error, "the ports of a worker are broken");
                return;
            }
            let got = batch.len();
            if got > 0 {
                last_frame = looked;
                self.stopwatch.lap(Stage::Receive, got);
                self.process(&mut batch, self.nanos(looked));
            }
            // Also without new frames: what a full queue left behind goes out now, and what was sent comes back.
            if let Err(error) = self.io.flush() {
                tracing::error!(%error, "the ports of a worker are broken");
                return;
            }
            if got > 0 {
                self.stopwatch.lap(Stage::Transmit, got);
                self.stopwatch.end(got < BATCH_GOOD);
            }
            if got < BATCH_GOOD {
                self.stopwatch.settle();
                self.rest(looked, last_frame);
                self.stopwatch.other(Stage::Idle);
            }
        }
    }

    /// Time since the workers' common start.
    fn nanos(&self, instant: Instant) -> u64 {
        instant.duration_since(self.epoch).as_nanos() as u64
    }

    fn process(&mut self, batch: &mut Batch, now: u64) {
        self.batches += 1;
        self.rx += batch.len() as u64;
        let captured = !self.taps.is_empty();
        if captured {
            self.taps.before(batch, self.io.arena(), now);
        }
        let mut cx = Cx {
            tables: &self.tables,
            conns: &self.connections,
            affinity: &self.affinity,
            arena: self.io.arena(),
            local: &mut self.local,
            now,
        };
        self.ledger.begin();
        let (ring, ledger, tables) = (&mut self.notes, &mut self.ledger, &*self.tables);
        let (stopwatch, everything) = (&mut self.stopwatch, self.everything.load(Ordering::Relaxed));
        if captured {
            let observer = self.taps.observer(Watch::<true> { ring, ledger, tables, now }, everything);
            pipeline::process(&mut cx, batch, &mut Timed { observer, stopwatch });
        } else if everything {
            let observer = Watch::<true> { ring, ledger, tables, now };
            pipeline::process(&mut cx, batch, &mut Timed { observer, stopwatch });
        } else {
            let observer = Watch::<false> { ring, ledger, tables, now };
            pipeline::process(&mut cx, batch, &mut Timed { observer, stopwatch });
        }
        if captured {
            self.taps.after(batch, self.io.arena(), &self.tables, now);
        }
        if let Some(destination) = self.local.unresolved.take() {
            let _ = self.mailbox.unresolved.force_push(destination);
        }
        for (index, packet) in batch.drain(..).enumerate() {
            let port = match packet.verdict {
                Verdict::Forward(port) | Verdict::Encap(port) | Verdict::Host(port) => port,
                Verdict::Reply(_) => packet.in_port,
                Verdict::Drop(_) => {
                    self.io.free(packet.frame);
                    continue;
                }
            };
            let bytes = packet.frame.total_len();
            if self.io.tx(port, packet.frame) {
                self.tx += 1;
            } else {
                self.local.counters.undelivered(packet.verdict, port, bytes);
                self.ledger.undelivered(&self.tables, index, packet.verdict, packet.in_port, port);
            }
        }
    }

    /// Waits a little, or sleeps, as `workers.idle` says.
    fn rest(&mut self, looked: Instant, last_frame: Instant) {
        let sleep = match self.idle {
            Idle::Poll => false,
            Idle::Wait => true,
            Idle::Adaptive => looked.duration_since(last_frame) >= SPIN,
        };
        if sleep {
            let now = self.nanos(looked);
            let mut cx = Cx {
                tables: &self.tables,
                conns: &self.connections,
                affinity: &self.affinity,
                arena: self.io.arena(),
                local: &mut self.local,
                now,
            };
            pipeline::expire(&mut cx, EXPIRY_PER_SLEEP);
            // Others may reuse what was removed while we sleep.
            self.connections.park(&mut self.local.conns);
            if let Err(error) = self.io.ports_mut().wait(SLEEP_MAX) {
                tracing::warn!(%error, "a worker cannot sleep");
            }
            self.connections.quiescent(&mut self.local.conns);
        } else {
            while looked.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
        }
    }

    /// Does what the mailbox says. `false` = end.
    fn commands(&mut self) -> bool {
        while let Some(command) = self.mailbox.commands.pop() {
            self.stopwatch.settle();
            // An answer that nobody waits for any more is no fault.
            match command {
                Command::Publish(tables) => {
                    let generation = tables.generation;
                    // Before it is told: the publisher keeps the old ones until then, so they are not freed here.
                    self.tables = tables;
                    self.mailbox.in_force.store(generation, Ordering::Release);
                }
                Command::Attach(port, socket, answer) => {
                    // The number may have been another port's.
                    if let Some(counters) = self.local.counters.ports.get_mut(usize::from(port.0)) {
                        *counters = PortCounters::default();
                    }
                    let _ = answer.send(self.io.ports_mut().insert(port.0, *socket));
                }
                Command::Detach(port, answer) => {
                    self.io.ports_mut().remove(port.0);
                    let _ = answer.send(());
                }
                Command::Report(mut report, answer) => {
                    self.report(&mut report);
                    let _ = answer.send(report);
                }
                Command::Tap(tap, answer) => {
                    let _ = answer.send(self.taps.insert(tap));
                }
                Command::Untap(tap, answer) => {
                    self.taps.remove(&tap);
                    drop(tap);
                    let _ = answer.send(());
                }
                Command::Stop => return false,
            }
            self.stopwatch.other(Stage::Control);
        }
        true
    }

    fn report(&mut self, report: &mut Report) {
        report.counters.clone_from(&self.local.counters);
        // The asker's empty one takes its place: nothing is allocated here.
        std::mem::swap(&mut report.ledger, &mut self.ledger);
        (report.rx, report.tx, report.batches) = (self.rx, self.tx, self.batches);
        report.stages = self.stopwatch.stages();
        let ports = self.io.ports_mut();
        report.frames = ports.frames();
        report.system_calls = ports.system_calls();
        // The worker holds no frame and counts none between two batches.
        if report.frames.lost() > 0 || !report.counters.balanced() || report.counters.received != report.rx {
            tracing::error!(frames = ?report.frames, rx = report.rx, received = report.counters.received, "the sums do not meet");
        }
        for index in ports.indices().to_vec() {
            if let Ok(one) = ports.statistics(index) {
                report.kernel.rx_ring_full += one.rx_ring_full;
                report.kernel.rx_dropped += one.rx_dropped;
                report.kernel.invalid_descriptors += one.invalid_descriptors;
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
