//! One node, frame by frame: what leaves, by which port, with which headers, and why not.

mod common;

use std::sync::Arc;

use common::*;
use weir_dataplane::conntrack::FlowDir;
use weir_dataplane::craft::Craft;
use weir_dataplane::events::CtState;
use weir_dataplane::model::*;
use weir_dataplane::parse::{HeaderFlags, Parsed, parse};
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::tcp;

const TCP: u8 = proto::TCP;
const UDP: u8 = proto::UDP;

#[test]
fn pods_of_one_node_reach_each_other_through_the_gateway() {
    for (client, server) in [("10.244.1.6:4000", "10.244.1.5:80"), ("[fd00:244:1::6]:4000", "[fd00:244:1::5]:80")] {
        let mut node = TestNode::new(&cluster(0));
        let (from, to) = (node.pod("client"), node.pod("web"));
        let syn = node.craft(from, tuple(TCP, client, server)).frame();
        let out = headers(&node.passes(from, syn, to));
        assert_eq!(out.tuple, tuple(TCP, client, server));
        assert_eq!((out.src_mac, out.dst_mac, out.ttl), (MacAddr::GATEWAY, MacAddr::from_ip(addr("10.244.1.5")), 63));
        assert_eq!(node.seen[0].trail.state, CtState::New);
        let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(to, tuple(TCP, server, client)) };
        let back = headers(&node.passes(to, answer.frame(), from));
        assert_eq!(back.tuple, tuple(TCP, server, client));
        assert_eq!(node.seen[0].trail.state, CtState::Established(FlowDir::Reply));
        assert_eq!(node.conns.used(), 1);
    }
}

#[test]
fn a_cluster_ip_becomes_the_backend_and_its_reply_comes_from_the_cluster_ip() {
    let mut state = cluster(0);
    add_service(&mut state, "web6", Protocol::Tcp, &["[fd00:96::10]:80"], &["[fd00:244:1::5]:8080"]);
    for (client, service, backend) in
        [("10.244.1.6:4000", "10.96.0.10:80", "10.244.1.5:8080"), ("[fd00:244:1::6]:4000", "[fd00:96::10]:80", "[fd00:244:1::5]:8080")]
    {
        let mut node = TestNode::new(&state);
        let (from, to) = (node.pod("client"), node.pod("web"));
        for flags in [tcp::SYN, tcp::ACK] {
            let packet = Craft { tcp_flags: flags, ..node.craft(from, tuple(TCP, client, service)) };
            let out = headers(&node.passes(from, packet.frame(), to));
            assert_eq!(out.tuple, tuple(TCP, client, backend));
            assert!(node.seen[0].trail.service.is_some());
            assert_eq!(node.seen[0].trail.after, Some(out.tuple));
            let answer = Craft { tcp_flags: flags | tcp::ACK, ..node.craft(to, tuple(TCP, backend, client)) };
            let back = headers(&node.passes(to, answer.frame(), from));
            assert_eq!(back.tuple, tuple(TCP, service, client));
            assert!(node.seen[0].trail.service.is_some());
        }
    }
}

#[test]
fn what_leaves_the_cluster_is_masqueraded_and_its_reply_finds_the_pod() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    let syn = node.craft(client, tuple(TCP, "10.244.1.6:4000", "198.51.100.7:443")).frame();
    let out = headers(&node.passes(client, syn, UPLINK));
    assert_eq!((out.tuple.src, out.tuple.dst, out.tuple.dport), (ip("10.0.0.10"), ip("198.51.100.7"), 443));
    assert!((61000..=65535).contains(&out.tuple.sport));
    assert_eq!((out.src_mac, out.dst_mac), (MacAddr::from_ip(addr("10.0.0.10")), MacAddr::from_ip(GATEWAY_V4)));
    let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(UPLINK, out.tuple.inverse()) };
    let back = headers(&node.passes(UPLINK, answer.frame(), client));
    assert_eq!(back.tuple, tuple(TCP, "198.51.100.7:443", "10.244.1.6:4000"));
}

