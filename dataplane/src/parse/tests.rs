//! Parsing, against frames made here, against etherparse, against captures, and against noise.

use std::path::Path;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::capture::Capture;
use crate::craft::Craft;
use crate::craft::testing::{any_packet, headers_of};
use crate::model::proto;
use crate::wire::tcp;

fn v4(proto: u8) -> Tuple {
    Tuple { src: Ip::v4(0x0a00_0001), dst: Ip::v4(0x0a00_0002), sport: 1000, dport: 80, proto }
}

fn v6(proto: u8) -> Tuple {
    Tuple { src: Ip(0xfd00 << 112 | 1), dst: Ip(0xfd00 << 112 | 2), sport: 1000, dport: 80, proto }
}

/// A frame around an IPv4 header whose checksum is made right after `edit`.
fn v4_with(proto: u8, payload: &[u8], edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Craft { payload: payload.to_vec(), ..Craft::new(v4(proto)) }.frame();
    edit(&mut frame);
    fix_header(&mut frame);
    frame
}

fn fix_header(frame: &mut [u8]) {
    let header_len = usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let value = checksum::full(&frame[14..14 + header_len], 0);
    frame[24..26].copy_from_slice(&value.to_be_bytes());
}

/// An IPv6 frame whose payload is `payload`, starting with a header of type `next`.
fn v6_with(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Craft { payload: payload.to_vec(), ..Craft::new(v6(253)) }.frame();
    frame[20] = next;
    frame
}

/// A frame with its checksum finished, where it is unfinished.
fn finished(bytes: Vec<u8>, headers: &Headers) -> Vec<u8> {
    if !is_unfinished(&bytes, headers) {
        return bytes;
    }
    let (arena, mut frames) = weir_xsk::Arena::heap(1, 1 << 17, 0).unwrap();
    let frame = &mut frames[0];
    assert!(arena.fill(frame, &bytes[..headers.frame_len()]));
    assert!(finish_checksum(&arena, frame, headers).is_some());
    [arena.bytes(frame), &bytes[headers.frame_len()..]].concat()
}

fn udp_bytes() -> Vec<u8> {
    Craft::new(v6(proto::UDP)).frame()[54..].to_vec()
}

#[test]
fn padding_is_no_part_of_the_packet_and_a_cut_frame_is_invalid() {
    for tuple in [v4(proto::UDP), v6(proto::TCP), v4(proto::ICMP), v6(proto::SCTP)] {
        let mut frame = Craft { payload: vec![7; 5], ..Craft::new(tuple) }.frame();
        let len = frame.len();
        let whole = headers_of(&frame);
        assert_eq!(whole.frame_len(), len);
        for cut in 0..len {
            assert_eq!(parse(&frame[..cut]), Err(DropReason::InvalidPacket), "{tuple:?} cut to {cut}");
        }
        frame.extend([0; 18]);
        assert_eq!(headers_of(&frame), whole);
    }
}

#[test]
fn every_bit_of_an_ipv4_header_is_guarded_by_its_checksum() {
    let frame = Craft::new(v4(proto::TCP)).frame();
    for bit in 0..160 {
        let mut wrong = frame.clone();
        wrong[14 + bit / 8] ^= 1 << (bit % 8);
        assert!(parse(&wrong).is_err(), "bit {bit}");
    }
}

#[test]
fn ipv4_options_are_skipped() {
    let udp = Craft::new(v4(proto::UDP)).frame()[34..].to_vec();
    let frame = v4_with(253, &[vec![1; 8], udp].concat(), |frame| {
        frame[14] = 0x47;
        frame[23] = proto::UDP;
    });
    let h = headers_of(&frame);
    assert!(h.has(HeaderFlags::OPTIONS));
    assert_eq!((h.l4, h.tuple), (42, v4(proto::UDP)));

    let mut wrong = frame.clone();
    wrong[35] = 0;
    assert_eq!(parse(&wrong), Err(DropReason::InvalidPacket), "options count for the checksum");
    for ihl in [0x40, 0x44, 0x4f, 0x55] {
        let mut wrong = frame.clone();
        wrong[14] = ihl;
        assert_eq!(parse(&wrong), Err(DropReason::InvalidPacket), "{ihl:02x}");
    }
}

