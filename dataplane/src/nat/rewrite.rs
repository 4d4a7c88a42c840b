//! The compiled translation of one direction of a flow: computed for the first packet, applied to every one.
//!
//! Checksums are not computed again: what the edit adds to them is stored with it (RFC 1624 §3), so the payload is never
//! read and a checksum that was wrong stays wrong.

use crate::conntrack::Tuple;
use crate::model::{Ip, proto};
use crate::parse::{HeaderFlags, Headers, checksum_field};
use crate::verdict::DropReason;
use crate::wire::checksum::{self, Delta};
use crate::wire::{chunk_mut, icmp, ipv4, ipv6, sctp, tcp, udp};

/// Which parts a [`Rewrite`] changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteFlags(u8);

impl RewriteFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Source address or port.
    pub const SRC: Self = Self(1);
    /// Destination address or port.
    pub const DST: Self = Self(2);

    /// Tells whether nothing changes.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Tells whether any of `other` is set.
    #[inline]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// As a number, for storing beside a flow.
    pub const fn bits(self) -> u8 {
        self.0
    }
    /// From [`bits`](Self::bits); other bits are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 3)
    }
}

/// What becomes of a packet's addresses and ports. Plain data, valid for packets of the tuple it was compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Source address afterwards.
    pub src: Ip,
    /// Destination address afterwards.
    pub dst: Ip,
    /// Source port afterwards; the identifier of an ICMP echo.
    pub sport: u16,
    /// Destination port afterwards; the identifier of an ICMP echo.
    pub dport: u16,
    /// What the sum of the addresses grows by: that of an IPv4 header, or a pseudo header.
    pub l3_delta: u16,
    /// What the sum of the transport checksum grows by.
    pub l4_delta: u16,
    /// Which parts differ from before.
    pub flags: RewriteFlags,
}

impl Rewrite {
    /// Compiles the edits that turn a packet of `from` into one of `to`, which must be of the same family and protocol.
    #[inline(always)]
    pub fn compile(from: &Tuple, to: &Tuple) -> Self {
        debug_assert!(from.proto == to.proto && from.is_v4() == to.is_v4(), "{from:?} cannot become {to:?}");
        let addresses = Delta::NONE.ip(from.src, to.src).ip(from.dst, to.dst);
        let l4 = match from.proto {
            proto::ICMP => Delta::NONE.word(from.sport, to.sport), // no pseudo header (RFC 792)
            proto::ICMPV6 => addresses.word(from.sport, to.sport), // RFC 4443 §2.3
            _ => addresses.word(from.sport, to.sport).word(from.dport, to.dport),
        };
        let mut flags = RewriteFlags::NONE;
        if (from.src, from.sport) != (to.src, to.sport) {
            flags = flags.with(RewriteFlags::SRC);
        }
        if (from.dst, from.dport) != (to.dst, to.dport) {
            flags = flags.with(RewriteFlags::DST);
        }
        let (src, dst, sport, dport) = (to.src, to.dst, to.sport, to.dport);
        // Where nothing changes not even the form of a zero does: a folded sum of nothing would be 0xffff.
        let folded = |delta: Delta| if flags.is_empty() { 0 } else { delta.folded() };
        Self { src, dst, sport, dport, l3_delta: folded(addresses), l4_delta: folded(l4), flags }
    }

    /// What the sums grow by on the way back, of which each is as much less: `l3_delta` and `l4_delta` of the rewrite that turns the
    /// inverse of `to` into the inverse of `from`. An ICMP identifier is both ports of its tuple.
    #[inline]
    pub const fn deltas_back(&self) -> (u16, u16) {
        // Both forms of zero stay what they are: a sum of nothing, and a sum that came to nothing.
        const fn back(delta: u16) -> u16 {
            if matches!(delta, 0 | 0xffff) { delta } else { !delta }
        }
        (back(self.l3_delta), back(self.l4_delta))
    }

    /// Edits the packet that `headers` describes: addresses, ports or identifier, checksums. `headers` is not changed.
    ///
    /// Later fragments have addresses only. A UDP checksum of 0 stays 0.
    ///
    /// # Errors
    /// `FragmentationNotSupported` for the first fragment of SCTP with new ports: its CRC covers bytes that are not here.
    /// `InvalidPacket` where `headers` are not those of `bytes`. Nothing may be sent after an error.
    #[inline(always)]
    pub fn apply(&self, bytes: &mut [u8], headers: &Headers) -> Result<(), DropReason> {
        if self.flags.is_empty() {
            return Ok(());
        }
        self.edit(bytes, headers).ok_or(DropReason::InvalidPacket)?;
        if headers.has(HeaderFlags::UNFINISHED) {
            return self.edit_unfinished(bytes, headers).ok_or(DropReason::InvalidPacket);
        }
        if is_tcp_or_udp(headers.tuple.proto) && !headers.has(HeaderFlags::FRAGMENT_LATER) {
            let ports = u32::from(self.sport) | u32::from(self.dport) << 16;
            let edited = bytes
                .get_mut(usize::from(headers.l4)..)
                .and_then(|l4| edit_transport_in(l4, headers.tuple.proto == proto::UDP, ports, self.l4_delta));
            return edited.ok_or(DropReason::InvalidPacket);
        }
        self.edit_rare(bytes, headers)
    }

