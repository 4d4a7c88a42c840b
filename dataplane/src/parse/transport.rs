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

/// Completes a checksum that the sender's stack left to hardware that is not there; tells whether there was one.
///
/// A veth peer with transmit offload hands over `CHECKSUM_PARTIAL` frames and the mark is lost on the way. What remains
/// to be seen of it: TCP and UDP carry the bare sum of the pseudo header (Linux `net/ipv4/tcp_ipv4.c`, `__tcp_v4_send_check`),
/// SCTP carries 0. One in 65,536 finished checksums looks like that too; computing it again gives the same value, so
/// the guess does no harm. Must run before any translation. Reads the whole payload where it completes, else the header.
pub fn finish_checksum(bytes: &mut [u8], headers: &Headers) -> bool {
    finish(bytes, headers).is_some()
}

/// The same for a packet of several buffers, of which the first has all headers. SCTP is left as it is: no pod is told that it
/// may leave that checksum to others.
pub fn finish_checksum_of_chain(arena: &Arena, frame: &mut Frame, headers: &Headers) -> bool {
    finish_chain(arena, frame, headers).is_some()
}

fn finish_chain(arena: &Arena, frame: &mut Frame, headers: &Headers) -> Option<()> {
    let tuple = &headers.tuple;
    let (l4, len) = (usize::from(headers.l4), headers.l4_len());
    let at = match tuple.proto {
        proto::TCP => l4 + tcp::CHECKSUM,
        proto::UDP if usize::from(crate::wire::u16_at(arena.bytes(frame), l4 + 4)?) == len => l4 + udp::CHECKSUM,
        _ => return None,
    };
    let pseudo = checksum::pseudo(tuple.src, tuple.dst, tuple.proto, len as u32);
    let field = chunk_mut::<2>(arena.bytes_mut(frame), at)?;
    if headers.has(HeaderFlags::FRAGMENT) || u16::from_be_bytes(*field) != checksum::fold(pseudo) {
        return None;
    }
    *field = [0; 2];
    let (mut total, mut is_odd) = (pseudo, false);
    for (index, buffer) in arena.buffers(frame).enumerate() {
        let bytes = if index == 0 { buffer.get(l4..)? } else { buffer };
        let part = checksum::fold(checksum::sum(bytes));
        // Behind an odd number of bytes the two halves of each word have changed places (RFC 1071 §2(B)).
        total += u64::from(if is_odd { part.swap_bytes() } else { part });
        is_odd ^= bytes.len() % 2 == 1;
    }
    let mut value = !checksum::fold(total);
    if tuple.proto == proto::UDP && value == 0 {
        value = 0xffff; // as below
    }
    *chunk_mut::<2>(arena.bytes_mut(frame), at)? = value.to_be_bytes();
    Some(())
}

fn finish(bytes: &mut [u8], headers: &Headers) -> Option<()> {
    if headers.has(HeaderFlags::FRAGMENT) {
        return None;
    }
    let tuple = &headers.tuple;
    let segment = bytes.get_mut(usize::from(headers.l4)..headers.frame_len())?;
    let (at, len) = match tuple.proto {
        proto::TCP => (tcp::CHECKSUM, segment.len()),
        proto::UDP => (udp::CHECKSUM, usize::from(crate::wire::u16_at(segment, 4)?)),
        proto::SCTP => return sctp::finish(segment),
        _ => return None,
    };
    let segment = segment.get_mut(..len)?;
    let pseudo = checksum::pseudo(tuple.src, tuple.dst, tuple.proto, len as u32);
    let field = chunk_mut::<2>(segment, at)?;
    if u16::from_be_bytes(*field) != checksum::fold(pseudo) {
        return None;
    }
    *field = [0; 2];
    let mut value = checksum::full(segment, pseudo);
    if tuple.proto == proto::UDP && value == 0 {
        value = 0xffff; // RFC 768: zero says that there is none
    }
    *chunk_mut::<2>(segment, at)? = value.to_be_bytes();
    Some(())
}
