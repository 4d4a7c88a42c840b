//! How a row is measured.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use weir_bench::allocations::Counting;
use weir_bench::plan::Plan;
use weir_bench::traffic::{Order, SLOTS, Traffic};

/// The flows that are open now. One set at a time, kept from row to row as long as the rows ask for the same.
#[derive(Default)]
pub(crate) struct World(Option<Traffic>);

impl World {
    /// These flows, opened and checked if others were there.
    pub(crate) fn of(&mut self, plan: Plan, flows: u32) -> &mut Traffic {
        if self.0.as_ref().is_some_and(|traffic| (traffic.plan, traffic.flows()) != (plan, flows)) {
            self.0 = None;
        }
        let make = || {
            let tables = weir_bench::world::tables(weir_bench::traffic::RULES).into();
            let mut traffic = Traffic::with(plan, flows, tables, weir_bench::traffic::KEY);
            traffic.check();
            traffic
        };
        let traffic = self.0.get_or_insert_with(make);
        traffic.order = Order::Uniform;
        traffic.alone();
        traffic
    }
}

/// A group of rows whose unit is the packet; `secs` are spent on a row, and as much on filling slots.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str, secs: u64) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(SLOTS.into())).sampling_mode(SamplingMode::Flat);
    group.sample_size(10 * secs as usize).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(secs));
    group
}

/// One row: rounds of `round`, which gives the time that counts. `make` is called once, and not where a filter leaves the row out.
pub(crate) fn row<S>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    make: impl FnOnce() -> S,
    mut round: impl FnMut(&mut S) -> Duration,
) {
    // Criterion calls what follows once per sample.
    let (mut make, mut made) = (Some(make), None);
    group.bench_function(id, |bencher| {
        let subject = made.get_or_insert_with(|| make.take().expect("called once")());
        bencher.iter_custom(|iters| (0..iters).map(|_| round(subject)).sum());
    });
}

/// Runs what fills the slots. Nothing may be allocated, and so many packets must be dropped.
pub(crate) fn measured(traffic: &mut Traffic, drops: u64) -> Duration {
    measured_in(traffic, weir_bench::traffic::BATCH, drops)
}

/// The same in batches of another size.
pub(crate) fn measured_in(traffic: &mut Traffic, batch: usize, drops: u64) -> Duration {
    let before = (Counting::count(), traffic.local.counters.drop + drops);
    let took = traffic.run_in(batch);
    assert_eq!((Counting::count(), traffic.local.counters.drop), before, "allocations and drops of a round");
    took
}

/// Runs first packets, in part or all, and ends what they began. Nothing may be allocated. One tuple in 60,000 finds no room in a
/// full index and is refused.
pub(crate) fn opened(traffic: &mut Traffic) -> Duration {
    let before = (Counting::count(), traffic.local.counters.drop);
    let took = traffic.run();
    let refused = traffic.local.counters.drop - before.1;
    assert!(Counting::count() == before.0 && refused <= 2, "allocations; {refused} refused");
    traffic.forget_first_packets();
    took
}