#[test]
fn pings_go_through_masquerading_by_their_identifier() {
    for (protocol, pod, outside) in
        [(proto::ICMP, "10.244.1.6:7", "198.51.100.7:7"), (proto::ICMPV6, "[fd00:244:1::6]:7", "[2001:db8::7]:7")]
    {
        let mut node = TestNode::new(&cluster(0));
        let client = node.pod("client");
        let echo = node.craft(client, tuple(protocol, pod, outside)).frame();
        let out = headers(&node.passes(client, echo, UPLINK));
        assert_eq!(out.tuple.dst, place(outside).0);
        assert_ne!(out.tuple.src, place(pod).0);
        let answer = Craft { echo_reply: true, ..node.craft(UPLINK, out.tuple.inverse()) };
        let back = headers(&node.passes(UPLINK, answer.frame(), client));
        assert_eq!(back.tuple, tuple(protocol, outside, pod));
    }
}

/// In silence, unless the operator wants it otherwise (E1.41).
#[test]
fn a_policy_denies_new_flows_and_lets_replies_pass() {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![1], 80);
    isolate(&mut state, 1, vec![], 80);
    let mut node = TestNode::new(&state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let allowed = node.craft(client, tuple(TCP, "10.244.1.6:4000", "10.244.1.5:80")).frame();
    node.passes(client, allowed, web);
    let judged = node.seen[0].trail.ingress.unwrap();
    assert!(judged.allowed && judged.rule.is_some());
    let reply = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, tuple(TCP, "10.244.1.5:80", "10.244.1.6:4000")) };
    node.passes(web, reply.frame(), client);
    for (port, from, to) in [(client, "10.244.1.6:4000", "10.244.1.5:81"), (web, "10.244.1.5:80", "10.244.1.6:4001")] {
        let denied = node.craft(port, tuple(TCP, from, to)).frame();
        node.drops(port, denied, DropReason::PolicyDenied);
    }
    assert_eq!(node.local.counters.dropped(DropReason::PolicyDenied), 2);
    let ping = node.craft(client, tuple(proto::ICMP, "10.244.1.6:1", "10.244.1.5:1")).frame();
    node.drops(client, ping, DropReason::PolicyDenied);
}

#[test]
fn a_denial_answers_where_the_operator_wants_it_e1_41() {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![], 80);
    let mut node = TestNode::with(&state, |r| r.config.policy.deny_action = DenyAction::Reject);
    let client = node.pod("client");
    for (protocol, expected) in [(TCP, TCP), (UDP, proto::ICMP)] {
        let asked = tuple(protocol, "10.244.1.6:4000", "10.244.1.5:81");
        let frame = node.craft(client, asked).frame();
        let (verdict, answer) = node.one(client, frame);
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::PolicyDenied)));
        let answer = headers(&answer.unwrap());
        assert_eq!((answer.tuple.proto, answer.tuple.src, answer.tuple.dst), (expected, asked.dst, asked.src));
    }
}

#[test]
fn a_service_without_endpoints_refuses_and_unknown_ports_and_addresses_end_by_name_e2_13() {
    let mut state = cluster(0);
    add_service(&mut state, "empty", Protocol::Tcp, &["10.96.0.11:80"], &[]);
    add_service(&mut state, "empty-udp", Protocol::Udp, &["10.96.0.11:53"], &[]);
    let mut node = TestNode::new(&state);
    let client = node.pod("client");
    let mut ask = |protocol, to: &str| {
        let frame = node.craft(client, tuple(protocol, "10.244.1.6:4000", to)).frame();
        let (verdict, answer) = node.one(client, frame);
        (verdict, answer.map(|a| headers(&a)))
    };
    let (verdict, answer) = ask(TCP, "10.96.0.11:80");
    let answer = answer.unwrap();
    assert_eq!(verdict, Verdict::Reply(Some(DropReason::ServiceBackendNotFound)));
    assert_eq!(answer.tuple, tuple(TCP, "10.96.0.11:80", "10.244.1.6:4000"));
    assert_ne!(answer.tcp_flags & tcp::RST, 0);
    let (verdict, answer) = ask(UDP, "10.96.0.11:53");
    let answer = answer.unwrap();
    assert_eq!(verdict, Verdict::Reply(Some(DropReason::ServiceBackendNotFound)));
    assert_eq!((answer.tuple.src, answer.icmp_type, answer.icmp_code), (ip("10.96.0.11"), 3, 3));
    assert_eq!(ask(TCP, "10.96.0.10:81").0, Verdict::Reply(Some(DropReason::ServicePortNotFound)), "E2.4");
    assert_eq!(ask(TCP, "10.96.0.99:80").0, Verdict::Drop(DropReason::ServiceAddressUnallocated), "E2.4");
    assert_eq!(ask(proto::ICMP, "10.96.0.10:0").0, Verdict::Drop(DropReason::ServiceNotProxied), "E2.6");
}

