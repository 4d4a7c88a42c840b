//! Neighbour advertisements (RFC 4861 §7.2).

use weir_xsk::{Arena, Frame};

use super::emit_ethernet;
use crate::model::{Ip, MacAddr, proto};
use crate::parse::{HeaderFlags, Headers};
use crate::wire::{checksum, chunk_mut, ethernet, icmp, icmpv6, ipv6, ndp};

/// Whose MAC the packet asks for, if it is a valid neighbour solicitation (RFC 4861 §7.1.1) that waits for an answer.
///
/// Duplicate address detection (source ::) waits for none from us: our addresses are never a pod's. Extension headers and
/// fragments are refused (RFC 6980 §5).
pub fn solicited_target(bytes: &[u8], headers: &Headers) -> Option<Ip> {
    let odd = HeaderFlags::UNSPECIFIED_SRC.with(HeaderFlags::OPTIONS).with(HeaderFlags::FRAGMENT).with(HeaderFlags::VLAN);
    if !headers.has(HeaderFlags::NDP) || headers.has(odd) || headers.ttl != ndp::HOP_LIMIT {
        return None;
    }
    if headers.icmp_type != icmpv6::NEIGHBOUR_SOLICITATION {
        return None;
    }
    let message = bytes.get(usize::from(headers.l4)..headers.frame_len())?;
    let target = ndp::solicited_target(message)?;
    let dst = headers.tuple.dst;
    // The solicited-node multicast address has the target's low 24 bits (RFC 4291 §2.7.1).
    let group = Ip(0xff02 << 112 | 0x1_ff00_0000 | target.0 & 0xff_ffff);
    let pseudo = checksum::pseudo(headers.tuple.src, dst, proto::ICMPV6, message.len() as u32);
    let intact = checksum::fold(checksum::sum(message) + pseudo) == 0xffff;
    ((dst == target || dst == group) && intact).then_some(target)
}

/// Turns a solicitation for `target` into the advertisement that it is at `mac`, to the asker alone. Tells whether the slot
/// has room.
#[must_use]
pub fn advertise(arena: &Arena, frame: &mut Frame, headers: &Headers, target: Ip, mac: MacAddr) -> bool {
    build(arena, frame, headers, target, mac).is_some()
}

fn build(arena: &Arena, frame: &mut Frame, headers: &Headers, target: Ip, mac: MacAddr) -> Option<()> {
    const LEN: usize = ethernet::LEN + ipv6::LEN + ndp::ADVERTISEMENT_LEN;
    if !arena.set_len(frame, LEN) {
        return None;
    }
    let bytes = arena.bytes_mut(frame);
    emit_ethernet(bytes, headers)?;
    ethernet::set_macs(bytes, headers.src_mac, mac).then_some(())?;
    let (dst, proto, payload) = (headers.tuple.src, proto::ICMPV6, ndp::ADVERTISEMENT_LEN as u16);
    ipv6::Header { src: target, dst, proto, ttl: ndp::HOP_LIMIT, tos: 0, payload }.emit(chunk_mut(bytes, ethernet::LEN)?);
    let message = chunk_mut(bytes, ethernet::LEN + ipv6::LEN)?;
    ndp::emit_advertisement(target, mac, message);
    let value = checksum::full(message, checksum::pseudo(target, dst, proto, u32::from(payload)));
    *chunk_mut(message, icmp::CHECKSUM)? = value.to_be_bytes();
    Some(())
}
