//! What a worker notes: the decisions alone are the very ones among all packets, and the ledger of drops meets the counters.

mod common;

use common::{TestNode, UPLINK, add_service, cluster, isolate, tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::events::{Event, Observer, is_decision};
use weir_dataplane::flows::{Drops, Ledger, Namer, Watch, ring};
use weir_dataplane::io::{Batch, PacketIo, PortId};
use weir_dataplane::model::{Direction, OnChange, Protocol, proto};
use weir_dataplane::verdict::DropReason;
use weir_dataplane::wire::{checksum, tcp};

/// Node `a`: `client` may reach `web` on 8080 only; flows are asked again when policies change.
fn node(on_change: OnChange) -> TestNode {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![1], 8080);
    add_service(&mut state, "none", Protocol::Tcp, &["10.96.0.99:80"], &[]);
    TestNode::with(&state, |runtime| runtime.config.policy.on_change = on_change)
}

/// A frame of a few flows, most of them with something wrong now and then.
fn any_frame(node: &TestNode, random: &mut fastrand::Rng) -> (PortId, Vec<u8>) {
    let (client, web) = (node.pod("client"), node.pod("web"));
    let sport = random.u16(2000..2008);
    let flags = random.choice([tcp::SYN, tcp::ACK, tcp::ACK, tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST]).unwrap();
    let (port, from, to) = random
        .choice([
            (client, format!("10.244.1.6:{sport}"), "10.244.1.5:8080"),
            (client, format!("10.244.1.6:{sport}"), "10.244.1.5:22"),
            (client, format!("10.244.1.6:{sport}"), "10.96.0.10:80"),
            (client, format!("10.244.1.6:{sport}"), "10.96.0.99:80"),
            (client, format!("10.244.1.6:{sport}"), "10.96.0.10:81"),
            (client, format!("10.244.1.6:{sport}"), "10.244.2.7:80"),
            (client, format!("10.244.1.7:{sport}"), "10.244.1.5:8080"),
            (web, "10.244.1.5:8080".into(), &*format!("10.244.1.6:{sport}")),
            (web, "10.244.1.5:8080".into(), "10.244.1.6:1"),
            (UPLINK, format!("10.0.0.77:{sport}"), "10.244.1.5:8080"),
            (UPLINK, format!("10.0.0.77:{sport}"), "10.0.0.10:22"),
        ])
        .map(|(port, from, to)| (port, from, to.to_owned()))
        .unwrap();
    let protocol = *random.choice(&[proto::TCP, proto::TCP, proto::TCP, proto::UDP, proto::ICMP]).unwrap();
    let mut craft = Craft { tcp_flags: flags, ..node.craft(port, tuple(protocol, &from, &to)) };
    match random.u8(..20) {
        0 => craft.ttl = 1,
        1 => craft.payload = vec![0; 1600],
        2 => craft.dst_mac.0[5] ^= 1,
        _ => {}
    }
    let mut frame = craft.frame();
    match random.u8(..30) {
        0 => frame.truncate(random.usize(14..30)),
        1 => frame[12..14].copy_from_slice(&[0x08, 0x06]),
        // Parts of fragmented packets: a first one, and one in the middle.
        part @ (2 | 3) => {
            frame[20..22].copy_from_slice(if part == 2 { &[0x20, 0] } else { &[0x20, 9] });
            frame[24..26].fill(0);
            let sum = checksum::full(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        _ => {}
    }
    (port, frame)
}

/// Keeps a line for each decision among all packets.
#[derive(Default)]
struct Decisions(Vec<String>);

impl Observer for Decisions {
    fn packet(&mut self, event: &Event<'_>) {
        if is_decision(event.verdict, event.trail.state) {
            self.0.push(format!("{:?} {:?} {:?} {:?} {:?}", event.in_port, event.decap, event.headers, event.verdict, event.trail));
        }
    }
}

fn batch(node: &mut TestNode, frames: &[(PortId, Vec<u8>)], observer: &mut impl Observer) {
    frames.iter().for_each(|(port, frame)| assert!(node.io.push(*port, frame)));
    let mut batch = Batch::new();
    node.io.rx(&mut batch).unwrap();
    assert_eq!(batch.len(), frames.len());
    node.process(&mut batch, observer);
    batch.into_iter().for_each(|packet| node.io.free(packet.frame));
}

#[test]
fn decisions_alone_are_those_among_all_packets_and_the_ledger_meets_the_counters() {
    let mut seen_reasons = std::collections::BTreeSet::new();
    for (seed, on_change) in (0..60).zip([OnChange::Keep, OnChange::Cut, OnChange::Drain].into_iter().cycle()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut all, mut few) = (node(on_change), node(on_change));
        let (mut writer, mut reader) = ring(4096);
        let (mut ledger, mut drops) = (Ledger::default(), Drops::default());
        for round in 0..30 {
            let frames: Vec<_> = (0..random.usize(1..=32)).map(|_| any_frame(&all, &mut random)).collect();
            let mut expected = Decisions::default();
            batch(&mut all, &frames, &mut expected);
            ledger.begin();
            // The borrow checker cannot see that the pipeline and the watch only read the tables.
            let tables = weir_dataplane::tables::Tables::compile(&few.tables.state, &few.tables.runtime, few.tables.generation);
            batch(&mut few, &frames, &mut Watch::<false> { ring: &mut writer, ledger: &mut ledger, tables: &tables, now: 0 });
            let mut got = Vec::new();
            reader.drain(|record| {
                let fate = record.fate;
                got.push(format!("{:?} {:?} {:?} {:?} {:?}", fate.in_port, fate.decap, fate.headers, fate.verdict, fate.trail));
            });
            assert_eq!(got, expected.0, "seed {seed}, round {round}");
            all.now += 1_000_000;
            few.now += 1_000_000;
            if round % 10 == 9 {
                drops.add(&std::mem::take(&mut ledger), &[&few.tables]);
                // Nobody may reach `web` any more, or client again.
                let mut state = cluster(0);
                isolate(&mut state, 0, if round == 9 { vec![] } else { vec![1] }, 8080);
                all.publish(&state);
                few.publish(&state);
            }
        }
        drops.add(&ledger, &[&few.tables]);
        let counters = &few.local.counters;
        for reason in DropReason::ALL {
            for (refused, counted) in [(false, counters.dropped(*reason)), (true, counters.rejected(*reason))] {
                let rows = drops.rows();
                let of = rows.iter().filter(|row| (row.cause.reason, row.cause.refused) == (*reason, refused));
                assert_eq!(of.map(|row| row.packets).sum::<u64>(), counted, "seed {seed}: {reason:?} refused: {refused}");
                seen_reasons.extend((counted > 0).then_some((*reason, refused)));
            }
        }
    }
    // The traffic is worth something: silent drops and refusals, of new and of known flows, before and in the stages.
    for wanted in [
        (DropReason::PolicyDenied, false),
        (DropReason::PolicyDenied, true),
        (DropReason::InvalidSourceIp, false),
        (DropReason::OtherHost, false),
        (DropReason::InvalidPacket, false),
        (DropReason::TtlExceeded, true),
        (DropReason::ServiceBackendNotFound, true),
        (DropReason::FirstFragmentNotFound, false),
    ] {
        assert!(seen_reasons.contains(&wanted), "{wanted:?} is not in {seen_reasons:?}");
    }
}

#[test]
fn a_denial_is_put_down_to_the_pod_and_the_policy_that_isolates_it() {
    let mut node = node(OnChange::Keep);
    let (client, mut ledger) = (node.pod("client"), Ledger::default());
    let (mut writer, mut reader) = ring(16);
    let frame = node.craft(client, tuple(proto::TCP, "10.244.1.6:2000", "10.244.1.5:22")).frame();
    let tables = weir_dataplane::tables::Tables::compile(&node.tables.state, &node.tables.runtime, node.tables.generation);
    let frames = vec![(client, frame); 3];
    batch(&mut node, &frames, &mut Watch::<false> { ring: &mut writer, ledger: &mut ledger, tables: &tables, now: 0 });

    let mut drops = Drops::default();
    drops.add(&ledger, &[&node.tables]);
    let [row] = &drops.rows()[..] else { panic!("{drops:?}") };
    assert_eq!((row.packets, row.cause.reason, row.cause.refused), (3, DropReason::PolicyDenied, false));
    assert_eq!(row.cause.pod.as_ref().map(ToString::to_string).as_deref(), Some("shop/web"));
    assert_eq!(row.cause.direction, Some(Direction::Ingress));
    assert_eq!(row.cause.policies.iter().map(|policy| &*policy.name).collect::<Vec<_>>(), ["isolate"]);

    // The same trail serves the flow events.
    let mut namer = Namer::new(std::sync::Arc::new(tables));
    let mut flows = Vec::new();
    reader.drain(|record| flows.push(namer.flow(record.time, &record.fate)));
    assert_eq!(flows.len(), 3);
    let explained = &flows[0].policy.as_ref().unwrap().explained;
    assert_eq!((explained.allowed, &*explained.isolated_by[0].name), (false, "isolate"));
}
