//! Two nodes in memory: what one encapsulates the other takes out, both ways and both families.

mod common;

use std::sync::Arc;

use common::*;
use weir_dataplane::craft::Craft;
use weir_dataplane::events::CtState;
use weir_dataplane::model::*;
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::tcp;

fn state(this_node: NodeIndex) -> NodeState {
    let mut state = cluster(this_node);
    state.services.clear();
    add_service(&mut state, "db", Protocol::Tcp, &["10.96.0.10:80"], &["10.244.2.7:8080"]);
    add_service(&mut state, "db6", Protocol::Tcp, &["[fd00:96::10]:80"], &["[fd00:244:2::7]:8080"]);
    state
}

#[test]
fn a_request_through_a_cluster_ip_crosses_the_overlay_and_its_reply_comes_back() {
    for (client, service, backend) in
        [("10.244.1.6:4000", "10.96.0.10:80", "10.244.2.7:8080"), ("[fd00:244:1::6]:4000", "[fd00:96::10]:80", "[fd00:244:2::7]:8080")]
    {
        let (mut a, mut b) = (TestNode::new(&state(0)), TestNode::new(&state(1)));
        let (from, to) = (a.pod("client"), b.pod("db"));
        for flags in [tcp::SYN, tcp::ACK] {
            let request = Craft { tcp_flags: flags, ..a.craft(from, tuple(proto::TCP, client, service)) };
            let wire = a.passes(from, request.frame(), UPLINK);
            assert!(matches!(a.seen[0].verdict, Verdict::Encap(UPLINK)));
            assert_eq!(a.seen[0].trail.encap, Some(1));
            let outer = headers(&wire);
            assert_eq!((outer.tuple.src, outer.tuple.dst, outer.tuple.dport), (ip("10.0.0.10"), ip("10.0.0.11"), 8472));
            let arrived = headers(&b.passes(UPLINK, wire, to));
            assert_eq!(b.seen[0].decap, Some(0));
            assert_eq!((arrived.tuple, arrived.ttl), (tuple(proto::TCP, client, backend), 62));
            let reply = Craft { tcp_flags: flags | tcp::ACK, ..b.craft(to, arrived.tuple.inverse()) };
            let wire = b.passes(to, reply.frame(), UPLINK);
            let back = headers(&a.passes(UPLINK, wire, from));
            assert_eq!(back.tuple, tuple(proto::TCP, service, client));
            assert!(matches!(a.seen[0].trail.state, CtState::Established(_)));
        }
    }
}

#[test]
fn the_far_policy_denies_and_a_reject_crosses_back() {
    let mut far = state(1);
    isolate(&mut far, 2, vec![], 1);
    let (mut a, mut b) = (TestNode::new(&state(0)), TestNode::with(&far, |r| r.config.policy.deny_action = DenyAction::Reject));
    let from = a.pod("client");
    let syn = a.craft(from, tuple(proto::TCP, "10.244.1.6:4000", "10.96.0.10:80")).frame();
    let wire = a.passes(from, syn, UPLINK);
    let (verdict, answer) = b.one(UPLINK, wire);
    assert_eq!(verdict, Verdict::Reply(Some(DropReason::PolicyDenied)));
    let reset = headers(&a.passes(UPLINK, answer.unwrap(), from));
    assert_eq!(reset.tuple, tuple(proto::TCP, "10.96.0.10:80", "10.244.1.6:4000"));
    assert_ne!(reset.tcp_flags & tcp::RST, 0);
}

#[test]
fn overlay_packets_of_strangers_networks_and_liars_end_by_name() {
    let (mut a, mut b) = (TestNode::new(&state(0)), TestNode::new(&state(1)));
    let from = a.pod("client");
    let udp = a.craft(from, tuple(proto::UDP, "10.244.1.6:4000", "10.244.2.7:53")).frame();
    let wire = a.passes(from, udp, UPLINK);
    let mut other_vni = wire.clone();
    other_vni[48] ^= 1;
    b.drops(UPLINK, other_vni, DropReason::InvalidVni);
    let mut other_mac = wire.clone();
    other_mac[50] ^= 2;
    b.drops(UPLINK, other_mac, DropReason::OtherHost);
    let mut stranger = wire.clone();
    stranger[29] = 77;
    fix_outer(&mut stranger);
    b.drops(UPLINK, stranger, DropReason::UnknownVtep);
    let mut liar = wire.clone();
    liar[50 + 14 + 14] = 2; // the inner source says 10.244.2.6, which is the receiver's own
    let sum = weir_dataplane::wire::checksum::full(
        &{
            let mut h = liar[64..84].to_vec();
            h[10..12].fill(0);
            h
        },
        0,
    );
    liar[74..76].copy_from_slice(&sum.to_be_bytes());
    b.drops(UPLINK, liar, DropReason::InvalidSourceIp);
    b.passes(UPLINK, wire, b.pod("db"));
}

fn fix_outer(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = weir_dataplane::wire::checksum::full(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn native_routing_sends_pods_packets_as_they_are() {
    let native = |r: &mut weir_dataplane::runtime::Runtime| r.config.overlay.mode = OverlayMode::Native;
    let (mut a, mut b) = (TestNode::with(&state(0), native), TestNode::with(&state(1), native));
    let (from, to) = (a.pod("client"), b.pod("db"));
    let syn = a.craft(from, tuple(proto::TCP, "10.244.1.6:4000", "10.96.0.10:80")).frame();
    let wire = a.passes(from, syn, UPLINK);
    let out = headers(&wire);
    assert_eq!((out.tuple, out.dst_mac), (tuple(proto::TCP, "10.244.1.6:4000", "10.244.2.7:8080"), MacAddr::from_ip(addr("10.0.0.11"))));
    b.passes(UPLINK, wire, to);
}

#[test]
fn a_node_port_with_a_remote_backend_masquerades_and_undoes_both() {
    let mut near = state(0);
    Arc::make_mut(&mut near.services[0]).frontends.push(Frontend { address: addr("10.0.0.10"), port: 30080, kind: FrontendKind::NodePort });
    let (mut a, mut b) = (TestNode::new(&near), TestNode::new(&state(1)));
    let to = b.pod("db");
    let syn = a.craft(UPLINK, tuple(proto::TCP, "198.51.100.7:4000", "10.0.0.10:30080")).frame();
    let wire = a.passes(UPLINK, syn, UPLINK);
    let arrived = headers(&b.passes(UPLINK, wire, to));
    assert_eq!((arrived.tuple.src, arrived.tuple.dport), (ip("10.0.0.10"), 8080));
    let reply = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..b.craft(to, arrived.tuple.inverse()) };
    let native = b.passes(to, reply.frame(), UPLINK);
    assert!(matches!(b.seen[0].verdict, Verdict::Forward(UPLINK)), "a node is reached by the underlay");
    let back = headers(&a.passes(UPLINK, native, UPLINK));
    assert_eq!(back.tuple, tuple(proto::TCP, "10.0.0.10:30080", "198.51.100.7:4000"));
}
