//! What the redirect program gives to the worker and what stays with the kernel, packet class by packet class, over a
//! real veth as uplink; and that nothing of it remains.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::{Raw, in_namespace, ip, port, veth};
use weir_xsk::{AttachMode, Attached, PortRole, Ports, Redirect, RedirectError, UmemConfig, UplinkFilter};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const NODE: &str = "192.0.2.10";
const NODE6: &str = "2001:db8::10";
const LB: &str = "198.51.100.7";
const LB6: &str = "2001:db8:ffff::7";
const POD: &str = "10.244.7.7";
const POD6: &str = "fd00:10:244:7::7";
const PEER: &str = "203.0.113.9";
const PEER6: &str = "2001:db8:9::9";

fn filter() -> UplinkFilter {
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    UplinkFilter {
        vtep_port: Some(8472),
        masquerade: Some(61000..=65535),
        node_addresses: [NODE, NODE6].map(at).into(),
        pod_cidrs: [(at("10.244.0.0"), 16), (at("fd00:10:244::"), 48)].into(),
        frontends: [(at(NODE), TCP, 30080), (at(NODE6), TCP, 30080), (at(LB), UDP, 53), (at(LB6), SCTP, 9999)].into(),
    }
}

/// An Ethernet frame around an IP packet.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype.to_be_bytes(), payload].concat()
}

/// An IP packet without checksums; `fragment` is the IPv4 field of flags and offset, `id` its identification.
fn packet(src: &str, dst: &str, proto: u8, fragment: u16, id: u16, options: usize, l4: &[u8]) -> Vec<u8> {
    match (src.parse().unwrap(), dst.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4(src, dst, proto, fragment, id, options, l4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6(src, dst, proto, fragment, id, options, l4),
        _ => panic!("two families in one packet"),
    }
}

fn v4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, fragment: u16, id: u16, options: usize, l4: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45 + options as u8, 0];
    bytes.extend(((20 + options * 4 + l4.len()) as u16).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, proto, 0, 0]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(vec![1; options * 4]);
    bytes.extend(l4);
    bytes
}

/// `fragment` in the terms of IPv4; each of `options` is a destination options header.
fn v6(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, fragment: u16, id: u16, options: usize, l4: &[u8]) -> Vec<u8> {
    let mut headers: Vec<(u8, Vec<u8>)> = (0..options).map(|_| (60, vec![0, 0, 1, 4, 0, 0, 0, 0])).collect();
    if fragment != 0 {
        let field = (fragment & 0x1fff) << 3 | u16::from(fragment & 0x2000 != 0);
        headers.push((44, [&[0, 0][..], &field.to_be_bytes(), &u32::from(id).to_be_bytes()].concat()));
    }
    let mut body = Vec::new();
    for n in 0..headers.len() {
        let next = headers.get(n + 1).map_or(proto, |(kind, _)| *kind);
        body.push(next);
        body.extend(&headers[n].1[1..]);
    }
    body.extend(l4);
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.push(headers.first().map_or(proto, |(kind, _)| *kind));
    bytes.push(64);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(body);
    bytes
}

fn ports(sport: u16, dport: u16) -> Vec<u8> {
    [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 16]].concat()
}

fn icmp(kind: u8, id: u16, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 0], rest].concat()
}

fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

/// The plain packet of a class.
fn plain(src: &str, dst: &str, proto: u8, l4: &[u8]) -> Vec<u8> {
    frame(&packet(src, dst, proto, 0, 1, 0, l4))
}

/// An ICMP error about a packet that was sent from `from`.
fn error(from: &str, to: &str, proto: u8, l4: &[u8]) -> Vec<u8> {
    let quoted = packet(from, to, proto, 0, 1, 0, l4);
    if from.contains(':') { plain(PEER6, from, ICMP6, &icmp(2, 0, &quoted)) } else { plain(PEER, from, ICMP, &icmp(3, 0, &quoted)) }
}

/// An uplink and the other side of its wire.
struct Uplink {
    ports: Ports,
    redirect: Redirect,
    wire: Raw,
    kernel: Raw,
}

