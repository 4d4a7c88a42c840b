//! What `weir replay` costs a packet: the pipeline on a capture, and the lines that are written.
//!
//! `long`: 1,000 flows through a Service; `short`: a flow of three packets each, none seen before. `json_per_packet` writes the
//! contract's JSON lines, `flow` gathers flows, `summary` the sums alone.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_control::compile::compile;
use weir_control::sim::flows::Flows;
use weir_control::sim::lines::Lines;
use weir_control::sim::node::SimNode;
use weir_control::sim::replay::{self, Taken, Watcher};
use weir_control::source;
use weir_dataplane::capture::{Capture, PcapWriter};
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::model::{Ip, MacAddr, NodeConfig, NodeState, proto};
use weir_dataplane::wire::tcp;

/// Packets of a capture.
const PACKETS: u32 = 300_000;

/// A capture of shop/gateway's requests to the Service: SYN, ACK, ACK.
fn capture(flows: u32) -> Vec<u8> {
    let (client, service) = (Ip::v4(0x0af4_010b), Ip::v4(0x0a60_0014));
    let mut writer = PcapWriter::new(Vec::new()).unwrap();
    let rounds = PACKETS / flows;
    let mut time = 1_767_225_600_000_000_000;
    // In blocks of flows, so that the packets of a short one are near each other.
    for block in (0..flows).step_by(1000) {
        for round in 0..rounds {
            for flow in block..(block + 1000).min(flows) {
                // 60,000 source ports, then the next pods of the same kind.
                let (sport, pod) = (1024 + flow % 60_000, flow / 60_000);
                let tuple = Tuple { src: Ip(client.0 + u128::from(pod)), dst: service, sport: sport as u16, dport: 80, proto: proto::TCP };
                let mut craft = Craft::new(tuple);
                (craft.src_mac, craft.dst_mac) = (MacAddr::from_ip(tuple.src.to_std()), MacAddr::GATEWAY);
                craft.tcp_flags = if round == 0 { tcp::SYN } else { tcp::ACK };
                writer.packet(time, &craft.frame()).unwrap();
                time += 1_000;
            }
        }
    }
    writer.finish().unwrap()
}

fn node_state() -> NodeState {
    let path = weir_fixtures::root().join("scenarios/denied-by-policy/snapshot.yaml");
    let mut text = std::fs::read_to_string(path).unwrap();
    for pod in 1..3 {
        text.push_str(&format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{namespace: shop, name: gateway-{pod}, labels: {{app: gateway}}}}\n  spec: {{nodeName: \
             node-a, containers: [{{name: main}}]}}\n  status: {{phase: Running, podIPs: [{{ip: 10.244.1.{}}}]}}\n",
            11 + pod
        ));
    }
    let snapshot = source::load_text("snapshot.yaml", &text).unwrap();
    compile(&snapshot, "node-a", &NodeConfig::offline("node-a")).unwrap()
}

/// Replays a capture.
fn run(bytes: &[u8], watcher: Option<&mut Watcher<'_>>, node: &mut SimNode) {
    let port_of = replay::port_of(node, &[]).unwrap();
    let capture = Capture::new(Box::new(Cursor::new(bytes.to_vec()))).unwrap();
    let ended = replay::run(node, capture, port_of, watcher, |_, _| {}).unwrap();
    assert_eq!(ended.summary.forward, u64::from(PACKETS), "{:?}", ended.summary);
}

fn replays(c: &mut Criterion) {
    let state = node_state();
    let node = || SimNode::new(&state, NodeConfig::offline("node-a"), 1).unwrap();
    for (name, flows) in [("long", 1_000), ("short", PACKETS / 3)] {
        let bytes = capture(flows);
        let mut group = c.benchmark_group("replay");
        group.sample_size(10).throughput(Throughput::Elements(PACKETS.into()));
        group.bench_function(format!("summary/{name}"), |b| {
            b.iter_batched_ref(node, |node| run(&bytes, None, node), criterion::BatchSize::PerIteration);
        });
        group.bench_function(format!("json_per_packet/{name}"), |b| {
            let once = |node: &mut SimNode| {
                let (mut lines, mut out) = (Lines::new(node.tables().clone()), std::io::sink());
                let mut watcher = |taken: &Taken<'_>| lines.write(&mut out, taken.note, taken.fate);
                run(&bytes, Some(&mut watcher), node);
            };
            b.iter_batched_ref(node, once, criterion::BatchSize::PerIteration);
        });
        group.bench_function(format!("flow/{name}"), |b| {
            let once = |node: &mut SimNode| {
                let mut flows = Flows::default();
                let mut watcher = |taken: &Taken<'_>| {
                    flows.add(taken.note.number, taken.note.time, taken.note.wire_len.into(), taken.fate);
                    Ok(())
                };
                run(&bytes, Some(&mut watcher), node);
                black_box(&flows);
            };
            b.iter_batched_ref(node, once, criterion::BatchSize::PerIteration);
        });
        group.finish();
    }
}

criterion_group!(benches, replays);
criterion_main!(benches);
