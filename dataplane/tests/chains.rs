//! Packets that are longer than a buffer: all of them travels, only the first buffer is looked at.

mod common;

use common::*;
use weir_dataplane::craft::Craft;
use weir_dataplane::io::PortId;
use weir_dataplane::model::*;
use weir_dataplane::parse::{Parsed, parse};
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::{checksum, tcp, udp};

const TCP: u8 = proto::TCP;
const UDP: u8 = proto::UDP;
const LONG: usize = 40_001;

/// A node whose pods, and whose network, take packets of 60,000 bytes.
fn node() -> TestNode {
    let mut state = cluster(0);
    for (name, protocol) in [("web-v6", Protocol::Tcp), ("dns-v6", Protocol::Udp)] {
        add_service(&mut state, name, protocol, &["[fd00:96::10]:80"], &["[fd00:244:1::5]:8080"]);
    }
    TestNode::with(&state, |runtime| {
        for port in &mut runtime.ports {
            port.mtu = if matches!(port.kind, weir_dataplane::runtime::PortKind::Pod { .. }) { 60_000 } else { 1500 };
            port.unfinished_checksums = true;
        }
        runtime.underlay.mtu = 1500;
    })
}

fn long(node: &TestNode, port: PortId, protocol: u8, from: &str, to: &str, len: usize) -> Vec<u8> {
    let payload = (0..len).map(|at| (at * 7 + at / 256) as u8).collect();
    Craft { payload, tcp_flags: tcp::SYN, ..node.craft(port, tuple(protocol, from, to)) }.frame()
}

#[test]
fn a_long_packet_reaches_a_pod_whole_translated_and_with_its_checksum() {
    for leaves in [false, true] {
        let finished = reach_a_pod(leaves);
        assert_eq!(finished, if leaves { 2 * 14 } else { 0 }, "of two packets of each of 14 flows");
    }
}

/// Who sends finishes what is left to it, or not. Gives how many checksums that were.
fn reach_a_pod(leaves: bool) -> u32 {
    let mut left = 0;
    for (protocol, client, asked, backend) in [
        (TCP, "10.244.1.6:4000", "10.96.0.10:80", "10.244.1.5:8080"),
        (TCP, "10.244.1.6:4000", "10.244.1.5:80", "10.244.1.5:80"),
        (UDP, "10.244.1.6:4000", "10.244.1.5:80", "10.244.1.5:80"),
        (UDP, "[fd00:244:1::6]:4000", "[fd00:244:1::5]:80", "[fd00:244:1::5]:80"),
        (UDP, "[fd00:244:1::6]:4000", "[fd00:96::10]:80", "[fd00:244:1::5]:8080"),
        (TCP, "[fd00:244:1::6]:4000", "[fd00:96::10]:80", "[fd00:244:1::5]:8080"),
        (TCP, "[fd00:244:1::6]:4000", "[fd00:244:1::5]:80", "[fd00:244:1::5]:80"),
    ] {
        for len in [LONG, LONG + 1] {
            let mut node = node();
            if leaves {
                node.io.finish_checksums();
            }
            let (from, to) = (node.pod("client"), node.pod("web"));
            let finished = long(&node, from, protocol, client, asked, len);
            let unfinished = unfinished(finished.clone());
            // The first packet of its flow, and later ones.
            for sent in [unfinished.clone(), unfinished, finished] {
                let out = node.passes(from, sent.clone(), to);
                assert_eq!(headers(&out).tuple, tuple(protocol, client, backend), "{asked}, {len} bytes");
                assert_eq!(out.len(), sent.len());
                assert!(out[out.len() - len..] == sent[sent.len() - len..], "the payload changed");
            }
            left += node.io.finished();
        }
    }
    left
}

/// A frame as a stack leaves it that expects hardware to add up the payload: with the sum of the pseudo header alone.
fn unfinished(mut frame: Vec<u8>) -> Vec<u8> {
    let Ok(Parsed::Ip(headers)) = parse(&frame) else { panic!("no IP packet") };
    let at = usize::from(headers.l4) + if headers.tuple.proto == TCP { tcp::CHECKSUM } else { udp::CHECKSUM };
    let pseudo = checksum::pseudo(headers.tuple.src, headers.tuple.dst, headers.tuple.proto, headers.l4_len() as u32);
    frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    frame
}

