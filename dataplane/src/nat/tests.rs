//! The algebra of translation: there and back is identity, and stored deltas give what computing anew gives.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::conntrack::Tuple;
use crate::craft::Craft;
use crate::craft::testing::{any_packet, any_pair, checksums_are_right, headers_of};
use crate::model::{Ip, proto};
use crate::parse::{HeaderFlags, checksum_field};
use crate::verdict::DropReason;
use crate::wire::checksum;

fn translated(mut frame: Vec<u8>, from: &Tuple, to: &Tuple) -> Vec<u8> {
    let headers = headers_of(&frame);
    assert_eq!(headers.tuple, *from);
    Rewrite::compile(from, to).apply(&mut frame, &headers).unwrap();
    frame
}

proptest! {
    #[test]
    fn incremental_checksums_equal_recomputed_ones((craft, to) in any_packet()) {
        let frame = translated(craft.frame(), &craft.tuple, &to);
        prop_assert_eq!(headers_of(&frame).tuple, to);
        prop_assert!(checksums_are_right(&frame));
        prop_assert_eq!(frame, Craft { tuple: to, ..craft }.frame(), "as if sent like that");
    }

    #[test]
    fn an_unfinished_checksum_stays_the_sum_of_the_pseudo_header((craft, to) in any_packet(), stays in any::<bool>()) {
        let bare = |mut frame: Vec<u8>| {
            let h = headers_of(&frame);
            let at = usize::from(h.l4) + checksum_field(&h)?;
            let sum = checksum::fold(checksum::pseudo(h.tuple.src, h.tuple.dst, h.tuple.proto, h.l4_len() as u32));
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            Some(frame)
        };
        let to = if stays { Tuple { src: craft.tuple.src, dst: craft.tuple.dst, ..to } } else { to };
        let Some(mut frame) = bare(craft.frame()) else { return Ok(()) };
        let mut headers = headers_of(&frame);
        headers.flags = headers.flags.with(HeaderFlags::UNFINISHED);
        Rewrite::compile(&craft.tuple, &to).apply(&mut frame, &headers).unwrap();
        prop_assert_eq!(Some(frame), bare(Craft { tuple: to, ..craft }.frame()));
    }

    #[test]
    fn there_and_back_is_identity((craft, to) in any_packet()) {
        let frame = craft.frame();
        prop_assert_eq!(translated(translated(frame.clone(), &craft.tuple, &to), &to, &craft.tuple), frame);
    }

    #[test]
    fn the_deltas_of_the_way_back_are_those_of_its_own_rewrite((craft, to) in any_packet(), stays in 0..4) {
        let from = craft.tuple;
        let to = match stays {
            0 => to,
            1 => Tuple { src: from.src, sport: from.sport, ..to },
            2 => Tuple { src: from.src, dst: from.dst, ..to },
            _ => from,
        };
        let back = Rewrite::compile(&to.inverse(), &from.inverse());
        // An ICMP identifier is both ports of its tuple.
        prop_assume!(!from.is_icmp() || to.sport == to.dport);
        prop_assert_eq!(Rewrite::compile(&from, &to).deltas_back(), (back.l3_delta, back.l4_delta));
    }

    #[test]
    fn what_stays_is_not_touched((craft, to) in any_packet()) {
        let only_dst = Tuple { dst: to.dst, ..craft.tuple };
        let rewrite = Rewrite::compile(&craft.tuple, &only_dst);
        prop_assert!(!rewrite.flags.any(RewriteFlags::SRC));
        prop_assert_eq!(translated(craft.frame(), &craft.tuple, &only_dst), Craft { tuple: only_dst, ..craft.clone() }.frame());
        prop_assert!(Rewrite::compile(&craft.tuple, &craft.tuple).flags.is_empty());
    }

    #[test]
    fn a_wrong_checksum_stays_wrong((craft, to) in any_packet(), flip in 1_u8..=255) {
        let mut frame = Craft { payload: vec![1], ..craft.clone() }.frame();
        *frame.last_mut().unwrap() ^= flip;
        let transports = [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMPV6];
        prop_assume!(transports.contains(&craft.tuple.proto));
        prop_assert!(!checksums_are_right(&translated(frame, &craft.tuple, &to)));
    }

    #[test]
    fn udp_without_checksum_stays_without((from, to) in any_pair(), payload in proptest::collection::vec(any::<u8>(), 0..50)) {
        let (from, to) = (Tuple { proto: proto::UDP, ..from }, Tuple { proto: proto::UDP, ..to });
        let mut frame = Craft { payload, ..Craft::new(from) }.frame();
        let at = usize::from(headers_of(&frame).l4) + 6;
        frame[at..at + 2].fill(0);
        let frame = translated(frame, &from, &to);
        prop_assert_eq!(&frame[at..at + 2], &[0, 0]);
    }

    #[test]
    fn later_fragments_change_addresses_only((from, to) in any_pair(), payload in proptest::collection::vec(any::<u8>(), 1..50)) {
        let Some(frame) = later_fragment(from, &payload) else { return Ok(()) };
        let from = headers_of(&frame).tuple;
        let to = Tuple { src: to.src, dst: to.dst, ..from };
        let result = translated(frame.clone(), &from, &to);
        prop_assert_eq!(&result[34..], &frame[34..]);
        prop_assert!(checksums_are_right(&result));
        prop_assert_eq!(headers_of(&result).tuple, to);
    }

    #[test]
    fn an_error_is_translated_as_if_reported_behind_the_translation(
        (craft, to) in any_packet(), words in 4_usize..50, router: bool, kind in 0_usize..3,
    ) {
        let quoted = words * 2; // half a checksum cannot be translated
        // `craft` went out as `craft.tuple` and became `to`; the reporter quotes what it saw.
        let seen = Craft { tuple: to, ..craft.clone() }.frame();
        let sent = craft.frame();
        let router = router.then_some(if to.is_v4() { Ip::v4(0x0808_0808) } else { Ip(0x2001 << 112 | 8) });
        let mut error = error_about(&seen, &to, quoted, router, kind);
        let expected = error_about(&sent, &craft.tuple, quoted, router, kind);
        let headers = headers_of(&error);
        prop_assert_eq!(quoted_tuple(&error, &headers), Some(to));
        translate_error(&mut error, &headers, &to.inverse(), &craft.tuple.inverse()).unwrap();
        prop_assert!(checksums_are_right(&error));
        if craft.tuple.proto == proto::SCTP {
            prop_assert_eq!(headers_of(&error).tuple, headers_of(&expected).tuple);
            prop_assert_eq!(quoted_tuple(&error, &headers), Some(craft.tuple));
        } else {
            prop_assert_eq!(error, expected);
        }
    }

    #[test]
    fn ttl_counts_down_and_the_header_stays_valid((craft, _) in any_packet()) {
        let mut frame = craft.frame();
        let headers = headers_of(&frame);
        let original = frame.clone();
        if decrement_ttl(&mut frame, &headers) {
            prop_assert_eq!(frame, Craft { ttl: craft.ttl - 1, ..craft }.frame());
        } else {
            prop_assert!(craft.ttl <= 1);
            prop_assert_eq!(frame, original);
        }
    }

    #[test]
    fn a_chosen_source_is_free_and_in_range_e2_28((from, _) in any_pair(), start in 1000_u16..2000, count in 1_u16..300, seed: u64) {
        let range = start..=start + count - 1;
        let address = if from.is_v4() { Ip::v4(0x0a00_0001) } else { Ip(0xfd00 << 112) };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut used = HashSet::new();
        for _ in 0..count {
            let Some(chosen) = select_source(&from, address, &range, &mut rng, |reply| used.contains(reply)) else { break };
            prop_assert!(used.insert(chosen.inverse()), "twice");
            prop_assert_eq!((chosen.src, chosen.dst, chosen.proto), (address, from.dst, from.proto));
            match from.proto {
                proto::TCP | proto::UDP | proto::SCTP => prop_assert!(range.contains(&chosen.sport) && chosen.dport == from.dport),
                proto::ICMP | proto::ICMPV6 => prop_assert!(range.contains(&chosen.sport) && chosen.dport == chosen.sport),
                _ => prop_assert_eq!((chosen.sport, chosen.dport), (0, 0)),
            }
        }
        let has_ports = from.proto != 47;
        prop_assert!(count > 64 || used.len() == if has_ports { usize::from(count) } else { 1 }, "a small range is used up whole");
    }
}

