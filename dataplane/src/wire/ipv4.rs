//! IPv4 (RFC 791).

use crate::model::Ip;
use crate::wire::checksum::{self, Delta};
use crate::wire::chunk_mut;

/// Length of the header without options.
pub const LEN: usize = 20;
/// First byte of a header without options.
pub const VERSION_IHL: u8 = 0x45;
/// The "don't fragment" bit of the fragment field.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The "more fragments" bit of the fragment field.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in the fragment field, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;
/// Where the time to live stands.
pub const TTL: usize = 8;
/// Where the checksum stands.
pub const CHECKSUM: usize = 10;
/// What a hop adds to the sum of a header: one less in the time to live is 0x0100 less, whatever the protocol beside it.
pub const HOP_DELTA: u16 = !0x0100;
/// What every host must be able to reassemble (RFC 791 §3.1), and the most that an ICMP error fills (RFC 1812 §4.3.2.3).
pub const MIN_REASSEMBLY: usize = 576;

/// An IPv4 header without options and not fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Protocol of the payload.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload.
    pub total: u16,
}

impl Header {
    /// Writes the header with its checksum. "Don't fragment" is set, so the identification may be 0 (RFC 6864 §4.1).
    pub fn emit(self, out: &mut [u8; LEN]) {
        let [t0, t1] = self.total.to_be_bytes();
        let [f0, f1] = DONT_FRAGMENT.to_be_bytes();
        let [s0, s1, s2, s3] = self.src.low32().to_be_bytes();
        let [d0, d1, d2, d3] = self.dst.low32().to_be_bytes();
        *out = [VERSION_IHL, self.tos, t0, t1, 0, 0, f0, f1, self.ttl, self.proto, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        let [c0, c1] = checksum::full(out, 0).to_be_bytes();
        (out[CHECKSUM], out[CHECKSUM + 1]) = (c0, c1);
    }
}

/// Replaces the time to live of the header at `l3` and updates its checksum.
#[inline]
pub fn set_ttl(bytes: &mut [u8], l3: usize, ttl: u8) -> Option<()> {
    let [old, proto, c0, c1] = chunk_mut(bytes, l3 + TTL)?;
    let delta = Delta::NONE.word(u16::from_be_bytes([*old, *proto]), u16::from_be_bytes([ttl, *proto]));
    *old = ttl;
    [*c0, *c1] = checksum::update(u16::from_be_bytes([*c0, *c1]), delta.folded()).to_be_bytes();
    Some(())
}

/// Takes one from the time to live of the header at `l3`, which must not be 0, and updates its checksum.
#[inline]
pub fn decrement_ttl(bytes: &mut [u8], l3: usize) -> Option<()> {
    let [ttl, _, c0, c1] = chunk_mut(bytes, l3 + TTL)?;
    *ttl = ttl.wrapping_sub(1);
    [*c0, *c1] = checksum::update(u16::from_be_bytes([*c0, *c1]), HOP_DELTA).to_be_bytes();
    Some(())
}

/// Replaces the type of service of the header at `l3` and updates its checksum.
pub fn set_tos(bytes: &mut [u8], l3: usize, tos: u8) -> Option<()> {
    let header: &mut [u8; LEN] = chunk_mut(bytes, l3)?;
    let delta = Delta::NONE.word(u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[0], tos]));
    header[1] = tos;
    let field = u16::from_be_bytes([header[CHECKSUM], header[CHECKSUM + 1]]);
    [header[CHECKSUM], header[CHECKSUM + 1]] = checksum::update(field, delta.folded()).to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_written_whole_and_edits_keep_it_valid() {
        let mut out = [0xa5; LEN];
        Header { src: Ip::v4(0x0a00_0001), dst: Ip::v4(0x0a00_0002), proto: 17, ttl: 64, tos: 0, total: 100 }.emit(&mut out);
        assert_eq!(out, [0x45, 0, 0, 100, 0, 0, 0x40, 0, 64, 17, 0x26, 0x87, 10, 0, 0, 1, 10, 0, 0, 2]);
        for ttl in 0..=255 {
            set_ttl(&mut out, 0, ttl).unwrap();
            set_tos(&mut out, 0, ttl.wrapping_mul(7)).unwrap();
            assert_eq!(checksum::fold(checksum::sum(&out)), 0xffff);
        }
        assert_eq!(set_ttl(&mut out, 9, 1), None);
    }
}
