//! VXLAN between nodes (RFC 7348): the outer headers as bytes that are prepared once per remote node.
//!
//! After NAT, the last step before the uplink; and the first for what arrives from other nodes. Never decides where a packet
//! goes, and whether it fits the path is checked before. Kernel `vxlan` devices are the peers, so their habits count.

use weir_xsk::{Arena, Frame};

use crate::model::{Ip, MacAddr, proto};
use crate::parse::{HeaderFlags, Headers};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::vxlan::{self, Vni};
use crate::wire::{chunk, chunk_mut, ethernet, ipv4, ipv6, u16_at, udp};

/// What encapsulation puts in front of the inner frame over IPv4.
pub const OVERHEAD_V4: usize = ethernet::LEN + ipv4::LEN + udp::LEN + vxlan::LEN;
/// What encapsulation puts in front of the inner frame over IPv6.
pub const OVERHEAD_V6: usize = ethernet::LEN + ipv6::LEN + udp::LEN + vxlan::LEN;

/// How far the IP packet of a pod grows on the uplink: the outer headers, less the outer Ethernet header, and the inner one.
pub const fn mtu_overhead(over_v6: bool) -> usize {
    if over_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 }
}

/// The MACs of the inner Ethernet header, which follow the outer headers in a template.
const INNER_MACS: usize = 12;
const TTL: u8 = 64;

/// Where an overlay packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Our uplink's MAC.
    pub src_mac: MacAddr,
    /// The MAC of the next hop.
    pub dst_mac: MacAddr,
    /// Our address on the underlay.
    pub src: Ip,
    /// The remote node's, of the same family.
    pub dst: Ip,
    /// The overlay's port.
    pub port: u16,
    /// The overlay's network.
    pub vni: Vni,
    /// The MAC of our VTEP, source of the inner frame.
    pub vtep_src: MacAddr,
    /// The MAC of the remote VTEP, without which a kernel drops the inner frame.
    pub vtep_dst: MacAddr,
}

/// The outer headers towards one remote node, and the MACs of the inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    bytes: [u8; OVERHEAD_V6 + INNER_MACS],
    /// Sum of the IPv4 header without length, type of service and checksum.
    sum: u16,
    over_v6: bool,
}

impl Template {
    /// Prepares the headers.
    pub fn new(to: &Remote) -> Self {
        let over_v6 = !to.dst.is_v4();
        let mut bytes = [0; OVERHEAD_V6 + INNER_MACS];
        let mut sum = 0;
        let udp_at = OVERHEAD_V4 - udp::LEN - vxlan::LEN + if over_v6 { OVERHEAD_V6 - OVERHEAD_V4 } else { 0 };
        let ethertype = if over_v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        if let Some(out) = chunk_mut(&mut bytes, 0) {
            ethernet::Header { dst: to.dst_mac, src: to.src_mac, ethertype }.emit(out);
        }
        if over_v6 {
            if let Some(out) = chunk_mut(&mut bytes, ethernet::LEN) {
                ipv6::Header { src: to.src, dst: to.dst, proto: proto::UDP, ttl: TTL, tos: 0, payload: 0 }.emit(out);
            }
        } else if let Some(out) = chunk_mut(&mut bytes, ethernet::LEN) {
            ipv4::Header { src: to.src, dst: to.dst, proto: proto::UDP, ttl: TTL, tos: 0, total: 0 }.emit(out);
            (out[ipv4::CHECKSUM], out[ipv4::CHECKSUM + 1]) = (0, 0);
            sum = checksum::fold(checksum::sum(out));
        }
        if let Some(out) = chunk_mut(&mut bytes, udp_at) {
            udp::Header { sport: 0, dport: to.port, len: 0 }.emit(out);
        }
        if let Some(out) = chunk_mut(&mut bytes, udp_at + udp::LEN) {
            vxlan::emit(to.vni, out);
        }
        ethernet::set_macs(bytes.get_mut(udp_at + udp::LEN + vxlan::LEN..).unwrap_or_default(), to.vtep_dst, to.vtep_src);
        Self { bytes, sum, over_v6 }
    }

    /// Tells whether the outer packet is IPv6.
    pub const fn is_over_v6(&self) -> bool {
        self.over_v6
    }

    /// Writes outer headers and inner MACs in front of an inner frame of `inner_len` bytes. `out` is the whole frame; gives
    /// `None` where it is too short for that.
    #[inline(always)]
    pub(crate) fn write(&self, out: &mut [u8], inner_len: usize, tos: u8, flow_hash: u64) -> Option<()> {
        if self.over_v6 {
            self.write_over_v6(out.first_chunk_mut()?, inner_len, tos, flow_hash);
        } else {
            self.write_over_v4(out.first_chunk_mut()?, inner_len, tos, flow_hash);
        }
        Some(())
    }
    /// As [`write`](Self::write), of a template over IPv4.
    #[inline(always)]
    pub(crate) fn write_over_v4(&self, out: &mut [u8; OVERHEAD_V4 + INNER_MACS], inner_len: usize, tos: u8, flow_hash: u64) {
        self.write_as::<{ OVERHEAD_V4 }, { OVERHEAD_V4 + INNER_MACS }>(out, inner_len, tos, flow_hash);
    }
    /// As [`write`](Self::write), of a template over IPv6.
    #[inline(always)]
    pub(crate) fn write_over_v6(&self, out: &mut [u8; OVERHEAD_V6 + INNER_MACS], inner_len: usize, tos: u8, flow_hash: u64) {
        self.write_as::<{ OVERHEAD_V6 }, { OVERHEAD_V6 + INNER_MACS }>(out, inner_len, tos, flow_hash);
    }