/// The second part of a packet of `tuple`; IPv4 only.
fn later_fragment(tuple: Tuple, payload: &[u8]) -> Option<Vec<u8>> {
    if !tuple.is_v4() {
        return None;
    }
    let mut frame = Craft { payload: payload.to_vec(), ..Craft::new(Tuple { proto: 253, ..tuple }) }.frame();
    (frame[20], frame[21], frame[23]) = (0, 100, tuple.proto);
    frame[24..26].fill(0);
    let value = checksum::full(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&value.to_be_bytes());
    assert!(headers_of(&frame).has(HeaderFlags::FRAGMENT_LATER));
    Some(frame)
}

/// An ICMP error that quotes at most `quoted` bytes behind the IP header of `frame`, from its receiver or from `router`.
fn error_about(frame: &[u8], tuple: &Tuple, quoted: usize, router: Option<Ip>, kind: usize) -> Vec<u8> {
    let (number, ip_len, kinds) = if tuple.is_v4() { (proto::ICMP, 20, [3, 11, 12]) } else { (proto::ICMPV6, 40, [1, 2, 3]) };
    let quote = &frame[14..frame.len().min(14 + ip_len + quoted)];
    let tuple = Tuple { src: router.unwrap_or(tuple.dst), dst: tuple.src, sport: 0, dport: 0, proto: number };
    let mut error = Craft { payload: quote.to_vec(), ..Craft::new(tuple) }.frame();
    let message = &mut error[14 + ip_len..];
    message[0] = kinds[kind];
    message[2..4].fill(0);
    let pseudo = if tuple.is_v4() { 0 } else { checksum::pseudo(tuple.src, tuple.dst, number, message.len() as u32) };
    let value = checksum::full(message, pseudo);
    message[2..4].copy_from_slice(&value.to_be_bytes());
    error
}

