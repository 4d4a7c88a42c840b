//! Whole frames from a [`Tuple`], with right lengths and checksums: what a trace follows and what tests send.

use crate::conntrack::Tuple;
use crate::conntrack::sctp::chunk;
use crate::model::{MacAddr, proto};
use crate::wire::{checksum, chunk_mut, ethernet, icmp, icmpv6, ipv4, ipv6, sctp, tcp, udp};

/// A frame to be made. Fields that its protocol has no place for are ignored.
#[derive(Clone, Debug)]
pub struct Craft {
    /// Addresses, protocol and ports; of an echo, the source port is the identifier.
    pub tuple: Tuple,
    /// Ethernet source.
    pub src_mac: MacAddr,
    /// Ethernet destination.
    pub dst_mac: MacAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgment number, where the flags say that there is one.
    pub ack: u32,
    /// An echo reply rather than a request.
    pub echo_reply: bool,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

/// The chunk that alone opens an SCTP association: its own length, a tag, a window, one stream each way, a sequence number (RFC 9260
/// §3.3.2).
const INIT: [u8; 20] = [chunk::INIT, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];

impl Craft {
    /// The first packet of a flow: a SYN, an INIT, an echo request, or an empty packet.
    pub fn new(tuple: Tuple) -> Self {
        let is_sctp = tuple.proto == proto::SCTP;
        Self {
            tuple,
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            ttl: 64,
            tos: 0,
            tcp_flags: tcp::SYN,
            seq: 1,
            // That of an answer to the first packet.
            ack: 2,
            echo_reply: false,
            payload: if is_sctp { INIT.into() } else { Vec::new() },
        }
    }

    /// Makes the frame. What exceeds 65,535 bytes of payload gives lengths that are wrong.
    pub fn frame(&self) -> Vec<u8> {
        let Tuple { src, dst, proto: number, .. } = self.tuple;
        let segment = self.segment();
        let mut frame = vec![0; ethernet::LEN];
        let ethertype = if src.is_v4() { ethernet::IPV4 } else { ethernet::IPV6 };
        if let Some(out) = chunk_mut(&mut frame, 0) {
            ethernet::Header { dst: self.dst_mac, src: self.src_mac, ethertype }.emit(out);
        }
        if src.is_v4() {
            let mut header = [0; ipv4::LEN];
            let total = (ipv4::LEN + segment.len()) as u16;
            ipv4::Header { src, dst, proto: number, ttl: self.ttl, tos: self.tos, total }.emit(&mut header);
            frame.extend(header);
        } else {
            let mut header = [0; ipv6::LEN];
            ipv6::Header { src, dst, proto: number, ttl: self.ttl, tos: self.tos, payload: segment.len() as u16 }.emit(&mut header);
            frame.extend(header);
        }
        frame.extend(segment);
        frame
    }

    /// Transport header and payload.
    fn segment(&self) -> Vec<u8> {
        let Tuple { src, dst, sport, dport, proto: number } = self.tuple;
        let mut segment = Vec::with_capacity(tcp::LEN + self.payload.len());
        let mut field = None;
        match number {
            proto::TCP => {
                let mut header = [0; tcp::LEN];
                let ack = if self.tcp_flags & tcp::ACK != 0 { self.ack } else { 0 };
                tcp::Header { sport, dport, seq: self.seq, ack, flags: self.tcp_flags }.emit(&mut header);
                segment.extend(header);
                field = Some(tcp::CHECKSUM);
            }
            proto::UDP => {
                let mut header = [0; udp::LEN];
                udp::Header { sport, dport, len: (udp::LEN + self.payload.len()) as u16 }.emit(&mut header);
                segment.extend(header);
                field = Some(udp::CHECKSUM);
            }
            proto::SCTP => {
                segment.extend(sport.to_be_bytes());
                segment.extend(dport.to_be_bytes());
                segment.extend([0; 8]);
            }
            proto::ICMP | proto::ICMPV6 => {
                let kind = match (number, self.echo_reply) {
                    (proto::ICMP, false) => icmp::ECHO_REQUEST,
                    (proto::ICMP, true) => icmp::ECHO_REPLY,
                    (_, false) => icmpv6::ECHO_REQUEST,
                    (_, true) => icmpv6::ECHO_REPLY,
                };
                segment.extend([kind, 0, 0, 0]);
                segment.extend(sport.to_be_bytes());
                segment.extend([0, 1]);
                field = Some(icmp::CHECKSUM);
            }
            _ => {}
        }
        segment.extend(&self.payload);
        if let Some(field) = field {
            let len = segment.len() as u32;
            let pseudo = if number == proto::ICMP { 0 } else { checksum::pseudo(src, dst, number, len) };
            let value = match checksum::full(&segment, pseudo) {
                0 if number == proto::UDP => 0xffff, // RFC 768
                value => value,
            };
            if let Some(out) = chunk_mut(&mut segment, field) {
                *out = value.to_be_bytes();
            }
        } else if number == proto::SCTP {
            // The field is 0 so far, which is how unfinished ones look.
            let _ = sctp::finish(&mut segment);
        }
        segment
    }
}

/// What property tests draw from, and a plain judge of checksums.
#[cfg(test)]
pub(crate) mod testing {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Ip;
    use crate::parse::{HeaderFlags, Headers, Parsed, parse};

