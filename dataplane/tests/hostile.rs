//! What pods and the network try against a node's policies, one test an attack.

mod common;

use common::*;
use std::sync::Arc;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::io::PortId;
use weir_dataplane::model::*;
use weir_dataplane::tables::Tables;
use weir_dataplane::verdict::DropReason;
use weir_dataplane::wire::{checksum, icmp, ipv4, tcp};

const TCP: u8 = proto::TCP;
const UDP: u8 = proto::UDP;

/// A destination unreachable from `src` to `dst` about a packet of `quoted`, as a frame that enters by `port`.
fn error(node: &TestNode, port: PortId, (src, dst): (&str, &str), quoted: Tuple) -> Vec<u8> {
    let inner = Craft::new(quoted).frame();
    let mut message = vec![icmp::UNREACHABLE, icmp::PORT, 0, 0, 0, 0, 0, 0];
    message.extend(&inner[14..]);
    let sum = checksum::full(&message, 0).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let outer = Tuple { src: ip(src), dst: ip(dst), sport: 0, dport: 0, proto: proto::ICMP };
    let mut frame = node.craft(port, outer).frame();
    frame.truncate(14);
    let mut header = [0; ipv4::LEN];
    let total = (ipv4::LEN + message.len()) as u16;
    ipv4::Header { src: outer.src, dst: outer.dst, proto: proto::ICMP, ttl: 64, tos: 0, total }.emit(&mut header);
    frame.extend(header);
    frame.extend(message);
    frame
}

/// Client on this node talks to its neighbour `web`, which it may.
fn talking(state: &NodeState) -> (TestNode, PortId, PortId, Tuple) {
    let mut node = TestNode::new(state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let flow = tuple(TCP, "10.244.1.6:4000", "10.244.1.5:80");
    let syn = node.craft(client, flow).frame();
    node.passes(client, syn, web);
    (node, client, web, flow)
}

#[test]
fn an_error_reaches_only_the_sender_of_what_it_quotes() {
    let (mut node, client, web, flow) = talking(&cluster(0));
    let genuine = error(&node, web, ("10.244.1.5", "10.244.1.6"), flow);
    node.passes(web, genuine, client);
    // A letter to anybody in the envelope of an error, past the egress policy of its sender.
    for elsewhere in ["198.51.100.7", "10.244.2.7", "10.0.0.10"] {
        let smuggled = error(&node, web, ("10.244.1.5", elsewhere), flow);
        node.drops(web, smuggled, DropReason::InvalidConntrack);
    }
}

/// Related errors pass without a rule (E1.36), so nobody may make up one.
#[test]
fn a_pod_reports_only_what_was_sent_to_itself_and_the_network_nothing_between_pods_of_a_node() {
    let mut state = cluster(0);
    let mut third = state.endpoints[0].clone();
    (third.name, third.addresses) = ("third".into(), vec![addr("10.244.1.9")]);
    Arc::make_mut(&mut state.endpoints).push(third);
    let (mut node, ..) = talking(&state);
    let flow = tuple(TCP, "10.244.1.6:4000", "10.244.1.5:80");
    let third = node.pod("third");
    let by_neighbour = error(&node, third, ("10.244.1.9", "10.244.1.6"), flow);
    node.drops(third, by_neighbour, DropReason::InvalidConntrack);
    let by_network = error(&node, UPLINK, ("198.51.100.7", "10.244.1.6"), flow);
    node.drops(UPLINK, by_network, DropReason::InvalidConntrack);
    // A router on the way to the outside does report.
    let client = node.pod("client");
    let ask = node.craft(client, tuple(TCP, "10.244.1.6:4000", "198.51.100.7:443")).frame();
    let sent = headers(&node.passes(client, ask, UPLINK)).tuple;
    let by_router = error(&node, UPLINK, ("192.0.2.1", "10.0.0.10"), sent);
    node.passes(UPLINK, by_router, client);
}

#[test]
fn a_service_does_not_lead_to_a_nodes_overlay_port() {
    let mut state = cluster(0);
    let forged = ["10.0.0.11:8472", "10.0.0.10:8472"];
    for (n, backend) in forged.into_iter().enumerate() {
        add_service(&mut state, "vtep", Protocol::Udp, &[&format!("10.96.0.2{n}:53")], &[backend]);
    }
    let mut node = TestNode::new(&state);
    let client = node.pod("client");
    for service in ["10.96.0.20:53", "10.96.0.21:53"] {
        let ask = node.craft(client, tuple(UDP, "10.244.1.6:4000", service)).frame();
        node.drops(client, ask, DropReason::EncapsulationProhibited);
        let by_node = node.craft(HOST, tuple(UDP, "10.0.0.10:4000", service)).frame();
        node.drops(HOST, by_node, DropReason::EncapsulationProhibited);
    }
    assert_eq!(node.conns.used(), 0);
}

#[test]
fn the_next_pod_with_an_address_gets_nothing_of_its_predecessors_flows() {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![1], 80);
    let (mut node, client, web, flow) = talking(&state);
    let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, flow.inverse()) };
    node.passes(web, answer.frame(), client);
    let dns = tuple(UDP, "10.244.1.6:5000", "198.51.100.7:53");
    let ask = node.craft(client, dns).frame();
    let sent = headers(&node.passes(client, ask, UPLINK)).tuple;
    assert_eq!(node.conns.used(), 2);

    // Another pod, with other labels, gets the client's address; its port is the old one's.
    let pod = Arc::make_mut(&mut state.endpoints).iter_mut().find(|e| e.name == "client").unwrap();
    (pod.name, pod.identity) = ("successor".into(), 2);
    let mut runtime = (*node.tables.runtime).clone();
    runtime.ports[usize::from(client.0)].kind =
        weir_dataplane::runtime::PortKind::Pod { namespace: "shop".into(), name: "successor".into() };
    let before = std::mem::replace(&mut node.tables, Tables::compile(&NodeState::default(), &runtime, 0));
    node.tables = Tables::compile_shared(Arc::new(state), Arc::new(runtime), 2, Some(&before));

    let late = Craft { tcp_flags: tcp::ACK, ..node.craft(client, flow) };
    node.drops(client, late.frame(), DropReason::InvalidConntrack);
    let reply = node.craft(UPLINK, sent.inverse()).frame();
    let (verdict, _) = node.one(UPLINK, reply);
    assert_eq!(verdict, weir_dataplane::verdict::Verdict::Host(HOST), "nobody's but the node's own stack's");
    assert_eq!(node.conns.used(), 0);
    let own = node.craft(client, flow).frame();
    node.drops(client, own, DropReason::PolicyDenied);
    let ask = node.craft(client, dns).frame();
    node.passes(client, ask, UPLINK);
    let again = node.craft(client, dns).frame();
    node.passes(client, again, UPLINK);
    assert_eq!(node.conns.used(), 1, "flows of its own stay");
}