#[test]
fn sources_that_nobody_has_are_refused() {
    for src in [0, 0x0000_0001, 0x7f00_0001, 0xe000_0001, 0xffff_ffff] {
        let frame = Craft::new(Tuple { src: Ip::v4(src), ..v4(proto::UDP) }).frame();
        assert_eq!(parse(&frame), Err(DropReason::InvalidSourceIp), "{src:08x}");
    }
    for src in [0, 1, 0xff02 << 112 | 1] {
        let frame = Craft::new(Tuple { src: Ip(src), ..v6(proto::UDP) }).frame();
        assert_eq!(parse(&frame), Err(DropReason::InvalidSourceIp), "{src:032x}");
    }
    for (src, dst) in [(Ip::v4(1 << 24).0, 2), (0xfd00 << 112 | 1, 0), (0xfd00 << 112 | 1, 1), (0xfd00 << 112, Ip::v4(9).0)] {
        let mut frame = Craft::new(v6(proto::UDP)).frame();
        frame[22..38].copy_from_slice(&src.to_be_bytes());
        frame[38..54].copy_from_slice(&dst.to_be_bytes());
        assert_eq!(parse(&frame), Err(DropReason::InvalidPacket), "{src:032x} to {dst:032x}");
    }
    for dst in [0, 0x7f00_0001] {
        let frame = Craft::new(Tuple { dst: Ip::v4(dst), ..v4(proto::UDP) }).frame();
        assert_eq!(parse(&frame), Err(DropReason::InvalidPacket), "{dst:08x}");
    }
}

#[test]
fn the_unspecified_source_is_for_discovery_only() {
    let all_nodes = Ip(0xff02 << 112 | 1);
    let h = headers_of(&Craft::new(Tuple { src: Ip(0), dst: all_nodes, sport: 0, dport: 0, proto: proto::ICMPV6 }).frame());
    assert!(h.has(HeaderFlags::UNSPECIFIED_SRC) && h.has(HeaderFlags::MULTICAST_DST));
    for number in [proto::UDP, proto::SCTP] {
        let frame = Craft::new(Tuple { src: Ip(0), dst: all_nodes, ..v6(number) }).frame();
        assert_eq!(parse(&frame), Err(DropReason::InvalidSourceIp));
    }
}

#[test]
fn other_link_protocols_are_named() {
    let mut frame = Craft::new(v4(proto::UDP)).frame();
    for (ethertype, reason) in [
        (0x0026, DropReason::UnsupportedL2),
        (0x05dc, DropReason::UnsupportedL2),
        (0x8847, DropReason::UnsupportedL3),
        (0x0806, DropReason::InvalidPacket),
        (0x86dd, DropReason::InvalidPacket),
    ] {
        frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
        assert_eq!(parse(&frame), Err(reason), "{ethertype:04x}");
    }
}

#[test]
fn tagged_packets_are_read_and_marked() {
    let plain = Craft::new(v4(proto::UDP)).frame();
    let one = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
    let two = [&plain[..12], &[0x88, 0xa8, 0, 5], &one[12..]].concat();
    for (frame, l3) in [(&one, 18), (&two, 22)] {
        let h = headers_of(frame);
        assert_eq!((h.l3, h.tuple, h.src_mac), (l3, v4(proto::UDP), MacAddr([2, 0, 0, 0, 0, 1])));
        assert!(h.has(HeaderFlags::VLAN));
        assert_eq!(parse(&frame[..frame.len() - 1]), Err(DropReason::VlanFiltered));
    }
    let three = [&plain[..12], &[0x81, 0, 0, 5], &two[12..]].concat();
    assert_eq!(parse(&three), Err(DropReason::VlanFiltered));
}

#[test]
fn ipv4_fragments_have_ports_only_in_the_first() {
    let first = v4_with(proto::UDP, &[0; 8], |frame| frame[18..22].copy_from_slice(&[0x12, 0x34, 0x20, 0]));
    let h = headers_of(&first);
    assert!(h.has(HeaderFlags::FRAGMENT_FIRST) && h.has(HeaderFlags::MORE) && !h.has(HeaderFlags::FRAGMENT_LATER));
    assert_eq!((h.tuple, h.frag_id), (v4(proto::UDP), 0x1234));

    let later = v4_with(proto::UDP, &[0; 3], |frame| frame[18..22].copy_from_slice(&[0x12, 0x34, 0, 2]));
    let h = headers_of(&later);
    assert!(h.has(HeaderFlags::FRAGMENT_LATER) && !h.has(HeaderFlags::MORE));
    assert_eq!(h.tuple, Tuple { sport: 0, dport: 0, ..v4(proto::UDP) });

    for (what, proto, payload, field) in [
        ("not a multiple of 8", proto::UDP, 3, [0x20, 0]),
        ("beyond 65,535", proto::UDP, 8, [0x1f, 0xff]),
        ("over the TCP flags (RFC 1858)", proto::TCP, 8, [0, 1]),
    ] {
        let frame = v4_with(proto, &vec![0; payload], |frame| frame[20..22].copy_from_slice(&field));
        assert_eq!(parse(&frame), Err(DropReason::InvalidPacket), "{what}");
    }
    let tiny = v4_with(253, &[0; 16], |frame| {
        frame[23] = proto::TCP;
        frame[20] = 0x20;
    });
    assert_eq!(parse(&tiny), Err(DropReason::InvalidPacket), "a TCP header in two fragments (RFC 1858)");
}

