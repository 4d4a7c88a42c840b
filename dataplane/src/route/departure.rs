//! An exit as the hot lane uses it: what is written in front of an IP packet, ready made, in two cache lines.

use super::{Exit, Tunnel};
use crate::io::PortId;
use crate::model::MacAddr;
use crate::overlay::vxlan::{Template, mtu_overhead};
use crate::verdict::Verdict;

/// What packets that leave by an exit are counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Forward,
    Encap,
    Host,
}

/// One exit, 128 bytes.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub(crate) struct Departure {
    /// Address of the VTEP at the far end as a number, or [`NO_VTEP`](Self::NO_VTEP): no tunnel, or none over IPv4.
    pub(crate) vtep: u64,
    /// How a packet that leaves here ends.
    pub(crate) verdict: Verdict,
    /// Largest IP packet, bytes; 0 where the link header depends on the packet, so that none fits.
    pub(crate) mtu: u16,
    /// Bytes in front of the Ethernet header of the IP packet.
    pub(crate) overhead: u8,
    /// 1, or 0 where it leads to the node's own stack: no hop.
    pub(crate) hop: u8,
    /// What its packets are counted as.
    pub(crate) kind: Kind,
    /// The port by which it leaves.
    pub(crate) port: PortId,
    /// Destination and source MAC, where there is no tunnel.
    pub(crate) link: [u8; 12],
    /// The outer headers, where there is one.
    pub(crate) tunnel: Option<Template>,
}

const _: () = assert!(size_of::<Departure>() == 128);

impl Departure {
    /// No IPv4 address.
    const NO_VTEP: u64 = u64::MAX;

    /// Prepares an exit. `tunnels` are those that exits refer to, `own` is the uplink's MAC.
    pub(super) fn new(exit: &Exit, tunnels: &[Tunnel], own: MacAddr) -> Self {
        let plain = |verdict, port, mac: Option<MacAddr>, src: MacAddr, mtu| {
            let mut link = [0; 12];
            let (to, from) = link.split_at_mut(6);
            to.copy_from_slice(&mac.unwrap_or_default().0);
            from.copy_from_slice(&src.0);
            let mtu = if mac.is_some() { mtu } else { 0 };
            let kind = if exit.is_host() { Kind::Host } else { Kind::Forward };
            Self { vtep: Self::NO_VTEP, verdict, mtu, overhead: 0, hop: u8::from(!exit.is_host()), kind, port, link, tunnel: None }
        };
        match *exit {
            Exit::Pod { port, mac, mtu } => plain(Verdict::Forward(port), port, mac, MacAddr::GATEWAY, mtu),
            Exit::Host { port, mac, mtu } => plain(Verdict::Host(port), port, mac, MacAddr::GATEWAY, mtu),
            Exit::Native { port, mac, mtu } => plain(Verdict::Forward(port), port, Some(mac), own, mtu),
            Exit::Vxlan { port, tunnel, mtu } => {
                let Tunnel { vtep, template, .. } = &tunnels[tunnel as usize];
                let overhead = mtu_overhead(template.is_over_v6()) as u8;
                let vtep = if vtep.is_v4() { vtep.low32().into() } else { Self::NO_VTEP };
                let (verdict, tunnel) = (Verdict::Encap(port), Some(*template));
                Self { vtep, verdict, mtu, overhead, hop: 1, kind: Kind::Encap, port, link: [0; 12], tunnel }
            }
        }
    }
}