fn udp(sport: u16) -> Tuple {
    Tuple { src: Ip::v4(0x0a00_0001), dst: Ip::v4(0x0a00_0002), sport, dport: 53, proto: proto::UDP }
}

#[test]
fn icmp_without_identifier_changes_addresses_only() {
    let (v4, v6) = (udp(0), Tuple { src: Ip(0xfd00 << 112 | 1), dst: Ip(0xfd00 << 112 | 2), sport: 0, dport: 0, proto: proto::ICMPV6 });
    let v4 = Tuple { dport: 0, proto: proto::ICMP, ..v4 };
    let to = [Tuple { src: Ip::v4(0x0808_0808), sport: 7, dport: 7, ..v4 }, Tuple { src: Ip(0x2001 << 112 | 8), sport: 7, dport: 7, ..v6 }];
    for (from, to, kind) in [(v4, to[0], 13), (v6, to[1], 139)] {
        let mut frame = Craft::new(from).frame();
        let l4 = usize::from(headers_of(&frame).l4);
        let old = u16::from_be_bytes([frame[l4], 0]);
        frame[l4] = kind;
        let field = u16::from_be_bytes([frame[l4 + 2], frame[l4 + 3]]);
        let delta = checksum::Delta::NONE.word(old, u16::from_be_bytes([kind, 0])).folded();
        frame[l4 + 2..l4 + 4].copy_from_slice(&checksum::update(field, delta).to_be_bytes());
        let result = translated(frame.clone(), &from, &to);
        assert!(checksums_are_right(&result));
        assert_eq!(result[l4 + 4..], frame[l4 + 4..]);
    }
}

