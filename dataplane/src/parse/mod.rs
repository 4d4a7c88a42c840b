//! Bytes -> [`Headers`]: where each header starts and whose packet it is, in one pass and without a copy.
//!
//! The first stage. Decides only what the bytes alone decide: a header that contradicts itself or the frame's length, and
//! addresses that cannot stand where they stand, end here with a [`DropReason`]; whose frame it is and where it goes comes
//! later. Never edits. Transport checksums are not verified: the end systems do that, and translation keeps a wrong one
//! wrong (RFC 1624). The hot way is plain IPv4 or IPv6 with TCP or UDP, where the protocol is no branch; options,
//! extension headers, fragments and ICMP leave it for functions of their own.
//!
//! 802.1Q: our ports carry no VLAN. A tagged IP packet is parsed behind its tags (at most two) and marked
//! [`HeaderFlags::VLAN`], so that the pipeline refuses it by name; anything else that is tagged is `VLAN_FILTERED` here.

mod extension;
#[cfg(test)]
mod tests;
mod transport;

use std::fmt;

use crate::conntrack::Tuple;
use crate::model::{Ip, MacAddr};
use crate::verdict::DropReason;
use crate::wire::arp::ArpPacket;
use crate::wire::{arp, checksum, chunk, ethernet, ipv4, ipv6};

pub(crate) use extension::walk;
pub use transport::{checksum_field, finish_checksum, is_unfinished};

/// What is special about a packet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderFlags(u16);

macro_rules! header_flags {
    ($($(#[$doc:meta])+ $name:ident = $bit:literal,)*) => {
        impl HeaderFlags { $($(#[$doc])+ pub const $name: Self = Self(1 << $bit);)* }
        const NAMES: &[(&str, HeaderFlags)] = &[$((stringify!($name), HeaderFlags::$name)),*];
    };
}

header_flags! {
    /// IPv6.
    V6 = 0,
    /// One or two 802.1Q tags stand before the IP header.
    VLAN = 1,
    /// The first of several fragments: it has the ports.
    FRAGMENT_FIRST = 2,
    /// A later fragment: the ports of its tuple are 0, and its protocol is what the fragment says.
    FRAGMENT_LATER = 3,
    /// Fragments follow this one.
    MORE = 4,
    /// IPv4 options, or IPv6 extension headers.
    OPTIONS = 5,
    /// IPv4: must not be fragmented. IPv6: always set.
    DF = 6,
    /// An ICMP error: quotes another packet (RFC 792; RFC 4443 §2.1).
    ICMP_ERROR = 7,
    /// An ICMP echo request or reply: the tuple's ports are its identifier.
    ICMP_ECHO = 8,
    /// Neighbour or router discovery (RFC 4861).
    NDP = 9,
    /// The destination address is multicast, or the IPv4 limited broadcast.
    MULTICAST_DST = 10,
    /// The source address is unspecified, as before address configuration: IPv6 only, to multicast only.
    UNSPECIFIED_SRC = 11,
    /// The checksum of TCP or UDP holds the sum of the pseudo header alone: it is still to be finished.
    UNFINISHED = 12,
}

impl HeaderFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// Part of a fragmented packet.
    pub const FRAGMENT: Self = Self(Self::FRAGMENT_FIRST.0 | Self::FRAGMENT_LATER.0);

    /// Tells whether any of `other` is set.
    #[inline]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    /// These and `other`.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// These and, where `condition` holds, `other`; without a branch.
    #[inline]
    #[must_use]
    const fn with_if(self, other: Self, condition: bool) -> Self {
        Self(self.0 | (other.0 * condition as u16))
    }
}

impl fmt::Debug for HeaderFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = NAMES.iter().filter(|(_, flag)| self.any(*flag)).map(|(name, _)| *name).collect();
        f.write_str(&names.join("|"))
    }
}

/// What [`parse`] finds in an IP packet. Offsets are bytes from the frame's start; all values are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Addresses, protocol and ports.
    pub tuple: Tuple,
    /// Ethernet source; zero where there is no Ethernet header ([`parse_ip`]).
    pub src_mac: MacAddr,
    /// Ethernet destination; likewise.
    pub dst_mac: MacAddr,
    /// Where the IP header starts.
    pub l3: u16,
    /// Where the transport header starts, or the payload of a later fragment.
    pub l4: u16,
    /// Length of the IP packet, header included. The frame may be longer (Ethernet padding).
    pub l3_total: u32,
    /// Identification of a fragment; 0 for whole packets.
    pub frag_id: u32,
    /// What is special about it.
    pub flags: HeaderFlags,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The flags byte of TCP (`wire::tcp`), else 0.
    pub tcp_flags: u8,
    /// Type of an ICMP message, else 0.
    pub icmp_type: u8,
    /// Code of an ICMP message, else 0.
    pub icmp_code: u8,
}

const _: () = assert!(size_of::<Headers>() <= 96);

impl Headers {
    /// A blank to fill in.
    pub const BLANK: Self = Self {
        tuple: Tuple { src: Ip(0), dst: Ip(0), sport: 0, dport: 0, proto: 0 },
        src_mac: MacAddr([0; 6]),
        dst_mac: MacAddr([0; 6]),
        l3: 0,
        l4: 0,
        l3_total: 0,
        frag_id: 0,
        flags: HeaderFlags::NONE,
        ttl: 0,
        tos: 0,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
    };

    /// Length of the frame without padding.
    #[inline]
    pub const fn frame_len(&self) -> usize {
        self.l3 as usize + self.l3_total as usize
    }
    /// Bytes from the transport header to the end of the IP packet.
    #[inline]
    pub const fn l4_len(&self) -> usize {
        self.frame_len() - self.l4 as usize
    }
    /// Tells whether any of `flags` is set.
    #[inline]
    pub const fn has(&self, flags: HeaderFlags) -> bool {
        self.flags.any(flags)
    }
    /// Tells whether this is IPv6.
    #[inline]
    pub const fn is_v6(&self) -> bool {
        self.has(HeaderFlags::V6)
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet.
    Ip(Headers),
    /// ARP for IPv4 over Ethernet.
    Arp(ArpPacket),
}

/// What [`parse_into`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An IP packet, whose headers were written.
    Ip,
    /// ARP, to be read by [`arp::parse`].
    Arp,
}

/// Finds the headers of an Ethernet frame.
///
/// # Errors
/// Why nobody may handle this frame: `InvalidPacket`, `InvalidIpv6Extension`, `InvalidSourceIp`, `UnsupportedL2`,
/// `UnsupportedL3` or `VlanFiltered`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, DropReason> {
    let mut headers = Headers::BLANK;
    match parse_into(bytes, &mut headers)? {
        Kind::Ip => Ok(Parsed::Ip(headers)),
        Kind::Arp => arp::parse(bytes).map(Parsed::Arp).ok_or(DropReason::InvalidPacket),
    }
}