impl Uplink {
    fn new(mode: AttachMode) -> Self {
        veth("u0", "u1");
        let mut ports = Ports::new(UmemConfig { slots: 512, ring: 128 }).unwrap();
        let mut redirect = Redirect::load(8, 2).unwrap();
        ports.add(3, &port("u0")).unwrap();
        redirect.set_socket(3, 0, ports.socket(3).unwrap()).unwrap();
        let expected = if mode == AttachMode::Skb { Attached::Skb } else { Attached::Copy };
        assert_eq!(redirect.attach(3, "u0", PortRole::Uplink, mode).unwrap(), expected);
        redirect.set_uplink(filter()).unwrap();
        Self { ports, redirect, wire: Raw::open("u1"), kernel: Raw::open("u0") }
    }

    /// Who gets the frame: the worker, or the kernel.
    fn worker_gets(&mut self, what: &str, frame: &[u8]) -> bool {
        while self.kernel.recv().is_some() {}
        assert!(self.wire.send(frame), "{what}");
        for _ in 0..100_000 {
            let mut got = Vec::new();
            self.ports.rx(64, |_, frame| got.push(frame));
            if let Some(frame) = got.pop() {
                self.ports.free(frame);
                assert!(self.kernel.recv().is_none(), "{what}: both got it");
                return true;
            }
            match self.kernel.recv() {
                // The kernel has taken a VLAN tag off before it shows the frame.
                Some(bytes) if bytes == frame || bytes == [&frame[..12], &frame[16.min(frame.len())..]].concat() => return false,
                _ => {}
            }
        }
        panic!("{what}: nobody got it");
    }

    fn check(&mut self, ours: bool, what: &str, frame: &[u8]) {
        assert_eq!(self.worker_gets(what, frame), ours, "{what}: is it the worker's?");
    }
}

#[test]
fn the_uplink_gives_only_what_is_ours() {
    in_namespace(|| all_classes(AttachMode::Auto));
}

#[test]
fn generic_mode_decides_the_same() {
    in_namespace(|| all_classes(AttachMode::Skb));
}

fn all_classes(mode: AttachMode) {
    let mut up = Uplink::new(mode);
    for (node, lb, pod, peer, icmp_proto, reply, request) in [(NODE, LB, POD, PEER, ICMP, 0, 8), (NODE6, LB6, POD6, PEER6, ICMP6, 129, 128)]
    {
        let (lb_proto, lb_port) = if lb == LB { (UDP, 53) } else { (SCTP, 9999) };
        for (ours, what, l4) in [
            (true, "overlay", plain(peer, node, UDP, &ports(50000, 8472))),
            (false, "overlay port by TCP", plain(peer, node, TCP, &ports(50000, 8472))),
            (false, "overlay port at another address", plain(peer, lb, UDP, &ports(50000, 8472))),
            (true, "from a pod network", plain(pod, node, TCP, &ports(80, 40000))),
            (true, "to a pod network", plain(peer, pod, UDP, &ports(1, 2))),
            (true, "answer to a masqueraded flow", plain(peer, node, TCP, &ports(443, 61000))),
            (true, "the last masquerade port", plain(peer, node, SCTP, &ports(443, 65535))),
            (false, "below the masquerade range", plain(peer, node, TCP, &ports(443, 60999))),
            (false, "masquerade port at another address", plain(peer, lb, TCP, &ports(443, 61000))),
            (true, "NodePort", plain(peer, node, TCP, &ports(5555, 30080))),
            (false, "NodePort by another protocol", plain(peer, node, UDP, &ports(5555, 30080))),
            (false, "ssh", plain(peer, node, TCP, &ports(5555, 22))),
            (true, "load balancer address", plain(peer, lb, lb_proto, &ports(5555, lb_port))),
            (false, "another port there", plain(peer, lb, lb_proto, &ports(5555, lb_port + 1))),
            (true, "echo reply to a masqueraded ping", plain(peer, node, icmp_proto, &icmp(reply, 61001, &[0; 8]))),
            (false, "echo reply to the node's own ping", plain(peer, node, icmp_proto, &icmp(reply, 77, &[0; 8]))),
            (false, "ping of the node", plain(peer, node, icmp_proto, &icmp(request, 61001, &[0; 8]))),
            (true, "error about a masqueraded packet", error(node, peer, TCP, &ports(61005, 443))),
            (true, "error about a NodePort's answer", error(node, peer, TCP, &ports(30080, 5555))),
            (true, "error about a load balancer's answer", error(lb, peer, lb_proto, &ports(lb_port, 5555))),
            (true, "error about an overlay packet", error(node, peer, UDP, &ports(50000, 8472))),
            (true, "error about a masqueraded ping", error(node, peer, icmp_proto, &icmp(request, 61001, &[0; 8]))),
            (false, "error about the node's own packet", error(node, peer, TCP, &ports(40000, 443))),
            (false, "error about somebody else's packet", error(peer, node, TCP, &ports(61005, 443))),
            (true, "with options", frame(&packet(peer, node, TCP, 0, 1, 3, &ports(5555, 30080)))),
            (false, "ssh with options", frame(&packet(peer, node, TCP, 0, 1, 3, &ports(5555, 22)))),
        ] {
            up.check(ours, &format!("{what} ({node})"), &l4);
        }
        // Fragments: the later ones follow the first.
        let first = |id, dport| frame(&packet(peer, node, TCP, 0x2000, id, 0, &ports(5555, dport)));
        let later = |id| frame(&packet(peer, node, TCP, 0x2003, id, 0, &[9; 24]));
        up.check(false, "a later fragment whose first one never came", &later(7));
        up.check(true, "the first fragment of ours", &first(7, 30080));
        up.check(true, "its later fragment", &later(7));
        up.check(false, "a later fragment of another packet", &later(8));
        up.check(false, "a first fragment with a reused id", &first(7, 22));
        up.check(false, "its later fragment", &later(7));
        up.check(true, "a later fragment from a pod", &frame(&packet(pod, node, TCP, 3, 9, 0, &[9; 24])));
    }
    let nodeport = packet(PEER, NODE, TCP, 0, 1, 0, &ports(5555, 30080));
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([0; 20]);
    up.check(false, "ARP", &ethernet(0x0806, &arp));
    up.check(false, "802.1Q", &ethernet(0x8100, &[&[0, 5, 8, 0][..], &nodeport].concat()));
    up.check(false, "LLDP", &ethernet(0x88cc, &[0; 46]));
    for kind in 133..=137 {
        up.check(false, "neighbour discovery about a pod network", &plain(PEER6, POD6, ICMP6, &icmp(kind, 0, &[0; 16])));
    }
    for len in 0..nodeport.len() {
        let cut = ethernet(0x0800, &nodeport[..len]);
        up.check(len >= 28, "a cut packet", &cut);
    }
    let many = frame(&packet(PEER6, NODE6, TCP, 0, 1, 9, &ports(5555, 30080)));
    up.check(false, "more extension headers than we follow", &many);
    assert_eq!(up.ports.frames().lost(), 0);
}

