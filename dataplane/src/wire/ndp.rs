//! Neighbour discovery (RFC 4861): solicitations and advertisements.

use crate::model::{Ip, MacAddr};
use crate::wire::{chunk, icmpv6};

/// Length of a neighbour solicitation without options (RFC 4861 §4.3).
const SOLICITATION_LEN: usize = 24;
/// Length of an advertisement with the option that says the MAC.
pub const ADVERTISEMENT_LEN: usize = 32;
/// Hop limit of every message of neighbour discovery: proof that no router passed it on (RFC 4861 §3.1).
pub const HOP_LIMIT: u8 = 255;

const TARGET_LINK_LAYER: u8 = 2;
/// Router, solicited, override (RFC 4861 §4.4): our addresses are those of gateways.
const FLAGS: u8 = 0x80 | 0x40 | 0x20;

/// Whose MAC an ICMPv6 message asks for, if it is a neighbour solicitation that passes what RFC 4861 §7.1.1 asks of the
/// message alone.
pub fn solicited_target(message: &[u8]) -> Option<Ip> {
    let header: &[u8; SOLICITATION_LEN] = message.first_chunk()?;
    let target = Ip(u128::from_be_bytes(*chunk(header, 8)?));
    if header[0] != icmpv6::NEIGHBOUR_SOLICITATION || header[1] != 0 || target.0 >> 120 == 0xff {
        return None;
    }
    let mut options = message.get(SOLICITATION_LEN..)?;
    while !options.is_empty() {
        let [_, words] = *chunk(options, 0)?;
        let len = usize::from(words) * 8;
        if len == 0 {
            return None;
        }
        options = options.get(len..)?;
    }
    Some(target)
}

/// Writes the advertisement that `target` is at `mac`, its checksum 0.
pub fn emit_advertisement(target: Ip, mac: MacAddr, out: &mut [u8; ADVERTISEMENT_LEN]) {
    let parts: [&[u8]; 4] =
        [&[icmpv6::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAGS, 0, 0, 0], &target.0.to_be_bytes(), &[TARGET_LINK_LAYER, 1], &mac.0];
    for (to, from) in out.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solicitation_is_read_and_its_options_are_checked() {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let target = Some(Ip(0xfe80 << 112 | 1));
        assert_eq!(solicited_target(&message), target);
        message.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(solicited_target(&message), target);
        for len in (0..24).chain(25..32) {
            assert_eq!(solicited_target(&message[..len]), None, "{len} bytes");
        }
        message[25] = 0;
        assert_eq!(solicited_target(&message), None, "an option of length 0");
    }

    #[test]
    fn advertisement_is_written_whole() {
        let mut out = [0xa5; ADVERTISEMENT_LEN];
        emit_advertisement(Ip(0xfe80 << 112 | 1), MacAddr::GATEWAY, &mut out);
        assert_eq!(out[..8], [136, 0, 0, 0, 0xe0, 0, 0, 0]);
        assert_eq!(out[8..24], (0xfe80_u128 << 112 | 1).to_be_bytes());
        assert_eq!(out[24..], [2, 1, 0x02, 0x77, 0x65, 0x69, 0x72, 0x01]);
    }
}