/// The same, into a place of the caller's: fields are written once and never moved, which a batch of headers would pay
/// for with stalled loads. Where it is not `Ok(Kind::Ip)`, `headers` is arbitrary.
///
/// # Errors
/// As [`parse`].
#[inline]
pub fn parse_into(bytes: &[u8], headers: &mut Headers) -> Result<Kind, DropReason> {
    parse_first(bytes, bytes.len(), headers)
}

/// The same of a frame of `len` bytes, of which `bytes` are the first ones: all, or those in the first buffer of a chain.
///
/// # Errors
/// As [`parse`].
#[inline]
pub fn parse_first(bytes: &[u8], len: usize, headers: &mut Headers) -> Result<Kind, DropReason> {
    let eth: &[u8; ethernet::LEN] = bytes.first_chunk().ok_or(DropReason::InvalidPacket)?;
    match u16::from_be_bytes([eth[12], eth[13]]) {
        ethernet::IPV4 => parse_v4(bytes, len, ethernet::LEN, headers)?,
        ethernet::IPV6 => parse_v6(bytes, len, ethernet::LEN, headers)?,
        ethertype => return parse_other(bytes, len, ethertype, headers),
    }
    (headers.dst_mac, headers.src_mac) = (ethernet::dst(eth), ethernet::src(eth));
    Ok(Kind::Ip)
}

/// Finds the headers of an IP packet that starts at `l3`, for captures without Ethernet headers.
///
/// # Errors
/// As [`parse`].
pub fn parse_ip(bytes: &[u8], l3: usize) -> Result<Headers, DropReason> {
    let mut headers = Headers::BLANK;
    match bytes.get(l3).map(|first| first >> 4) {
        Some(4) => parse_v4(bytes, bytes.len(), l3, &mut headers)?,
        Some(6) => parse_v6(bytes, bytes.len(), l3, &mut headers)?,
        _ => return Err(DropReason::InvalidPacket),
    }
    Ok(headers)
}