#[test]
fn a_new_filter_takes_effect_and_the_old_one_goes() {
    in_namespace(|| {
        let mut up = Uplink::new(AttachMode::Auto);
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let old = plain(PEER, NODE, TCP, &ports(5555, 30080));
        let new = plain(PEER, NODE, TCP, &ports(5555, 30081));
        let pod = plain(PEER, POD, TCP, &ports(5555, 80));
        up.check(true, "old NodePort", &old);
        up.check(false, "new NodePort, before", &new);
        up.redirect
            .set_uplink(UplinkFilter {
                vtep_port: None,
                masquerade: None,
                frontends: BTreeSet::from([(at(NODE), TCP, 30081)]),
                // The same network in other words.
                pod_cidrs: BTreeSet::from([(at("10.244.3.1"), 16)]),
                ..filter()
            })
            .unwrap();
        up.check(false, "old NodePort, after", &old);
        up.check(true, "new NodePort", &new);
        up.check(true, "pod network", &pod);
        up.check(false, "overlay", &plain(PEER, NODE, UDP, &ports(50000, 8472)));
        up.check(false, "masquerade", &plain(PEER, NODE, TCP, &ports(443, 61000)));
        up.redirect.set_uplink(UplinkFilter::default()).unwrap();
        for frame in [&old, &new, &pod] {
            up.check(false, "nothing is ours", frame);
        }
    });
}

#[test]
fn pods_and_the_host_give_everything() {
    in_namespace(|| {
        for (index, role) in [(0, PortRole::Pod), (1, PortRole::Host)] {
            let (one, other) = (format!("e{index}"), format!("f{index}"));
            veth(&one, &other);
            let mut ports_ = Ports::new(UmemConfig { slots: 256, ring: 64 }).unwrap();
            let mut redirect = Redirect::load(8, 1).unwrap();
            redirect.attach(index, &one, role, AttachMode::Auto).unwrap();
            ports_.add(index, &port(&one)).unwrap();
            redirect.set_socket(index, 0, ports_.socket(index).unwrap()).unwrap();
            let raw = Raw::open(&other);
            for frame in [plain(PEER, NODE, TCP, &ports(1, 22)), ethernet(0x0806, &[0; 28]), ethernet(0x8100, &[0; 46])] {
                raw.send(&frame);
                let mut got = Vec::new();
                while ports_.rx(64, |index, frame| got.push((index, frame))) == 0 {}
                let (from, got) = got.remove(0);
                assert_eq!((from, ports_.arena().bytes(&got)), (index, &frame[..]));
                ports_.free(got);
            }
        }
    });
}