#[test]
fn a_ping_to_a_service_is_answered_where_the_operator_wants_it() {
    let mut node = TestNode::with(&cluster(0), |r| r.config.services.answer_ping = true);
    let client = node.pod("client");
    let ping = node.craft(client, tuple(proto::ICMP, "10.244.1.6:9", "10.96.0.10:9")).frame();
    let answer = headers(&node.passes(client, ping, client));
    assert_eq!(answer.tuple, tuple(proto::ICMP, "10.96.0.10:9", "10.244.1.6:9"));
    assert_eq!(answer.icmp_type, 0);
}

#[test]
fn a_ping_to_a_service_without_a_usable_endpoint_is_not_answered_e2_6() {
    let mut state = cluster(0);
    Arc::make_mut(&mut state.services[0]).cluster.clear();
    let mut node = TestNode::with(&state, |r| r.config.services.answer_ping = true);
    let client = node.pod("client");
    let ping = node.craft(client, tuple(proto::ICMP, "10.244.1.6:9", "10.96.0.10:9")).frame();
    node.drops(client, ping, DropReason::ServiceNotProxied);
}

#[test]
fn a_cluster_ip_is_served_to_the_outside_where_the_operator_wants_it_and_masqueraded_e2_7() {
    let mut node = TestNode::with(&cluster(0), |r| r.config.services.external_cluster_ip = true);
    let web = node.pod("web");
    let syn = node.craft(UPLINK, tuple(TCP, "198.51.100.7:4000", "10.96.0.10:80")).frame();
    let out = headers(&node.passes(UPLINK, syn, web));
    assert_eq!((out.tuple.src, out.tuple.dst, out.tuple.dport), (ip("10.0.0.10"), ip("10.244.1.5"), 8080));
    let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, out.tuple.inverse()) };
    let back = headers(&node.passes(web, answer.frame(), UPLINK));
    assert_eq!(back.tuple, tuple(TCP, "10.96.0.10:80", "198.51.100.7:4000"));
}

#[test]
fn a_pod_that_reaches_itself_through_its_service_is_masqueraded() {
    let mut node = TestNode::new(&cluster(0));
    let web = node.pod("web");
    let syn = node.craft(web, tuple(TCP, "10.244.1.5:4000", "10.96.0.10:80")).frame();
    let out = headers(&node.passes(web, syn, web));
    assert_eq!((out.tuple.src, out.tuple.dst, out.tuple.dport), (ip("10.0.0.10"), ip("10.244.1.5"), 8080));
    let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, out.tuple.inverse()) };
    let back = headers(&node.passes(web, answer.frame(), web));
    assert_eq!(back.tuple, tuple(TCP, "10.96.0.10:80", "10.244.1.5:4000"));
}

#[test]
fn two_services_to_one_backend_do_not_confuse_a_client_that_reuses_its_port() {
    let mut state = cluster(0);
    add_service(&mut state, "alias", Protocol::Tcp, &["10.96.0.20:80"], &["10.244.1.5:8080"]);
    let mut node = TestNode::new(&state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let mut seen = Vec::new();
    for service in ["10.96.0.10:80", "10.96.0.20:80", "10.244.1.5:8080"] {
        let syn = node.craft(client, tuple(TCP, "10.244.1.6:4000", service)).frame();
        let out = headers(&node.passes(client, syn, web)).tuple;
        assert!(!seen.contains(&out), "{out:?} twice");
        seen.push(out);
        let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, out.inverse()) };
        assert_eq!(headers(&node.passes(web, answer.frame(), client)).tuple, tuple(TCP, service, "10.244.1.6:4000"));
    }
}

