//! Link types, and how a record of each becomes an Ethernet frame.

use std::fmt;

use crate::model::MacAddr;

/// A link type of the tcpdump.org registry, as captures carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkType(pub u32);

impl LinkType {
    /// Loopback of BSD: an address family in the byte order of the machine.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// IP without a link header.
    pub const RAW: Self = Self(101);
    /// Loopback of OpenBSD: an address family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux "any" interface.
    pub const SLL: Self = Self(113);
    /// IPv4 without a link header.
    pub const IPV4: Self = Self(228);
    /// IPv6 without a link header.
    pub const IPV6: Self = Self(229);
    /// Linux "any" interface, version 2.
    pub const SLL2: Self = Self(276);

    /// Tells whether records of this type can be read.
    pub const fn is_known(self) -> bool {
        // 12 and 14 are what DLT_RAW is on some systems that write it raw into files.
        matches!(self.0, 0 | 1 | 12 | 14 | 101 | 108 | 113 | 228 | 229 | 276)
    }

    /// Splits a record into the Ethernet header that it lacks, and the bytes that follow it. An Ethernet record lacks
    /// none. What a cut header does not tell is zero.
    pub(super) fn split(self, data: &[u8]) -> (Option<[u8; 14]>, &[u8]) {
        let (header_bytes, ethertype, broadcast, source) = match self {
            Self::ETHERNET => return (None, data),
            Self::NULL => (4, family_ethertype(u32::from_le_bytes(array(data, 0))), false, [0; 8]),
            Self::LOOP => (4, family_ethertype(u32::from_be_bytes(array(data, 0))), false, [0; 8]),
            // pcap-linktype(7), LINUX_SLL: packet type, ARPHRD, address length, address (8), protocol.
            Self::SLL => (16, u16::from_be_bytes(array(data, 14)), is_group(u16::from_be_bytes(array(data, 0))), array(data, 6)),
            // LINUX_SLL2: protocol, reserved, interface index (4), ARPHRD, packet type, address length, address (8).
            Self::SLL2 => (20, u16::from_be_bytes(array(data, 0)), is_group(array::<1>(data, 10)[0].into()), array(data, 12)),
            Self::IPV4 => (0, ETHERTYPE_IPV4, false, [0; 8]),
            Self::IPV6 => (0, ETHERTYPE_IPV6, false, [0; 8]),
            _ => (0, if array::<1>(data, 0)[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }, false, [0; 8]),
        };
        let mut header = [0; 14];
        header[..6].copy_from_slice(&if broadcast { MacAddr::BROADCAST } else { MacAddr::GATEWAY }.0);
        header[6..12].copy_from_slice(&source[..6]);
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
        (Some(header), data.get(header_bytes..).unwrap_or_default())
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// `N` bytes at `offset`, zero where the data ends early.
fn array<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, from) in bytes.iter_mut().zip(data.get(offset..).unwrap_or_default()) {
        *byte = *from;
    }
    bytes
}

/// Packet types 1 and 2 of a Linux cooked header: broadcast and multicast.
fn is_group(packet_type: u16) -> bool {
    matches!(packet_type, 1 | 2)
}

/// The family word of NULL and LOOP: AF_INET is 2 everywhere, AF_INET6 is 10 (Linux), 24 (NetBSD), 28 (FreeBSD) or 30
/// (macOS). A word of the other byte order has it in the high byte.
fn family_ethertype(family: u32) -> u16 {
    match if family > 0xffff { family.swap_bytes() } else { family } {
        10 | 24 | 28 | 30 => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "NULL",
            1 => "EN10MB",
            12 | 14 | 101 => "RAW",
            108 => "LOOP",
            113 => "LINUX_SLL",
            228 => "IPV4",
            229 => "IPV6",
            276 => "LINUX_SLL2",
            9 => "PPP",
            105 => "IEEE802_11",
            127 => "IEEE802_11_RADIOTAP",
            189 | 220 => "USB_LINUX",
            195 => "IEEE802_15_4",
            201 => "BLUETOOTH_HCI_H4",
            239 => "NFLOG",
            253 => "NETLINK",
            other => return write!(f, "{other}"),
        };
        write!(f, "{} ({name})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_gets_an_ethernet_header_with_the_right_type() {
        let mut sll = vec![0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x86, 0xdd];
        sll.push(0x60);
        let mut sll2 = vec![0x08, 0x06, 0, 0, 0, 0, 0, 3, 0, 1, 1, 6, 1, 2, 3, 4, 5, 6, 0, 0];
        sll2.push(0x00);
        for (link, data, ethertype, rest) in [
            (LinkType::NULL, &[2, 0, 0, 0, 0x45][..], 0x0800, 1),
            (LinkType::NULL, &[0, 0, 0, 30, 0x60], 0x86dd, 1),
            (LinkType::LOOP, &[0, 0, 0, 24, 0x60], 0x86dd, 1),
            (LinkType::RAW, &[0x45], 0x0800, 1),
            (LinkType::RAW, &[0x60], 0x86dd, 1),
            (LinkType::IPV6, &[0x60], 0x86dd, 1),
            (LinkType::SLL, &sll, 0x86dd, 1),
            (LinkType::SLL2, &sll2, 0x0806, 1),
            (LinkType::SLL2, &[], 0, 0),
        ] {
            let (header, bytes) = link.split(data);
            let header = header.unwrap();
            assert_eq!(u16::from_be_bytes([header[12], header[13]]), ethertype, "{link}");
            assert_eq!(bytes.len(), rest, "{link}");
        }
        let (header, _) = LinkType::SLL2.split(&sll2);
        assert_eq!(header.unwrap()[..12], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6]);
        assert_eq!(LinkType::ETHERNET.split(&[1, 2, 3]), (None, &[1, 2, 3][..]));
    }
}
