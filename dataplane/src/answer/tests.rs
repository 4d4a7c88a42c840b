//! Answers: what is sent, to whom, and when nothing may be.

use proptest::prelude::*;
use weir_xsk::{Arena, Frame};

use super::*;
use crate::conntrack::Tuple;
use crate::craft::Craft;
use crate::craft::testing::{any_packet, checksums_are_right, headers_of};
use crate::model::{Ip, MacAddr, proto};
use crate::nat::quoted_tuple;
use crate::wire::tcp;

/// One frame in a slot of its own, which is filled with 0xa5 otherwise.
fn slot(bytes: &[u8], headroom: u32) -> (Arena, Frame) {
    let (arena, mut frames) = Arena::heap(1, 2048 + headroom, headroom).unwrap();
    let mut frame = frames.remove(0);
    assert!(arena.fill(&mut frame, &vec![0xa5; 2048]));
    assert!(arena.fill(&mut frame, bytes));
    (arena, frame)
}

fn v4(proto: u8) -> Tuple {
    Tuple { src: Ip::v4(0x0a00_0001), dst: Ip::v4(0x0a00_0002), sport: 1000, dport: 80, proto }
}

fn v6(proto: u8) -> Tuple {
    Tuple { src: Ip(0xfd00 << 112 | 1), dst: Ip(0xfd00 << 112 | 2), sport: 1000, dport: 80, proto }
}

fn gateway(tuple: &Tuple) -> Ip {
    if tuple.is_v4() { Ip::v4(0xa9fe_0101) } else { Ip(0xfe80 << 112 | 1) }
}

proptest! {
    #[test]
    fn an_error_quotes_the_packet_to_its_sender((craft, _) in any_packet(), len in 0_usize..1900, kind in 0_usize..5, headroom in prop_oneof![Just(0), Just(64)]) {
        let craft = Craft { payload: vec![0x5a; len], ..craft };
        let bytes = craft.frame();
        let h = headers_of(&bytes);
        prop_assume!(bytes.len() < 2000);
        let (arena, mut frame) = slot(&bytes, headroom);
        let error = [
            IcmpError::PortUnreachable, IcmpError::HostUnreachable, IcmpError::Prohibited, IcmpError::TimeExceeded, IcmpError::TooBig { mtu: 1400 },
        ][kind];
        prop_assert!(icmp_error(&arena, &mut frame, &h, error, gateway(&craft.tuple)));
        let answer = arena.bytes(&frame);
        let a = headers_of(answer);
        prop_assert!(checksums_are_right(answer));
        prop_assert_eq!((a.tuple.src, a.tuple.dst, a.frame_len()), (gateway(&craft.tuple), craft.tuple.src, answer.len()));
        prop_assert_eq!((a.src_mac, a.dst_mac), (craft.dst_mac, craft.src_mac));
        let (quote, most) = if h.is_v6() { (14 + 40 + 8, 14 + 1280) } else { (14 + 20 + 8, 14 + 576) };
        prop_assert_eq!(answer.len(), most.min(quote + bytes.len() - 14));
        prop_assert_eq!(&answer[quote..], &bytes[14..14 + answer.len() - quote]);
        prop_assert_eq!(quoted_tuple(answer, &a), Some(craft.tuple));
        if let IcmpError::TooBig { mtu } = error {
            prop_assert_eq!(&answer[quote - 4..quote], &u32::from(mtu).to_be_bytes());
        }

        let again = answer.to_vec();
        let (arena, mut frame) = slot(&again, 64);
        prop_assert!(!icmp_error(&arena, &mut frame, &a, error, gateway(&craft.tuple)), "an error about an error");
    }

    #[test]
    fn an_echo_reply_is_what_the_target_would_send((craft, _) in any_packet()) {
        let number = if craft.tuple.is_v4() { proto::ICMP } else { proto::ICMPV6 };
        let tuple = Tuple { dport: craft.tuple.sport, proto: number, ..craft.tuple };
        let request = Craft { tuple, echo_reply: false, ..craft };
        let mut bytes = request.frame();
        let h = headers_of(&bytes);
        prop_assert!(echo_reply(&mut bytes, &h));
        let reply = Craft {
            tuple: tuple.inverse(), src_mac: request.dst_mac, dst_mac: request.src_mac, ttl: 64, echo_reply: true, ..request
        };
        prop_assert_eq!(&bytes, &reply.frame());
        let h = headers_of(&bytes);
        prop_assert!(!echo_reply(&mut bytes, &h), "a reply to a reply");
    }

    #[test]
    fn a_reset_fits_the_segment((craft, _) in any_packet()) {
        let tuple = Tuple { proto: proto::TCP, ..craft.tuple };
        let craft = Craft { tuple, ..craft };
        let bytes = craft.frame();
        let (arena, mut frame) = slot(&bytes, 64);
        let answered = tcp_reset(&arena, &mut frame, &headers_of(&bytes));
        prop_assert_eq!(answered, craft.tcp_flags & tcp::RST == 0);
        if answered {
            let len = craft.payload.len() as u32 + u32::from(craft.tcp_flags & tcp::SYN != 0) + u32::from(craft.tcp_flags & tcp::FIN != 0);
            let (seq, ack, tcp_flags) = if craft.tcp_flags & tcp::ACK != 0 {
                (craft.ack, 0, tcp::RST)
            } else {
                (0, craft.seq.wrapping_add(len), tcp::RST | tcp::ACK)
            };
            let reset = Craft {
                tuple: tuple.inverse(), src_mac: craft.dst_mac, dst_mac: craft.src_mac, ttl: 64, tos: 0, seq, ack, tcp_flags, payload: vec![], ..craft
            };
            prop_assert_eq!(arena.bytes(&frame), reset.frame());
        }
    }
}

