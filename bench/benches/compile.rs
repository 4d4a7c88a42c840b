//! From objects to tables: how long does a change of a large cluster take to be ready?
//!
//! `objects` compiles what was loaded into a node's state, `tables` that into lookup tables, `full` does both. `one_endpoint`
//! follows a slice in which one endpoint ceases to be ready, or is so again, beside the state and the tables before it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_control::compile::{Compiler, compile};
use weir_control::source;
use weir_control::source::objects::Object;
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
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("full/{name}"), |b| {
            b.iter(|| {
                let state = Arc::new(compile(&snapshot, "node-0", &config).unwrap());
                black_box(Tables::compile_shared(state, runtime.clone(), 2, None))
            });
        });
        let mut compiler = Compiler::new(snapshot.clone(), "node-0", config.clone()).unwrap();
        let slices = [false, true].map(|ready| {
            let text = clusters::changed_slice(&size, size.services / 2, ready);
            Object::EndpointSlice(source::load_text("slice.json", &text).unwrap().slices.remove(0))
        });
        let mut tables = Tables::compile_shared(compiler.state().clone(), runtime.clone(), 1, None);
        let mut turn = 0;
        group.bench_function(format!("one_endpoint/{name}"), |b| {
            b.iter(|| {
                turn += 1;
                let state = compiler.apply(slices[turn % 2].clone()).unwrap().clone();
                tables = Tables::compile_shared(state, runtime.clone(), 1 + turn as u32, Some(&tables));
                black_box(&tables);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, large_clusters);
criterion_main!(benches);
