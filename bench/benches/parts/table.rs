//! The connection table alone.
//!
//! Answers: what do lookup, insertion, removal and expiry cost, what do batches bring, and what happens as the table fills? Axes: live
//! flows, batch (`lookup_hit_batchN`), fill (`table_fill`: part of `max` in use; the index has room for 1.67 times `max`, so that
//! 50 to 100 % of `max` are a load of 0.3 to 0.6, and it cannot be filled more), threads (`table_threads`, a unit is one
//! thread's operation). Peers: hashbrown, papaya and dashmap, one tuple after the other. Two tuples per flow everywhere.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use weir_bench::map_path::{Entry, MapPath};
use weir_bench::maps::{Dash, FlowMap, Hashbrown, Papaya};
use weir_bench::plan::{FLOWS_MAX, Plan};
use weir_bench::sizes;
use weir_bench::traffic::{BATCH, KEY, Traffic};
use weir_dataplane::conntrack::{
    ConnTable, EntryId, FirstPacket, FlowInit, FlowState, Hit, Leg, NO_OWNER, NOT_COUNTED, TableConfig, Ticks, Tuple, Worker,
};
use weir_dataplane::model::proto;

use crate::QUESTIONS;

const NOW: Ticks = Ticks(1_000_000);
/// Entries that a worker looks at in a batch at most.
const SWEEP: u32 = 256;

/// A table with the main rows' flows in it.
struct Flows {
    conns: ConnTable,
    worker: Worker,
    flows: u32,
    fresh: u32,
}

impl Flows {
    fn new(flows: u32, max: u32) -> Self {
        let conns = ConnTable::new(&TableConfig { max, key: KEY, workers: 2, owners: 0, share: 0 }).expect("memory for the connections");
        let worker = conns.worker().expect("a worker's place");
        let mut this = Self { conns, worker, flows, fresh: 0 };
        for index in 0..flows {
            // One tuple in 60,000 finds no room in a full index.
            let _ = insert(&this.conns, &mut this.worker, index);
        }
        assert!(this.conns.used() >= flows - flows / 1_000);
        this
    }
    fn questions(&self, from: u32) -> Vec<Tuple> {
        let mut random = fastrand::Rng::with_seed(11);
        (0..QUESTIONS).map(|_| Plan::MAIN.tuple(from + random.u32(..self.flows))).collect()
    }
    /// Numbers of flows that are not in the table.
    fn next_fresh(&mut self) -> std::ops::Range<u32> {
        self.fresh = (self.fresh + QUESTIONS as u32) % (32 * QUESTIONS as u32);
        FLOWS_MAX + self.fresh..FLOWS_MAX + self.fresh + QUESTIONS as u32
    }
}

fn insert(conns: &ConnTable, worker: &mut Worker, index: u32) -> Option<Hit> {
    let (original, reply) = (Plan::MAIN.tuple(index), Plan::MAIN.translated(index, 0).inverse());
    let leg = Leg { exit: 1, l3_delta: 0, l4_delta: 0 };
    let state = if original.proto == proto::TCP { FlowState::Established } else { FlowState::Replied };
    let first = FirstPacket::NONE;
    let init = FlowInit { original: leg, reply: leg, first, generation: 1, owner: NO_OWNER, counter: NOT_COUNTED, state };
    conns.insert(worker, &original, &reply, &init, NOW).ok()
}

/// Inserts in batches as a worker does; gives the time and what was inserted.
fn insert_all(conns: &ConnTable, worker: &mut Worker, indices: std::ops::Range<u32>) -> (Duration, Vec<EntryId>) {
    let mut entries = Vec::with_capacity(indices.len());
    let start = Instant::now();
    for index in indices {
        entries.extend(insert(conns, worker, index).map(|hit| hit.entry));
        if entries.len().is_multiple_of(BATCH) {
            conns.quiescent(worker);
        }
    }
    (start.elapsed(), entries)
}