    #[inline(always)]
    fn write_as<const OVERHEAD: usize, const COPIED: usize>(&self, out: &mut [u8; COPIED], inner_len: usize, tos: u8, flow_hash: u64) {
        if let Some(from) = self.bytes.first_chunk() {
            *out = *from;
        }
        let [t0, t1] = ((inner_len + OVERHEAD - ethernet::LEN) as u16).to_be_bytes();
        let [u0, u1] = ((inner_len + udp::LEN + vxlan::LEN) as u16).to_be_bytes();
        let udp_at = OVERHEAD - udp::LEN - vxlan::LEN;
        if OVERHEAD == OVERHEAD_V4 {
            let field = !checksum::fold(u64::from(self.sum) + u64::from(u16::from_be_bytes([t0, t1])) + u64::from(tos));
            out[ethernet::LEN + 1] = tos;
            (out[ethernet::LEN + 2], out[ethernet::LEN + 3]) = (t0, t1);
            [out[ethernet::LEN + ipv4::CHECKSUM], out[ethernet::LEN + ipv4::CHECKSUM + 1]] = field.to_be_bytes();
        } else {
            (out[ethernet::LEN], out[ethernet::LEN + 1]) = (0x60 | tos >> 4, tos << 4);
            (out[ethernet::LEN + 4], out[ethernet::LEN + 5]) = (u0, u1);
        }
        [out[udp_at], out[udp_at + 1]] = source_port(flow_hash).to_be_bytes();
        (out[udp_at + 4], out[udp_at + 5]) = (u0, u1);
    }
}

/// The outer source port: from the flow's hash, in the dynamic range, so that the underlay spreads flows (RFC 7348 §5).
#[inline]
const fn source_port(flow_hash: u64) -> u16 {
    0xc000 | (flow_hash >> 32 ^ flow_hash) as u16 & 0x3fff
}

/// Wraps the Ethernet frame that `frame` holds, and gives it the inner MACs. `tos` is the inner packet's: DSCP and ECN are
/// copied outwards (RFC 2983 §3.1, uniform; RFC 6040 §4.1, normal mode). The UDP checksum is 0 (RFC 7348 §5, RFC 6935 §5).
///
/// Tells whether there was headroom, and whether lengths fit 16 bits; if not, the frame is unchanged.
#[inline]
#[must_use]
pub fn encap(arena: &Arena, frame: &mut Frame, template: &Template, tos: u8, flow_hash: u64) -> bool {
    let inner_len = frame.total_len();
    let overhead = mtu_overhead(template.over_v6);
    let fits = inner_len >= ethernet::LEN && inner_len + overhead - ethernet::LEN <= 0xffff;
    fits && arena.push_front(frame, overhead) && template.write(arena.bytes_mut(frame), inner_len, tos, flow_hash).is_some()
}

/// What [`decap`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decap {
    /// The overlay's network.
    pub vni: Vni,
    /// Where the inner Ethernet frame starts: what the caller takes from the front.
    pub inner: usize,
}

/// Checks the UDP packet that `outer` describes as VXLAN. Whether sender and network are known is the caller's to check. The
/// outer checksum is not verified: kernel peers over veth leave it unfinished.
///
/// # Errors
/// `FragmentationNotSupported`: a fragment of an overlay packet. `InvalidPacket`: no VXLAN, or no room for an inner frame.
#[inline]
pub fn decap(bytes: &[u8], outer: &Headers) -> Result<Decap, DropReason> {
    if outer.has(HeaderFlags::FRAGMENT) {
        return Err(DropReason::FragmentationNotSupported);
    }
    let at = usize::from(outer.l4) + udp::LEN;
    let inner = at + vxlan::LEN;
    let whole = u16_at(bytes, usize::from(outer.l4) + 4).is_some_and(|len| usize::from(len) == outer.l4_len());
    let vni = chunk(bytes, at).and_then(vxlan::parse).ok_or(DropReason::InvalidPacket)?;
    if outer.tuple.proto != proto::UDP || !whole || inner + ethernet::LEN > outer.frame_len() {
        return Err(DropReason::InvalidPacket);
    }
    Ok(Decap { vni, inner })
}

/// Carries congestion marks of the outer header over to the inner packet (RFC 6040 §4.2). `bytes` and `inner` are those of
/// the inner frame, alone.
///
/// # Errors
/// `InvalidPacket`: congestion was met, and the inner transport cannot be told of it otherwise than by loss.
#[inline]
pub fn decap_ecn(bytes: &mut [u8], inner: &mut Headers, outer_tos: u8) -> Result<(), DropReason> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const CE: u8 = 3;
    let (theirs, ours) = (outer_tos & 3, inner.tos & 3);
    let becomes = match (ours, theirs) {
        (NOT_ECT, CE) => return Err(DropReason::InvalidPacket),
        (NOT_ECT | CE, _) => return Ok(()),
        (_, ECT_1 | CE) => theirs,
        _ => return Ok(()),
    };
    inner.tos = inner.tos & !3 | becomes;
    let l3 = usize::from(inner.l3);
    let set = if inner.is_v6() { ipv6::set_tos(bytes, l3, inner.tos) } else { ipv4::set_tos(bytes, l3, inner.tos) };
    set.ok_or(DropReason::InvalidPacket)
}
