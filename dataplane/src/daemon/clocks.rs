//! Where the workers' time goes, since the daemon started or since somebody cleared the figures. Workers only ever count up: what
//! they had counted when somebody cleared is kept here and taken off.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Daemon;
use crate::admin::figures::{Runtime, StageRuntime, SystemCallCounts, WorkerRuntime};
use crate::counters::{Stage, Stages};
use crate::worker::Report;

/// What was counted before the figures begin.
pub(super) struct Baseline {
    since: Instant,
    /// By core.
    workers: BTreeMap<usize, Counted>,
}

/// What one worker has counted.
#[derive(Clone, Copy, Default)]
struct Counted {
    rx: u64,
    tx: u64,
    drop: u64,
    system_calls: SystemCallCounts,
    stages: Stages,
}

impl From<&Report> for Counted {
    fn from(report: &Report) -> Self {
        Self { rx: report.rx, tx: report.tx, drop: report.counters.drop, system_calls: report.system_calls.into(), stages: report.stages }
    }
}

impl Baseline {
    /// Figures that begin at `since` with nothing counted.
    pub(super) fn new(since: Instant) -> Self {
        Self { since, workers: BTreeMap::new() }
    }
}

impl Daemon {
    /// Where the workers' time goes; with `clear` the figures begin anew.
    pub fn runtime(&self, clear: bool) -> Runtime {
        let mut inner = self.lock();
        let reports = self.reports(&mut inner);
        let counted: BTreeMap<usize, Counted> = reports.iter().map(|(worker, report)| (worker.core, Counted::from(&**report))).collect();
        let now = Instant::now();
        let baseline = &mut inner.baseline;
        let workers = counted.iter().map(|(core, counted)| {
            let before = baseline.workers.get(core).copied().unwrap_or_default();
            let stages = counted.stages.since(&before.stages);
            WorkerRuntime {
                core: *core as u16,
                rx: counted.rx - before.rx,
                tx: counted.tx - before.tx,
                drop: counted.drop - before.drop,
                busy: stages.busy,
                system_calls: counted.system_calls.since(&before.system_calls),
                stages: Stage::ALL.map(|stage| StageRuntime { stage, counters: stages.of(stage) }).into(),
            }
        });
        let runtime = Runtime { secs: now.duration_since(baseline.since).as_secs_f64(), workers: workers.collect() };
        if clear {
            *baseline = Baseline { since: now, workers: counted };
        }
        runtime
    }
}