#[cold]
fn parse_other(bytes: &[u8], len: usize, ethertype: u16, headers: &mut Headers) -> Result<Kind, DropReason> {
    match ethertype {
        ethernet::ARP => Ok(Kind::Arp),
        ethernet::VLAN | ethernet::QINQ => {
            parse_tagged(bytes, len, ethertype, headers).map(|()| Kind::Ip).map_err(|_| DropReason::VlanFiltered)
        }
        // IEEE 802.3 §3.2.6: up to 1500 it is a length, LLC follows (spanning tree and its like).
        0..=0x05ff => Err(DropReason::UnsupportedL2),
        _ => Err(DropReason::UnsupportedL3),
    }
}

fn parse_tagged(bytes: &[u8], len: usize, mut ethertype: u16, headers: &mut Headers) -> Result<(), DropReason> {
    let mut l3 = ethernet::LEN;
    for _ in 0..2 {
        if matches!(ethertype, ethernet::VLAN | ethernet::QINQ) {
            ethertype = crate::wire::u16_at(bytes, l3 + 2).ok_or(DropReason::VlanFiltered)?;
            l3 += 4;
        }
    }
    match ethertype {
        ethernet::IPV4 => parse_v4(bytes, len, l3, headers)?,
        ethernet::IPV6 => parse_v6(bytes, len, l3, headers)?,
        _ => return Err(DropReason::VlanFiltered),
    }
    let link = bytes.first_chunk().ok_or(DropReason::VlanFiltered)?;
    (headers.dst_mac, headers.src_mac) = (ethernet::dst(link), ethernet::src(link));
    headers.flags = headers.flags.with(HeaderFlags::VLAN);
    Ok(())
}

#[inline]
fn parse_v4(bytes: &[u8], len: usize, l3: usize, headers: &mut Headers) -> Result<(), DropReason> {
    let ip: &[u8; ipv4::LEN] = chunk(bytes, l3).ok_or(DropReason::InvalidPacket)?;
    let header_len = if ip[0] == ipv4::VERSION_IHL { ipv4::LEN } else { options_len(bytes, l3, ip[0])? };
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    // RFC 1122 §3.2.1.2: silently discard what fails the checksum. A total of 0 (BIG TCP) is shorter than the header.
    let intact = header_len != ipv4::LEN || checksum::is_header_intact(ip);
    if (total < header_len) | (l3 + total > len) | !intact {
        return Err(DropReason::InvalidPacket);
    }
    let src = u32::from_be_bytes([ip[12], ip[13], ip[14], ip[15]]);
    let dst = u32::from_be_bytes([ip[16], ip[17], ip[18], ip[19]]);
    // RFC 1122 §3.2.1.3: never as a source: this network, loopback, multicast, broadcast.
    let (src_net, dst_net) = (src >> 24, dst >> 24);
    if (src_net == 0) | (src_net == 127) | (src_net >> 4 == 14) | (src == u32::MAX) {
        return Err(DropReason::InvalidSourceIp);
    }
    // Likewise, never as a destination on a wire: loopback, unspecified.
    if (dst_net == 127) | (dst == 0) {
        return Err(DropReason::InvalidPacket);
    }
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    *headers = Headers {
        tuple: Tuple { src: Ip::v4(src), dst: Ip::v4(dst), sport: 0, dport: 0, proto: ip[9] },
        l3: l3 as u16,
        l4: (l3 + header_len) as u16,
        l3_total: total as u32,
        flags: HeaderFlags::NONE
            .with_if(HeaderFlags::OPTIONS, header_len != ipv4::LEN)
            .with_if(HeaderFlags::DF, fragment & ipv4::DONT_FRAGMENT != 0)
            .with_if(HeaderFlags::MULTICAST_DST, (dst_net >> 4 == 14) | (dst == u32::MAX)),
        ttl: ip[8],
        tos: ip[1],
        ..Headers::BLANK
    };
    if fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
        let offset = usize::from(fragment & ipv4::OFFSET_MASK) * 8;
        headers.frag_id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
        mark_fragment(headers, offset, fragment & ipv4::MORE_FRAGMENTS != 0)?;
        return transport::parse_rare(bytes, headers);
    }
    if !transport::is_tcp_or_udp(ip[9]) {
        return transport::parse_rare(bytes, headers);
    }
    transport::parse_ports(bytes, l3 + header_len..l3 + total, ip[9], headers)
}

