//! What the parts of the way cost, each alone: parse, connection table, service choice, policy, overlay.
//!
//! Answers: where do the nanoseconds of `pipeline` go? A lookup alone misleads about the whole (an inline hash map ties with the
//! best table in it, and is several times slower inside the path); read these beside `pipeline`, not instead of it. Axes:
//! live flows, policy rules. Peer: hashbrown, one tuple after the other. All of it is in memory that the last round left
//! warm where it fits.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weir_bench::map_path::MapPath;
use weir_bench::traffic::{BATCH, RULES, SLOTS, Traffic, tuple};
use weir_bench::{sizes, world};
use weir_dataplane::conntrack::{FlowInit, FlowState, Leg, NO_OWNER, NOT_COUNTED, Tuple};
use weir_dataplane::model::{Direction, Ip, proto};
use weir_dataplane::overlay::vxlan;
use weir_dataplane::parse::{Headers, Kind, parse_into};
use weir_dataplane::route::Exit;
use weir_dataplane::service::{Affinity, Origin, Selection};

/// Questions that are prepared ahead, so that making them is not measured.
const QUESTIONS: usize = 1 << 16;

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for flows in sizes::flows() {
        let mut traffic: Option<Traffic> = None;
        let mut random = fastrand::Rng::with_seed(11);
        let questions: Vec<Tuple> = (0..QUESTIONS).map(|_| tuple(random.u32(..flows))).collect();
        group.bench_function(BenchmarkId::new("lookup_hit_batch32", flows), |b| {
            let traffic = traffic.get_or_insert_with(|| Traffic::new(flows));
            let (mut hashes, mut hits) = ([0; BATCH], [None; BATCH]);
            b.iter(|| {
                for batch in questions.chunks_exact(BATCH) {
                    traffic.conns.lookup_batch(batch, &mut hashes, &mut hits);
                    assert!(hits.iter().all(Option::is_some));
                }
            });
        });
        if flows <= 100_000 {
            group.bench_function(BenchmarkId::new("insert_and_remove", flows), |b| {
                let traffic = traffic.get_or_insert_with(|| Traffic::new(flows));
                let leg = Leg { exit: 1, l3_delta: 0, l4_delta: 0 };
                let flow = FlowInit {
                    original: leg,
                    reply: leg,
                    generation: 1,
                    owner: NO_OWNER,
                    counter: NOT_COUNTED,
                    state: FlowState::Unreplied,
                };
                let now = traffic.ticks();
                b.iter(|| {
                    for (n, question) in questions.iter().enumerate() {
                        let new = Tuple { dport: 9, proto: proto::UDP, ..*question };
                        // A tuple that was drawn twice is in use until the batch ends.
                        if let Ok(hit) = traffic.conns.insert(&mut traffic.local.conns, &new, &new.inverse(), &flow, now) {
                            traffic.conns.remove(&mut traffic.local.conns, hit.entry);
                        }
                        if n % BATCH == 0 {
                            traffic.conns.quiescent(&mut traffic.local.conns);
                        }
                    }
                });
            });
        }
        let mut map: Option<MapPath> = None;
        group.bench_function(BenchmarkId::new("hashbrown_one_by_one", flows), |b| {
            let map = map.get_or_insert_with(|| MapPath::new(traffic.get_or_insert_with(|| Traffic::new(flows))));
            b.iter(|| assert_eq!(map.lookup(&questions), QUESTIONS));
        });
    }
    group.finish();
}

fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for rules in [10_u32, 1_000, 10_000, 100_000] {
        let mut tables = None;
        let blocks = rules.min(world::BLOCKS_MAX);
        let mut random = fastrand::Rng::with_seed(13);
        let questions: Vec<(Ip, Ip, u16)> = (0..QUESTIONS)
            .map(|_| {
                let peer = world::outside(random.u32(..blocks), random.u8(..));
                (Ip::v4(world::pod(random.u32(..world::PODS)).into()), Ip::v4(peer.into()), random.u16(..))
            })
            .collect();
        group.bench_function(BenchmarkId::new("uncached", rules), |b| {
            let tables = tables.get_or_insert_with(|| world::tables(rules));
            b.iter(|| {
                let judge =
                    |(pod, peer, port): &(Ip, Ip, u16)| tables.judge(*pod, Direction::Egress, *peer, proto::TCP, *port, false).allowed;
                let allowed = questions.iter().filter(|question| judge(question)).count();
                assert!(allowed > 0 && allowed < QUESTIONS, "some are allowed, and some are not");
            });
        });
    }
    group.finish();
}

fn stages(criterion: &mut Criterion) {
    let mut traffic = Traffic::new(1_000);
    traffic.fill_requests();
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(SLOTS.into()));
    group.bench_function("tcp_or_udp/60", |b| {
        let mut headers = Headers::BLANK;
        b.iter(|| {
            for packet in &traffic.packets {
                assert_eq!(parse_into(traffic.arena.bytes(&packet.frame), &mut headers), Ok(Kind::Ip));
                black_box(&headers);
            }
        });
    });
    group.finish();

    let tables = &traffic.tables;
    let node = (0..).map(weir_dataplane::route::ExitId).find_map(|id| match tables.routes.exit(id) {
        Exit::Vxlan { tunnel, .. } => Some(tunnel),
        _ => None,
    });
    let template = &tables.routes.tunnel(node.expect("a tunnel")).template;
    let mut group = criterion.benchmark_group("overlay");
    group.throughput(Throughput::Elements(SLOTS.into()));
    group.bench_function("encap/64", |b| {
        b.iter(|| {
            for (hash, packet) in traffic.packets.iter_mut().enumerate() {
                assert!(vxlan::encap(&traffic.arena, &mut packet.frame, template, 0, hash as u64));
                packet.frame.pull_front(vxlan::OVERHEAD_V4);
            }
        });
    });
    traffic.fill_replies();
    let mut headers = Headers::BLANK;
    let first = &traffic.packets[0].frame;
    assert_eq!(parse_into(traffic.arena.bytes(first), &mut headers), Ok(Kind::Ip));
    group.bench_function("decap/64", |b| {
        b.iter(|| {
            for packet in &traffic.packets {
                let bytes = traffic.arena.bytes(&packet.frame);
                black_box(vxlan::decap(bytes, &headers).expect("an overlay packet"));
            }
        });
    });
    group.finish();
}

fn service(criterion: &mut Criterion) {
    let tables = world::tables(RULES);
    let affinity = Affinity::new(64, 1);
    let mut random = fastrand::Rng::with_seed(17);
    let questions: Vec<Tuple> = (0..QUESTIONS).map(|_| tuple(random.u32(..1_000_000))).collect();
    let mut group = criterion.benchmark_group("service");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    group.bench_function(BenchmarkId::new("choose", world::SERVICES), |b| {
        b.iter(|| {
            for question in &questions {
                let selection = tables.services.select(question, Origin::Pod, true, &affinity, |_| 0, 0, &mut random);
                assert!(matches!(selection, Selection::Backend { .. }));
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = stages, service, policy, table
}
criterion_main!(benches);