#[test]
fn a_quote_of_another_flow_is_refused() {
    let mut error = error_about(&Craft::new(udp(1)).frame(), &udp(1), 8, None, 0);
    let headers = headers_of(&error);
    let result = translate_error(&mut error, &headers, &udp(2).inverse(), &udp(3).inverse());
    assert_eq!(result, Err(DropReason::InvalidPacket));
}

#[test]
fn a_quote_without_ports_leads_nowhere() {
    let frame = Craft::new(udp(1)).frame();
    for quoted in 0..4 {
        let error = error_about(&frame, &udp(1), quoted, None, 0);
        assert_eq!(quoted_tuple(&error, &headers_of(&error)), None, "{quoted} bytes of UDP");
    }
    let fragment = later_fragment(udp(1), &[0; 20]).unwrap();
    let error = error_about(&fragment, &udp(1), 20, None, 0);
    assert_eq!(quoted_tuple(&error, &headers_of(&error)), None, "a later fragment");
    assert_eq!(quoted_tuple(&frame, &headers_of(&frame)), None, "no error");
}

#[test]
fn a_first_fragment_of_sctp_cannot_change_ports() {
    let tuple = Tuple { proto: proto::SCTP, ..udp(1) };
    let mut frame = Craft { payload: vec![0; 12], ..Craft::new(tuple) }.frame();
    frame[20] = 0x20;
    frame[24..26].fill(0);
    let value = checksum::full(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&value.to_be_bytes());
    let headers = headers_of(&frame);
    let other_port = Rewrite::compile(&tuple, &Tuple { dport: 9, ..tuple });
    assert_eq!(other_port.apply(&mut frame, &headers), Err(DropReason::FragmentationNotSupported));
    let other_address = Rewrite::compile(&tuple, &Tuple { dst: Ip::v4(1), ..tuple });
    assert_eq!(other_address.apply(&mut frame, &headers), Ok(()));
}

#[test]
fn a_full_range_gives_up_after_bounded_tries() {
    let mut tries = 0;
    let mut rng = fastrand::Rng::with_seed(1);
    let result = select_source(&udp(1), Ip::v4(1), &(1024..=65535), &mut rng, |_| {
        tries += 1;
        true
    });
    assert_eq!((result, tries), (None, 128));
    #[allow(clippy::reversed_empty_ranges)]
    let empty = 2..=1;
    assert_eq!(select_source(&udp(1), Ip::v4(1), &empty, &mut rng, |_| false), None);
}

#[test]
fn the_source_port_is_a_random_one_of_the_range_e2_28() {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut eighths = [0; 8];
    for _ in 0..8000 {
        let chosen = select_source(&udp(1), Ip::v4(1), &(61_000..=61_799), &mut rng, |_| false).unwrap();
        eighths[usize::from(chosen.sport - 61_000) / 100] += 1;
    }
    // 1000 of each are expected; the standard deviation is 30.
    assert!(eighths.iter().all(|count| (850..1150).contains(count)), "{eighths:?}");
}

#[test]
fn known_bytes_of_a_translated_packet() {
    // 10.0.0.1:1234 > 10.96.0.10:53 becomes > 10.244.1.5:5353; checksums computed by hand.
    let from = Tuple { src: Ip::v4(0x0a00_0001), dst: Ip::v4(0x0a60_000a), sport: 1234, dport: 53, proto: proto::UDP };
    let to = Tuple { dst: Ip::v4(0x0af4_0105), dport: 5353, ..from };
    let frame = translated(Craft::new(from).frame(), &from, &to);
    assert_eq!(frame[14..34], [0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0x24, 0xd8, 10, 0, 0, 1, 10, 244, 1, 5]);
    assert_eq!(frame[34..42], [0x04, 0xd2, 0x14, 0xe9, 0, 8, 0xd0, 0x29]);
}
