//! What `weir replay` costs a packet: the pipeline on a capture, and the lines that are written.
//!
//! `long`: 1,000 flows through a Service; `short`: a flow of three packets each, none seen before. `…_per_packet` writes a line for
//! each (the contract's JSON, the table, Hubble's messages), or its record as pcapng with a comment (`write`); `flow` gathers
//! flows, `summary` the sums alone.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_control::compile::compile;
use weir_control::observe::record::{Recorder, Seen};
use weir_control::sim::flows::Flows;
use weir_control::sim::hubble::Messages;
use weir_control::sim::lines::Lines;
use weir_control::sim::node::SimNode;
use weir_control::sim::replay::{self, Taken, Watcher};
use weir_control::sim::table::Table;
use weir_control::source;
use weir_dataplane::capture::{Capture, Direction, PcapWriter};
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::flows::Namer;
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

/// Replays a capture and writes a line, or with `write` a record with its comment, per packet.
fn per_packet(bytes: &[u8], form: &str, node: &mut SimNode) {
    let mut namer = Namer::new(node.tables().clone());
    let (mut lines, mut table, mut messages) = (Lines::default(), Table::default(), Messages::default());
    let (mut out, mut recorder) = (std::io::sink(), Recorder::new(std::io::sink()).unwrap());
    let mut watcher = |taken: &Taken<'_>| {
        let (id, time) = (taken.note.number, taken.note.time);
        let flow = namer.flow(time, taken.fate);
        let seen = |direction, bytes| Seen { id, time, port: taken.fate.in_port.0, direction, bytes, wire_len: bytes.len() as u32 };
        match (form, taken.after) {
            ("json", _) => lines.write(&mut out, id, &flow),
            ("table", _) => table.write(&mut out, id, &flow),
            ("hubble", _) => messages.write(&mut out, &flow),
            (_, after) => {
                recorder.packet(&seen(Direction::In, taken.before), Some(&flow))?;
                after.map_or(Ok(()), |bytes| recorder.packet(&seen(Direction::Out, bytes), None))
            }
        }
    };
    run(bytes, Some(&mut watcher), node);
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
        for form in ["json", "table", "hubble", "write"] {
            group.bench_function(format!("{form}_per_packet/{name}"), |b| {
                b.iter_batched_ref(node, |node| per_packet(&bytes, form, node), criterion::BatchSize::PerIteration);
            });
        }
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
