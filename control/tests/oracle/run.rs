//! Many clusters, many questions, all cores.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use weir_dataplane::model::{Direction, NodeConfig, OnChange, OwnNodeEgress};

use crate::cluster::{Cluster, one_in, pick};
use crate::compare::{Agreed, Court};
use crate::question::{Pool, Question};
use crate::sessions::Sessions;
use crate::standing::{self, Standing};
use crate::{minimal, packets};

/// Generations of a cluster: it as it was made, and changed.
const GENERATIONS: usize = 5;
/// Questions about each generation.
const QUESTIONS: u64 = 1_000;
/// New connections to Services with session affinity that each node gets in each generation.
const SESSIONS: u32 = 300;
/// Connections that one node opens in each generation.
const CONNECTIONS: u16 = 64;
/// Packets that each node of a cluster's last generation gets.
const PACKETS: u16 = 256;
/// Failures after which nobody wants more.
const FAILURES_MAX: usize = 3;

/// What was asked and what came of it.
#[derive(Default)]
pub(crate) struct Report {
    first_seed: u64,
    clusters: u64,
    generations: u64,
    /// (from, to, protocol, port) questions about policies that at least one end was judged of.
    policy: u64,
    denied: u64,
    services: u64,
    forwarded: u64,
    explained: u64,
    packets: u64,
    delivered: u64,
    /// Connections with session affinity that got the endpoint of the one before.
    pub(crate) kept: u64,
    /// Those that got another choice instead.
    pub(crate) anew: u64,
    /// What became of open connections after changes.
    pub(crate) standing: standing::Tally,
    pub(crate) failures: Vec<String>,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.clusters += other.clusters;
        self.generations += other.generations;
        self.policy += other.policy;
        self.denied += other.denied;
        self.services += other.services;
        self.forwarded += other.forwarded;
        self.explained += other.explained;
        self.packets += other.packets;
        self.delivered += other.delivered;
        self.kept += other.kept;
        self.anew += other.anew;
        self.standing.kept += other.standing.kept;
        self.standing.anew += other.standing.anew;
        self.standing.cut += other.standing.cut;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_seed, clusters, generations, policy, denied, services, forwarded, explained, .. } = self;
        let Self { packets, delivered, kept, anew, standing: after, failures, .. } = self;
        let last = first_seed + clusters.saturating_sub(1);
        write!(f, "seeds {first_seed}..={last}: {clusters} clusters, {generations} generations, ")?;
        write!(f, "{} pairs: {policy} about policies ({denied} ends deny), {services} about services ", policy + services)?;
        write!(f, "({forwarded} forwarded); {explained} explained; {packets} packets ({delivered} sent on); ")?;
        write!(f, "{} clients came again ({kept} kept their endpoint); ", kept + anew)?;
        write!(f, "after changes {} connections went on, {} began anew, {} were cut; ", after.kept, after.anew, after.cut)?;
        write!(f, "{} differences", failures.len())
    }
}

/// What an operator might have decided.
pub(crate) fn config(random: &mut Rng) -> NodeConfig {
    let mut config = NodeConfig::offline("node-1");
    let cidr = |text: &str| text.parse().unwrap();
    config.masquerade.all = one_in(random, 4);
    config.services.external_cluster_ip = random.bool();
    if one_in(random, 3) {
        config.services.node_port_cidrs = vec![cidr("198.51.100.0/24"), cidr("172.18.0.1/32"), cidr("fd00:18::/64")];
    }
    if random.bool() {
        config.cluster.service_cidrs = vec![cidr("10.96.0.0/16"), cidr("fd00:96::/112")];
    }
    if one_in(random, 4) {
        config.cluster.pod_cidrs = vec![cidr("10.244.0.0/16"), cidr("fd00:244::/32")];
    }
    if one_in(random, 3) {
        config.policy.own_node_egress = OwnNodeEgress::Enforce;
    }
    config.policy.on_change = pick(random, &[OnChange::Keep, OnChange::Keep, OnChange::Cut, OnChange::Drain]);
    config
}

/// Asks `pairs` questions about clusters of the seeds from `first_seed` on.
pub(crate) fn questions(first_seed: u64, pairs: u64) -> Report {
    let next = AtomicU64::new(first_seed);
    let asked = AtomicU64::new(0);
    let total = Mutex::new(Report { first_seed, ..Report::default() });
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while asked.load(Ordering::Relaxed) < pairs {
                    let report = one_cluster(next.fetch_add(1, Ordering::Relaxed));
                    asked.fetch_add(report.policy + report.services, Ordering::Relaxed);
                    let mut total = total.lock().unwrap();
                    total.add(report);
                    if total.failures.len() >= FAILURES_MAX {
                        return;
                    }
                }
            });
        }
    });
    total.into_inner().unwrap()
}

