//! One worker: a pinned thread that takes a batch from its ports, runs it through the pipeline, and sends it on.
//!
//! Everything that the pipeline takes as an argument is owned here: the clock, the random numbers, the ports, the handle on
//! the connection table. The rest of the daemon talks to a worker by commands in its mailbox, which it looks into once per
//! batch; so new tables take effect at a batch boundary, whole or not at all.

mod handle;
mod stopwatch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use weir_xsk::{Ports, UmemConfig};

use crate::conntrack::ConnTable;
use crate::counters::{PortCounters, Stage};
use crate::flows::{Ledger, Watch, Writer};
use crate::io::xsk::XskIo;
use crate::io::{BATCH_MAX, Batch, PacketIo};
use crate::model::Idle;
use crate::pipeline::{self, Cx, Local};
use crate::service::Affinity;
use crate::tables::Tables;
use crate::tap::Taps;
use crate::verdict::Verdict;
use handle::{Command, Mailbox};
pub use handle::{Handle, Report};
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
