//! ARP for IPv4 over Ethernet (RFC 826).

use crate::model::{Ip, MacAddr};
use crate::wire::{chunk, chunk_mut, ethernet};

/// Length of the packet behind the Ethernet header.
pub const LEN: usize = 28;

const PREFIX: [u8; 6] = [0, 1, 0x08, 0, 6, 4]; // Ethernet, IPv4, lengths of their addresses
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpPacket {
    /// Ethernet destination of the frame.
    pub dst_mac: MacAddr,
    /// Ethernet source of the frame.
    pub src_mac: MacAddr,
    /// Asks, rather than answers.
    pub is_request: bool,
    /// The sender's MAC, as the packet states it.
    pub sender_mac: MacAddr,
    /// The sender's address; 0.0.0.0 in a probe (RFC 5227 §1.1).
    pub sender_ip: Ip,
    /// Whose MAC is wanted or, in a reply, whom it tells.
    pub target_ip: Ip,
}

/// Reads the ARP packet behind an Ethernet header; `None` where it is cut or speaks of something else than IPv4 on Ethernet.
pub fn parse(bytes: &[u8]) -> Option<ArpPacket> {
    let link = bytes.first_chunk()?;
    let packet: &[u8; LEN] = chunk(bytes, ethernet::LEN)?;
    let operation = u16::from_be_bytes([packet[6], packet[7]]);
    if !packet.starts_with(&PREFIX) || !matches!(operation, REQUEST | REPLY) {
        return None;
    }
    let ip = |at| Some(Ip::v4(u32::from_be_bytes(*chunk(packet, at)?)));
    Some(ArpPacket {
        dst_mac: ethernet::dst(link),
        src_mac: ethernet::src(link),
        is_request: operation == REQUEST,
        sender_mac: MacAddr(*chunk(packet, 8)?),
        sender_ip: ip(14)?,
        target_ip: ip(24)?,
    })
}

/// Turns a frame that holds `request` into the answer that its target is at `mac`. The length stays.
#[must_use]
pub fn answer(bytes: &mut [u8], request: &ArpPacket, mac: MacAddr) -> bool {
    let Some(out) = chunk_mut::<{ ethernet::LEN + LEN }>(bytes, 0) else { return false };
    let (eth, packet) = out.split_at_mut(ethernet::LEN);
    ethernet::set_macs(eth, request.sender_mac, mac);
    let parts: [&[u8]; 6] = [
        &PREFIX,
        &REPLY.to_be_bytes(),
        &mac.0,
        &request.target_ip.low32().to_be_bytes(),
        &request.sender_mac.0,
        &request.sender_ip.low32().to_be_bytes(),
    ];
    for (to, from) in packet.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST_FRAME: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0a, 0x58, 10, 244, 1, 5, 8, 6, // Ethernet
        0, 1, 8, 0, 6, 4, 0, 1, 0x0a, 0x58, 10, 244, 1, 5, 10, 244, 1, 5, 0, 0, 0, 0, 0, 0, 169, 254, 1, 1,
    ];

    #[test]
    fn request_is_answered_in_place() {
        let request = parse(&REQUEST_FRAME).unwrap();
        assert!(request.is_request);
        assert_eq!(request.sender_ip, Ip::v4(0x0af4_0105));
        assert_eq!(request.target_ip, Ip::v4(0xa9fe_0101));

        let mut frame = REQUEST_FRAME;
        assert!(answer(&mut frame, &request, MacAddr::GATEWAY));
        let reply = parse(&frame).unwrap();
        let expected = ArpPacket {
            dst_mac: request.sender_mac,
            src_mac: MacAddr::GATEWAY,
            is_request: false,
            sender_mac: MacAddr::GATEWAY,
            sender_ip: request.target_ip,
            target_ip: request.sender_ip,
        };
        assert_eq!(reply, expected);
        assert_eq!(frame[32..38], request.sender_mac.0);
    }

    #[test]
    fn cut_or_foreign_packets_are_not_arp() {
        for len in 0..REQUEST_FRAME.len() {
            assert_eq!(parse(&REQUEST_FRAME[..len]), None);
        }
        for (at, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16), (21, 3)] {
            let mut frame = REQUEST_FRAME;
            frame[at] = value;
            assert_eq!(parse(&frame), None, "byte {at}");
        }
    }
}
