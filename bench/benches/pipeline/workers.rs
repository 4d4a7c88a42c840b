//! Two workers against one.
//!
//! Answers: do workers slow each other down? Two threads on disjoint flows of one table, each with packets of its own; a row's unit
//! is a packet of one worker, so that perfect scaling gives the same figure for `one` and `two` (goal: 95 %). `one` draws from the
//! same half of the flows. Axis: live flows. Needs two free cores. No peers.

use criterion::{BenchmarkId, Criterion};
use weir_bench::plan::Plan;
use weir_bench::sizes;

use crate::rig::{World, group, row};

pub(crate) fn rows(criterion: &mut Criterion, world: &mut World) {
    let mut rows = group(criterion, "workers", 2);
    for flows in [sizes::up_to(1_000), sizes::up_to(1_000_000)] {
        // Whoever has been beside leaves at once; the share stays.
        row(
            &mut rows,
            BenchmarkId::new("one", flows),
            || {
                let traffic = world.of(Plan::MAIN, flows);
                drop(traffic.beside());
                traffic
            },
            |traffic| {
                traffic.fill_requests();
                traffic.run()
            },
        );
        row(
            &mut rows,
            BenchmarkId::new("two", flows),
            || {
                let first = world.of(Plan::MAIN, flows);
                (first.beside(), first)
            },
            |(second, first)| first.run_both(second),
        );
    }
    rows.finish();
}