    #[inline(always)]
    fn edit(&self, bytes: &mut [u8], headers: &Headers) -> Option<()> {
        let l3 = usize::from(headers.l3);
        if headers.is_v6() {
            let [_, _, _, _, _, _, _, _, addresses @ ..] = chunk_mut::<{ ipv6::LEN }>(bytes, l3)?;
            let (src, dst) = addresses.split_at_mut(16);
            src.copy_from_slice(&self.src.0.to_be_bytes());
            dst.copy_from_slice(&self.dst.0.to_be_bytes());
        } else {
            let [c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = chunk_mut(bytes, l3 + ipv4::CHECKSUM)?;
            [*c0, *c1] = checksum::update(u16::from_be_bytes([*c0, *c1]), self.l3_delta).to_be_bytes();
            [*s0, *s1, *s2, *s3] = self.src.low32().to_be_bytes();
            [*d0, *d1, *d2, *d3] = self.dst.low32().to_be_bytes();
        }
        Some(())
    }

    // By value: a reference would make the hot way write all of it to memory first.
    #[cold]
    fn edit_rare(self, bytes: &mut [u8], headers: &Headers) -> Result<(), DropReason> {
        if headers.has(HeaderFlags::FRAGMENT_LATER) {
            return Ok(());
        }
        match headers.tuple.proto {
            proto::SCTP if (self.sport, self.dport) != (headers.tuple.sport, headers.tuple.dport) => {
                if headers.has(HeaderFlags::FRAGMENT) {
                    return Err(DropReason::FragmentationNotSupported);
                }
                let packet = bytes.get_mut(usize::from(headers.l4)..headers.frame_len());
                packet.and_then(|packet| sctp::set_ports(packet, self.sport, self.dport)).ok_or(DropReason::InvalidPacket)
            }
            proto::ICMP | proto::ICMPV6 => self.edit_icmp(bytes, headers).ok_or(DropReason::InvalidPacket),
            _ => Ok(()),
        }
    }

    /// Where the checksum is the bare sum of the pseudo header, that of the new one takes its place.
    #[cold]
    fn edit_unfinished(self, bytes: &mut [u8], headers: &Headers) -> Option<()> {
        let l4 = usize::from(headers.l4);
        let [s0, s1, d0, d1] = chunk_mut(bytes, l4)?;
        ([*s0, *s1], [*d0, *d1]) = (self.sport.to_be_bytes(), self.dport.to_be_bytes());
        let pseudo = checksum::pseudo(self.src, self.dst, headers.tuple.proto, headers.l4_len() as u32);
        *chunk_mut(bytes, l4 + checksum_field(headers)?)? = checksum::fold(pseudo).to_be_bytes();
        Some(())
    }

    fn edit_icmp(&self, bytes: &mut [u8], headers: &Headers) -> Option<()> {
        let [_, _, c0, c1, i0, i1, _, _] = chunk_mut::<{ icmp::LEN }>(bytes, usize::from(headers.l4))?;
        let delta = if headers.has(HeaderFlags::ICMP_ECHO) {
            [*i0, *i1] = self.sport.to_be_bytes();
            self.l4_delta
        } else if headers.is_v6() {
            self.l3_delta // no identifier: the pseudo header alone
        } else {
            return Some(());
        };
        [*c0, *c1] = checksum::update(u16::from_be_bytes([*c0, *c1]), delta).to_be_bytes();
        Some(())
    }
}

/// Sets the ports of a TCP or UDP header, without a branch on which of them: the source port is the lower half of `ports`. `delta` is
/// what the checksum's sum grows by. Of UDP what follows the header is not touched.
#[inline(always)]
pub(crate) fn edit_transport(header: &mut [u8; tcp::LEN], is_udp: bool, ports: u32, delta: u16) {
    [header[0], header[1], header[2], header[3]] = ports.rotate_left(16).to_be_bytes();
    let at = if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
    [header[at], header[at + 1]] = new_checksum(is_udp, u16::from_be_bytes([header[at], header[at + 1]]), delta).to_be_bytes();
}

/// The same in what may be shorter; `None` where the header is not all there.
#[inline(always)]
fn edit_transport_in(header: &mut [u8], is_udp: bool, ports: u32, delta: u16) -> Option<()> {
    let at = if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
    let field: &mut [u8; 2] = chunk_mut(header, at)?;
    *field = new_checksum(is_udp, u16::from_be_bytes(*field), delta).to_be_bytes();
    *header.first_chunk_mut()? = ports.rotate_left(16).to_be_bytes();
    Some(())
}

/// A transport checksum after an edit.
#[inline(always)]
fn new_checksum(is_udp: bool, old: u16, delta: u16) -> u16 {
    let new = checksum::update(old, delta);
    if (old == 0) | (new == 0) { zero_checksum(is_udp, old, new) } else { new }
}

/// RFC 768: in UDP 0 says that there is no checksum, and stays; a computed 0 is sent as all ones.
#[cold]
#[inline(never)]
fn zero_checksum(is_udp: bool, old: u16, new: u16) -> u16 {
    match (is_udp, old) {
        (false, _) => new,
        (true, 0) => 0,
        (true, _) => 0xffff,
    }
}

#[inline]
const fn is_tcp_or_udp(number: u8) -> bool {
    (number == proto::TCP) | (number == proto::UDP)
}

/// Takes one from the time to live or hop limit and updates the IPv4 header's checksum. Tells whether the packet may go
/// on: not where nothing would be left (RFC 1812 §5.3.1, RFC 8200 §3), and then nothing is changed.
#[inline(always)]
#[must_use]
pub fn decrement_ttl(bytes: &mut [u8], headers: &Headers) -> bool {
    if headers.ttl <= 1 {
        return false;
    }
    let l3 = usize::from(headers.l3);
    if headers.is_v6() {
        let Some([hop_limit]) = chunk_mut(bytes, l3 + ipv6::HOP_LIMIT) else { return false };
        *hop_limit = headers.ttl - 1;
        true
    } else {
        ipv4::decrement_ttl(bytes, l3).is_some()
    }
}
