//! Bytes to headers.
//!
//! Answers: what does parsing cost, and what would a general parser take? Axes: the packet; TCP and UDP at random where there
//! are both. Peer: etherparse's slicing, which checks lengths as we do, but no checksum. The frames' lines are in the first
//! cache, as they are in the path when their turn comes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use etherparse::SlicedPacket;
use weir_bench::frames::Frames;
use weir_bench::plan::{Plan, Way};
use weir_bench::traffic::frame_bytes;
use weir_dataplane::model::Family;
use weir_dataplane::parse::{Headers, Kind, parse_into};

pub(crate) fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let frames = Frames::new(Plan { way: Way::Overlay, family }, frame_bytes(family));
        group.throughput(Throughput::Elements(frames.frames.len() as u64));
        group.bench_function(BenchmarkId::new("weir", name), |b| {
            let mut headers = Headers::BLANK;
            b.iter(|| {
                for frame in &frames.frames {
                    assert_eq!(parse_into(frames.arena.bytes(black_box(frame)), &mut headers), Ok(Kind::Ip));
                    black_box(&headers);
                }
            });
        });
        group.bench_function(BenchmarkId::new("etherparse", name), |b| {
            b.iter(|| {
                for frame in &frames.frames {
                    black_box(SlicedPacket::from_ethernet(frames.arena.bytes(black_box(frame))).expect("a packet"));
                }
            });
        });
    }
    group.finish();
}
