//! Known flows while the operator changes his mind.
//!
//! Answers: what does a worker pay for new tables, when every flow's next packet has its decision looked at again and nothing of
//! the tables is in a cache? Axis: snapshots a second, of a cluster with 10,000 services in which one endpoint changes; at 1 M
//! flows, or as many as the run is limited to. The tables were compiled before: compiling takes another core its time
//! (`compile`), not the worker's. The clock of the rate is the measured time. No peers.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use weir_bench::plan::Plan;
use weir_bench::traffic::{KEY, RULES, Traffic};
use weir_bench::{sizes, world};
use weir_dataplane::tables::Tables;

use crate::rig::{group, measured, row};

const SERVICES: u32 = 10_000;

/// Two states of the cluster, in turn, each under a new number.
struct Snapshots {
    states: [Tables; 2],
    generation: u32,
}

impl Snapshots {
    fn new() -> Self {
        let state = Arc::new(world::state(RULES, SERVICES - 2 * world::SERVICES));
        let runtime = Arc::new(world::runtime(&state));
        let mut changed = (*state).clone();
        let service = changed.services.last_mut().expect("services");
        Arc::make_mut(service).cluster.clear();
        let first = Tables::compile_shared(state, runtime.clone(), 1, None);
        let second = Tables::compile_shared(Arc::new(changed), runtime, 2, Some(&first));
        Self { states: [first, second], generation: 0 }
    }
    fn next(&mut self) -> Arc<Tables> {
        self.generation += 1;
        let Tables { state, runtime, ports, addresses, policies, services, routes, reassigned, .. } =
            &self.states[self.generation as usize % 2];
        Arc::new(Tables {
            generation: self.generation,
            state: state.clone(),
            runtime: runtime.clone(),
            ports: ports.clone(),
            addresses: addresses.clone(),
            policies: policies.clone(),
            services: services.clone(),
            routes: routes.clone(),
            reassigned: reassigned.clone(),
        })
    }
}

pub(crate) fn rows(criterion: &mut Criterion) {
    let flows = sizes::up_to(1_000_000);
    let mut rows = group(criterion, "snapshots", 2);
    let mut made: Option<(Traffic, Snapshots)> = None;
    for per_second in [0, 1, 10, 100] {
        let id = BenchmarkId::new(format!("per_second_{per_second}"), flows);
        row(
            &mut rows,
            id,
            || {
                let (traffic, snapshots) = made.get_or_insert_with(|| {
                    let mut snapshots = Snapshots::new();
                    let mut traffic = Traffic::with(Plan::MAIN, flows, snapshots.next(), KEY);
                    traffic.check();
                    (traffic, snapshots)
                });
                (traffic, snapshots, Duration::ZERO)
            },
            |(traffic, snapshots, since)| {
                if per_second > 0 && *since * per_second >= Duration::from_secs(1) {
                    traffic.tables = snapshots.next();
                    *since = Duration::ZERO;
                }
                traffic.fill_requests();
                let took = measured(traffic, 0);
                *since += took;
                took
            },
        );
    }
    rows.finish();
}
