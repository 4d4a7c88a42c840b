//! What others must not get past a node: sources that are not theirs, packets that open nothing, translations that would break.

mod common;

use common::*;
use weir_dataplane::craft::Craft;
use weir_dataplane::model::proto::{TCP, UDP};
use weir_dataplane::model::*;
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::tcp;

#[test]
fn the_nodes_own_stack_speaks_for_no_pod_and_no_other_node() {
    let mut node = TestNode::new(&cluster(0));
    let web = node.pod("web");
    for from in ["10.244.1.6:4000", "10.244.2.7:4000", "10.244.2.99:4000", "10.0.0.11:4000"] {
        let syn = node.craft(HOST, tuple(TCP, from, "10.244.1.5:8080")).frame();
        node.drops(HOST, syn, DropReason::InvalidSourceIp);
    }
    // Itself, and those outside for whom it is a router.
    for from in ["10.0.0.10:4000", "198.51.100.7:4000"] {
        let syn = node.craft(HOST, tuple(TCP, from, "10.244.1.5:8080")).frame();
        node.passes(HOST, syn, web);
    }
}

#[test]
fn an_answer_that_nobody_asked_for_opens_no_flow_e2_44() {
    let mut node = TestNode::new(&cluster(0));
    let (client, web) = (node.pod("client"), node.pod("web"));
    for (protocol, from, to) in [(proto::ICMP, "10.244.1.6:5", "10.244.1.5:5"), (proto::ICMPV6, "[fd00:244:1::6]:5", "[fd00:244:1::5]:5")] {
        let reply = Craft { echo_reply: true, ..node.craft(client, tuple(protocol, from, to)) };
        node.drops(client, reply.frame(), DropReason::InvalidConntrack);
        let request = node.craft(client, tuple(protocol, from, to)).frame();
        node.passes(client, request, web);
        let reply = Craft { echo_reply: true, ..node.craft(web, tuple(protocol, to, from)) };
        node.passes(web, reply.frame(), client);
    }
    // Neither does what is no question at all: a redirect. What is for the node itself is its own business.
    let mut redirect = node.craft(client, tuple(proto::ICMP, "10.244.1.6:7", "10.244.1.5:7")).frame();
    redirect[34] = 5;
    node.drops(client, redirect, DropReason::InvalidConntrack);
    let reply = Craft { echo_reply: true, ..node.craft(UPLINK, tuple(proto::ICMP, "198.51.100.7:5", "10.0.0.10:5")) };
    node.passes(UPLINK, reply.frame(), HOST);
}

#[test]
fn what_belongs_to_no_connection_never_leaves_the_cluster_with_a_pods_address_e2_44() {
    let mut node = TestNode::with(&cluster(0), |runtime| {
        runtime.config.conntrack.invalid = OnInvalid::Forward;
        runtime.config.masquerade.except_cidrs = vec![net("192.0.2.0/24")];
    });
    let (client, web) = (node.pod("client"), node.pod("web"));
    let late = |node: &TestNode, to: &str| Craft { tcp_flags: tcp::ACK, ..node.craft(client, tuple(TCP, "10.244.1.6:4000", to)) }.frame();
    let (inside, outside, excepted) = (late(&node, "10.244.1.5:8080"), late(&node, "198.51.100.7:443"), late(&node, "192.0.2.7:443"));
    node.passes(client, inside, web);
    node.drops(client, outside, DropReason::InvalidConntrack);
    node.passes(client, excepted, UPLINK);
    assert_eq!(node.conns.used(), 0);
}

#[test]
fn checksums_over_the_addresses_are_not_broken_by_masquerading_what_we_do_not_know() {
    let mut node = TestNode::new(&cluster(0));
    let (client, web) = (node.pod("client"), node.pod("web"));
    for number in [proto::UDP_LITE, proto::DCCP] {
        let outside = Craft { payload: vec![0; 16], ..node.craft(client, tuple(number, "10.244.1.6:0", "198.51.100.7:0")) };
        node.drops(client, outside.frame(), DropReason::UnknownL4);
        let inside = Craft { payload: vec![0; 16], ..node.craft(client, tuple(number, "10.244.1.6:0", "10.244.1.5:0")) };
        node.passes(client, inside.frame(), web);
    }
    let esp = Craft { payload: vec![0; 16], ..node.craft(client, tuple(50, "10.244.1.6:0", "198.51.100.7:0")) };
    let out = headers(&node.passes(client, esp.frame(), UPLINK));
    assert_eq!(out.tuple.src, ip("10.0.0.10"), "it has no such checksum");
}

#[test]
fn a_sender_hears_of_the_mtu_too_where_its_packets_might_be_fragmented() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    let big = |node: &TestNode, may_fragment: bool, len| {
        let mut frame = Craft { payload: vec![0; len], ..node.craft(client, tuple(UDP, "10.244.1.6:1", "10.244.2.7:2")) }.frame();
        if may_fragment {
            frame[20] &= !0x40;
            frame[24..26].fill(0);
            let sum = weir_dataplane::wire::checksum::full(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    };
    for (may_fragment, reason) in [(false, DropReason::FragmentationNeeded), (true, DropReason::FragmentationNotSupported)] {
        let frame = big(&node, may_fragment, 1423);
        let (verdict, answer) = node.one(client, frame);
        assert_eq!(verdict, Verdict::Reply(Some(reason)));
        let answer = answer.unwrap();
        assert_eq!(headers(&answer).tuple.dst, ip("10.244.1.6"));
        assert_eq!(u16::from_be_bytes([answer[40], answer[41]]), 1450);
        let frame = big(&node, may_fragment, 1422);
        node.passes(client, frame, UPLINK);
    }
}