#[test]
fn extension_headers_are_walked_to_the_transport() {
    let udp = udp_bytes();
    let (hbh, dst) = ([60, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]);
    let h = headers_of(&v6_with(0, &[&hbh, &dst, &udp[..]].concat()));
    assert_eq!((h.l4, h.tuple), (70, v6(proto::UDP)));
    assert!(h.has(HeaderFlags::OPTIONS));

    let atomic = [17, 0, 0, 0, 0, 0, 0, 9];
    let h = headers_of(&v6_with(44, &[&atomic, &udp[..]].concat()));
    assert_eq!((h.tuple, h.has(HeaderFlags::FRAGMENT)), (v6(proto::UDP), false), "an atomic fragment is whole (RFC 6946)");

    let first = [17, 0, 0, 1, 0, 0, 0, 9];
    let h = headers_of(&v6_with(44, &[&first, &udp[..]].concat()));
    assert_eq!((h.tuple, h.frag_id, h.has(HeaderFlags::FRAGMENT_FIRST)), (v6(proto::UDP), 9, true));

    let later = [17, 0, 0, 8, 0, 0, 0, 9];
    let h = headers_of(&v6_with(44, &[&later, &udp[..]].concat()));
    assert_eq!((h.tuple.dport, h.l4, h.has(HeaderFlags::FRAGMENT_LATER)), (0, 62, true));

    let auth = [17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]; // RFC 4302: 12 bytes
    assert_eq!(headers_of(&v6_with(51, &[&auth, &udp[..]].concat())).tuple, v6(proto::UDP));
    for end in [50, 59] {
        let h = headers_of(&v6_with(end, &udp));
        assert_eq!(h.tuple, Tuple { sport: 0, dport: 0, ..v6(end) });
    }
}

#[test]
fn illegal_extension_chains_are_refused() {
    let udp = udp_bytes();
    let header = |next, kind, left| [next, 0, kind, left, 0, 0, 0, 0];
    let chain = |count: usize| {
        let mut bytes: Vec<u8> = (0..count).flat_map(|n| header(if n + 1 == count { 17 } else { 60 }, 1, 4)).collect();
        bytes.extend(&udp);
        bytes
    };
    assert_eq!(headers_of(&v6_with(60, &chain(8))).tuple, v6(proto::UDP));
    for (what, frame) in [
        ("nine headers", v6_with(60, &chain(9))),
        // A later fragment that names UDP and starts 8 bytes on would write over the ports.
        ("options behind a fragment header", v6_with(44, &[&[60, 0, 0, 1, 0, 0, 0, 9], &header(17, 1, 4), &udp[..]].concat())),
        ("hop-by-hop not first", v6_with(60, &[&header(0, 1, 4), &header(17, 1, 4), &udp[..]].concat())),
        ("routing type 0 (RFC 5095)", v6_with(43, &[&header(17, 0, 0), &udp[..]].concat())),
        ("segments left", v6_with(43, &[&header(17, 4, 1), &udp[..]].concat())),
        ("two fragment headers", v6_with(44, &[&[44, 0, 0, 0, 0, 0, 0, 1], &[17, 0, 0, 0, 0, 0, 0, 1], &udp[..]].concat())),
        ("longer than the packet", v6_with(60, &[17, 9, 0, 0, 0, 0, 0, 0])),
        ("cut", v6_with(60, &[17, 0, 0, 0])),
    ] {
        assert_eq!(parse(&frame), Err(DropReason::InvalidIpv6Extension), "{what}");
    }
}

