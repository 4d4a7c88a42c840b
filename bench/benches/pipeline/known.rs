//! The main rows: known flows in both directions, first packets, lone packets, and known flows on other maps.
//!
//! Answers: how fast is the whole path, and what would it be on an ordinary hash map? Axes: live flows, 1 k to 10 M. Peers:
//! hashbrown, papaya and dashmap inside the same path. `lone_packet` is `established_dnat_vxlan` in batches of one.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use weir_bench::map_path::{Entry, MapPath};
use weir_bench::maps::{Dash, FlowMap, Hashbrown, Papaya};
use weir_bench::plan::Plan;

use crate::rig::{World, group, measured, measured_in, opened, row};

pub(crate) fn rows(criterion: &mut Criterion, world: &mut World, flows: u32) {
    let mut rows = group(criterion, "pipeline", 2);
    row(
        &mut rows,
        BenchmarkId::new("established_dnat_vxlan", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_requests();
            measured(traffic, 0)
        },
    );
    row(
        &mut rows,
        BenchmarkId::new("established_decap", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_replies();
            measured(traffic, 0)
        },
    );
    row(
        &mut rows,
        BenchmarkId::new("lone_packet", flows),
        || world.of(Plan::MAIN, flows),
        |traffic| {
            traffic.fill_requests();
            measured_in(traffic, 1, 0)
        },
    );
    if flows >= 100_000 {
        row(
            &mut rows,
            BenchmarkId::new("new_connection", flows),
            || world.of(Plan::MAIN, flows),
            |traffic| {
                traffic.fill_first_packets();
                opened(traffic)
            },
        );
    }
    rows.finish();
    on_map::<Hashbrown<Entry>>(&mut group(criterion, "pipeline_hashbrown", 2), world, flows);
    on_map::<Papaya<Entry>>(&mut group(criterion, "pipeline_papaya", 1), world, flows);
    on_map::<Dash<Entry>>(&mut group(criterion, "pipeline_dashmap", 1), world, flows);
}

fn on_map<M: FlowMap<Entry>>(rows: &mut BenchmarkGroup<'_, WallTime>, world: &mut World, flows: u32) {
    row(
        rows,
        BenchmarkId::new("established_dnat_vxlan", flows),
        || {
            let traffic = world.of(Plan::MAIN, flows);
            (MapPath::<M>::checked(traffic), traffic)
        },
        |(map, traffic)| {
            traffic.fill_requests();
            map.run(traffic)
        },
    );
}