/// Length of an IPv4 header with options, checked and its checksum verified.
#[cold]
fn options_len(bytes: &[u8], l3: usize, version_ihl: u8) -> Result<usize, DropReason> {
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let header = bytes.get(l3..l3 + header_len).ok_or(DropReason::InvalidPacket)?;
    let valid = version_ihl >> 4 == 4 && header_len > ipv4::LEN && checksum::fold(checksum::sum(header)) == 0xffff;
    if valid { Ok(header_len) } else { Err(DropReason::InvalidPacket) }
}

/// Sets the flags of a fragment whose payload starts at `offset` of the original's.
#[cold]
fn mark_fragment(headers: &mut Headers, offset: usize, more: bool) -> Result<(), DropReason> {
    let len = headers.l4_len();
    // RFC 791 §3.2, RFC 8200 §4.5: all but the last are multiples of 8 bytes, and the whole fits 65,535.
    if len == 0 || (more && !len.is_multiple_of(8)) || offset + len > 0xffff {
        return Err(DropReason::InvalidPacket);
    }
    headers.flags = headers.flags.with_if(HeaderFlags::MORE, more).with(if offset == 0 {
        HeaderFlags::FRAGMENT_FIRST
    } else {
        HeaderFlags::FRAGMENT_LATER
    });
    // RFC 1858 §4.2: such a fragment would write over the flags of a TCP header that was already judged.
    if offset == 8 && headers.tuple.proto == crate::model::proto::TCP {
        return Err(DropReason::InvalidPacket);
    }
    Ok(())
}

#[inline]
fn parse_v6(bytes: &[u8], len: usize, l3: usize, headers: &mut Headers) -> Result<(), DropReason> {
    let ip: &[u8; ipv6::LEN] = chunk(bytes, l3).ok_or(DropReason::InvalidPacket)?;
    let total = ipv6::LEN + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    if (ip[0] >> 4 != 6) | (l3 + total > len) {
        return Err(DropReason::InvalidPacket);
    }
    let (src, dst) = ipv6::addresses(ip);
    // A mapped address would be taken for IPv4 by every table (RFC 4291 §2.5.5.2); ::1 and :: are nobody's destination.
    if src.is_v4() | dst.is_v4() | (dst.0 <= 1) {
        return Err(DropReason::InvalidPacket);
    }
    // RFC 4291 §2.5.3, §2.7: loopback and multicast are no source; :: is one only before there is an address.
    let (src_multicast, dst_multicast) = (src.0 >> 120 == 0xff, dst.0 >> 120 == 0xff);
    if src_multicast | (src.0 == 1) | ((src.0 == 0) & (!dst_multicast | transport::is_tcp_or_udp(ip[6]))) {
        return Err(DropReason::InvalidSourceIp);
    }
    *headers = Headers {
        tuple: Tuple { src, dst, sport: 0, dport: 0, proto: ip[6] },
        l3: l3 as u16,
        l4: (l3 + ipv6::LEN) as u16,
        l3_total: total as u32,
        flags: HeaderFlags::V6
            .with(HeaderFlags::DF)
            .with_if(HeaderFlags::MULTICAST_DST, dst_multicast)
            .with_if(HeaderFlags::UNSPECIFIED_SRC, src.0 == 0),
        ttl: ip[7],
        tos: ip[0] << 4 | ip[1] >> 4,
        ..Headers::BLANK
    };
    if !transport::is_tcp_or_udp(ip[6]) {
        return parse_extended(bytes, headers);
    }
    transport::parse_ports(bytes, l3 + ipv6::LEN..l3 + total, ip[6], headers)
}

/// Walks over extension headers to what follows, and reads that.
#[cold]
fn parse_extended(bytes: &[u8], headers: &mut Headers) -> Result<(), DropReason> {
    let payload = bytes.get(usize::from(headers.l4)..headers.frame_len().min(bytes.len())).ok_or(DropReason::InvalidPacket)?;
    let chain = walk(payload, headers.tuple.proto)?;
    headers.tuple.proto = chain.proto;
    headers.l4 += chain.len as u16;
    headers.flags = headers.flags.with_if(HeaderFlags::OPTIONS, chain.len > 0);
    if let Some(fragment) = chain.fragment {
        headers.frag_id = fragment.id;
        mark_fragment(headers, fragment.offset, fragment.more)?;
    }
    transport::parse_rare(bytes, headers)
}