fn remove_all(conns: &ConnTable, worker: &mut Worker, entries: &[EntryId]) -> Duration {
    let start = Instant::now();
    for batch in entries.chunks(BATCH) {
        for entry in batch {
            assert!(conns.remove(worker, *entry));
        }
        conns.quiescent(worker);
    }
    let took = start.elapsed();
    (0..4).for_each(|_| conns.quiescent(worker));
    took
}

fn lookup_all(conns: &ConnTable, questions: &[Tuple], batch: usize) -> usize {
    let (mut hashes, mut hits) = ([0; 64], [None; 64]);
    let found = |batch: &[Tuple]| {
        let hits = &mut hits[..batch.len()];
        conns.lookup_batch(batch, &mut hashes[..batch.len()], hits);
        hits.iter().flatten().count()
    };
    questions.chunks(batch).map(found).sum()
}

pub(crate) fn sizes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    group.throughput(Throughput::Elements(QUESTIONS as u64)).sampling_mode(SamplingMode::Flat);
    for flows in sizes::flows() {
        let mut made = None;
        let mut make = || Flows::new(flows, flows + flows / 8 + 4 * QUESTIONS as u32);
        for batch in [1, 8, 32, 64] {
            group.bench_function(BenchmarkId::new(format!("lookup_hit_batch{batch}"), flows), |b| {
                let table = made.get_or_insert_with(&mut make);
                let questions = table.questions(0);
                b.iter(|| assert_eq!(lookup_all(&table.conns, &questions, batch), QUESTIONS));
            });
        }
        for batch in [1, 32] {
            group.bench_function(BenchmarkId::new(format!("lookup_miss_batch{batch}"), flows), |b| {
                let table = made.get_or_insert_with(&mut make);
                let mut questions = table.questions(0);
                questions.iter_mut().for_each(|question| question.dport = 9);
                b.iter(|| assert_eq!(lookup_all(&table.conns, &questions, batch), 0));
            });
        }
        for (name, insertion) in [("insert", true), ("remove", false)] {
            group.bench_function(BenchmarkId::new(name, flows), |b| {
                let table = made.get_or_insert_with(&mut make);
                b.iter_custom(|iters| {
                    let turn = |_| {
                        let fresh = table.next_fresh();
                        let (inserting, entries) = insert_all(&table.conns, &mut table.worker, fresh);
                        let removing = remove_all(&table.conns, &mut table.worker, &entries);
                        if insertion { inserting } else { removing }
                    };
                    (0..iters).map(turn).sum()
                });
            });
        }
        group.bench_function(BenchmarkId::new("expire_nothing", flows), |b| {
            let table = made.get_or_insert_with(&mut make);
            b.iter(|| {
                for _ in 0..QUESTIONS as u32 / SWEEP {
                    assert_eq!(table.conns.expire(&mut table.worker, NOW, SWEEP), 0);
                    table.conns.quiescent(&mut table.worker);
                }
            });
        });
        let traffic = || Traffic::new(flows);
        let mut kept = None;
        map::<Hashbrown<Entry>>(&mut group, "hashbrown_one_by_one", &mut kept, traffic, flows);
        map::<Papaya<Entry>>(&mut group, "papaya_one_by_one", &mut kept, traffic, flows);
        map::<Dash<Entry>>(&mut group, "dashmap_one_by_one", &mut kept, traffic, flows);
    }
    group.bench_function(BenchmarkId::new("expire_all", QUESTIONS), |b| {
        let mut table = Flows::new(0, QUESTIONS as u32);
        b.iter_custom(|iters| {
            let turn = |_| {
                let fresh = table.next_fresh();
                insert_all(&table.conns, &mut table.worker, fresh);
                let (start, mut gone) = (Instant::now(), 0);
                let much_later = Ticks(NOW.0 + (1 << 30));
                while table.conns.used() > 0 {
                    gone += table.conns.expire(&mut table.worker, much_later, SWEEP);
                    table.conns.quiescent(&mut table.worker);
                }
                assert!(gone as usize > QUESTIONS - QUESTIONS / 1_000);
                start.elapsed()
            };
            (0..iters).map(turn).sum()
        });
    });
    group.finish();
}

