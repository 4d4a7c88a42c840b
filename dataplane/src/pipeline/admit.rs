//! The first stage: what is this frame, and may its sender send it?
//!
//! Parses, takes overlay packets out of their wrapping, answers neighbours, guards sources. What passes is an IP packet whose
//! source is proven as far as its port can prove it.

use super::first::Foreseen;
use super::hot::Arrival;
use super::{Cx, Inbound, Sender};
use crate::answer;
use crate::conntrack::Tuple;
use crate::io::Packet;
use crate::model::{GATEWAY_V4, GATEWAY_V6, Ip, MacAddr, NodeIndex, OverlayMode, proto};
use crate::overlay::vxlan;
use crate::parse::{HeaderFlags, Headers, Kind, Parsed, is_unfinished, parse, parse_first};
use crate::route::vni;
use crate::tables::{OwnerKind, PortEntry, Side, Tables};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{arp, sctp};

/// The first buffer of a longer packet has at least so many bytes: all headers, outer and inner, and what an ICMP error quotes.
const FIRST_BUFFER_MIN: usize = 2048;

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Looks at a frame as it came in, as `arrival` and `foreseen` have it already. `inbound` is written in place, and arbitrary where
/// the frame ended.
#[inline(always)]
pub(super) fn admit<'a>(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    arrival: &Arrival,
    foreseen: &'a Foreseen,
    inbound: &mut Inbound<'a>,
) -> Result<(), Verdict> {
    let port = cx.tables.ports.get(packet.in_port).ok_or(DropReason::PortUnavailable)?;
    if packet.frame.is_chain() && packet.frame.len() < FIRST_BUFFER_MIN {
        Err(DropReason::InvalidPacket)?;
    }
    let headers = &mut inbound.headers;
    let bytes = cx.arena.bytes(&packet.frame);
    let clean = arrival.headers(bytes, headers).is_some();
    if clean {
        debug_assert_eq!(parse(bytes), Ok(Parsed::Ip(*headers)));
    } else if parse_first(bytes, packet.frame.total_len(), headers)? == Kind::Arp {
        return Err(answer_arp(cx, packet, port));
    }
    inbound.sender = match &port.side {
        Side::Pod(addresses) => {
            let addresses = addresses.as_deref().ok_or(DropReason::EndpointNotReady)?;
            check_link(cx, packet, port, headers, clean)?;
            guard_pod(cx, addresses, headers)?;
            Sender::Pod
        }
        Side::Host => {
            check_link(cx, packet, port, headers, clean)?;
            // Itself, and those outside for whom it is a router; pods and other nodes come by other ways.
            if !matches!(cx.tables.owner(headers.tuple.src).kind, OwnerKind::OwnNode | OwnerKind::Nobody(None)) {
                Err(DropReason::InvalidSourceIp)?;
            }
            Sender::Host
        }
        Side::Uplink if is_overlay(cx, headers) => Sender::Tunnel(unwrap(cx, packet, port, headers)?),
        Side::Uplink => {
            check_link(cx, packet, port, headers, clean)?;
            // Martians: what only this node may send. A remote pod's packet may come natively, from peers that route where they can.
            let own = matches!(cx.tables.owner(headers.tuple.src).kind, OwnerKind::LocalPod { .. } | OwnerKind::OwnNode);
            if own {
                Err(DropReason::InvalidSourceIp)?;
            }
            Sender::Uplink
        }
    };
    trim(cx, packet, headers)?;
    if port.unfinished_checksums {
        note_unfinished(cx.arena.bytes_mut(&mut packet.frame), headers);
    }
    // What was opened here and not in the hot lane, that has read as it came.
    match arrival.hashed(matches!(inbound.sender, Sender::Tunnel(_))) {
        Some(hashed) => {
            debug_assert_eq!(hashed.hash, cx.conns.hash(&headers.tuple));
            inbound.hashed = hashed;
            inbound.foreseen = arrival.is_unknown().then_some(foreseen);
        }
        None => inbound.hashed = cx.conns.hashed(&headers.tuple),
    }
    Ok(())
}

/// Sees whether the sender left a checksum to hardware. Of TCP and UDP the packet's exit sees to it; that of SCTP, which shows as 0, is
/// finished here, where all of the packet is: no pod is told that it may leave those of longer ones.
#[inline]
fn note_unfinished(bytes: &mut [u8], headers: &mut Headers) {
    if headers.tuple.proto == proto::SCTP && !headers.has(HeaderFlags::FRAGMENT) {
        bytes.get_mut(usize::from(headers.l4)..headers.frame_len()).and_then(sctp::finish);
    } else if is_unfinished(bytes, headers) {
        headers.flags = headers.flags.with(HeaderFlags::UNFINISHED);
    }
}

