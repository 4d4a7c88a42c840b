//! The hot lane does what the general lane does: three nodes get the same packets. On one of them somebody listens, so that every
//! packet takes the general lane; another does without the instructions that not every processor has. Verdicts, bytes, counters and
//! connections must be the same after every batch.
//!
//! Random flows of both families and all kinds of ends, in both directions, bare and inside VXLAN; packets that are spoofed, cut,
//! padded, marked, damaged, too long or at their last hop; and between the batches other policies, other pods, other backends,
//! new tables with nothing changed, and time.

mod common;

use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use weir_dataplane::conntrack::{FlowRecord, Ticks, Tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::events::{Event, Observer};
use weir_dataplane::io::{Batch, Packet, PacketIo, PortId};
use weir_dataplane::model::*;
use weir_dataplane::pipeline::{Cx, process};
use weir_dataplane::verdict::Verdict;
use weir_dataplane::wire::{checksum, tcp};

/// Listens, and hears nothing.
struct Everything;
impl Observer for Everything {
    fn packet(&mut self, _event: &Event<'_>) {}
}

/// Bytes behind the transport header, unless a packet is twisted.
const PAYLOAD: usize = 23;

/// Flows by the tuple of their first packet, without protocol and client's port.
const FLOWS: [(&str, &str, &str); 16] = [
    // On one node, to a service and past it.
    ("client", "10.244.1.6", "10.96.0.10:80"),
    ("client", "fd00:244:1::6", "[fd00:96::10]:80"),
    ("client", "10.244.1.6", "10.244.1.5:8080"),
    ("client", "fd00:244:1::6", "[fd00:244:1::5]:8080"),
    // To other nodes, likewise.
    ("client", "10.244.1.6", "10.96.0.20:80"),
    ("client", "fd00:244:1::6", "[fd00:96::20]:80"),
    ("client", "10.244.1.6", "10.244.2.7:5432"),
    ("client", "fd00:244:1::6", "[fd00:244:2::7]:5432"),
    // From another node, from the node itself, to and from the outside.
    ("node b", "10.244.2.7", "10.244.1.5:8080"),
    ("node b", "fd00:244:2::7", "[fd00:244:1::5]:8080"),
    ("host", "10.0.0.10", "10.96.0.20:80"),
    ("host", "10.0.0.10", "10.244.1.5:8080"),
    ("host", "fd00::10", "[fd00:96::20]:80"),
    ("host", "fd00::10", "[fd00:244:1::5]:8080"),
    ("client", "10.244.1.6", "192.0.2.1:443"),
    ("uplink", "192.0.2.9", "10.244.1.5:8080"),
];

/// What is wrong with a packet, or at least odd.
#[derive(Clone, Debug)]
enum Twist {
    None,
    Ttl(u8),
    Tos(u8),
    /// Of the outer header.
    OuterTos(u8),
    Payload(u16),
    Cut(u8),
    Padded(u8),
    /// So long that the frame is a chain of buffers, whatever its IP header says.
    Chain,
    Flip(u8, u8),
    OtherPort(u8),
    OtherSource,
    OtherPeer,
    WrongMac(bool),
    Unfinished,
    NoUdpChecksum,
    OnesChecksum,
    Fragment(u16),
    Options,
}

#[derive(Clone, Debug)]
struct Shot {
    flow: usize,
    proto: u8,
    sport: u16,
    reply: bool,
    flags: u8,
    twist: Twist,
}

#[derive(Clone, Debug)]
enum Step {
    Packets(Vec<Shot>),
    /// Another state comes in force.
    State(u8),
    Millis(u32),
}

fn any_shot() -> impl Strategy<Value = Shot> {
    let twist = prop_oneof![
        12 => Just(Twist::None),
        1 => (0u8..4).prop_map(Twist::Ttl),
        1 => any::<u8>().prop_map(Twist::Tos),
        1 => any::<u8>().prop_map(Twist::OuterTos),
        1 => prop_oneof![0..40u16, 1380..1520u16].prop_map(Twist::Payload),
        1 => any::<u8>().prop_map(Twist::Cut),
        1 => any::<u8>().prop_map(Twist::Padded),
        1 => Just(Twist::Chain),
        3 => (any::<u8>(), 1..=u8::MAX).prop_map(|(at, bits)| Twist::Flip(at, bits)),
        1 => (0u8..5).prop_map(Twist::OtherPort),
        1 => Just(Twist::OtherSource),
        1 => Just(Twist::OtherPeer),
        1 => any::<bool>().prop_map(Twist::WrongMac),
        1 => Just(Twist::Unfinished),
        1 => Just(Twist::NoUdpChecksum),
        1 => Just(Twist::OnesChecksum),
        1 => prop_oneof![Just(0x2000), Just(1), Just(0x2001), Just(0x8000)].prop_map(Twist::Fragment),
        1 => Just(Twist::Options),
    ];
    let proto = prop_oneof![4 => Just(proto::TCP), 4 => Just(proto::UDP), 1 => Just(proto::SCTP), 1 => Just(proto::ICMP)];
    let flags = prop_oneof![
        3 => Just(tcp::SYN),
        2 => Just(tcp::SYN | tcp::ACK),
        8 => Just(tcp::ACK),
        1 => Just(tcp::FIN | tcp::ACK),
        1 => Just(tcp::RST),
        1 => any::<u8>(),
    ];
    (0..FLOWS.len(), proto, 0u16..3, any::<bool>(), flags, twist).prop_map(|(flow, proto, sport, reply, flags, twist)| Shot {
        flow,
        proto,
        sport: 40_000 + sport,
        reply,
        flags,
        twist,
    })
}

/// A flow that opens properly and is used a few times, so that there is something to follow.
fn opened() -> impl Strategy<Value = Vec<Shot>> {
    (any_shot(), proptest::collection::vec((any::<bool>(), any_shot()), 0..8)).prop_map(|(first, more)| {
        let plain = |reply, flags| Shot { reply, flags, twist: Twist::None, ..first.clone() };
        let mut shots = vec![plain(false, tcp::SYN), plain(true, tcp::SYN | tcp::ACK), plain(false, tcp::ACK), plain(true, tcp::ACK)];
        shots.extend(more.into_iter().map(|(reply, other)| Shot { reply, flags: tcp::ACK, twist: other.twist, ..first.clone() }));
        shots
    })
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => opened().prop_map(Step::Packets),
        6 => proptest::collection::vec(any_shot(), 1..30).prop_map(Step::Packets),
        2 => (0u8..6).prop_map(Step::State),
        1 => prop_oneof![1u32..2000, 100_000u32..400_000].prop_map(Step::Millis),
    ];
    proptest::collection::vec(step, 1..24)
}

fn state(variant: u8) -> NodeState {
    let mut state = cluster(0);
    state.nodes.push(Node {
        name: "c".into(),
        addresses: vec![addr("10.0.0.12"), addr("fd00::12")],
        vtep_mac: MacAddr::from_ip(addr("10.0.0.12")),
        pod_cidrs: vec![net("10.244.3.0/24"), net("fd00:244:3::/64")],
    });
    add_service(&mut state, "web6", Protocol::Tcp, &["[fd00:96::10]:80"], &["[fd00:244:1::5]:8080"]);
    let far = if variant == 3 { ["10.244.3.8:5432", "[fd00:244:3::8]:5432"] } else { ["10.244.2.7:5432", "[fd00:244:2::7]:5432"] };
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        add_service(&mut state, "db", protocol, &["10.96.0.20:80"], &far[..1]);
        add_service(&mut state, "db6", protocol, &["[fd00:96::20]:80"], &far[1..]);
    }
    match variant {
        1 => isolate(&mut state, 0, vec![1], 8080),
        2 => isolate(&mut state, 0, vec![], 8080),
        // The client's address is another pod's now.
        4 => Arc::make_mut(&mut state.endpoints)[0].name = "stranger".into(),
        // The far pod has moved to another node.
        5 => Arc::make_mut(&mut state.endpoints)[1].node = 2,
        _ => {}
    }
    state
}

