//! What an attacker can make a packet cost.
//!
//! Answers: is any traffic much dearer than a packet that opens a flow and means no harm? The goal is twice `benign_miss`. Axis:
//! the attack; at 100 k live flows, or as many as the run is limited to.
//!
//! - `colliding_under_key_0`: tuples that would meet in 1/128 of the index if nobody had set a key;
//! - `colliding_under_the_key`: the same by somebody who knows the secret; what finds no room is refused;
//! - `syn_flood`: SYNs of ever new flows against a table that they have filled;
//! - `first_fragments`, `later_fragments` (whose first one nobody saw), `malformed` (eight ways in turn).

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use weir_bench::hostile::Fragments;
use weir_bench::plan::Plan;
use weir_bench::sizes;
use weir_bench::traffic::{KEY, SLOTS, Traffic};

use crate::rig::{World, group, measured, opened, row};

pub(crate) fn rows(criterion: &mut Criterion, world: &mut World) {
    let flows = sizes::up_to(100_000);
    let mut rows = group(criterion, "hostile", 1);
    row(
        &mut rows,
        BenchmarkId::new("benign_miss", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_first_packets();
            opened(traffic)
        },
    );
    for (name, key) in [("colliding_under_key_0", 0), ("colliding_under_the_key", KEY)] {
        row(
            &mut rows,
            BenchmarkId::new(name, flows),
            || {
                let traffic = world.of(Plan::MAIN, flows);
                (traffic.colliding(key), traffic)
            },
            |(colliding, traffic)| {
                traffic.fill_first_of(colliding);
                let took = traffic.run();
                traffic.forget_first_packets();
                took
            },
        );
    }
    row(
        &mut rows,
        BenchmarkId::new("first_fragments", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_fragments(Fragments::First);
            measured(traffic, 0)
        },
    );
    row(
        &mut rows,
        BenchmarkId::new("later_fragments", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_fragments(Fragments::Later);
            measured(traffic, SLOTS.into())
        },
    );
    row(
        &mut rows,
        BenchmarkId::new("malformed", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_malformed();
            measured(traffic, SLOTS.into())
        },
    );
    let fill_table = || {
        let mut traffic = Traffic::new(flows);
        while !traffic.local.conns.is_pressed() {
            flood(&mut traffic);
        }
        traffic
    };
    row(&mut rows, BenchmarkId::new("syn_flood", flows), fill_table, flood);
    rows.finish();
}

fn flood(traffic: &mut Traffic) -> Duration {
    traffic.fill_syns();
    traffic.run()
}