    pub(crate) fn any_v4() -> impl Strategy<Value = Ip> {
        (1_u32..223, any::<u32>()).prop_map(|(net, rest)| Ip::v4((if net == 127 { 10 } else { net }) << 24 | rest & 0xff_ffff))
    }

    pub(crate) fn any_v6() -> impl Strategy<Value = Ip> {
        any::<u128>().prop_map(|bits| Ip(0x2000 << 112 | bits >> 3))
    }

    pub(crate) fn any_proto(is_v4: bool) -> impl Strategy<Value = u8> {
        let echo = if is_v4 { proto::ICMP } else { proto::ICMPV6 };
        prop_oneof![Just(proto::TCP), Just(proto::UDP), Just(proto::SCTP), Just(echo), Just(47)]
    }

    /// Two tuples of one family and protocol: before and after a translation.
    pub(crate) fn any_pair() -> impl Strategy<Value = (Tuple, Tuple)> {
        let v4 = ([any_v4(), any_v4(), any_v4(), any_v4()], any_proto(true));
        let v6 = ([any_v6(), any_v6(), any_v6(), any_v6()], any_proto(false));
        (prop_oneof![v4, v6], any::<[u16; 4]>()).prop_map(|(([a, b, c, d], proto), ports)| {
            let tuple = |src, dst, sport, dport| match proto {
                47 => Tuple { src, dst, sport: 0, dport: 0, proto },
                proto::ICMP | proto::ICMPV6 => Tuple { src, dst, sport, dport: sport, proto },
                _ => Tuple { src, dst, sport, dport, proto },
            };
            (tuple(a, b, ports[0], ports[1]), tuple(c, d, ports[2], ports[3]))
        })
    }

    pub(crate) fn any_craft(tuple: Tuple) -> impl Strategy<Value = Craft> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        let macs = any::<([u8; 6], [u8; 6])>().prop_map(|(mut a, mut b)| {
            (a[0], b[0]) = (a[0] & !1, b[0] & !1);
            (MacAddr(a), MacAddr(b))
        });
        (macs, any::<(u8, u8, u8, u32, u32, bool)>(), bytes).prop_map(
            move |((src_mac, dst_mac), (ttl, tos, tcp_flags, seq, ack, echo_reply), payload)| Craft {
                tuple,
                src_mac,
                dst_mac,
                ttl,
                tos,
                tcp_flags,
                seq,
                ack,
                echo_reply,
                payload,
            },
        )
    }

    /// Any well-formed packet, and another tuple that it could be translated to.
    pub(crate) fn any_packet() -> impl Strategy<Value = (Craft, Tuple)> {
        any_pair().prop_flat_map(|(from, to)| (any_craft(from), Just(to)))
    }

    /// The headers of an IP frame that must parse.
    pub(crate) fn headers_of(frame: &[u8]) -> Headers {
        match parse(frame) {
            Ok(Parsed::Ip(headers)) => headers,
            other => panic!("{other:?} from {frame:02x?}"),
        }
    }

    /// RFC 1071 §1, word by word.
    fn plain_sum(bytes: &[u8], start: u32) -> u16 {
        let mut sum = start;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Tells whether every checksum of a frame is right, computed anew from the bytes alone.
    pub(crate) fn checksums_are_right(frame: &[u8]) -> bool {
        let h = headers_of(frame);
        let (l3, l4) = (usize::from(h.l3), usize::from(h.l4));
        let segment = &frame[l4..h.frame_len()];
        let addresses = if h.is_v6() { &frame[l3 + 8..l3 + 40] } else { &frame[l3 + 12..l3 + 20] };
        let pseudo = plain_sum(addresses, u32::from(h.tuple.proto) + segment.len() as u32);
        let header_right = h.is_v6() || plain_sum(&frame[l3..l4], 0) == 0xffff;
        header_right
            && (h.has(HeaderFlags::FRAGMENT)
                || match h.tuple.proto {
                    proto::UDP if segment[6..8] == [0, 0] => false,
                    proto::TCP | proto::UDP | proto::ICMPV6 => plain_sum(segment, u32::from(pseudo)) == 0xffff,
                    proto::ICMP => plain_sum(segment, 0) == 0xffff,
                    proto::SCTP => sctp::checksum(segment).is_some_and(|crc| segment[8..12] == crc),
                    _ => true,
                })
    }

    proptest! {
        #[test]
        fn crafted_frames_have_right_checksums((craft, _) in any_packet()) {
            prop_assert!(checksums_are_right(&craft.frame()));
        }
    }
}
