//! From objects to tables: how long does a change of a large cluster take to be ready?
//!
//! `objects` compiles what was loaded into a node's state, `tables` that into lookup tables, `full` does both. `one_endpoint`
//! follows a slice in which one endpoint ceases to be ready, or is so again, beside the state and the tables before it; `one_policy`
//! and `one_pod` likewise a policy with another port, a pod with other labels. Before that, what an object takes in memory.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_bench::allocations::Counting;
use weir_control::compile::{Compiler, compile};
use weir_control::source;
use weir_control::source::objects::Object;
use weir_dataplane::model::NodeConfig;
use weir_dataplane::runtime::Runtime;
use weir_dataplane::tables::Tables;
use weir_fixtures::clusters::{self, Size};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of a snapshot as loaded, of the node's state, and of the tables beside it.
fn bytes(size: &Size) -> [i64; 3] {
    let text = clusters::json(size);
    let config = NodeConfig::offline("node-0");
    let start = Counting::live_bytes();
    let snapshot = source::load_text("cluster.json", &text).unwrap();
    let loaded = Counting::live_bytes();
    let state = Arc::new(compile(&snapshot, "node-0", &config).unwrap());
    let compiled = Counting::live_bytes();
    let runtime = Arc::new(Runtime::offline(&state, config));
    let before = Counting::live_bytes();
    let tables = Tables::compile_shared(state, runtime, 1, None);
    let all = Counting::live_bytes();
    drop(tables);
    [loaded - start, compiled - loaded, all - before]
}

/// Prints what one more object takes: the difference of two clusters, by how many more there are. The policies all select pods
/// of this node.
fn memory() {
    let base = Size { services: 2_000, endpoints_per_service: 10, pods: 100, nodes: 1, policies: 1_000, namespaces: 20 };
    let more = [
        ("service with 10 endpoints", Size { services: 4_000, ..base }, 2_000),
        ("endpoint", Size { endpoints_per_service: 20, ..base }, 20_000),
        ("policy", Size { policies: 2_000, ..base }, 1_000),
        ("pod of another node", Size { pods: 10_100, nodes: 101, ..base }, 10_000),
    ];
    let without = bytes(&base);
    println!("bytes for one more: as loaded, in the node's state, in its tables");
    for (what, size, count) in more {
        let with = bytes(&size);
        let [loaded, state, tables] = [0, 1, 2].map(|n| (with[n] - without[n]) / count);
        println!("{what}: {loaded} {state} {tables}");
    }
}

fn large_clusters(c: &mut Criterion) {
    memory();
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
        let policies = [1, 2].map(|port| {
            let text = clusters::changed_policy(&size, size.policies / 2, port);
            Object::NetworkPolicy(source::load_text("policy.json", &text).unwrap().network_policies.remove(0))
        });
        let pods = ["a", "b"].map(|tier| {
            let text = clusters::changed_pod(&size, size.nodes, tier);
            Object::Pod(source::load_text("pod.json", &text).unwrap().pods.remove(0))
        });
        for (what, objects) in [("one_policy", policies), ("one_pod", pods)] {
            group.bench_function(format!("{what}/{name}"), |b| {
                b.iter(|| {
                    turn += 1;
                    let state = compiler.apply(objects[turn % 2].clone()).unwrap().clone();
                    tables = Tables::compile_shared(state, runtime.clone(), 1 + turn as u32, Some(&tables));
                    black_box(&tables);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, large_clusters);
criterion_main!(benches);