#[test]
fn what_comes_to_a_pod_uses_up_its_own_share() {
    let (mut node, client, web, _) = talking(&cluster(0));
    let out = u32::from(client.0);
    assert_eq!((node.conns.owned(out), node.conns.owned(u32::from(web.0))), (1, 0));
    let from_node = node.craft(HOST, tuple(TCP, "10.0.0.10:4000", "10.244.1.5:80")).frame();
    node.passes(HOST, from_node, web);
    assert_eq!((node.conns.owned(out), node.conns.owned(u32::from(web.0))), (1, 1));
}

#[test]
fn a_pod_that_provokes_errors_leaves_its_neighbours_theirs() {
    let mut node = TestNode::new(&cluster(0));
    let (client, web) = (node.pod("client"), node.pod("web"));
    let expired = |node: &TestNode, port, from: &str| Craft { ttl: 1, ..node.craft(port, tuple(UDP, from, "10.244.2.7:33434")) }.frame();
    let probe = expired(&node, client, "10.244.1.6:1");
    let answers = (0..1000).filter(|_| node.one(client, probe.clone()).1.is_some()).count();
    assert!((1..1000).contains(&answers), "{answers}");
    let neighbours = expired(&node, web, "10.244.1.5:1");
    node.passes(web, neighbours, web);
}