#[test]
fn what_was_sent_to_many_gets_no_answer() {
    let multicast = [
        Craft::new(Tuple { dst: Ip::v4(0xe000_0001), ..v4(proto::TCP) }),
        Craft::new(Tuple { dst: Ip::v4(u32::MAX), ..v4(proto::TCP) }),
        Craft::new(Tuple { dst: Ip(0xff02 << 112 | 1), ..v6(proto::TCP) }),
        Craft { dst_mac: MacAddr::BROADCAST, ..Craft::new(v4(proto::TCP)) },
        Craft { dst_mac: MacAddr([0x33, 0x33, 0, 0, 0, 1]), ..Craft::new(v6(proto::TCP)) },
    ];
    for craft in multicast {
        let bytes = craft.frame();
        let h = headers_of(&bytes);
        let (arena, mut frame) = slot(&bytes, 64);
        assert!(!icmp_error(&arena, &mut frame, &h, IcmpError::Prohibited, gateway(&craft.tuple)), "{:?}", craft.tuple);
        assert!(!tcp_reset(&arena, &mut frame, &h), "{:?}", craft.tuple);
        let number = if craft.tuple.is_v4() { proto::ICMP } else { proto::ICMPV6 };
        let mut ping = Craft { tuple: Tuple { proto: number, ..craft.tuple }, ..craft }.frame();
        let h = headers_of(&ping);
        assert!(!echo_reply(&mut ping, &h));
    }
}