/// Refuses what is tagged, for many, for somebody else on the link or from somebody else, and answers neighbour discovery. A `clean`
/// frame came through the port's [gate](crate::tables::Gate), which lets none of this pass.
#[inline(always)]
fn check_link(cx: &Cx<'_>, packet: &mut Packet, port: &PortEntry, headers: &Headers, clean: bool) -> Result<(), Verdict> {
    if clean {
        debug_assert!(!headers.has(ODD_LINK) && check_macs(port, headers).is_ok());
        return Ok(());
    }
    if headers.has(ODD_LINK) {
        return Err(odd_link(cx, packet, port, headers));
    }
    Ok(check_macs(port, headers)?)
}

/// What is no plain packet on a link.
const ODD_LINK: HeaderFlags = HeaderFlags::NDP.with(HeaderFlags::VLAN).with(HeaderFlags::MULTICAST_DST).with(HeaderFlags::UNSPECIFIED_SRC);

/// Where MACs are known, a frame for us carries ours, and a pod's its own.
fn check_macs(port: &PortEntry, headers: &Headers) -> Result<(), DropReason> {
    let Some(mac) = port.mac else { return Ok(()) };
    let (ours, theirs) = match port.side {
        Side::Pod(_) => (MacAddr::GATEWAY, Some(mac)),
        Side::Host => (MacAddr::GATEWAY, None),
        Side::Uplink => (mac, None),
    };
    if headers.dst_mac != ours {
        return Err(if headers.dst_mac.is_multicast() { DropReason::Multicast } else { DropReason::OtherHost });
    }
    if theirs.is_some_and(|mac| mac != headers.src_mac) {
        return Err(DropReason::InvalidSourceIp);
    }
    Ok(())
}

#[cold]
fn odd_link(cx: &Cx<'_>, packet: &mut Packet, port: &PortEntry, headers: &Headers) -> Verdict {
    if headers.has(HeaderFlags::VLAN) {
        return Verdict::Drop(DropReason::VlanFiltered);
    }
    if headers.has(HeaderFlags::NDP) {
        let target = answer::solicited_target(cx.arena.bytes(&packet.frame), headers);
        return match target.filter(|target| speaks_for(cx, port, *target)) {
            Some(target) if answer::advertise(cx.arena, &mut packet.frame, headers, target, MacAddr::GATEWAY) => Verdict::Reply(None),
            _ => Verdict::Drop(DropReason::NeighbourIgnored),
        };
    }
    Verdict::Drop(DropReason::Multicast)
}

/// Answers a pod's or the node's ARP request. On the uplink the node's own stack does.
#[cold]
fn answer_arp(cx: &Cx<'_>, packet: &mut Packet, port: &PortEntry) -> Verdict {
    let Some(request) = arp::parse(cx.arena.bytes(&packet.frame)) else { return Verdict::Drop(DropReason::InvalidPacket) };
    // A probe (sender 0.0.0.0) and an announcement (sender = target) look for others with the address: there are none here.
    let asks = request.is_request && request.sender_ip.low32() != 0 && request.sender_ip != request.target_ip;
    let known = asks && speaks_for(cx, port, request.target_ip);
    if known && arp::answer(cx.arena.bytes_mut(&mut packet.frame), &request, MacAddr::GATEWAY) {
        return Verdict::Reply(None);
    }
    Verdict::Drop(DropReason::NeighbourIgnored)
}

/// Towards pods and the node everything is behind the gateway's MAC, but for what is at the other end itself.
fn speaks_for(cx: &Cx<'_>, port: &PortEntry, target: Ip) -> bool {
    match &port.side {
        Side::Pod(addresses) => addresses.as_deref().is_some_and(|own| !own.contains(&target)),
        Side::Host => cx.tables.owner(target).kind != OwnerKind::OwnNode,
        Side::Uplink => false,
    }
}

