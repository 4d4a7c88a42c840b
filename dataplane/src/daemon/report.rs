//! What the daemon tells of itself: its status and the state in force.

use std::sync::Arc;

use super::{Daemon, Inner};
use crate::admin::figures::{ConnectionCounts, DropCounts, PortStatus, Status, WorkerStatus};
use crate::counters::{Counters, PortCounters};
use crate::model::NodeState;
use crate::runtime::PortKind;
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::worker::{Handle, Report};

impl Daemon {
    /// How it goes; every sum in it meets, per worker.
    pub fn status(&self) -> Status {
        let mut inner = self.lock();
        let reports = self.reports(&mut inner);
        let mut status = Status {
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.instance.clone(),
            generation: inner.applied,
            uptime_secs: self.started.elapsed().as_secs(),
            connections: ConnectionCounts { used: self.connections.used().into(), max: self.connections.max().into() },
            ..Status::default()
        };
        for ((worker, report), events_lost) in reports.iter().zip(self.flows.lost()) {
            let (rx, tx, batches) = (report.rx, report.tx, report.batches);
            let (core, generation) = (worker.core as u16, worker.in_force());
            status.workers.push(WorkerStatus { core, rx, tx, batches, generation, events_lost, system_calls: report.system_calls.into() });
            add_counters(&mut status, &report.counters);
            add_frames(&mut status, report);
        }
        for (id, port) in inner.runtime.ports.iter().enumerate() {
            let (kind, pod) = match &port.kind {
                PortKind::Uplink => ("uplink", None),
                PortKind::Host => ("host", None),
                PortKind::Pod { namespace, name } => ("pod", Some(format!("{namespace}/{name}"))),
                PortKind::Vacant => continue,
            };
            let mode = inner.attached.get(&(id as u16)).map(|attached| attached.mode).unwrap_or_default();
            let mut counters = PortCounters::default();
            reports.iter().filter_map(|(_, report)| report.counters.ports.get(id)).for_each(|of_worker| counters.add(of_worker));
            let PortCounters { rx_packets, rx_bytes, tx_packets, tx_bytes } = counters;
            let (name, kind, mode) = (port.name.clone(), kind.into(), mode.into());
            status.ports.push(PortStatus { name, kind, mode, pod, rx_packets, rx_bytes, tx_packets, tx_bytes });
        }
        status
    }

    /// What was discarded and refused so far. The sums are those of [`status`](Self::status).
    pub fn drops(&self) -> DropCounts {
        let mut inner = self.lock();
        let reports = self.reports(&mut inner);
        let dropped = reports.iter().map(|(_, report)| report.counters.drop).sum();
        let refused = reports.iter().map(|(_, report)| report.counters.rejects.iter().sum::<u64>()).sum();
        let told = (inner.drops.sum(false), inner.drops.sum(true));
        if told != (dropped, refused) {
            tracing::error!(?told, dropped, refused, "the ledger of drops does not meet the counters");
        }
        DropCounts { dropped, refused, rows: inner.drops.rows() }
    }

    /// What each worker has done so far. Everything that a worker hands over only once goes into the daemon's sums here.
    pub(super) fn reports(&self, inner: &mut Inner) -> Vec<(&Handle, Box<Report>)> {
        self.reports_under(inner, &[])
    }

    /// The same while new tables are put in force: `before` are those until now.
    pub(super) fn reports_under(&self, inner: &mut Inner, before: &[&Tables]) -> Vec<(&Handle, Box<Report>)> {
        let reports: Vec<_> = self.workers.iter().filter_map(|worker| Some((worker, worker.report()?))).collect();
        let Inner { drops, tables, .. } = inner;
        let tables: Vec<&Tables> = std::iter::once(&**tables).chain(before.iter().copied()).collect();
        reports.iter().for_each(|(_, report)| drops.add(&report.ledger, &tables));
        reports
    }

    /// The state in force and its number.
    pub fn state(&self) -> (u32, Arc<NodeState>) {
        let inner = self.lock();
        (inner.applied, inner.tables.state.clone())
    }
}

/// Adds where one worker's frames are, and what the kernel lost in front of it.
fn add_frames(status: &mut Status, report: &Report) {
    let (sum, frames) = (&mut status.frames, &report.frames);
    for (sum, count) in [
        (&mut sum.total, frames.total),
        (&mut sum.free, frames.free),
        (&mut sum.fill, frames.fill),
        (&mut sum.rx, frames.rx),
        (&mut sum.tx, frames.tx),
        (&mut sum.completion, frames.completion),
        (&mut sum.lost, frames.lost()),
    ] {
        *sum += u64::from(count);
    }
    status.kernel.rx_ring_full += report.kernel.rx_ring_full;
    status.kernel.rx_dropped += report.kernel.rx_dropped;
    status.kernel.invalid_descriptors += report.kernel.invalid_descriptors;
}

/// Adds one worker's counters.
fn add_counters(status: &mut Status, counters: &Counters) {
    let packets = &mut status.packets;
    packets.received += counters.received;
    packets.forward += counters.forward;
    packets.host += counters.host;
    packets.reply += counters.reply;
    packets.drop += counters.drop;
    for reason in DropReason::ALL {
        for (ledger, count) in [(&mut status.drops, counters.dropped(*reason)), (&mut status.rejects, counters.rejected(*reason))] {
            if count > 0 {
                *ledger.entry(reason.name().into()).or_default() += count;
            }
        }
    }
}