#[test]
fn transport_headers_must_fit_the_packet() {
    for (what, frame) in [
        ("TCP data offset 4", v4_with(proto::TCP, &[], |frame| frame[46] = 0x40)),
        ("TCP data offset 6 of 5", v4_with(proto::TCP, &[], |frame| frame[46] = 0x60)),
        ("UDP length 7", v4_with(proto::UDP, &[], |frame| frame[39] = 7)),
        ("UDP length 9 of 8", v4_with(proto::UDP, &[], |frame| frame[39] = 9)),
        ("TCP cut", v4_with(253, &[0; 19], |frame| frame[23] = proto::TCP)),
        ("UDP cut", v4_with(253, &[0; 7], |frame| frame[23] = proto::UDP)),
        ("SCTP cut", v4_with(253, &[0; 11], |frame| frame[23] = proto::SCTP)),
        ("ICMP cut", v4_with(253, &[8; 7], |frame| frame[23] = proto::ICMP)),
        ("ICMPv6 in IPv4", v4_with(253, &[128; 8], |frame| frame[23] = proto::ICMPV6)),
    ] {
        assert_eq!(parse(&frame), Err(DropReason::InvalidPacket), "{what}");
    }
    assert_eq!(headers_of(&v4_with(253, &[1; 3], |_| ())).tuple, Tuple { sport: 0, dport: 0, ..v4(253) });
}

#[test]
fn jumbograms_are_refused() {
    let mut big = Craft::new(v4(proto::TCP)).frame();
    big.resize(80_000, 0);
    big[16..18].fill(0);
    fix_header(&mut big);
    assert_eq!(parse(&big), Err(DropReason::InvalidPacket));
    let mut big = Craft::new(v6(proto::TCP)).frame();
    big.resize(80_000, 0);
    big[18..20].fill(0);
    assert_eq!(parse(&big), Err(DropReason::InvalidPacket));
}

#[test]
fn icmp_is_told_apart() {
    let kinds = |is_v6, kind| {
        let frame = if is_v6 {
            let mut frame = v6_with(proto::ICMPV6, &[0, 0, 0, 0, 0, 7, 0, 0]);
            frame[54] = kind;
            frame
        } else {
            v4_with(253, &[kind, 0, 0, 0, 0, 7, 0, 0], |frame| frame[23] = proto::ICMP)
        };
        let h = headers_of(&frame);
        assert_eq!(h.icmp_type, kind);
        assert_eq!((h.tuple.sport, h.tuple.dport), if h.has(HeaderFlags::ICMP_ECHO) { (7, 7) } else { (0, 0) });
        (h.has(HeaderFlags::ICMP_ECHO), h.has(HeaderFlags::ICMP_ERROR), h.has(HeaderFlags::NDP))
    };
    for kind in 0..=255 {
        assert_eq!(kinds(false, kind), (matches!(kind, 0 | 8), matches!(kind, 3 | 4 | 11 | 12), false), "ICMP {kind}");
        let ndp = (133..=137).contains(&kind);
        assert_eq!(kinds(true, kind), (matches!(kind, 128 | 129), kind < 128, ndp), "ICMPv6 {kind}");
    }
}

#[test]
fn packets_without_ethernet_are_read_too() {
    let frame = Craft::new(v6(proto::TCP)).frame();
    let h = parse_ip(&frame[14..], 0).unwrap();
    assert_eq!((h.tuple, h.l3, h.l4, h.tcp_flags), (v6(proto::TCP), 0, 40, tcp::SYN));
    assert_eq!(parse_ip(&frame, 14).unwrap().tuple, h.tuple);
    assert_eq!(parse_ip(&frame, 9_999), Err(DropReason::InvalidPacket));
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed((craft, _) in any_packet()) {
        let frame = craft.frame();
        let h = headers_of(&frame);
        prop_assert_eq!(h.tuple, craft.tuple);
        prop_assert_eq!((h.src_mac, h.dst_mac, h.ttl, h.tos), (craft.src_mac, craft.dst_mac, craft.ttl, craft.tos));
        prop_assert_eq!(h.frame_len(), frame.len());
        prop_assert_eq!(h.tcp_flags, if craft.tuple.proto == proto::TCP { craft.tcp_flags } else { 0 });
    }

    #[test]
    fn unfinished_checksums_are_finished_and_others_left((craft, _) in any_packet()) {
        let right = craft.frame();
        let h = headers_of(&right);
        // One finished checksum in 65,536 looks unfinished; either way the frame must not change.
        prop_assert_eq!(&finished(right.clone(), &h), &right);

        let Some(field) = checksum_field(&h) else { return Ok(()) };
        let at = usize::from(h.l4) + field;
        let mut frame = right.clone();
        let sum = checksum::pseudo(h.tuple.src, h.tuple.dst, h.tuple.proto, h.l4_len() as u32);
        frame[at..at + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
        prop_assert!(is_unfinished(&frame, &h));
        prop_assert_eq!(finished(frame, &h), right);
    }

    #[test]
    fn etherparse_sees_the_same((craft, _) in any_packet(), edits in proptest::collection::vec((14_usize..80, any::<u8>()), 0..3)) {
        let mut frame = craft.frame();
        for (at, value) in &edits {
            let at = at % frame.len();
            frame[at] = *value;
        }
        if !edits.is_empty() && craft.tuple.is_v4() && frame.len() >= 14 + usize::from(frame[14] & 15) * 4 {
            fix_header(&mut frame);
        }
        match parse(&frame) {
            Ok(Parsed::Ip(h)) => agree(&frame, &h),
            Ok(Parsed::Arp(_)) => {}
            Err(_) => prop_assert!(!edits.is_empty(), "a frame that was not changed is refused"),
        }
    }

    #[test]
    fn noise_is_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), head in 0_usize..6) {
        let heads: [&[u8]; 6] = [&[], &[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0x81, 0], &[8, 0, 0x4f]];
        if let Some(to) = bytes.get_mut(12..12 + heads[head].len()) {
            to.copy_from_slice(heads[head]);
        }
        survive(&bytes);
    }

    #[test]
    fn broken_packets_are_survived((craft, _) in any_packet(), edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6), cut in any::<u16>()) {
        let mut frame = craft.frame();
        for (at, value) in edits {
            let at = usize::from(at) % frame.len();
            frame[at] = value;
        }
        frame.truncate(usize::from(cut) % (2 * frame.len()));
        survive(&frame);
    }
}

