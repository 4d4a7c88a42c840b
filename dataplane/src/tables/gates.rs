//! A port as the hot lane uses it: which link headers pass, and where the overlay ends.
//!
//! What a gate lets pass the general lane would let pass too; what it does not is for the general lane to judge.

use super::{PortEntry, Side};
use crate::model::{Ip, MacAddr, NodeState, OverlayMode};
use crate::route::vni;
use crate::runtime::Runtime;
use crate::wire::{ethernet, vxlan};

/// A link header under a mask: as two words that overlap, destination and source MAC and EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkFilter {
    wanted: [u64; 2],
    mask: [u64; 2],
}

/// Bytes 0 to 7 and 6 to 13 of a link header.
#[inline(always)]
fn words(header: &[u8; ethernet::LEN]) -> [u64; 2] {
    match (header.first_chunk(), header.last_chunk()) {
        (Some(first), Some(last)) => [u64::from_le_bytes(*first), u64::from_le_bytes(*last)],
        _ => [0; 2], // 14 bytes have both
    }
}

impl LinkFilter {
    /// No frame: none has what is not looked at.
    const NOTHING: Self = Self { wanted: [1; 2], mask: [0; 2] };

    /// Frames to `dst` and from `src`, as far as those are given, that carry IPv4; see [`family`](Self::family).
    fn new(dst: Option<MacAddr>, src: Option<MacAddr>) -> Self {
        let (mut wanted, mut mask) = ([0; ethernet::LEN], [0; ethernet::LEN]);
        for (at, mac) in [(0, dst), (6, src)] {
            if let Some(mac) = mac {
                wanted[at..at + 6].copy_from_slice(&mac.0);
                mask[at..at + 6].fill(0xff);
            }
        }
        wanted[12..].copy_from_slice(&ethernet::IPV4.to_be_bytes());
        mask[12..].fill(0xff);
        Self { wanted: words(&wanted), mask: words(&mask) }
    }
    /// Which family a frame carries, if its header passes.
    #[inline(always)]
    pub(crate) fn family(&self, header: &[u8; ethernet::LEN]) -> Option<LinkFamily> {
        /// What is left of the difference where a frame carries IPv6.
        const V6: u64 = ((ethernet::IPV4 ^ ethernet::IPV6).swap_bytes() as u64) << 48;
        let [first, second] = words(header);
        let difference = [first & self.mask[0] ^ self.wanted[0], second & self.mask[1] ^ self.wanted[1]];
        match difference {
            [0, 0] => Some(LinkFamily::V4),
            [0, V6] => Some(LinkFamily::V6),
            _ => None,
        }
    }
}

/// What a link header says of the packet behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One port.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Gate {
    /// Of frames for us.
    pub(crate) link: LinkFilter,
    /// Transport checksums may be unfinished.
    pub(crate) unfinished_checksums: bool,
    /// 1, or 0 where the node's own stack is at the other end: no hop.
    pub(crate) hop: u8,
    /// Overlay packets may come in here.
    pub(crate) is_uplink: bool,
}

impl Gate {
    /// Of a port that is not attached.
    pub(super) const CLOSED: Self = Self { link: LinkFilter::NOTHING, unfinished_checksums: false, hop: 0, is_uplink: false };

    pub(super) fn new(port: &PortEntry) -> Self {
        let (dst, src) = match port.side {
            Side::Pod(_) => (port.mac.map(|_| MacAddr::GATEWAY), port.mac),
            Side::Host => (port.mac.map(|_| MacAddr::GATEWAY), None),
            Side::Uplink => (port.mac, None),
        };
        Self {
            link: LinkFilter::new(dst, src),
            unfinished_checksums: port.unfinished_checksums,
            hop: u8::from(port.side != Side::Host),
            is_uplink: port.side == Side::Uplink,
        }
    }
}

/// Our end of the overlay, over IPv4. Where there is none it is one that lets no inner frame pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelEnd {
    /// UDP port of overlay packets.
    pub(crate) port: u16,
    /// Our VTEP's address, as in a header.
    pub(crate) address: [u8; 4],
    /// The header of our network's packets.
    pub(crate) header: [u8; vxlan::LEN],
    /// Of inner frames.
    pub(crate) link: LinkFilter,
}

impl Default for TunnelEnd {
    fn default() -> Self {
        Self { port: 0, address: [0; 4], header: [0; vxlan::LEN], link: LinkFilter::NOTHING }
    }
}

impl TunnelEnd {
    /// `None` where there is no overlay, or none over IPv4.
    pub(super) fn new(state: &NodeState, runtime: &Runtime) -> Option<Self> {
        let overlay = &runtime.config.overlay;
        let this = state.nodes.get(state.this_node as usize)?;
        let address = this.primary(true)?;
        let mut header = [0; vxlan::LEN];
        vxlan::emit(vni(&runtime.config), &mut header);
        let uplink_mac = runtime.uplink().and_then(|port| runtime.ports[usize::from(port.0)].mac);
        (overlay.mode == OverlayMode::Vxlan).then(|| Self {
            port: overlay.port,
            address: Ip::from(address).low32().to_be_bytes(),
            header,
            link: LinkFilter::new(uplink_mac.map(|_| this.vtep_mac), None),
        })
    }
}
