//! What a first packet is looked up in: policies, services, prefixes.
//!
//! Answers: do lookups stay cheap when the cluster grows? Axes: policy rules, 10 to 100 k; service ports and backends of each under
//! every scheduler; prefixes to 1 M in both families. Peer: prefix-trie, asked for the longest match. Questions are random, so
//! tables larger than the caches are cold.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use weir_bench::world;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{self, Direction, Family, Frontend, FrontendKind, Ip, NodeConfig, NodeState, Scheduler, proto};
use weir_dataplane::service::{Affinity, Origin, Selection, Services};
use weir_dataplane::tables::Ranges;

use crate::QUESTIONS;

pub(crate) fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for rules in [10_u32, 100, 1_000, 10_000, 100_000] {
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

/// Service ports, and backends of each.
const SERVICES: [(u32, u32); 9] = [(1, 1), (1, 10), (1, 250), (100, 10), (100, 250), (1_000, 250), (10_000, 1), (10_000, 10), (10_000, 25)];
const SCHEDULERS: [(&str, Scheduler); 4] = [
    ("random", Scheduler::Random),
    ("source_hash", Scheduler::SourceHash),
    ("maglev", Scheduler::Maglev),
    ("least_connections", Scheduler::LeastConnections),
];
const PORT: u16 = 80;

fn frontend(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + index)
}

fn services(count: u32, backends: u32) -> NodeState {
    let service = |index: u32| model::Service {
        namespace: "bench".into(),
        name: format!("service-{index:05}"),
        frontends: vec![Frontend { address: frontend(index).into(), port: PORT, kind: FrontendKind::ClusterIp }],
        backends: (0..backends)
            .map(|n| model::Backend {
                address: Ipv4Addr::from(0x0b00_0000 + index * backends + n).into(),
                port: PORT,
                local: false,
                serving: true,
            })
            .collect(),
        cluster: (0..backends).collect(),
        any_usable: true,
        ..model::Service::default()
    };
    NodeState { services: (0..count).map(|index| Arc::new(service(index))).collect(), ..NodeState::default() }
}

pub(crate) fn service(criterion: &mut Criterion) {
    let affinity = Affinity::new(64, 1);
    let mut group = criterion.benchmark_group("service");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for (count, backends) in SERVICES {
        let mut random = fastrand::Rng::with_seed(17);
        let mut question = || Tuple {
            src: Ip::v4(random.u32(0x0af4_0000..0x0af5_0000)),
            dst: frontend(random.u32(..count)).into(),
            sport: random.u16(1024..),
            dport: PORT,
            proto: proto::TCP,
        };
        let questions: Vec<Tuple> = (0..QUESTIONS).map(|_| question()).collect();
        let mut state = None;
        for (name, scheduler) in SCHEDULERS {
            let mut compiled = None;
            group.bench_function(BenchmarkId::new(name, format!("{count}x{backends}")), |b| {
                let services = compiled.get_or_insert_with(|| {
                    let mut config = NodeConfig::offline("node-0");
                    config.services.scheduler = scheduler;
                    Services::compile(state.get_or_insert_with(|| services(count, backends)), &config, None, &|_| Some(0))
                });
                b.iter(|| {
                    for question in &questions {
                        let chosen = services.select(question, Origin::Pod, || true, &affinity, |_| 0, 0, &mut random);
                        assert!(matches!(chosen, Selection::Backend(_)));
                    }
                });
            });
        }
    }
    group.finish();
}

/// Random prefixes of the lengths that are common in the Internet's tables, and addresses, most of them inside of one.
struct Prefixes {
    nets: Vec<(IpNet, u32)>,
    questions: Vec<Ip>,
}

impl Prefixes {
    fn new(family: Family, count: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(19);
        let nets: Vec<(IpNet, u32)> = (0..count)
            .map(|number| {
                let net = match family {
                    Family::V4 => IpNet::new(Ipv4Addr::from(random.u32(..)).into(), 32 - random.u8(8..=16)),
                    Family::V6 => IpNet::new(Ipv6Addr::from(0x2 << 124 | random.u128(..) >> 4).into(), random.u8(32..=48)),
                };
                (net.expect("a length of the family").trunc(), number)
            })
            .collect();
        let questions = (0..QUESTIONS)
            .map(|_| {
                let host = random.u128(..);
                match nets[random.usize(..nets.len())].0 {
                    IpNet::V4(net) => Ip::v4(u32::from(net.network()) | host as u32 & u32::from(net.hostmask())),
                    IpNet::V6(net) => Ip(u128::from(net.network()) | host & u128::from(net.hostmask())),
                }
            })
            .collect();
        Self { nets, questions }
    }
    fn ranges(&self) -> Ranges<u32> {
        Ranges::build(&self.nets, &u32::MAX, |value, number| *value = *number)
    }
}

pub(crate) fn prefixes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lpm");
    group.throughput(Throughput::Elements(QUESTIONS as u64));
    for count in [1_000, 100_000, 1_000_000] {
        for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
            let mut made = None;
            group.bench_function(BenchmarkId::new(format!("weir_{name}"), count), |b| {
                let (ranges, questions) = made.get_or_insert_with(|| {
                    let prefixes = Prefixes::new(family, count);
                    (prefixes.ranges(), prefixes.questions)
                });
                b.iter(|| assert!(questions.iter().all(|question| *ranges.find(*question) != u32::MAX)));
            });
            let mut made = None;
            group.bench_function(BenchmarkId::new(format!("prefix_trie_{name}"), count), |b| {
                let (trie, questions) = made.get_or_insert_with(|| Trie::checked(Prefixes::new(family, count)));
                b.iter(|| assert!(questions.iter().all(|question| trie.find(*question).is_some())));
            });
        }
    }
    group.finish();
}

struct Trie {
    v4: PrefixMap<Ipv4Net, u32>,
    v6: PrefixMap<Ipv6Net, u32>,
}

impl Trie {
    /// The trie, after a look that it gives the answers that the ranges give.
    fn checked(prefixes: Prefixes) -> (Self, Vec<Ip>) {
        let mut trie = Self { v4: PrefixMap::new(), v6: PrefixMap::new() };
        for (net, number) in &prefixes.nets {
            match net {
                IpNet::V4(net) => trie.v4.insert(*net, *number),
                IpNet::V6(net) => trie.v6.insert(*net, *number),
            };
        }
        let ranges = prefixes.ranges();
        assert!(prefixes.questions.iter().all(|question| trie.find(*question) == Some(*ranges.find(*question))));
        (trie, prefixes.questions)
    }
    fn find(&self, address: Ip) -> Option<u32> {
        if address.is_v4() {
            self.v4.get_lpm(&Ipv4Net::from(Ipv4Addr::from(address.low32()))).map(|(_, number)| *number)
        } else {
            self.v6.get_lpm(&Ipv6Net::from(Ipv6Addr::from(address.0))).map(|(_, number)| *number)
        }
    }
}