#[test]
fn a_pod_sends_only_as_itself() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    let foreign_ip = node.craft(client, tuple(UDP, "10.244.1.5:1", "10.244.2.7:2")).frame();
    node.drops(client, foreign_ip, DropReason::InvalidSourceIp);
    let own = tuple(UDP, "10.244.1.6:1", "10.244.2.7:2");
    let foreign_mac = Craft { src_mac: MacAddr([2; 6]), ..node.craft(client, own) };
    node.drops(client, foreign_mac.frame(), DropReason::InvalidSourceIp);
    let elsewhere = Craft { dst_mac: MacAddr([2; 6]), ..node.craft(client, own) };
    node.drops(client, elsewhere.frame(), DropReason::OtherHost);
    let overlay = node.craft(client, tuple(UDP, "10.244.1.6:1", "10.0.0.11:8472")).frame();
    node.drops(client, overlay, DropReason::EncapsulationProhibited);
    let martian = node.craft(UPLINK, tuple(UDP, "10.244.1.6:1", "10.244.1.5:2")).frame();
    node.drops(UPLINK, martian, DropReason::InvalidSourceIp);
    let multicast = node.craft(client, tuple(UDP, "10.244.1.6:1", "224.0.0.251:5353")).frame();
    node.drops(client, multicast, DropReason::Multicast);
    let stale = node.craft(client, tuple(UDP, "10.244.1.6:1", "10.244.1.77:2")).frame();
    node.drops(client, stale, DropReason::StaleOrUnroutableIp);
    let late = Craft { tcp_flags: tcp::ACK, ..node.craft(client, tuple(TCP, "10.244.1.6:1", "10.244.1.5:2")) };
    node.drops(client, late.frame(), DropReason::InvalidConntrack);
}

/// A state comes whole: no packet of a pod passes before the policies that select it are in force, all of them together.
#[test]
fn a_port_whose_pod_is_not_in_the_snapshot_waits_e1_38() {
    let mut state = cluster(0);
    let mut node = TestNode::new(&state);
    let client = node.pod("client");
    Arc::make_mut(&mut state.endpoints).remove(0);
    node.publish(&state);
    let syn = node.craft(client, tuple(TCP, "10.244.1.6:1", "10.244.1.5:2")).frame();
    node.drops(client, syn.clone(), DropReason::EndpointNotReady);
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![], 80);
    isolate(&mut state, 0, vec![1], 2);
    node.publish(&state);
    node.passes(client, syn, node.pod("web"));
    let denied = node.craft(client, tuple(TCP, "10.244.1.6:1", "10.244.1.5:80")).frame();
    node.drops(client, denied, DropReason::PolicyDenied);
}

#[test]
fn neighbours_are_answered_for_everything_but_the_asker_itself() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    let arp = |sender: [u8; 4], target: [u8; 4]| {
        let mac = MacAddr::from_ip(addr("10.244.1.6")).0;
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    };
    for target in [[169, 254, 1, 1], [10, 244, 1, 5], [10, 244, 2, 7]] {
        let (verdict, answer) = node.one(client, arp([10, 244, 1, 6], target));
        assert_eq!(verdict, Verdict::Reply(None));
        let Ok(Parsed::Arp(answer)) = parse(&answer.unwrap()) else { panic!("no ARP") };
        assert_eq!((answer.is_request, answer.sender_mac, answer.sender_ip), (false, MacAddr::GATEWAY, Ip::v4(u32::from_be_bytes(target))));
    }
    for (sender, target) in [([0; 4], [10, 244, 1, 6]), ([10, 244, 1, 6], [10, 244, 1, 6])] {
        node.drops(client, arp(sender, target), DropReason::NeighbourIgnored);
    }
}

/// Addresses of load balancers and external ones are not owned: nobody on the network is told that they are here, nor of any other.
#[test]
fn nobody_on_the_network_is_told_where_service_addresses_are_e2_5() {
    let mut state = cluster(0);
    add_service(&mut state, "lb", Protocol::Tcp, &["192.0.2.1:80", "[2001:db8:1b::1]:80"], &["10.244.1.5:8080"]);
    state.cluster_ips.truncate(1);
    for (at, kind) in [(0, FrontendKind::LoadBalancer), (1, FrontendKind::ExternalIp)] {
        Arc::make_mut(&mut state.services[1]).frontends[at].kind = kind;
    }
    let mut node = TestNode::new(&state);
    let asks = |target: [u8; 4]| {
        let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 9]].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9]);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    };
    for target in [[192, 0, 2, 1], [10, 96, 0, 10], [10, 244, 1, 5]] {
        node.drops(UPLINK, asks(target), DropReason::NeighbourIgnored);
    }
    // Their other ports are not refused either: nothing is known of them.
    let other = node.craft(UPLINK, tuple(TCP, "198.51.100.7:4000", "192.0.2.1:81")).frame();
    node.drops(UPLINK, other, DropReason::OtherHost);
}

#[test]
fn the_gateway_answers_ping() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    for (protocol, pod, gateway) in [(proto::ICMP, "10.244.1.6:5", "169.254.1.1:5"), (proto::ICMPV6, "[fd00:244:1::6]:5", "[fe80::1]:5")] {
        let ping = node.craft(client, tuple(protocol, pod, gateway)).frame();
        let answer = headers(&node.passes(client, ping, client));
        assert_eq!(answer.tuple, tuple(protocol, gateway, pod));
    }
}

