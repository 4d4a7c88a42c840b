//! What a packet costs from arrival to verdict, all semantics on.
//!
//! Answers: how fast is the whole path for known flows in both directions, how fast for first packets, and what would it be on
//! an ordinary hash map? Axes: live flows. Peer: hashbrown inside the same path. Before anything is measured every byte of
//! a round is compared with packets made from scratch, and while it is measured nothing may be allocated.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weir_bench::allocations::Counting;
use weir_bench::map_path::MapPath;
use weir_bench::sizes;
use weir_bench::traffic::{SLOTS, Traffic};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A round of the arena: prepared unmeasured, then run.
fn rounds(iters: u64, traffic: &mut Traffic, mut round: impl FnMut(&mut Traffic) -> Duration) -> Duration {
    (0..iters).map(|_| round(traffic)).sum()
}

fn measured(traffic: &mut Traffic) -> Duration {
    let before = (Counting::count(), traffic.local.counters.drop);
    let took = traffic.run();
    assert_eq!((Counting::count(), traffic.local.counters.drop), before, "allocations and drops of a round");
    took
}

fn established(criterion: &mut Criterion) {
    for flows in sizes::flows() {
        let mut made: Option<Traffic> = None;
        let mut make = || {
            let mut traffic = Traffic::new(flows);
            traffic.fill_requests();
            traffic.run();
            traffic.check_requests();
            traffic.fill_replies();
            traffic.run();
            traffic.check_replies();
            traffic
        };
        let mut group = criterion.benchmark_group("pipeline");
        group.throughput(Throughput::Elements(SLOTS.into()));
        group.bench_function(BenchmarkId::new("established_dnat_vxlan", flows), |b| {
            let traffic = made.get_or_insert_with(&mut make);
            b.iter_custom(|iters| {
                rounds(iters, traffic, |traffic| {
                    traffic.fill_requests();
                    measured(traffic)
                })
            });
        });
        group.bench_function(BenchmarkId::new("established_decap", flows), |b| {
            let traffic = made.get_or_insert_with(&mut make);
            b.iter_custom(|iters| {
                rounds(iters, traffic, |traffic| {
                    traffic.fill_replies();
                    measured(traffic)
                })
            });
        });
        if flows >= 100_000 {
            group.bench_function(BenchmarkId::new("new_connection", flows), |b| {
                let traffic = made.get_or_insert_with(&mut make);
                b.iter_custom(|iters| {
                    rounds(iters, traffic, |traffic| {
                        traffic.fill_first_packets();
                        let took = measured(traffic);
                        traffic.forget_first_packets();
                        took
                    })
                });
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group("pipeline_hashbrown");
        group.throughput(Throughput::Elements(SLOTS.into()));
        let mut map: Option<MapPath> = None;
        group.bench_function(BenchmarkId::new("established_dnat_vxlan", flows), |b| {
            let traffic = made.get_or_insert_with(&mut make);
            let map = map.get_or_insert_with(|| {
                let mut map = MapPath::new(traffic);
                traffic.fill_requests();
                map.run(traffic);
                traffic.check_requests();
                map
            });
            b.iter_custom(|iters| {
                rounds(iters, traffic, |traffic| {
                    traffic.fill_requests();
                    black_box(map.run(traffic))
                })
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = established
}
criterion_main!(benches);
