//! Ethernet II (IEEE 802.3) and 802.1Q tags.

use crate::model::MacAddr;
use crate::wire::chunk_mut;

/// Length of the header.
pub const LEN: usize = 14;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad outer tag (QinQ).
pub const QINQ: u16 = 0x88a8;

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// What follows.
    pub ethertype: u16,
}

impl Header {
    /// Writes the header.
    #[inline]
    pub fn emit(self, out: &mut [u8; LEN]) {
        let [d0, d1, d2, d3, d4, d5] = self.dst.0;
        let [s0, s1, s2, s3, s4, s5] = self.src.0;
        let [t0, t1] = self.ethertype.to_be_bytes();
        *out = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1];
    }
}

/// Destination of a frame.
#[inline(always)]
pub const fn dst(header: &[u8; LEN]) -> MacAddr {
    let [d0, d1, d2, d3, d4, d5, ..] = *header;
    MacAddr([d0, d1, d2, d3, d4, d5])
}

/// Source of a frame.
#[inline(always)]
pub const fn src(header: &[u8; LEN]) -> MacAddr {
    let [_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, ..] = *header;
    MacAddr([s0, s1, s2, s3, s4, s5])
}

/// Sets destination and source. Tells whether the frame has a header at all.
#[inline]
pub fn set_macs(bytes: &mut [u8], dst: MacAddr, src: MacAddr) -> bool {
    let Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]) = chunk_mut(bytes, 0) else { return false };
    [*d0, *d1, *d2, *d3, *d4, *d5] = dst.0;
    [*s0, *s1, *s2, *s3, *s4, *s5] = src.0;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_written_whole() {
        let mut out = [0xa5; LEN];
        Header { dst: MacAddr::BROADCAST, src: MacAddr([2, 0, 0, 0, 0, 1]), ethertype: ARP }.emit(&mut out);
        assert_eq!(out, [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert!(set_macs(&mut out, MacAddr([2; 6]), MacAddr([3; 6])));
        assert_eq!((dst(&out), src(&out)), (MacAddr([2; 6]), MacAddr([3; 6])));
        assert!(!set_macs(&mut out[..11], MacAddr([2; 6]), MacAddr([3; 6])));
    }
}