#[test]
fn without_a_worker_what_is_ours_reaches_nobody() {
    in_namespace(|| {
        let mut up = Uplink::new(AttachMode::Auto);
        up.ports.remove(3);
        while up.kernel.recv().is_some() {}
        up.wire.send(&plain(PEER, POD, TCP, &ports(5555, 80)));
        let ssh = plain(PEER, NODE, TCP, &ports(5555, 22));
        up.wire.send(&ssh);
        // In order: had the first one passed, it would come first.
        assert_eq!(up.kernel.recv_where(|_| true), Some(ssh));
    });
}

#[test]
fn a_foreign_program_is_refused_and_stays() {
    in_namespace(|| {
        veth("u0", "u1");
        let mut other = Redirect::load(8, 1).unwrap();
        other.attach(0, "u0", PortRole::Pod, AttachMode::Auto).unwrap();
        let before = ip("-j link show u0");
        let mut redirect = Redirect::load(8, 1).unwrap();
        let error = redirect.attach(0, "u0", PortRole::Uplink, AttachMode::Auto).unwrap_err();
        let RedirectError::Foreign { programs, .. } = &error else { panic!("{error}") };
        assert_eq!(programs.len(), 1);
        assert!(error.to_string().contains(&format!("`bpftool prog show id {}`", programs[0])), "{error}");
        assert!(before.contains(&format!("\"id\":{}", programs[0])), "{before}");
        assert_eq!(ip("-j link show u0"), before);
    });
}

#[test]
fn detaching_leaves_nothing() {
    in_namespace(|| {
        let none = |name: &str| !ip(&format!("-j link show {name}")).contains("xdp");
        veth("u0", "u1");
        veth("v0", "v1");
        let mut redirect = Redirect::load(8, 1).unwrap();
        redirect.attach(0, "u0", PortRole::Pod, AttachMode::Auto).unwrap();
        redirect.attach(1, "v0", PortRole::Uplink, AttachMode::Skb).unwrap();
        assert!(!none("u0") && !none("v0"));
        assert!(redirect.detach(0) && !redirect.detach(0));
        assert!(none("u0") && !none("v0"));
        redirect.attach(0, "u0", PortRole::Pod, AttachMode::Copy).unwrap();
        drop(redirect);
        assert!(none("u0") && none("v0"));
    });
}

#[test]
fn what_cannot_be_attached_is_said_with_what_to_do() {
    in_namespace(|| {
        veth("u0", "u1");
        let mut redirect = Redirect::load(2, 1).unwrap();
        let mut refused = |index, name: &str, mode| redirect.attach(index, name, PortRole::Pod, mode).unwrap_err();
        assert!(matches!(refused(0, "nothere", AttachMode::Auto), RedirectError::NoInterface { .. }));
        assert!(matches!(refused(2, "u0", AttachMode::Auto), RedirectError::Index { .. }));
        assert!(matches!(refused(0, "u0", AttachMode::ZeroCopy), RedirectError::NoZeroCopy { .. }));
        assert!(matches!(refused(0, "lo", AttachMode::Copy), RedirectError::NoDriverSupport { .. }));
        ip("link add w0 numrxqueues 1 numtxqueues 1 type veth peer name w1 numrxqueues 4 numtxqueues 4");
        let error = refused(0, "w0", AttachMode::Auto);
        assert!(matches!(&error, RedirectError::Queues { queues: 1, .. }), "{error}");
        ip("link add x0 numrxqueues 2 type veth peer name x1");
        let error = refused(0, "x0", AttachMode::Auto);
        assert!(matches!(&error, RedirectError::Unserved { queues: 2, served: 1, .. }), "{error}");
        // An interface without a driver's support is attached generically where that is left open.
        assert_eq!(redirect.attach(0, "lo", PortRole::Uplink, AttachMode::Auto).unwrap(), Attached::Skb);
    });
}
