//! The overlay: frames go in and come out as they were, in headers that others understand.

use proptest::prelude::*;
use weir_xsk::{Arena, Frame};

use super::vxlan::*;
use crate::conntrack::Tuple;
use crate::craft::Craft;
use crate::craft::testing::{any_packet, checksums_are_right, headers_of};
use crate::model::{Ip, MacAddr, proto};
use crate::verdict::DropReason;
use crate::wire::vxlan::Vni;

fn remote(over_v6: bool) -> Remote {
    let (src, dst) = if over_v6 { (Ip(0xfd00 << 112 | 0xa), Ip(0xfd00 << 112 | 0xb)) } else { (Ip::v4(0x0a00_000a), Ip::v4(0x0a00_000b)) };
    Remote {
        src_mac: MacAddr([2, 0, 0, 0, 0, 0xa]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 0xb]),
        src,
        dst,
        port: 8472,
        vni: Vni::try_from(1).unwrap(),
        vtep_src: MacAddr([2, 1, 0, 0, 0, 0xa]),
        vtep_dst: MacAddr([2, 1, 0, 0, 0, 0xb]),
    }
}

fn slot(bytes: &[u8], headroom: u32) -> (Arena, Frame) {
    let (arena, mut frames) = Arena::heap(1, 2048, headroom).unwrap();
    let mut frame = frames.remove(0);
    assert!(arena.fill(&mut frame, &vec![0xa5; 2048 - headroom as usize]));
    assert!(arena.fill(&mut frame, bytes));
    (arena, frame)
}

proptest! {
    #[test]
    fn what_is_wrapped_comes_out_again((craft, _) in any_packet(), over_v6: bool, hash: u64) {
        let inner = craft.frame();
        let to = remote(over_v6);
        let (arena, mut frame) = slot(&inner, 256);
        prop_assert!(encap(&arena, &mut frame, &Template::new(&to), craft.tos, hash));
        let bytes = arena.bytes(&frame);
        let outer = headers_of(bytes);
        prop_assert_eq!(outer.frame_len(), bytes.len());
        prop_assert_eq!(bytes.len(), inner.len() + if over_v6 { 70 } else { 50 });
        prop_assert_eq!((outer.src_mac, outer.dst_mac, outer.ttl, outer.tos), (to.src_mac, to.dst_mac, 64, craft.tos));
        let sport = outer.tuple.sport;
        prop_assert_eq!(outer.tuple, Tuple { src: to.src, dst: to.dst, sport, dport: 8472, proto: proto::UDP });
        prop_assert!(sport >= 49_152);
        prop_assert_eq!(&bytes[usize::from(outer.l4) + 6..usize::from(outer.l4) + 8], &[0, 0], "no UDP checksum");

        let found = decap(bytes, &outer).unwrap();
        prop_assert_eq!(found.vni, to.vni);
        let expected = Craft { src_mac: to.vtep_src, dst_mac: to.vtep_dst, ..craft }.frame();
        prop_assert_eq!(&bytes[found.inner..], &expected);
        for len in 0..found.inner {
            prop_assert!(decap(&bytes[..len], &outer).is_err());
        }
    }

    #[test]
    fn congestion_marks_go_through((craft, _) in any_packet(), theirs in 0_u8..4) {
        // RFC 6040 §4.2, figure 4: rows by inner, columns by outer (Not-ECT, ECT(1), ECT(0), CE by codepoint).
        const TABLE: [[Option<u8>; 4]; 4] = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        let mut bytes = craft.frame();
        let mut h = headers_of(&bytes);
        let result = decap_ecn(&mut bytes, &mut h, theirs | 0xb8);
        match TABLE[usize::from(craft.tos & 3)][usize::from(theirs)] {
            None => prop_assert_eq!(result, Err(DropReason::InvalidPacket)),
            Some(ecn) => {
                prop_assert_eq!(result, Ok(()));
                prop_assert_eq!(h.tos, craft.tos & !3 | ecn);
                prop_assert!(checksums_are_right(&bytes));
                prop_assert_eq!(bytes, Craft { tos: h.tos, ..craft }.frame());
            }
        }
    }
}

#[test]
fn known_bytes_of_the_outer_headers() {
    let inner = Craft::new(Tuple { src: Ip::v4(0x0af4_0105), dst: Ip::v4(0x0af4_0207), sport: 1, dport: 2, proto: proto::UDP }).frame();
    let (arena, mut frame) = slot(&inner, 256);
    assert!(encap(&arena, &mut frame, &Template::new(&remote(false)), 0, 0x1234));
    let expected = [
        2, 0, 0, 0, 0, 0xb, 2, 0, 0, 0, 0, 0xa, 8, 0, // outer Ethernet
        0x45, 0, 0, 78, 0, 0, 0x40, 0, 64, 17, 0x26, 0x8b, 10, 0, 0, 10, 10, 0, 0, 11, // IPv4
        0xd2, 0x34, 0x21, 0x18, 0, 58, 0, 0, // UDP
        8, 0, 0, 0, 0, 0, 1, 0, // VXLAN
        2, 1, 0, 0, 0, 0xb, 2, 1, 0, 0, 0, 0xa, 8, 0, // inner Ethernet
    ];
    assert_eq!(arena.bytes(&frame)[..64], expected);
}

#[test]
fn without_headroom_nothing_is_wrapped() {
    let inner = Craft::new(Tuple { src: Ip::v4(1 << 24), dst: Ip::v4(2 << 24), sport: 1, dport: 2, proto: proto::UDP }).frame();
    for (over_v6, headroom) in [(false, 49), (true, 69)] {
        let (arena, mut frame) = slot(&inner, headroom);
        assert!(!encap(&arena, &mut frame, &Template::new(&remote(over_v6)), 0, 0));
        assert_eq!(arena.bytes(&frame), inner);
        let (arena, mut frame) = slot(&inner, headroom + 1);
        assert!(encap(&arena, &mut frame, &Template::new(&remote(over_v6)), 0, 0));
    }
}

#[test]
fn what_is_no_vxlan_is_refused() {
    let (arena, mut frame) = slot(&[0; 64], 256);
    assert!(encap(&arena, &mut frame, &Template::new(&remote(false)), 0, 0));
    let good = arena.bytes(&frame).to_vec();
    let outer = headers_of(&good);
    assert!(decap(&good, &outer).is_ok());
    for (what, at, value) in
        [("no I flag", 42, 0), ("a reserved flag", 42, 0x0c), ("a reserved byte", 49, 1), ("UDP shorter than IP", 39, 79)]
    {
        let mut wrong = good.clone();
        wrong[at] = value;
        assert_eq!(decap(&wrong, &outer), Err(DropReason::InvalidPacket), "{what}");
    }
    let tcp = Craft { payload: vec![8; 40], ..Craft::new(Tuple { proto: proto::TCP, ..outer.tuple }) }.frame();
    assert_eq!(decap(&tcp, &headers_of(&tcp)), Err(DropReason::InvalidPacket));
    let mut fragment = good;
    fragment[20] = 0x20;
    fragment[24..26].fill(0);
    let value = crate::wire::checksum::full(&fragment[14..34], 0);
    fragment[24..26].copy_from_slice(&value.to_be_bytes());
    assert_eq!(decap(&fragment, &headers_of(&fragment)), Err(DropReason::FragmentationNotSupported));
}
