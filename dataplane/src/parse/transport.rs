//! Transport headers: ports or identifier, and the checks that a header must pass alone.

use std::ops::Range;

use weir_xsk::{Arena, Frame};

use super::{HeaderFlags, Headers};
use crate::model::proto;
use crate::verdict::DropReason;
use crate::wire::{checksum, chunk, chunk_mut, icmp, icmpv6, sctp, tcp, udp};

#[inline]
pub(super) const fn is_tcp_or_udp(number: u8) -> bool {
    (number == proto::TCP) | (number == proto::UDP)
}

/// TCP and UDP in whole packets, at `range` of the frame. At random half and half a branch on the protocol costs 7 ns, so
/// there is none: every load is at an offset that exists in both.
#[inline]
pub(super) fn parse_ports(bytes: &[u8], range: Range<usize>, number: u8, headers: &mut Headers) -> Result<(), DropReason> {
    let len = range.len();
    let segment = bytes.get(range.start..range.end.min(bytes.len())).ok_or(DropReason::InvalidPacket)?;
    let is_tcp = number == proto::TCP;
    let tcp_if = usize::from(is_tcp);
    let first: &[u8; 8] = segment.first_chunk().ok_or(DropReason::InvalidPacket)?;
    // For TCP data offset and flags, for UDP bytes that are ignored.
    let [offset, flags] = *chunk::<2>(segment, 12 * tcp_if).ok_or(DropReason::InvalidPacket)?;
    let tcp_len = usize::from(offset >> 4) * 4;
    let udp_len = usize::from(u16::from_be_bytes([first[4], first[5]]));
    // RFC 9293 §3.1, RFC 768: the header, or header and data, lie within the packet. A TCP header has 20 bytes at least.
    let tcp_valid = (tcp_len >= tcp::LEN) & (tcp_len <= len);
    let udp_valid = (udp_len >= udp::LEN) & (udp_len <= len);
    if !((is_tcp & tcp_valid) | (!is_tcp & udp_valid)) {
        return Err(DropReason::InvalidPacket);
    }
    headers.tuple.sport = u16::from_be_bytes([first[0], first[1]]);
    headers.tuple.dport = u16::from_be_bytes([first[2], first[3]]);
    headers.tcp_flags = flags & (is_tcp as u8).wrapping_neg();
    Ok(())
}

/// Everything else: fragments, what follows extension headers, and what is neither TCP nor UDP.
#[cold]
pub(super) fn parse_rare(bytes: &[u8], headers: &mut Headers) -> Result<(), DropReason> {
    // RFC 4291 §2.5.2: :: sends nothing but discovery of its own network.
    if headers.has(HeaderFlags::UNSPECIFIED_SRC) && headers.tuple.proto != proto::ICMPV6 {
        return Err(DropReason::InvalidSourceIp);
    }
    if headers.has(HeaderFlags::FRAGMENT_LATER) {
        return Ok(());
    }
    let segment = bytes.get(usize::from(headers.l4)..headers.frame_len().min(bytes.len())).ok_or(DropReason::InvalidPacket)?;
    let whole = !headers.has(HeaderFlags::FRAGMENT);
    match headers.tuple.proto {
        proto::TCP | proto::UDP if whole => parse_ports(bytes, usize::from(headers.l4)..headers.frame_len(), headers.tuple.proto, headers),
        // RFC 1858 §3.2: the whole header in the first fragment, or later ones could change what was judged.
        proto::TCP => {
            let header: &[u8; tcp::LEN] = segment.first_chunk().ok_or(DropReason::InvalidPacket)?;
            let header_len = usize::from(header[12] >> 4) * 4;
            if header_len < tcp::LEN || header_len > segment.len() {
                return Err(DropReason::InvalidPacket);
            }
            headers.tcp_flags = header[13];
            set_ports(headers, segment)
        }
        proto::UDP => {
            let header: &[u8; udp::LEN] = segment.first_chunk().ok_or(DropReason::InvalidPacket)?;
            if usize::from(u16::from_be_bytes([header[4], header[5]])) < udp::LEN {
                return Err(DropReason::InvalidPacket);
            }
            set_ports(headers, segment)
        }
        proto::SCTP if segment.len() < sctp::LEN => Err(DropReason::InvalidPacket),
        proto::SCTP => set_ports(headers, segment),
        proto::ICMP | proto::ICMPV6 => parse_icmp(headers, segment),
        _ => Ok(()),
    }
}

