//! First packets among those of known flows.
//!
//! Answers: what do new connections cost the others? Axis: first packets per hundred; at 1 M live flows, or as many as the run
//! is limited to. No peers.

use criterion::{BenchmarkId, Criterion};
use weir_bench::plan::Plan;
use weir_bench::sizes;

use crate::rig::{World, group, opened, row};

pub(crate) fn rows(criterion: &mut Criterion, world: &mut World) {
    let flows = sizes::up_to(1_000_000);
    let mut rows = group(criterion, "mix", 1);
    for percent in [0, 1, 10, 100] {
        row(
            &mut rows,
            BenchmarkId::new(format!("new_percent_{percent}"), flows),
            || world.of(Plan::MAIN, flows),
            |traffic| {
                traffic.fill_mix(percent);
                opened(traffic)
            },
        );
    }
    rows.finish();
}