#[test]
fn a_stranger_who_cannot_see_a_connection_cannot_reset_it_whichever_lane_it_takes_e2_44() {
    use weir_dataplane::io::{Batch, PacketIo};
    use weir_dataplane::verdict::Verdict;
    let (mut node, client, web, flow) = talking(&cluster(0));
    let segment = |node: &TestNode, to_web: bool, tcp_flags, seq, ack| {
        let (port, tuple) = if to_web { (client, flow) } else { (web, flow.inverse()) };
        (port, Craft { tcp_flags, seq, ack, ..node.craft(port, tuple) }.frame())
    };
    // Where nobody listens, the hot lane follows what it can.
    let send = |node: &mut TestNode, (port, frame): (PortId, Vec<u8>)| {
        assert!(node.io.push(port, &frame));
        let mut batch = Batch::new();
        node.io.rx(&mut batch).unwrap();
        node.process(&mut batch, &mut ());
        let packet = batch.pop().unwrap();
        let verdict = packet.verdict;
        node.io.free(packet.frame);
        verdict
    };
    let wrong_answer = segment(&node, false, tcp::SYN | tcp::ACK, 7000, 643_160_523);
    assert_eq!(send(&mut node, wrong_answer), Verdict::Drop(DropReason::InvalidConntrack), "it answers another SYN");
    for (to_web, flags, seq, ack) in [
        (true, tcp::ACK, 900_000, 5), // late, of an earlier connection: the answer is to the SYN
        (false, tcp::SYN | tcp::ACK, 7000, 2),
        (true, tcp::ACK, 2, 7001),
        (false, tcp::ACK, 7001, 2),
        (true, tcp::ACK, 2, 500_000),
        (false, tcp::ACK, 500_000, 400_000),
        (true, tcp::ACK, 400_000, 500_000),
    ] {
        let frame = segment(&node, to_web, flags, seq, ack);
        assert!(matches!(send(&mut node, frame), Verdict::Forward(_)), "{seq}");
    }
    assert!(node.local.followed >= 3, "{}", node.local.followed);
    for (to_web, seq) in [(false, 499_999), (false, 7001), (false, 1 << 30), (true, 399_999), (true, 2)] {
        let reset = segment(&node, to_web, tcp::RST, seq, 0);
        assert_eq!(send(&mut node, reset), Verdict::Drop(DropReason::InvalidConntrack), "{to_web} {seq}");
    }
    // Much may be lost on the way here: then the peer asks, and what it is answered is exact.
    let beyond = segment(&node, false, tcp::RST, 9_000_000, 0);
    assert_eq!(send(&mut node, beyond), Verdict::Forward(client));
    let state = |node: &TestNode| node.conns.flow(node.conns.lookup(node.conns.hash(&flow), &flow).unwrap()).state;
    assert_eq!(state(&node).name(), Some("ESTABLISHED"));
    // Both ends gave up unseen, and the client takes the same port again, with numbers that have nothing to do with the old ones.
    for (to_web, flags, seq, ack) in [
        (true, tcp::SYN, 0xf000_0000, 0),
        (false, tcp::SYN | tcp::ACK, 0xe000_0000, 0xf000_0001),
        (true, tcp::ACK, 0xf000_0001, 0xe000_0001),
        (false, tcp::ACK, 0xe000_0001, 0xf000_0001),
    ] {
        let frame = segment(&node, to_web, flags, seq, ack);
        assert!(matches!(send(&mut node, frame), Verdict::Forward(_)), "{seq}");
    }
    let genuine = segment(&node, false, tcp::RST, 0xe000_0001, 0);
    assert_eq!(send(&mut node, genuine), Verdict::Forward(client));
    assert_eq!(state(&node).name(), Some("CLOSE"));
}

#[test]
fn an_invalid_segment_passes_and_changes_nothing_where_the_operator_wants_it_e2_44() {
    let state = cluster(0);
    let mut node = TestNode::with(&state, |runtime| runtime.config.conntrack.invalid = OnInvalid::Forward);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let flow = tuple(TCP, "10.244.1.6:4000", "10.244.1.5:80");
    let syn = node.craft(client, flow).frame();
    node.passes(client, syn, web);
    let wrong = Craft { tcp_flags: tcp::SYN | tcp::ACK, ack: 643_160_523, ..node.craft(web, flow.inverse()) }.frame();
    node.passes(web, wrong, client);
    let hit = node.conns.lookup(node.conns.hash(&flow), &flow).unwrap();
    assert_eq!(node.conns.flow(hit).state.name(), Some("SYN_SENT"));
}