fn set_ports(headers: &mut Headers, segment: &[u8]) -> Result<(), DropReason> {
    let [s0, s1, d0, d1] = *segment.first_chunk().ok_or(DropReason::InvalidPacket)?;
    headers.tuple.sport = u16::from_be_bytes([s0, s1]);
    headers.tuple.dport = u16::from_be_bytes([d0, d1]);
    Ok(())
}

fn parse_icmp(headers: &mut Headers, segment: &[u8]) -> Result<(), DropReason> {
    let is_v6 = headers.is_v6();
    let [kind, code, _, _, id0, id1, _, _] = *segment.first_chunk::<8>().ok_or(DropReason::InvalidPacket)?;
    if is_v6 != (headers.tuple.proto == proto::ICMPV6) {
        return Err(DropReason::InvalidPacket);
    }
    (headers.icmp_type, headers.icmp_code) = (kind, code);
    let (echo, error, ndp) = if is_v6 {
        (
            matches!(kind, icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY),
            icmpv6::is_error(kind),
            matches!(kind, icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT),
        )
    } else {
        (matches!(kind, icmp::ECHO_REQUEST | icmp::ECHO_REPLY), icmp::is_error(kind), false)
    };
    headers.flags =
        headers.flags.with_if(HeaderFlags::ICMP_ECHO, echo).with_if(HeaderFlags::ICMP_ERROR, error).with_if(HeaderFlags::NDP, ndp);
    if echo {
        let id = u16::from_be_bytes([id0, id1]);
        (headers.tuple.sport, headers.tuple.dport) = (id, id);
    }
    Ok(())
}

/// Tells whether the sender's stack left the checksum of this packet, whose `headers` these are, to hardware that is not there.
///
/// A veth peer with transmit offload hands over `CHECKSUM_PARTIAL` frames and the mark is lost on the way. What remains
/// to be seen of it: TCP and UDP carry the bare sum of the pseudo header (Linux `net/ipv4/tcp_ipv4.c`, `__tcp_v4_send_check`).
/// One in 65,536 finished checksums looks like that too; computing it again gives the same value, so the guess does no harm.
pub fn is_unfinished(bytes: &[u8], headers: &Headers) -> bool {
    let tuple = &headers.tuple;
    let Some(field) = checksum_field(headers).and_then(|field| crate::wire::u16_at(bytes, usize::from(headers.l4) + field)) else {
        return false;
    };
    // A datagram that ends before its packet was made by no stack that leaves sums to others.
    let whole =
        tuple.proto != proto::UDP || crate::wire::u16_at(bytes, usize::from(headers.l4) + 4) == u16::try_from(headers.l4_len()).ok();
    whole && field == checksum::fold(checksum::pseudo(tuple.src, tuple.dst, tuple.proto, headers.l4_len() as u32))
}

/// Where in its header the checksum of a TCP or UDP packet is, if all of what it covers is there.
pub fn checksum_field(headers: &Headers) -> Option<usize> {
    match headers.tuple.proto {
        _ if headers.has(HeaderFlags::FRAGMENT) => None,
        proto::TCP => Some(tcp::CHECKSUM),
        proto::UDP => Some(udp::CHECKSUM),
        _ => None,
    }
}

/// Finishes a checksum that [`is_unfinished`], also after a translation. Reads the whole packet.
pub fn finish_checksum(arena: &Arena, frame: &mut Frame, headers: &Headers) -> Option<()> {
    let l4 = usize::from(headers.l4);
    let at = l4 + checksum_field(headers)?;
    let (mut total, mut is_odd) = (0, false);
    for (index, buffer) in arena.buffers(frame).enumerate() {
        let bytes = if index == 0 { buffer.get(l4..)? } else { buffer };
        let part = checksum::fold(checksum::sum(bytes));
        // Behind an odd number of bytes the two halves of each word have changed places (RFC 1071 §2(B)).
        total += u64::from(if is_odd { part.swap_bytes() } else { part });
        is_odd ^= bytes.len() % 2 == 1;
    }
    let mut value = !checksum::fold(total);
    if headers.tuple.proto == proto::UDP && value == 0 {
        value = 0xffff; // RFC 768: zero says that there is none
    }
    *chunk_mut::<2>(arena.bytes_mut(frame), at)? = value.to_be_bytes();
    Some(())
}
