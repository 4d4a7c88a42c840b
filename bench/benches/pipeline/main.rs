//! What a packet costs from arrival to verdict, all semantics on.
//!
//! Rows are made size by size, because the flows of a size are opened once for all rows of it. Each module's head says what
//! its rows answer. Before anything is measured, every byte of a round is compared with packets made from scratch; while it is
//! measured, nothing may be allocated, and nothing dropped that should not be.

mod hostile;
mod known;
mod mix;
mod rig;
mod snapshots;
mod ways;
mod workers;

use criterion::Criterion;
use weir_bench::allocations::Counting;
use weir_bench::sizes;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut world = rig::World::default();
    for flows in sizes::flows() {
        known::rows(&mut criterion, &mut world, flows);
        ways::rows(&mut criterion, &mut world, flows);
    }
    mix::rows(&mut criterion, &mut world);
    workers::rows(&mut criterion, &mut world);
    hostile::rows(&mut criterion, &mut world);
    snapshots::rows(&mut criterion);
    criterion.final_summary();
}