/// A pod sends from its own addresses, and no overlay packets of its own making.
#[inline(always)]
fn guard_pod(cx: &Cx<'_>, addresses: &[Ip], headers: &Headers) -> Result<(), DropReason> {
    let tuple = &headers.tuple;
    if !addresses.contains(&tuple.src) {
        return Err(DropReason::InvalidSourceIp);
    }
    let overlay = tuple.dport == cx.tables.runtime.config.overlay.port;
    if overlay && is_to_overlay(cx.tables, tuple, &cx.tables.owner(tuple.dst).kind) {
        return Err(DropReason::EncapsulationProhibited);
    }
    Ok(())
}

/// Addressed to this node's end of the overlay.
#[inline(always)]
fn is_overlay(cx: &Cx<'_>, headers: &Headers) -> bool {
    let tuple = &headers.tuple;
    let overlay = &cx.tables.runtime.config.overlay;
    (tuple.proto, tuple.dport, overlay.mode) == (proto::UDP, overlay.port, OverlayMode::Vxlan)
        && cx.tables.owner(tuple.dst).kind == OwnerKind::OwnNode
}

/// Takes the inner packet out, whose headers replace the outer ones: only from known nodes, only of our network, only what the
/// sending node owns.
#[inline]
fn unwrap(cx: &Cx<'_>, packet: &mut Packet, port: &PortEntry, headers: &mut Headers) -> Result<NodeIndex, Verdict> {
    let OwnerKind::OtherNode(node) = cx.tables.owner(headers.tuple.src).kind else { return Err(DropReason::UnknownVtep.into()) };
    let found = vxlan::decap(cx.arena.bytes(&packet.frame), headers)?;
    if found.vni != vni(&cx.tables.runtime.config) {
        Err(DropReason::InvalidVni)?;
    }
    trim(cx, packet, headers)?;
    packet.frame.pull_front(found.inner);
    let outer_tos = headers.tos;
    if parse_first(cx.arena.bytes(&packet.frame), packet.frame.total_len(), headers)? == Kind::Arp {
        let well_formed = arp::parse(cx.arena.bytes(&packet.frame)).is_some();
        return Err(if well_formed { DropReason::NeighbourIgnored } else { DropReason::InvalidPacket }.into());
    }
    if headers.has(ODD_LINK) {
        return Err(odd_inside(headers).into());
    }
    if port.mac.is_some() && headers.dst_mac != cx.tables.vtep_mac() {
        Err(DropReason::OtherHost)?;
    }
    let sender = cx.tables.owner(headers.tuple.src).kind;
    let is_theirs = match sender {
        OwnerKind::RemotePod { node: of, .. } | OwnerKind::OtherNode(of) | OwnerKind::Nobody(Some(of)) => of == node,
        OwnerKind::LocalPod { .. } | OwnerKind::OwnNode | OwnerKind::Nobody(None) => false,
    };
    if !is_theirs {
        Err(DropReason::InvalidSourceIp)?;
    }
    vxlan::decap_ecn(cx.arena.bytes_mut(&mut packet.frame), headers, outer_tos)?;
    Ok(node)
}

/// Why it does not belong into the overlay.
#[cold]
fn odd_inside(headers: &Headers) -> DropReason {
    if headers.has(HeaderFlags::NDP) {
        return DropReason::NeighbourIgnored;
    }
    if headers.has(HeaderFlags::VLAN) { DropReason::VlanFiltered } else { DropReason::Multicast }
}

/// Cuts what the link added behind the IP packet (IEEE 802.3 §4.2.3.3 pads to 60 bytes): it is no part of it. No link pads a
/// packet of several buffers.
#[inline(always)]
fn trim(cx: &Cx<'_>, packet: &mut Packet, headers: &Headers) -> Result<(), DropReason> {
    let len = headers.frame_len();
    if packet.frame.total_len() > len && (packet.frame.is_chain() || !cx.arena.set_len(&mut packet.frame, len)) {
        return Err(DropReason::InvalidPacket);
    }
    Ok(())
}

/// Tells whether an address is the gateway's.
pub(super) fn is_gateway(address: Ip) -> bool {
    address == GATEWAY_V4.into() || address == GATEWAY_V6.into()
}

/// What a node would take for an overlay packet.
pub(super) fn is_to_overlay(tables: &Tables, tuple: &Tuple, destination: &OwnerKind) -> bool {
    let overlay = &tables.runtime.config.overlay;
    // Of these the port says most often no; the protocol, asked first, would be a branch that nothing foresees.
    (tuple.dport, tuple.proto, overlay.mode) == (overlay.port, proto::UDP, OverlayMode::Vxlan)
        && matches!(destination, OwnerKind::OwnNode | OwnerKind::OtherNode(_))
}
