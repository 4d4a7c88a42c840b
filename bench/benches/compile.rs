//! From objects to tables: how long does a change of a large cluster take to be ready?
//!
//! `objects` compiles what was loaded into a node's state, `tables` that into lookup tables, `full` does both; `one_endpoint` does both
//! for the snapshot in which one endpoint ceased to be ready, beside the tables before it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_control::compile::compile;
use weir_control::source;
use weir_dataplane::model::NodeConfig;
use weir_dataplane::runtime::Runtime;
use weir_dataplane::tables::Tables;
use weir_fixtures::clusters::{self, Size};

fn large_clusters(c: &mut Criterion) {
    for (name, size) in [("10k_services", Size::MANY_SERVICES), ("250k_endpoints", Size::MANY_ENDPOINTS)] {
        let text = clusters::json(&size);
        let start = Instant::now();
        let snapshot = source::load_text("cluster.json", &text).unwrap();
        println!("{name}: {} MB of JSON read in {:?}", text.len() >> 20, start.elapsed());
        let config = NodeConfig::offline("node-0");
        let mut group = c.benchmark_group("compile");
        group.sample_size(10);
        group.bench_function(format!("objects/{name}"), |b| b.iter(|| black_box(compile(&snapshot, "node-0", &config).unwrap())));
        let state = Arc::new(compile(&snapshot, "node-0", &config).unwrap());
        let runtime = Arc::new(Runtime::offline(&state, config.clone()));
        group.bench_function(format!("tables/{name}"), |b| {
            b.iter(|| black_box(Tables::compile_shared(state.clone(), runtime.clone(), 1, None)));
        });
        let whole = |snapshot, before| {
            let state = Arc::new(compile(snapshot, "node-0", &config).unwrap());
            black_box(Tables::compile_shared(state, runtime.clone(), 2, before))
        };
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("full/{name}"), |b| b.iter(|| whole(&snapshot, None)));
        let before = Tables::compile_shared(state.clone(), runtime.clone(), 1, None);
        let mut changed = snapshot.clone();
        let endpoint = changed.slices.iter_mut().flat_map(|slice| &mut slice.endpoints).find(|endpoint| endpoint.ready);
        endpoint.expect("one that is ready").ready = false;
        group.bench_function(format!("one_endpoint/{name}"), |b| b.iter(|| whole(&changed, Some(&before))));
        group.finish();
    }
}

criterion_group!(benches, large_clusters);
criterion_main!(benches);