#[test]
fn later_fragments_redirects_and_tagged_frames_get_no_error() {
    let mut later = Craft { payload: vec![0; 8], ..Craft::new(v4(proto::UDP)) }.frame();
    (later[20], later[21]) = (0, 9);
    let field = u16::from_be_bytes([later[24], later[25]]);
    later[24..26]
        .copy_from_slice(&crate::wire::checksum::update(field, crate::wire::checksum::Delta::NONE.word(0x4000, 9).folded()).to_be_bytes());
    let mut redirect = Craft::new(v4(proto::ICMP)).frame();
    redirect[34] = 5;
    let mut redirect_v6 = Craft::new(v6(proto::ICMPV6)).frame();
    redirect_v6[54] = 137;
    let plain = Craft::new(v4(proto::UDP)).frame();
    let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
    for bytes in [later, redirect, redirect_v6, tagged] {
        let h = headers_of(&bytes);
        let (arena, mut frame) = slot(&bytes, 64);
        assert!(!icmp_error(&arena, &mut frame, &h, IcmpError::TimeExceeded, gateway(&h.tuple)), "{h:?}");
    }
}

/// A solicitation by fd00::1 for the gateway.
fn solicitation(dst: Ip, edit: impl FnOnce(&mut Craft)) -> Vec<u8> {
    let tuple = Tuple { src: Ip(0xfd00 << 112 | 1), dst, sport: 0, dport: 0, proto: proto::ICMPV6 };
    let target = (0xfe80_u128 << 112 | 1).to_be_bytes();
    let mut craft = Craft { ttl: 255, payload: [&target[..], &[1, 1, 2, 0, 0, 0, 0, 1]].concat(), ..Craft::new(tuple) };
    edit(&mut craft);
    let mut bytes = craft.frame();
    // An echo request of the same length becomes a solicitation: type 135, number 0.
    (bytes[54], bytes[61]) = (135, 0);
    let message = bytes.len() - 54;
    bytes[56..58].fill(0);
    let value =
        crate::wire::checksum::full(&bytes[54..], crate::wire::checksum::pseudo(craft.tuple.src, dst, proto::ICMPV6, message as u32));
    bytes[56..58].copy_from_slice(&value.to_be_bytes());
    bytes
}

#[test]
fn a_solicitation_is_answered_to_the_asker() {
    let target = Ip(0xfe80 << 112 | 1);
    let group = Ip(0xff02 << 112 | 0x1_ff00_0001);
    for (dst, payload) in [(target, 24), (group, 24), (group, 16)] {
        let bytes = solicitation(dst, |craft| craft.payload.truncate(payload));
        let h = headers_of(&bytes);
        assert_eq!(solicited_target(&bytes, &h), Some(target));
        let (arena, mut frame) = slot(&bytes, 64);
        assert!(advertise(&arena, &mut frame, &h, target, MacAddr::GATEWAY));
        let answer = arena.bytes(&frame);
        let a = headers_of(answer);
        assert!(checksums_are_right(answer));
        assert_eq!((a.src_mac, a.dst_mac, a.ttl), (MacAddr::GATEWAY, MacAddr([2, 0, 0, 0, 0, 1]), 255));
        assert_eq!((a.tuple.src, a.tuple.dst, a.icmp_type), (target, h.tuple.src, 136));
        assert_eq!((answer.len(), answer[58], &answer[78..]), (86, 0xe0, &[2, 1, 2, 0x77, 0x65, 0x69, 0x72, 1][..]));
    }
}

#[test]
fn solicitations_that_ask_nothing_of_us_get_no_answer() {
    let target = Ip(0xfe80 << 112 | 1);
    let group = Ip(0xff02 << 112 | 0x1_ff00_0001);
    let mut corrupt = solicitation(target, |_| ());
    corrupt[70] ^= 1;
    for (what, bytes) in [
        ("passed on by a router", solicitation(target, |craft| craft.ttl = 254)),
        ("duplicate address detection", solicitation(group, |craft| craft.tuple.src = Ip(0))),
        ("another group", solicitation(Ip(group.0 + 1), |_| ())),
        ("another address", solicitation(Ip(target.0 + 1), |_| ())),
        ("cut", solicitation(target, |craft| craft.payload.truncate(15))),
        ("a wrong checksum", corrupt),
    ] {
        assert_eq!(solicited_target(&bytes, &headers_of(&bytes)), None, "{what}");
    }
}