#[test]
fn time_exceeded_comes_from_the_node() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    for (from, to, own) in [("10.244.1.6:1", "10.244.1.5:2", "10.0.0.10"), ("[fd00:244:1::6]:1", "[fd00:244:1::5]:2", "fd00::10")] {
        let probe = Craft { ttl: 1, ..node.craft(client, tuple(UDP, from, to)) };
        let (verdict, answer) = node.one(client, probe.frame());
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::TtlExceeded)));
        let answer = headers(&answer.unwrap());
        assert_eq!((answer.tuple.src, answer.tuple.dst), (ip(own), place(from).0));
        assert!(answer.has(HeaderFlags::ICMP_ERROR));
    }
    assert_eq!(node.conns.used(), 0);
}

#[test]
fn what_does_not_fit_the_overlay_is_told_to_the_sender() {
    let mut node = TestNode::new(&cluster(0));
    let client = node.pod("client");
    for (from, to, len, mtu_at) in [("10.244.1.6:1", "10.244.2.7:2", 1423, 40), ("[fd00:244:1::6]:1", "[fd00:244:2::7]:2", 1403, 60)] {
        let fits = Craft { payload: vec![0; len - 1], ..node.craft(client, tuple(UDP, from, to)) };
        assert_eq!(node.passes(client, fits.frame(), UPLINK).len(), 1514);
        let big = Craft { payload: vec![0; len], ..node.craft(client, tuple(UDP, from, to)) };
        let (verdict, answer) = node.one(client, big.frame());
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::FragmentationNeeded)));
        let answer = answer.unwrap();
        assert_eq!(headers(&answer).tuple.dst, place(from).0);
        assert_eq!(u16::from_be_bytes([answer[mtu_at], answer[mtu_at + 1]]), 1450);
        assert_eq!(node.seen[0].trail.mtu, Some(1450));
    }
}

#[test]
fn the_node_and_its_pods_reach_each_other() {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![], 1);
    let mut node = TestNode::new(&state);
    let web = node.pod("web");
    let probe = node.craft(HOST, tuple(TCP, "10.0.0.10:4000", "10.244.1.5:8080")).frame();
    let out = headers(&node.passes(HOST, probe, web));
    assert_eq!((out.tuple, out.ttl), (tuple(TCP, "10.0.0.10:4000", "10.244.1.5:8080"), 64), "E1.31");
    let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, out.tuple.inverse()) };
    let back = node.passes(web, answer.frame(), HOST);
    assert_eq!(headers(&back).dst_mac, MacAddr::from_ip(addr("10.0.0.10")));
    let to_node = node.craft(web, tuple(TCP, "10.244.1.5:4000", "10.0.0.10:22")).frame();
    node.passes(web, to_node, HOST);
    assert!(matches!(node.seen[0].verdict, Verdict::Host(_)));
    let service = node.craft(HOST, tuple(TCP, "10.0.0.10:4001", "10.96.0.10:80")).frame();
    let out = headers(&node.passes(HOST, service, web));
    assert_eq!(out.tuple, tuple(TCP, "10.0.0.10:4001", "10.244.1.5:8080"));
}