fn node(unfinished: bool, on_change: OnChange, with_macs: bool) -> TestNode {
    TestNode::with(&state(0), |runtime| {
        runtime.config.policy.on_change = on_change;
        for port in &mut runtime.ports {
            port.unfinished_checksums = unfinished;
            port.mac = port.mac.filter(|_| with_macs);
        }
    })
}

/// Where a packet with this source comes from.
fn home(node: &TestNode, source: Ip, hint: &str) -> (PortId, Option<&'static str>) {
    match source.to_std().to_string().as_str() {
        "10.244.1.6" | "fd00:244:1::6" => (node.pod("client"), None),
        "10.244.1.5" | "fd00:244:1::5" => (node.pod("web"), None),
        "10.0.0.10" | "fd00::10" => (HOST, None),
        remote if remote.starts_with("10.244.2.") || remote.starts_with("fd00:244:2:") => (UPLINK, Some("10.0.0.11")),
        remote if remote.starts_with("10.244.3.") || remote.starts_with("fd00:244:3:") => (UPLINK, Some("10.0.0.12")),
        _ if hint == "host" => (HOST, None),
        _ => (UPLINK, None),
    }
}

/// The frame of a shot, and where it comes in.
fn frame(node: &TestNode, shot: &Shot) -> (PortId, Vec<u8>) {
    let (hint, from, to) = FLOWS[shot.flow];
    let (src, (dst, dport)) = (ip(from), place(to));
    let number = if shot.proto == proto::ICMP && !src.is_v4() { proto::ICMPV6 } else { shot.proto };
    let echo = number == proto::ICMP || number == proto::ICMPV6;
    let original = Tuple { src, dst, sport: shot.sport, dport: if echo { shot.sport } else { dport }, proto: number };
    let known = node.conns.lookup(node.conns.hash(&original), &original).map(|hit| node.conns.flow(hit).to);
    let mut tuple = if shot.reply { known.unwrap_or(original).inverse() } else { original };
    let (mut port, mut peer) = home(node, tuple.src, hint);
    match shot.twist {
        Twist::OtherPort(other) => port = PortId(other.into()),
        Twist::OtherSource if tuple.src.is_v4() => tuple.src = Ip::v4(tuple.src.low32() ^ 3),
        Twist::OtherSource => tuple.src.0 ^= 3,
        Twist::OtherPeer => peer = peer.map(|peer| if peer == "10.0.0.11" { "10.0.0.12" } else { "10.0.0.11" }),
        _ => {}
    }
    let entry = &node.tables.runtime.ports[usize::from(port.0).min(node.tables.runtime.ports.len() - 1)];
    let own = MacAddr::from_ip(addr("10.0.0.10"));
    let (src_mac, dst_mac) = match port {
        UPLINK => (MacAddr([2, 0, 0, 0, 0, 99]), own),
        _ => (entry.mac.unwrap_or_default(), MacAddr::GATEWAY),
    };
    let mut craft = Craft { src_mac, dst_mac, tcp_flags: shot.flags, echo_reply: shot.reply, ..Craft::new(tuple) };
    match shot.twist {
        Twist::Ttl(ttl) => craft.ttl = ttl,
        Twist::Tos(tos) => craft.tos = tos,
        Twist::Payload(len) => craft.payload = vec![0x5a; len.into()],
        Twist::WrongMac(true) => craft.dst_mac.0[5] ^= 1,
        Twist::WrongMac(false) => craft.src_mac.0[5] ^= 1,
        _ => craft.payload = vec![0xa5; PAYLOAD],
    }
    let mut bytes = craft.frame();
    let l4 = if tuple.src.is_v4() { 34 } else { 54 };
    let field = l4 + if number == proto::TCP { 16 } else { 6 };
    let mut set = |at: usize, value: u16| {
        if let Some(field) = bytes.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    };
    let transport = number == proto::TCP || number == proto::UDP;
    match shot.twist {
        Twist::Unfinished if transport => {
            let len = PAYLOAD as u32 + if number == proto::TCP { 20 } else { 8 };
            set(field, checksum::fold(checksum::pseudo(tuple.src, tuple.dst, number, len)));
        }
        Twist::NoUdpChecksum if number == proto::UDP => set(field, 0),
        Twist::OnesChecksum if transport => set(field, 0xffff),
        Twist::Fragment(bits) if tuple.src.is_v4() => {
            set(20, bits);
            set(24, 0);
            let sum = checksum::full(&bytes[14..34], 0);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        Twist::Options if tuple.src.is_v4() => {
            bytes.splice(34..34, [1; 4]);
            let total = bytes.len() as u16 - 14;
            bytes[14] = 0x46;
            bytes[16..18].copy_from_slice(&total.to_be_bytes());
            bytes[24..26].fill(0);
            let sum = checksum::full(&bytes[14..38], 0);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        _ => {}
    }
    if let Some(peer) = peer {
        bytes[..6].copy_from_slice(&own.0);
        if let Twist::WrongMac(true) = shot.twist {
            bytes[5] ^= 1;
        }
        let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &bytes].concat();
        let outer = tuple_of_overlay(peer);
        let tos = if let Twist::OuterTos(tos) = shot.twist { tos } else { 0 };
        bytes = Craft { src_mac, dst_mac: own, payload, tos, ..Craft::new(outer) }.frame();
    }
    match shot.twist {
        Twist::Cut(count) => bytes.truncate(bytes.len() - usize::from(count) % bytes.len()),
        Twist::Padded(count) => bytes.resize(bytes.len() + usize::from(count), 0xee),
        Twist::Chain => bytes.resize(12_000, 0xee),
        Twist::Flip(at, bits) => {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
        _ => {}
    }
    (port, bytes)
}

fn tuple_of_overlay(peer: &str) -> Tuple {
    tuple(proto::UDP, &format!("{peer}:50000"), "10.0.0.10:8472")
}

/// Runs a batch; gives how each frame ended, and the bytes of those that leave.
fn run<O: Observer>(node: &mut TestNode, frames: &[(PortId, Vec<u8>)], observer: &mut O) -> Vec<(Verdict, Option<Vec<u8>>)> {
    for (port, frame) in frames {
        assert!(node.io.push(*port, frame));
    }
    let mut batch = Batch::new();
    node.io.rx(&mut batch).unwrap();
    let (tables, conns, affinity, arena) = (&node.tables, &node.conns, &node.affinity, node.io.arena());
    let mut cx = Cx { tables, conns, affinity, arena, local: &mut node.local, now: node.now };
    process(&mut cx, &mut batch, observer);
    let mut ended = Vec::new();
    for Packet { frame, verdict, .. } in batch {
        let leaves = !matches!(verdict, Verdict::Drop(_));
        ended.push((verdict, leaves.then(|| node.io.arena().bytes(&frame).to_vec())));
        node.io.free(frame);
    }
    ended
}

fn flows(node: &TestNode) -> Vec<FlowRecord> {
    let mut records = Vec::new();
    let mut reader = node.conns.reader().unwrap();
    let mut from = Some(0);
    while let Some(next) = from {
        from = node.conns.dump(&mut reader, next, 1024, Ticks::from_nanos(node.now), |record| records.push(*record));
    }
    records
}

/// Plays the steps on all nodes. Gives how many packets the hot lane followed.
fn play(steps: &[Step], unfinished: bool, on_change: OnChange, with_macs: bool) -> Result<u64, TestCaseError> {
    let [mut hot, plain, mut general] = [(); 3].map(|()| node(unfinished, on_change, with_macs));
    let mut plain = TestNode { conns: plain.conns.with_baseline(), ..plain };
    for step in steps {
        match step {
            Step::Packets(shots) => {
                let frames: Vec<_> = shots.iter().map(|shot| frame(&general, shot)).collect();
                let expected = run(&mut general, &frames, &mut Everything);
                for node in [&mut hot, &mut plain] {
                    let ended = run(node, &frames, &mut ());
                    for (index, (ours, theirs)) in ended.iter().zip(&expected).enumerate() {
                        prop_assert_eq!(ours, theirs, "{:?}: {:02x?}", shots[index], frames[index].1);
                    }
                }
            }
            Step::State(variant) => [&mut hot, &mut plain, &mut general].into_iter().for_each(|node| node.publish(&state(*variant))),
            Step::Millis(millis) => {
                [&mut hot, &mut plain, &mut general].into_iter().for_each(|node| node.now += u64::from(*millis) * 1_000_000);
            }
        }
        for node in [&hot, &plain] {
            prop_assert_eq!(flows(node), flows(&general));
            prop_assert_eq!(&node.local.counters, &general.local.counters);
            prop_assert!(node.local.counters.balanced());
        }
    }
    prop_assert_eq!(hot.local.followed, plain.local.followed, "both know the same packets");
    prop_assert_eq!(general.local.followed, 0, "where somebody listens all packets take the general lane");
    Ok(hot.local.followed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_lanes_do_the_same(
        steps in any_steps(),
        unfinished in any::<bool>(),
        on_change in prop_oneof![Just(OnChange::Keep), Just(OnChange::Cut), Just(OnChange::Drain)],
        with_macs in prop_oneof![4 => Just(true), 1 => Just(false)],
    ) {
        play(&steps, unfinished, on_change, with_macs)?;
    }
}

/// Without this the property would hold of a hot lane that follows nothing.
#[test]
fn what_is_clean_and_known_is_followed() {
    for (flow, (hint, from, to)) in FLOWS.iter().enumerate() {
        // The first two services have a port for TCP only.
        let protocols = if flow < 2 { &[proto::TCP][..] } else { &[proto::TCP, proto::UDP] };
        for number in protocols.iter().copied() {
            let shot = |reply, flags| Shot { flow, proto: number, sport: 40_000, reply, flags, twist: Twist::None };
            let opening = [shot(false, tcp::SYN), shot(true, tcp::SYN | tcp::ACK), shot(false, tcp::ACK), shot(true, tcp::ACK)];
            let both = vec![shot(false, tcp::ACK), shot(true, tcp::ACK)];
            let steps: Vec<Step> = opening.map(|shot| Step::Packets(vec![shot])).into_iter().chain([Step::Packets(both)]).collect();
            let followed = play(&steps, false, OnChange::Keep, true).unwrap();
            assert!(followed >= 2, "{hint} {from} to {to} by {number}: {followed} followed");
        }
    }
}
