//! Edits of a packet: translation, encapsulation, decapsulation.
//!
//! Answers: what does a stored checksum delta save against summing the packet up, and what do encap and decap cost beside moving
//! that many bytes? Axes: frame length. Peers: full recomputation with our own sum; memcpy of the frame, which is what a
//! tunnel without headroom does. The frames' lines are in the first cache, as they are in the path.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use weir_bench::frames::{COUNT, Frames};
use weir_bench::plan::Plan;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::proto;
use weir_dataplane::nat::Rewrite;
use weir_dataplane::overlay::vxlan::{self, OVERHEAD_V4};
use weir_dataplane::parse::{Headers, Kind, parse_into};
use weir_dataplane::wire::{checksum, ipv4, tcp, udp};

/// Frames as short as they get, and as long as they fit into VXLAN. The short ones are called 64, with their checksum.
const LENGTHS: [(u32, usize); 2] = [(64, 60), (1464, 1460)];

pub(crate) fn nat(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nat");
    group.throughput(Throughput::Elements(COUNT.into()));
    for (name, len) in LENGTHS {
        let mut frames = Frames::new(Plan::MAIN, len);
        // There and back, so that the frames are as before.
        let there: Vec<Tuple> = (0..COUNT).map(|index| Plan::MAIN.translated(index, 0)).collect();
        let turn =
            |from: &[Tuple], to: &[Tuple]| -> Vec<Rewrite> { from.iter().zip(to).map(|(from, to)| Rewrite::compile(from, to)).collect() };
        let before: Vec<Tuple> = frames.headers.iter().map(|headers| headers.tuple).collect();
        let turns = [turn(&before, &there), turn(&there, &before)];
        let mut next = turns.iter().cycle();
        group.bench_function(BenchmarkId::new("delta", name), |b| {
            b.iter(|| {
                for ((frame, headers), rewrite) in frames.frames.iter_mut().zip(&frames.headers).zip(next.next().expect("a cycle")) {
                    rewrite.apply(frames.arena.bytes_mut(frame), headers).expect("a packet of this tuple");
                }
            });
        });
        let mut next = [&there, &before].into_iter().cycle();
        group.bench_function(BenchmarkId::new("full", name), |b| {
            b.iter(|| {
                for ((frame, headers), to) in frames.frames.iter_mut().zip(&frames.headers).zip(next.next().expect("a cycle")) {
                    translate_fully(frames.arena.bytes_mut(frame), headers, to);
                }
            });
        });
        let mut parsed = Headers::BLANK;
        assert!(frames.frames.iter().all(|frame| parse_into(frames.arena.bytes(frame), &mut parsed) == Ok(Kind::Ip)));
    }
    group.finish();
}

/// What [`Rewrite::apply`] does, without what was known before.
fn translate_fully(frame: &mut [u8], headers: &Headers, to: &Tuple) {
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    frame[l3 + 12..l3 + 16].copy_from_slice(&to.src.low32().to_be_bytes());
    frame[l3 + 16..l3 + 20].copy_from_slice(&to.dst.low32().to_be_bytes());
    frame[l4..l4 + 2].copy_from_slice(&to.sport.to_be_bytes());
    frame[l4 + 2..l4 + 4].copy_from_slice(&to.dport.to_be_bytes());
    let mut set = |at: usize, bytes: std::ops::Range<usize>, start: u64| {
        frame[at..at + 2].fill(0);
        let sum = checksum::full(&frame[bytes], start);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    };
    set(l3 + ipv4::CHECKSUM, l3..l4, 0);
    let field = if to.proto == proto::TCP { tcp::CHECKSUM } else { udp::CHECKSUM };
    let pseudo = checksum::pseudo(to.src, to.dst, to.proto, headers.l4_len() as u32);
    set(l4 + field, l4..headers.frame_len(), pseudo);
}

pub(crate) fn overlay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("overlay");
    group.throughput(Throughput::Elements(COUNT.into()));
    for (name, len) in LENGTHS {
        let mut frames = Frames::new(Plan::MAIN, len);
        let template = frames.template();
        group.bench_function(BenchmarkId::new("encap", name), |b| {
            b.iter(|| {
                for (hash, frame) in frames.frames.iter_mut().enumerate() {
                    assert!(vxlan::encap(&frames.arena, frame, &template, 0, hash as u64));
                    frame.pull_front(OVERHEAD_V4);
                }
            });
        });
        let outer = frames.wrap();
        group.bench_function(BenchmarkId::new("decap", name), |b| {
            b.iter(|| {
                for frame in &mut frames.frames {
                    let found = vxlan::decap(frames.arena.bytes(frame), black_box(&outer)).expect("an overlay packet");
                    frame.pull_front(found.inner);
                    assert!(frames.arena.push_front(frame, found.inner));
                }
            });
        });
        let mut copy = vec![0; len];
        group.bench_function(BenchmarkId::new("memcpy", name), |b| {
            b.iter(|| {
                for frame in &frames.frames {
                    black_box(&mut copy).copy_from_slice(&frames.arena.bytes(frame)[OVERHEAD_V4..]);
                }
            });
        });
    }
    group.finish();
}