fn map<M: FlowMap<Entry>>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    traffic: &mut Option<Traffic>,
    make: impl Fn() -> Traffic,
    flows: u32,
) {
    let mut map = None;
    let mut random = fastrand::Rng::with_seed(11);
    let questions: Vec<Tuple> = (0..QUESTIONS).map(|_| Plan::MAIN.tuple(random.u32(..flows))).collect();
    group.bench_function(BenchmarkId::new(name, flows), |b| {
        let map = map.get_or_insert_with(|| MapPath::<M>::new(traffic.get_or_insert_with(&make)));
        b.iter(|| assert_eq!(map.lookup(&questions), QUESTIONS));
    });
}

pub(crate) fn loads(criterion: &mut Criterion) {
    let max = sizes::up_to(1_000_000);
    let mut group = criterion.benchmark_group("table_fill");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for percent in [50, 70, 90, 100] {
        let mut made = None;
        for (name, hit) in [("lookup_hit_batch32", true), ("lookup_miss_batch32", false)] {
            group.bench_function(BenchmarkId::new(name, format!("{percent}_percent")), |b| {
                let table = made.get_or_insert_with(|| Flows::new((u64::from(max) * percent / 100) as u32, max));
                let questions = table.questions(if hit { 0 } else { FLOWS_MAX });
                b.iter(|| {
                    let found = lookup_all(&table.conns, &questions, BATCH);
                    assert!(if hit { found > QUESTIONS - QUESTIONS / 100 } else { found == 0 });
                });
            });
        }
    }
    group.finish();
}

/// Two threads on one table: lookups of the same flows; insertions of different ones. `one` is the same on a single thread.
pub(crate) fn threads(criterion: &mut Criterion) {
    let flows = sizes::up_to(1_000_000);
    let mut group = criterion.benchmark_group("table_threads");
    group.throughput(Throughput::Elements(QUESTIONS as u64)).sampling_mode(SamplingMode::Flat);
    let mut made = None;
    let make = || Flows::new(flows, flows + flows / 8 + 4 * QUESTIONS as u32);
    for (threads, name) in [(1, "one"), (2, "two")] {
        group.bench_function(BenchmarkId::new("lookup_hit_batch32", name), |b| {
            let table = made.get_or_insert_with(make);
            let questions = table.questions(0);
            b.iter_custom(|iters| {
                together(&mut vec![(); threads], |()| {
                    let start = Instant::now();
                    (0..iters).for_each(|_| assert_eq!(lookup_all(&table.conns, &questions, BATCH), QUESTIONS));
                    start.elapsed()
                })
            });
        });
        group.bench_function(BenchmarkId::new("insert", name), |b| {
            let table = made.get_or_insert_with(make);
            let (fresh, conns) = ([table.next_fresh(), table.next_fresh()], &table.conns);
            let mut second = conns.worker().filter(|_| threads == 2);
            let mut workers: Vec<_> = [Some(&mut table.worker), second.as_mut()].into_iter().flatten().zip(fresh).collect();
            b.iter_custom(|iters| {
                let turn = |_| {
                    together(&mut workers, |(worker, fresh)| {
                        let (took, entries) = insert_all(conns, worker, fresh.clone());
                        remove_all(conns, worker, &entries);
                        took
                    })
                };
                (0..iters).map(turn).sum()
            });
        });
    }
    group.finish();
}

/// Runs all at the same time. Gives the mean.
fn together<S: Send>(subjects: &mut [S], run: impl Fn(&mut S) -> Duration + Sync) -> Duration {
    let (start, count) = (Barrier::new(subjects.len()), subjects.len() as u32);
    let turn = |subject: &mut S| {
        start.wait();
        run(subject)
    };
    let total: Duration = thread::scope(|scope| {
        let threads: Vec<_> = subjects.iter_mut().map(|subject| scope.spawn(|| turn(subject))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    total / count
}
