//! Whole frames from a [`Tuple`], with right lengths and checksums: what a trace follows and what tests send.

use crate::conntrack::Tuple;
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
    /// TCP acknowledgment number.
    pub ack: u32,
    /// An echo reply rather than a request.
    pub echo_reply: bool,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

impl Craft {
    /// The first packet of a flow: a SYN, an echo request, or an empty packet.
    pub fn new(tuple: Tuple) -> Self {
        Self {
            tuple,
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            ttl: 64,
            tos: 0,
            tcp_flags: tcp::SYN,
            seq: 1,
            ack: 0,
            echo_reply: false,
            payload: Vec::new(),
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
                tcp::Header { sport, dport, seq: self.seq, ack: self.ack, flags: self.tcp_flags }.emit(&mut header);
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
