//! ICMP errors (RFC 792, RFC 1812 §4.3; RFC 4443 §3).

use weir_xsk::{Arena, Frame};

use super::{TTL, emit_ethernet, is_unicast};
use crate::model::{Ip, proto};
use crate::parse::{HeaderFlags, Headers};
use crate::wire::{checksum, chunk_mut, ethernet, icmp, icmpv6, ipv4, ipv6};

/// What went wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens on the port.
    PortUnreachable,
    /// There is no way to the address.
    HostUnreachable,
    /// A policy forbids it.
    Prohibited,
    /// Longer than the next link carries, and not to be fragmented. The MTU must be at least 68 for IPv4 (RFC 1191 §3), 1280
    /// for IPv6 (RFC 8200 §5).
    TooBig {
        /// The longest IP packet that would pass, in bytes.
        mtu: u16,
    },
    /// Time to live used up in transit.
    TimeExceeded,
}

impl IcmpError {
    /// Type, code, and the lower half of the four bytes behind the checksum.
    const fn header(self, is_v6: bool) -> (u8, u8, u16) {
        match (self, is_v6) {
            (Self::PortUnreachable, false) => (icmp::UNREACHABLE, icmp::PORT, 0),
            (Self::PortUnreachable, true) => (icmpv6::UNREACHABLE, icmpv6::PORT, 0),
            (Self::HostUnreachable, false) => (icmp::UNREACHABLE, icmp::HOST, 0),
            (Self::HostUnreachable, true) => (icmpv6::UNREACHABLE, icmpv6::ADDRESS, 0),
            (Self::Prohibited, false) => (icmp::UNREACHABLE, icmp::PROHIBITED, 0),
            (Self::Prohibited, true) => (icmpv6::UNREACHABLE, icmpv6::PROHIBITED, 0),
            (Self::TooBig { mtu }, false) => (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu),
            (Self::TooBig { mtu }, true) => (icmpv6::PACKET_TOO_BIG, 0, mtu),
            (Self::TimeExceeded, false) => (icmp::TIME_EXCEEDED, 0, 0),
            (Self::TimeExceeded, true) => (icmpv6::TIME_EXCEEDED, 0, 0),
        }
    }
}

/// Class selector 6, as routers mark their control traffic (RFC 1812 §4.3.2.5).
const TOS: u8 = 0xc0;

/// Turns the packet into the error about it, sent by `from` to the packet's source, and quotes as much of the packet as
/// fits: 576 bytes in all for IPv4 (RFC 1812 §4.3.2.3), 1280 for IPv6 (RFC 4443 §2.4(c)).
///
/// Tells whether there is an answer. There is none about an ICMP error or redirect, a later fragment, what was sent to or
/// from many (RFC 1122 §3.2.2, RFC 4443 §2.4(e)), nor where the slot has no room.
#[must_use]
pub fn icmp_error(arena: &Arena, frame: &mut Frame, headers: &Headers, error: IcmpError, from: Ip) -> bool {
    may_answer(headers) && build(arena, frame, headers, error, from).is_some()
}

fn may_answer(headers: &Headers) -> bool {
    let redirect = match headers.tuple.proto {
        proto::ICMP => headers.icmp_type == icmp::REDIRECT,
        proto::ICMPV6 => headers.icmp_type == icmpv6::REDIRECT,
        _ => false,
    };
    is_unicast(headers) && !redirect && !headers.has(HeaderFlags::ICMP_ERROR.with(HeaderFlags::FRAGMENT_LATER))
}

fn build(arena: &Arena, frame: &mut Frame, headers: &Headers, error: IcmpError, from: Ip) -> Option<()> {
    let is_v6 = headers.is_v6();
    let (ip_len, most) = if is_v6 { (ipv6::LEN, ipv6::MIN_MTU) } else { (ipv4::LEN, ipv4::MIN_REASSEMBLY) };
    let gap = ip_len + icmp::LEN;
    let quoted = (headers.l3_total as usize).min(most - gap);
    if usize::from(headers.l3) != ethernet::LEN || !arena.set_len(frame, ethernet::LEN + quoted) {
        return None;
    }
    open_gap(arena, frame, gap)?;
    let bytes = arena.bytes_mut(frame);
    emit_ethernet(bytes, headers)?;
    let dst = headers.tuple.src;
    let len = icmp::LEN + quoted;
    let pseudo = if is_v6 {
        ipv6::Header { src: from, dst, proto: proto::ICMPV6, ttl: TTL, tos: TOS, payload: len as u16 }
            .emit(chunk_mut(bytes, ethernet::LEN)?);
        checksum::pseudo(from, dst, proto::ICMPV6, len as u32)
    } else {
        ipv4::Header { src: from, dst, proto: proto::ICMP, ttl: TTL, tos: TOS, total: (ip_len + len) as u16 }
            .emit(chunk_mut(bytes, ethernet::LEN)?);
        0
    };
    let (kind, code, value) = error.header(is_v6);
    let [v0, v1] = value.to_be_bytes();
    let message = bytes.get_mut(ethernet::LEN + ip_len..)?;
    *chunk_mut(message, 0)? = [kind, code, 0, 0, 0, 0, v0, v1];
    *chunk_mut(message, icmp::CHECKSUM)? = checksum::full(message, pseudo).to_be_bytes();
    Some(())
}

/// Makes `gap` bytes of room behind the Ethernet header: in front if there is headroom, else behind.
fn open_gap(arena: &Arena, frame: &mut Frame, gap: usize) -> Option<()> {
    if arena.push_front(frame, gap) {
        return Some(()); // the Ethernet header will be written anew
    }
    let end = frame.len();
    if !arena.set_len(frame, end + gap) {
        return None;
    }
    arena.bytes_mut(frame).copy_within(ethernet::LEN..end, ethernet::LEN + gap);
    Some(())
}
