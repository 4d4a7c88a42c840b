//! Echo replies (RFC 792, RFC 4443 §4.2).

use super::{TTL, is_unicast};
use crate::parse::{HeaderFlags, Headers};
use crate::wire::checksum::{self, Delta};
use crate::wire::{chunk_mut, ethernet, icmp, icmpv6, ipv4, ipv6};

/// Turns an echo request into its reply: type, addresses and MACs; identifier, number and data stay. A wrong checksum stays
/// wrong, so a corrupted request is not answered in effect. Tells whether it was an echo request to one receiver.
#[must_use]
pub fn echo_reply(bytes: &mut [u8], headers: &Headers) -> bool {
    turn(bytes, headers).is_some()
}

fn turn(bytes: &mut [u8], headers: &Headers) -> Option<()> {
    let (request, reply) =
        if headers.is_v6() { (icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY) } else { (icmp::ECHO_REQUEST, icmp::ECHO_REPLY) };
    let is_request = headers.has(HeaderFlags::ICMP_ECHO) && headers.icmp_type == request && headers.icmp_code == 0;
    // Source routes and their like would have to be turned around as well (RFC 1122 §3.2.2.6).
    if !is_request || !is_unicast(headers) || headers.has(HeaderFlags::FRAGMENT.with(HeaderFlags::OPTIONS)) {
        return None;
    }
    let l3 = usize::from(headers.l3);
    // Source and destination change places, which no checksum notices.
    if headers.is_v6() {
        let [_, _, _, _, _, _, _, hop_limit, addresses @ ..] = chunk_mut::<{ ipv6::LEN }>(bytes, l3)?;
        addresses.rotate_left(16);
        *hop_limit = TTL;
    } else {
        let addresses: &mut [u8; 8] = chunk_mut(bytes, l3 + 12)?;
        addresses.rotate_left(4);
        ipv4::set_ttl(bytes, l3, TTL)?;
    }
    let [kind, code, c0, c1] = chunk_mut(bytes, usize::from(headers.l4))?;
    let delta = Delta::NONE.word(u16::from_be_bytes([*kind, *code]), u16::from_be_bytes([reply, *code]));
    *kind = reply;
    [*c0, *c1] = checksum::update(u16::from_be_bytes([*c0, *c1]), delta.folded()).to_be_bytes();
    ethernet::set_macs(bytes, headers.src_mac, headers.dst_mac).then_some(())
}