#[test]
fn an_error_about_a_service_flow_is_translated_back() {
    let mut state = cluster(0);
    add_service(&mut state, "dns", Protocol::Udp, &["10.96.0.10:53"], &["10.244.1.5:5353"]);
    let mut node = TestNode::new(&state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let ask = node.craft(client, tuple(UDP, "10.244.1.6:4000", "10.96.0.10:53")).frame();
    let arrived = node.passes(client, ask, web);
    let mut error = vec![0; 14 + 20 + 8];
    error[..14].copy_from_slice(&[&MacAddr::GATEWAY.0[..], &MacAddr::from_ip(addr("10.244.1.5")).0, &[8, 0]].concat());
    error.extend(&arrived[14..]);
    let total = (error.len() - 14) as u16;
    let mut header = [0; 20];
    weir_dataplane::wire::ipv4::Header { src: ip("10.244.1.5"), dst: ip("10.244.1.6"), proto: 1, ttl: 64, tos: 0, total }.emit(&mut header);
    error[14..34].copy_from_slice(&header);
    (error[34], error[35]) = (3, 3);
    let sum = weir_dataplane::wire::checksum::full(&error[34..], 0).to_be_bytes();
    error[36..38].copy_from_slice(&sum);
    let out = node.passes(web, error, client);
    assert_eq!(node.seen[0].trail.state, CtState::Related(FlowDir::Reply));
    let quoted = Parsed::Ip(weir_dataplane::parse::parse_ip(&out, 42).unwrap());
    let Parsed::Ip(quoted) = quoted else { unreachable!() };
    assert_eq!(quoted.tuple, tuple(UDP, "10.244.1.6:4000", "10.96.0.10:53"));
    assert_eq!(headers(&out).tuple.src, ip("10.96.0.10"));
}

#[test]
fn fragments_follow_their_first_one() {
    let mut state = cluster(0);
    add_service(&mut state, "dns", Protocol::Udp, &["10.96.0.10:53"], &["10.244.1.5:5353"]);
    let mut node = TestNode::new(&state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let whole = Craft { payload: vec![7; 64], ..node.craft(client, tuple(UDP, "10.244.1.6:4000", "10.96.0.10:53")) }.frame();
    let fragment = |range: std::ops::Range<usize>, offset: u16, more: bool| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34..][range]);
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[18..20].copy_from_slice(&77u16.to_be_bytes());
        frame[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        frame[24..26].fill(0);
        let sum = weir_dataplane::wire::checksum::full(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    node.drops(client, fragment(40..72, 40, false), DropReason::FirstFragmentNotFound);
    node.passes(client, fragment(0..40, 0, true), web);
    let later = node.passes(client, fragment(40..72, 40, false), web);
    assert_eq!(headers(&later).tuple.dst, ip("10.244.1.5"));
}

#[test]
fn flows_outlive_a_snapshot_that_denies_them_unless_they_are_cut_or_drained_e1_37() {
    for (on_change, expected) in [
        (OnChange::Keep, None),
        (OnChange::Cut, Some(Verdict::Drop(DropReason::PolicyDenied))),
        (OnChange::Drain, Some(Verdict::Reply(Some(DropReason::PolicyDenied)))),
    ] {
        let mut state = cluster(0);
        let mut node = TestNode::with(&state, |r| r.config.policy.on_change = on_change);
        let (client, web) = (node.pod("client"), node.pod("web"));
        let flow = tuple(TCP, "10.244.1.6:4000", "10.96.0.10:80");
        let syn = node.craft(client, flow).frame();
        let out = headers(&node.passes(client, syn, web)).tuple;
        let answer = Craft { tcp_flags: tcp::SYN | tcp::ACK, ..node.craft(web, out.inverse()) }.frame();
        node.passes(web, answer.clone(), client);
        isolate(&mut state, 0, vec![], 1);
        node.publish(&state);
        let data = Craft { tcp_flags: tcp::ACK, ..node.craft(client, flow) }.frame();
        let (verdict, _) = node.one(client, data);
        assert_eq!(verdict, expected.unwrap_or(Verdict::Forward(web)), "{on_change:?}");
        let (verdict, _) = node.one(web, answer);
        match on_change {
            OnChange::Keep => assert_eq!(verdict, Verdict::Forward(client)),
            OnChange::Cut => assert_eq!(verdict, Verdict::Drop(DropReason::InvalidConntrack)),
            OnChange::Drain => assert_eq!(verdict, Verdict::Reply(Some(DropReason::PolicyDenied))),
        }
    }
}

#[test]
fn least_connections_are_counted_over_generations_until_they_end() {
    let mut state = cluster(0);
    state.services.clear();
    let backends = ["10.244.1.5:8080", "10.244.2.7:8080"];
    add_service(&mut state, "web", Protocol::Tcp, &["10.96.0.10:80"], &backends[..1]);
    let mut node = TestNode::with(&state, |r| r.config.services.scheduler = Scheduler::LeastConnections);
    let client = node.pod("client");
    let mut port = 4000;
    let mut open = |node: &mut TestNode, count: u32| {
        let mut chosen = [0; 2];
        for _ in 0..count {
            port += 1;
            let syn = node.craft(client, tuple(TCP, &format!("10.244.1.6:{port}"), "10.96.0.10:80")).frame();
            node.run(&[(client, syn)]);
            let backend = node.seen[0].trail.backend.unwrap();
            chosen[backends.iter().position(|text| (backend.address, backend.port) == place(text)).unwrap()] += 1;
        }
        chosen
    };
    assert_eq!(open(&mut node, 6), [6, 0]);
    state.services.clear();
    add_service(&mut state, "web", Protocol::Tcp, &["10.96.0.10:80"], &backends);
    node.publish(&state);
    assert_eq!(open(&mut node, 6), [0, 6], "the newcomer has none yet");
    let shared = open(&mut node, 6);
    assert_eq!(shared, [3, 3]);
    // The first six end: their backend is asked until it has as many as the other.
    for port in 4001..4007 {
        let reset = Craft { tcp_flags: tcp::RST, ..node.craft(client, tuple(TCP, &format!("10.244.1.6:{port}"), "10.96.0.10:80")) };
        node.run(&[(client, reset.frame())]);
    }
    assert_eq!(open(&mut node, 6), [6, 0]);
}

#[test]
fn an_established_flow_keeps_its_backend_when_it_leaves_the_service() {
    let mut state = cluster(0);
    let mut node = TestNode::new(&state);
    let (client, web) = (node.pod("client"), node.pod("web"));
    let syn = node.craft(client, tuple(TCP, "10.244.1.6:4000", "10.96.0.10:80")).frame();
    node.passes(client, syn, web);
    state.services.clear();
    add_service(&mut state, "web", Protocol::Tcp, &["10.96.0.10:80"], &["10.244.2.7:8080"]);
    node.publish(&state);
    let data = Craft { tcp_flags: tcp::ACK, ..node.craft(client, tuple(TCP, "10.244.1.6:4000", "10.96.0.10:80")) };
    node.passes(client, data.frame(), web);
    let new = node.craft(client, tuple(TCP, "10.244.1.6:4001", "10.96.0.10:80")).frame();
    node.passes(client, new, UPLINK);
}

#[test]
fn nothing_of_ours_from_the_network_goes_to_the_node_itself_and_foreign_traffic_nowhere() {
    let mut node = TestNode::new(&cluster(0));
    let ssh = node.craft(UPLINK, tuple(TCP, "198.51.100.7:4000", "10.0.0.10:22")).frame();
    node.passes(UPLINK, ssh, HOST);
    assert_eq!(node.conns.used(), 0);
    let transit = node.craft(UPLINK, tuple(TCP, "198.51.100.7:4000", "203.0.113.1:22")).frame();
    node.drops(UPLINK, transit, DropReason::OtherHost);
    let cluster_ip = node.craft(UPLINK, tuple(TCP, "198.51.100.7:4000", "10.96.0.10:80")).frame();
    node.drops(UPLINK, cluster_ip, DropReason::ServiceNotExternal); // E2.7
}

#[test]
fn unfinished_checksums_are_finished_on_the_way_out() {
    let mut node = TestNode::with(&cluster(0), |r| r.ports.iter_mut().for_each(|p| p.unfinished_checksums = true));
    let (client, web) = (node.pod("client"), node.pod("web"));
    let mut syn = node.craft(client, tuple(TCP, "10.244.1.6:4000", "10.96.0.10:80")).frame();
    let pseudo = weir_dataplane::wire::checksum::pseudo(ip("10.244.1.6"), ip("10.96.0.10"), TCP, (syn.len() - 34) as u32);
    syn[50..52].copy_from_slice(&weir_dataplane::wire::checksum::fold(pseudo).to_be_bytes());
    headers(&node.passes(client, syn, web));
}

#[test]
fn the_first_packet_to_an_unresolved_neighbour_asks_for_it() {
    let mut node = TestNode::with(&cluster(0), |r| r.underlay.neighbours.clear());
    let client = node.pod("client");
    let syn = node.craft(client, tuple(TCP, "10.244.1.6:1", "198.51.100.7:443")).frame();
    node.drops(client, syn, DropReason::FibLookupFailed);
    assert_eq!(node.local.unresolved, Some(ip("198.51.100.7")));
}

#[test]
fn udp_flows_to_endpoints_that_serve_no_longer_are_stale() {
    use weir_dataplane::conntrack::{FlowDir, Hit};
    use weir_dataplane::pipeline::is_stale_service_flow;
    let mut state = cluster(0);
    add_service(&mut state, "dns", Protocol::Udp, &["10.96.0.10:53"], &["10.244.1.5:5353", "10.244.2.7:5353"]);
    let mut node = TestNode::new(&state);
    let client = node.pod("client");
    let to_service = tuple(UDP, "10.244.1.6:4000", "10.96.0.10:53");
    let direct = tuple(UDP, "10.244.1.6:4000", "10.244.1.5:99");
    let tcp = tuple(TCP, "10.244.1.6:4000", "10.96.0.10:80");
    let stale = |node: &TestNode, flow| {
        let hit: Hit = node.conns.lookup(node.conns.hash(&flow), &flow).unwrap();
        assert_eq!(hit.dir, FlowDir::Original);
        is_stale_service_flow(&node.tables, &node.conns.flow(hit))
    };
    for flow in [to_service, direct, tcp] {
        let frame = node.craft(client, flow).frame();
        node.run(&[(client, frame)]);
        assert!(!stale(&node, flow), "{flow:?}");
    }
    Arc::make_mut(&mut state.services[1]).backends.iter_mut().for_each(|b| b.serving = false);
    node.publish(&state);
    assert!(stale(&node, to_service) && !stale(&node, tcp), "E2.39, E2.40");
    state.services.clear();
    add_service(&mut state, "late", Protocol::Udp, &["10.244.1.5:99"], &["10.244.2.7:1"]);
    node.publish(&state);
    assert!(stale(&node, to_service), "the Service is gone");
    assert!(stale(&node, direct), "what was no service is one now");
}

#[test]
fn no_frame_whatsoever_upsets_the_node() {
    let mut state = cluster(0);
    isolate(&mut state, 0, vec![1], 80);
    let (mut node, mut b) = (TestNode::new(&state), TestNode::new(&cluster(1)));
    let (client, db) = (node.pod("client"), b.pod("db"));
    let from_far = b.craft(db, tuple(TCP, "10.244.2.7:4000", "10.244.1.5:80")).frame();
    let overlay = b.passes(db, from_far, UPLINK);
    let mut seeds = vec![(UPLINK, overlay)];
    for protocol in [TCP, UDP, proto::SCTP, proto::ICMP] {
        seeds.push((client, node.craft(client, tuple(protocol, "10.244.1.6:1", "10.96.0.10:80")).frame()));
        seeds.push((client, node.craft(client, tuple(protocol, "10.244.1.6:1", "10.244.2.7:80")).frame()));
    }
    seeds.push((client, node.craft(client, tuple(proto::ICMPV6, "[fd00:244:1::6]:1", "[fe80::1]:1")).frame()));
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20_000 {
        let batch: Vec<_> = (0..random.usize(1..8))
            .map(|_| {
                let (port, mut frame) = seeds[random.usize(..seeds.len())].clone();
                for _ in 0..random.usize(..4) {
                    let at = random.usize(..frame.len());
                    frame[at] = random.u8(..);
                }
                frame.truncate(random.usize(frame.len() / 2..=frame.len() * 2));
                (port, frame)
            })
            .collect();
        node.run(&batch);
        node.now += 100_000;
    }
    assert!(node.local.counters.received > 20_000);
}

#[test]
fn flows_end_within_ten_seconds_of_their_time_while_anything_comes() {
    const SECOND: u64 = 1_000_000_000;
    let mut node = TestNode::new(&cluster(0));
    let (from, to) = (node.pod("client"), node.pod("web"));
    let craft = |node: &TestNode, sport: u16| node.craft(from, tuple(UDP, &format!("10.244.1.6:{sport}"), "10.244.1.5:5353")).frame();
    // Twenty, of which four fall silent, here and there in the table.
    for sport in 4000..4020 {
        let frame = craft(&node, sport);
        node.passes(from, frame, to);
    }
    let silent = [4000, 4006, 4013, 4019].map(|sport| tuple(UDP, &format!("10.244.1.6:{sport}"), "10.244.1.5:5353"));
    let busy = (4000..4020).filter(|sport| silent.iter().all(|tuple| tuple.sport != *sport)).cycle();
    let mut gone_after = [None; 4];
    for (quarter, sport) in (1..140 * 4).zip(busy) {
        node.now += SECOND / 4;
        let frame = craft(&node, sport);
        node.passes(from, frame, to);
        for (tuple, gone) in silent.iter().zip(&mut gone_after) {
            if gone.is_none() && node.conns.lookup(node.conns.hash(tuple), tuple).is_none() {
                *gone = Some(quarter / 4);
            }
        }
    }
    // RFC 4787 REQ-5: two minutes for UDP without an answer.
    assert!(gone_after.iter().all(|after| after.is_some_and(|seconds| (120..=131).contains(&seconds))), "{gone_after:?}");
    assert_eq!(node.conns.used(), 16);
}