fn one_cluster(seed: u64) -> Report {
    let mut cluster = Cluster::new(seed);
    let mut random = Rng::with_seed(seed ^ 0x9e37_79b9);
    let config = config(&mut random);
    let mut report = Report { clusters: 1, ..Report::default() };
    let mut before: Option<Court> = None;
    let mut sessions = Sessions::new(seed);
    let mut standing = Standing::new("node-1", seed);
    let mut objects_before = Vec::new();
    for generation in 0..GENERATIONS {
        if generation > 0 {
            cluster.change();
        }
        let court = match Court::new(&cluster.objects, &config, before.as_ref()) {
            Ok(court) => court,
            Err(why) => {
                report.failures.push(format!("WEIR_SEED={seed} generation {generation}: valid objects are refused: {why}"));
                return report;
            }
        };
        report.generations += 1;
        if let Some(failure) = ask(seed, &cluster, &court, &mut random, QUESTIONS, &mut report) {
            report.failures.push(failure);
            return report;
        }
        if let Err(astray) = sessions.come(&court, generation, SESSIONS) {
            report.failures.push(minimal::session(seed, &config, &astray));
            return report;
        }
        if let Err((arrival, wrong)) = standing.meet(&court, CONNECTIONS, &mut random) {
            report.failures.push(minimal::standing(seed, &objects_before, &cluster.objects, &config, &arrival, wrong));
            return report;
        }
        objects_before.clone_from(&cluster.objects);
        if generation + 1 == GENERATIONS {
            for node in 0..court.tables.len() {
                let tally = packets::send(&court, node, PACKETS, &mut random);
                report.packets += tally.packets;
                report.delivered += tally.delivered;
                if let Some((arrival, wrong)) = tally.difference {
                    let at = &court.snapshot.nodes[node].meta.name;
                    report.failures.push(minimal::packet(seed, &cluster.objects, &config, (at, &arrival), wrong));
                    return report;
                }
            }
        }
        before = Some(court);
    }
    (report.kept, report.anew, report.standing) = (sessions.kept, sessions.anew, standing.tally());
    report
}

/// Compiles clusters again and again with their objects in any order; gives how many times, and what differs.
pub(crate) fn orders(first_seed: u64, clusters: u64) -> (u64, Vec<String>) {
    let (mut count, mut failures) = (0, Vec::new());
    for seed in first_seed..first_seed + clusters {
        let mut cluster = Cluster::new(seed);
        let mut random = Rng::with_seed(seed);
        let config = config(&mut random);
        let expected = states(&Court::new(&cluster.objects, &config, None).unwrap());
        for _ in 0..4 {
            random.shuffle(&mut cluster.objects);
            let court = Court::new(&cluster.objects, &config, None).unwrap();
            if states(&court) != expected {
                failures.push(format!("WEIR_SEED={seed}: the order of objects changes a state"));
            }
            failures.extend(ask(seed, &cluster, &court, &mut random, QUESTIONS / 10, &mut Report::default()));
            count += 1;
        }
    }
    (count, failures)
}

/// The bytes of every node's state, by name.
fn states(court: &Court) -> BTreeMap<String, String> {
    let states = court.tables.iter().map(|t| &t.state);
    states.map(|s| (s.nodes[s.this_node as usize].name.clone(), serde_json::to_string(s.as_ref()).unwrap())).collect()
}

fn ask(seed: u64, cluster: &Cluster, court: &Court, random: &mut Rng, count: u64, report: &mut Report) -> Option<String> {
    let pool = Pool::new(&court.snapshot);
    let mut asked = 0;
    for _ in 0..count * 4 {
        if asked == count {
            break;
        }
        if one_in(random, 4) {
            asked += 1;
            report.services += 1;
            let question = pool.service(random);
            match court.ask(&question) {
                Ok(agreed) => report.forwarded += u64::from(agreed == Agreed::Goes),
                Err(difference) => return Some(minimal::case(seed, &cluster.objects, &court.config, &question, &difference)),
            }
            continue;
        }
        let flow = pool.flow(random);
        let ends = [(flow.from, Direction::Egress), (flow.to, Direction::Ingress)];
        if ends.iter().all(|(own, _)| court.node_of(*own).is_none()) {
            continue;
        }
        asked += 1;
        report.policy += 1;
        for (_, direction) in ends {
            let question = Question::Side(flow, direction);
            match court.ask(&question) {
                Ok(agreed) => report.denied += u64::from(agreed == Agreed::Stops),
                Err(difference) => return Some(minimal::case(seed, &cluster.objects, &court.config, &question, &difference)),
            }
            if one_in(random, 16) {
                report.explained += 1;
                if let Some(difference) = court.misexplained(&flow, direction) {
                    return Some(minimal::explanation(seed, &cluster.objects, &court.config, &question, &difference));
                }
            }
        }
    }
    None
}