/// Whatever `parse` takes, etherparse reads the same way.
fn agree(frame: &[u8], h: &Headers) {
    if h.has(HeaderFlags::VLAN) {
        return;
    }
    let sliced = SlicedPacket::from_ethernet(frame).unwrap_or_else(|e| panic!("etherparse refuses ({e}) what we take: {h:?}"));
    let (src, dst, fragmented) = match sliced.net.as_ref().expect("a network layer") {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.is_payload_fragmented()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.is_payload_fragmented()),
        NetSlice::Arp(_) => panic!("ARP is no IP"),
    };
    assert_eq!((src, dst), (h.tuple.src, h.tuple.dst));
    assert_eq!(fragmented, h.has(HeaderFlags::FRAGMENT));
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (proto::TCP, tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (proto::UDP, udp.source_port(), udp.destination_port()),
        _ => return,
    };
    assert_eq!(ports, (h.tuple.proto, h.tuple.sport, h.tuple.dport));
}

/// Runs every reader and editor over the bytes.
fn survive(bytes: &[u8]) {
    use crate::{answer, nat, overlay::vxlan};
    let _ = parse_ip(bytes, 0);
    match parse(bytes) {
        Ok(Parsed::Ip(mut h)) => {
            assert!(h.frame_len() <= bytes.len() && usize::from(h.l4) <= h.frame_len());
            let mut copy = bytes.to_vec();
            let _ = vxlan::decap(bytes, &h);
            let _ = answer::solicited_target(bytes, &h);
            if let Some(quoted) = nat::quoted_tuple(bytes, &h) {
                let from = quoted.inverse();
                assert_eq!(nat::translate_error(&mut copy, &h, &from, &Tuple { sport: 9, ..from }), Ok(()));
            }
            copy = finished(copy, &h);
            let _ = nat::Rewrite::compile(&h.tuple, &h.tuple.inverse()).apply(&mut copy, &h);
            let _ = nat::decrement_ttl(&mut copy, &h);
            let _ = vxlan::decap_ecn(&mut copy, &mut h, 3);
            let _ = answer::echo_reply(&mut copy, &h);
        }
        Ok(Parsed::Arp(request)) => assert!(arp::answer(&mut bytes.to_vec(), &request, MacAddr::GATEWAY)),
        Err(_) => {}
    }
}

#[test]
fn every_frame_of_the_captures_is_survived() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/pcaps");
    let files = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("the captures that this test reads are not there: {} ({e})", folder.display()));
    let (mut frames, mut read) = (0_u64, 0_u64);
    for file in files {
        let path = file.unwrap().path();
        let name = path.to_string_lossy();
        if !name.ends_with(".pcap") && !name.ends_with(".pcapng") && !name.ends_with(".gz") {
            continue;
        }
        let Ok(mut capture) = Capture::open(&path) else { continue };
        while let Some(Ok(record)) = capture.next() {
            let mut bytes = vec![0; record.len()];
            record.copy_to(&mut bytes);
            survive(&bytes);
            frames += 1;
            read += u64::from(parse(&bytes).is_ok());
        }
    }
    assert!(frames > 20_000 && read > frames / 2, "{read} of {frames} frames read");
}
