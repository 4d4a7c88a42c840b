//! Runs one row of the benches a few times: for callgrind and perf, and for a quick look.
//!
//! `rounds ROW [FLOWS [ROUNDS]]` prints the best and the median round in ns an operation; a round has 16,384. Under callgrind with
//! `--toggle-collect='*counted*'` only what a round measures is counted, which is how `ci/instructions.sh` counts.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_bench::frames::Frames;
use weir_bench::map_path::{Entry, MapPath};
use weir_bench::maps::Hashbrown;
use weir_bench::plan::Plan;
use weir_bench::traffic::{BATCH, KEY, RULES, SLOTS, Traffic, frame_bytes};
use weir_bench::world;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{Direction, Family, Ip, proto};
use weir_dataplane::overlay::vxlan;

/// A row's name, and how it does a round.
type Row = (&'static str, fn(&mut Subject) -> Duration);
const ROWS: [Row; 11] = [
    ("established_dnat_vxlan", Subject::established),
    ("established_decap", Subject::answers),
    ("established_ipv6", Subject::established),
    ("lone_packet", Subject::lone),
    ("two_workers", Subject::two_workers),
    ("new_connection", Subject::new_connections),
    ("hashbrown", Subject::on_hashbrown),
    ("policy", Subject::policy),
    ("encap", Subject::encap),
    ("decap", Subject::decap),
    ("lookup_hit", Subject::lookup),
];

/// What all rows are about.
struct Subject {
    traffic: Traffic,
    /// A second worker.
    other: Option<Traffic>,
    map: Option<MapPath<Hashbrown<Entry>>>,
    random: fastrand::Rng,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let wanted = args.next().unwrap_or_default();
    let mut number = |default: u32| args.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (flows, rounds) = (number(1000), number(200).max(1));
    let Some((name, round)) = ROWS.iter().find(|(name, _)| *name == wanted) else {
        eprintln!("usage: rounds ROW [FLOWS [ROUNDS]]\nrows: {}", ROWS.map(|(name, _)| name).join(", "));
        return ExitCode::from(2);
    };
    let family = if name.ends_with("ipv6") { Family::V6 } else { Family::V4 };
    let traffic = Traffic::with(Plan { family, ..Plan::MAIN }, flows, Arc::new(world::tables(RULES)), KEY);
    let mut subject = Subject { traffic, other: None, map: None, random: fastrand::Rng::with_seed(5) };
    let mut times: Vec<Duration> = (0..rounds).map(|_| round(&mut subject)).collect();
    times.sort_unstable();
    let nanos = |time: Duration| time.as_nanos() as f64 / f64::from(SLOTS);
    println!("{name} {flows}: best {:.1}, median {:.1} ns", nanos(times[0]), nanos(times[times.len() / 2]));
    ExitCode::SUCCESS
}

/// What a profiler should look at is what happens in here.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

impl Subject {
    fn round(&mut self) -> Duration {
        counted(&mut || _ = self.traffic.run())
    }
    fn established(&mut self) -> Duration {
        self.traffic.fill_requests();
        self.round()
    }
    fn answers(&mut self) -> Duration {
        self.traffic.fill_replies();
        self.round()
    }
    fn lone(&mut self) -> Duration {
        self.traffic.fill_requests();
        counted(&mut || _ = self.traffic.run_in(1))
    }
    /// The mean time of two workers that begin together.
    fn two_workers(&mut self) -> Duration {
        let other = self.other.get_or_insert_with(|| self.traffic.beside());
        self.traffic.run_both(other)
    }
    fn new_connections(&mut self) -> Duration {
        self.traffic.fill_first_packets();
        let round = self.round();
        self.traffic.forget_first_packets();
        round
    }
    fn on_hashbrown(&mut self) -> Duration {
        let map = self.map.get_or_insert_with(|| MapPath::new(&self.traffic));
        self.traffic.fill_requests();
        counted(&mut || _ = map.run(&mut self.traffic))
    }
    fn policy(&mut self) -> Duration {
        let mut question = |_| {
            let peer = world::outside(self.random.u32(..RULES.min(world::BLOCKS_MAX)), self.random.u8(..));
            (Ip::v4(world::pod(self.random.u32(..world::PODS)).into()), Ip::v4(peer.into()), self.random.u16(..))
        };
        let questions: Vec<(Ip, Ip, u16)> = (0..SLOTS).map(&mut question).collect();
        let (tables, mut allowed) = (&self.traffic.tables, 0);
        let took = counted(&mut || {
            let judge = |(pod, peer, port): &(Ip, Ip, u16)| tables.judge(*pod, Direction::Egress, *peer, proto::TCP, *port, false).allowed;
            allowed = questions.iter().filter(|question| judge(question)).count() as u32;
        });
        assert!(allowed > 0 && allowed < SLOTS, "some are allowed, and some are not");
        took
    }
    fn encap(&mut self) -> Duration {
        let mut frames = Frames::new(Plan::MAIN, frame_bytes(Family::V4));
        let template = frames.template();
        counted(&mut || {
            for turn in 0..SLOTS / BATCH as u32 {
                for frame in &mut frames.frames {
                    assert!(vxlan::encap(&frames.arena, frame, &template, 0, turn.into()));
                    frame.pull_front(vxlan::OVERHEAD_V4);
                }
            }
        })
    }
    fn decap(&mut self) -> Duration {
        let mut frames = Frames::new(Plan::MAIN, frame_bytes(Family::V4));
        let outer = frames.wrap();
        counted(&mut || {
            for _ in 0..SLOTS / BATCH as u32 {
                for frame in &mut frames.frames {
                    let found = vxlan::decap(frames.arena.bytes(frame), &outer).expect("an overlay packet");
                    frame.pull_front(found.inner);
                    assert!(frames.arena.push_front(frame, found.inner));
                }
            }
        })
    }
    fn lookup(&mut self) -> Duration {
        let questions: Vec<Tuple> = (0..SLOTS).map(|_| self.traffic.plan.tuple(self.random.u32(..self.traffic.flows()))).collect();
        let (mut hashes, mut hits) = ([0; BATCH], [None; BATCH]);
        counted(&mut || {
            for batch in questions.chunks_exact(BATCH) {
                self.traffic.conns.lookup_batch(batch, &mut hashes, &mut hits);
                assert!(hits.iter().all(Option::is_some));
            }
        })
    }
}
