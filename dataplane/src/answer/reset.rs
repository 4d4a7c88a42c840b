//! TCP resets (RFC 9293 §3.10.7.1).

use weir_xsk::{Arena, Frame};

use super::{TTL, emit_ethernet, is_unicast};
use crate::model::proto;
use crate::parse::{HeaderFlags, Headers};
use crate::wire::{checksum, chunk, chunk_mut, ethernet, ipv4, ipv6, tcp};

/// Turns a TCP segment into the reset that a host without such a connection would answer. Tells whether there is an answer:
/// never to a reset, a fragment, or what was sent to many.
#[must_use]
pub fn tcp_reset(arena: &Arena, frame: &mut Frame, headers: &Headers) -> bool {
    let is_tcp = headers.tuple.proto == proto::TCP && headers.tcp_flags & tcp::RST == 0;
    is_tcp && is_unicast(headers) && !headers.has(HeaderFlags::FRAGMENT) && build(arena, frame, headers).is_some()
}

fn build(arena: &Arena, frame: &mut Frame, headers: &Headers) -> Option<()> {
    let segment: &[u8; tcp::LEN] = chunk(arena.bytes(frame), usize::from(headers.l4))?;
    let their_seq = u32::from_be_bytes(*chunk(segment, 4)?);
    let their_ack = u32::from_be_bytes(*chunk(segment, 8)?);
    let flags = headers.tcp_flags;
    let (seq, ack, flags) = if flags & tcp::ACK != 0 {
        (their_ack, 0, tcp::RST)
    } else {
        let data = headers.l4_len().checked_sub(usize::from(segment[12] >> 4) * 4)?;
        // SYN and FIN count as one each (RFC 9293 §3.4).
        let len = data as u32 + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        (0, their_seq.wrapping_add(len), tcp::RST | tcp::ACK)
    };
    let ip_len = if headers.is_v6() { ipv6::LEN } else { ipv4::LEN };
    if usize::from(headers.l3) != ethernet::LEN || !arena.set_len(frame, ethernet::LEN + ip_len + tcp::LEN) {
        return None;
    }
    let bytes = arena.bytes_mut(frame);
    emit_ethernet(bytes, headers)?;
    let answer = headers.tuple.inverse();
    let (src, dst, proto) = (answer.src, answer.dst, proto::TCP);
    if headers.is_v6() {
        ipv6::Header { src, dst, proto, ttl: TTL, tos: 0, payload: tcp::LEN as u16 }.emit(chunk_mut(bytes, ethernet::LEN)?);
    } else {
        ipv4::Header { src, dst, proto, ttl: TTL, tos: 0, total: (ip_len + tcp::LEN) as u16 }.emit(chunk_mut(bytes, ethernet::LEN)?);
    }
    let out = chunk_mut(bytes, ethernet::LEN + ip_len)?;
    tcp::Header { sport: answer.sport, dport: answer.dport, seq, ack, flags }.emit(out);
    let value = checksum::full(out, checksum::pseudo(src, dst, proto, tcp::LEN as u32));
    *chunk_mut(out, tcp::CHECKSUM)? = value.to_be_bytes();
    Some(())
}