#[test]
fn what_is_too_long_for_the_way_out_is_told_to_the_sender_by_a_short_answer() {
    for (protocol, to) in [(TCP, "10.244.2.7:80"), (UDP, "10.244.2.7:80"), (TCP, "198.51.100.7:80")] {
        let mut node = node();
        let client = node.pod("client");
        let sent = long(&node, client, protocol, "10.244.1.6:4000", to, LONG);
        let (verdict, answer) = node.one(client, sent);
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::FragmentationNeeded)), "{to}");
        let answer = answer.expect("an answer");
        assert!(answer.len() <= 14 + 576 && headers(&answer).icmp_type == 3, "{} bytes", answer.len());
    }
}

#[test]
fn a_long_packet_is_encapsulated_whole_and_taken_out_again() {
    let wide = |state: &NodeState| {
        TestNode::with(state, |runtime| {
            runtime.underlay.mtu = 60_000;
            for port in &mut runtime.ports {
                (port.mtu, port.unfinished_checksums) = (60_000, true);
            }
        })
    };
    let (mut a, mut b) = (wide(&cluster(0)), wide(&cluster(1)));
    a.io.finish_checksums();
    b.io.finish_checksums();
    let client = a.pod("client");
    let finished = long(&a, client, UDP, "10.244.1.6:4000", "10.244.2.7:80", LONG);
    let mut wrapped = a.passes(client, unfinished(finished.clone()), UPLINK);
    assert_eq!(a.io.finished(), 0, "a network device may not know what to do for a packet inside another");
    assert_eq!(headers(&wrapped).frame_len(), wrapped.len());
    assert!(wrapped.len() == finished.len() + 50 && wrapped[wrapped.len() - LONG - 8..] == finished[finished.len() - LONG - 8..]);
    let mac = b.tables.runtime.ports[0].mac.unwrap();
    wrapped[..6].copy_from_slice(&mac.0);
    let db = b.pod("db");
    // As it came, and as a peer on a veth may leave it.
    let inner = unfinished(wrapped[50..].to_vec());
    for (wrapped, left) in [(wrapped.clone(), 0), ([&wrapped[..50], &inner].concat(), 1)] {
        let out = b.passes(UPLINK, wrapped, db);
        assert_eq!(headers(&out).tuple, tuple(UDP, "10.244.1.6:4000", "10.244.2.7:80"));
        assert!(out[34..] == finished[34..], "header or payload changed");
        assert_eq!(b.io.finished(), left);
    }
}

#[test]
fn an_odd_long_packet_is_dropped_whole() {
    let mut node = node();
    let client = node.pod("client");
    // Bytes behind the IP packet: no link adds any to a long one.
    let mut trailed = long(&node, client, UDP, "10.244.1.6:4000", "10.244.1.5:80", LONG);
    trailed.push(0);
    node.drops(client, trailed, DropReason::InvalidPacket);
    // Less than the IP header says.
    let mut cut = long(&node, client, UDP, "10.244.1.6:4000", "10.244.1.5:80", LONG);
    cut.pop();
    node.drops(client, cut, DropReason::InvalidPacket);
}

#[test]
fn a_long_ping_comes_back_and_long_fragments_follow_their_first_one() {
    let mut node = node();
    let (client, web) = (node.pod("client"), node.pod("web"));
    let ping = long(&node, client, proto::ICMP, "10.244.1.6:7", "169.254.1.1:7", LONG);
    let (verdict, answer) = node.one(client, ping.clone());
    assert_eq!(verdict, Verdict::Reply(None));
    assert!(answer.expect("an answer")[42..] == ping[42..]);
    let whole = long(&node, client, UDP, "10.244.1.6:4000", "10.244.1.5:80", LONG);
    for (fragment, offset) in [(0x2000u16, 0usize), (0x0000, 20_000)] {
        let mut piece = whole[..34].to_vec();
        piece.extend(&whole[34 + offset..if offset == 0 { 34 + 20_000 } else { whole.len() }]);
        let total = (piece.len() - 14) as u16;
        piece[16..18].copy_from_slice(&total.to_be_bytes());
        piece[18..20].copy_from_slice(&[0, 9]);
        piece[20..22].copy_from_slice(&(fragment | (offset / 8) as u16).to_be_bytes());
        piece[24..26].fill(0);
        let sum = checksum::full(&piece[14..34], 0);
        piece[24..26].copy_from_slice(&sum.to_be_bytes());
        let out = node.passes(client, piece.clone(), web);
        assert!(out[34..] == piece[34..] && out.len() == piece.len());
    }
}
