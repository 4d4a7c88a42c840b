//! IPv6 (RFC 8200).

use crate::model::Ip;
use crate::wire::chunk_mut;

/// Length of the fixed header.
pub const LEN: usize = 40;
/// Where the hop limit stands.
pub const HOP_LIMIT: usize = 7;
/// The least that every link carries (RFC 8200 §5), and the most that an ICMPv6 error fills (RFC 4443 §2.4(c)).
pub const MIN_MTU: usize = 1280;

/// Next header: hop-by-hop options (RFC 8200 §4.3).
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing (RFC 8200 §4.4).
pub const ROUTING: u8 = 43;
/// Next header: fragment (RFC 8200 §4.5).
pub const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Next header: destination options (RFC 8200 §4.6).
pub const DESTINATION: u8 = 60;

/// An IPv6 header without extension headers; the flow label is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Protocol of the payload.
    pub proto: u8,
    /// Hop limit.
    pub ttl: u8,
    /// Traffic class: DSCP and ECN.
    pub tos: u8,
    /// Length of the payload.
    pub payload: u16,
}

impl Header {
    /// Writes the header.
    pub fn emit(self, out: &mut [u8; LEN]) {
        let [p0, p1] = self.payload.to_be_bytes();
        let (fixed, addresses) = out.split_at_mut(8);
        fixed.copy_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 0, p0, p1, self.proto, self.ttl]);
        let (src, dst) = addresses.split_at_mut(16);
        src.copy_from_slice(&self.src.0.to_be_bytes());
        dst.copy_from_slice(&self.dst.0.to_be_bytes());
    }
}

/// Source and destination.
#[inline]
pub fn addresses(header: &[u8; LEN]) -> (Ip, Ip) {
    let [_, _, _, _, _, _, _, _, addresses @ ..] = header;
    let (halves, _) = addresses.as_chunks::<16>();
    match halves {
        [src, dst] => (Ip(u128::from_be_bytes(*src)), Ip(u128::from_be_bytes(*dst))),
        _ => (Ip(0), Ip(0)), // 32 bytes are two halves
    }
}

/// Replaces the traffic class of the header at `l3`.
pub fn set_tos(bytes: &mut [u8], l3: usize, tos: u8) -> Option<()> {
    let [first, second] = chunk_mut(bytes, l3)?;
    *first = *first & 0xf0 | tos >> 4;
    *second = *second & 0x0f | tos << 4;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_written_whole() {
        let mut out = [0xa5; LEN];
        let (src, dst) = (Ip(0xfd00 << 112 | 1), Ip(0xfd00 << 112 | 2));
        Header { src, dst, proto: 6, ttl: 64, tos: 0xb9, payload: 20 }.emit(&mut out);
        assert_eq!(out[..8], [0x6b, 0x90, 0, 0, 0, 20, 6, 64]);
        assert_eq!(addresses(&out), (src, dst));
        set_tos(&mut out, 0, 0x12).unwrap();
        assert_eq!(out[..2], [0x61, 0x20]);
    }
}
