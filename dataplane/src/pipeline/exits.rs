//! The last stage: does it fit the way out, and the link header of the next hop.

use super::{Cx, Inbound, Refusal, Sender};
use crate::events::Trail;
use crate::io::Packet;
use crate::model::{Ip, MacAddr};
use crate::nat::{Rewrite, decrement_ttl};
use crate::overlay::vxlan;
use crate::parse::{HeaderFlags, Headers, checksum_field, finish_checksum};
use crate::route::{Exit, ExitId};
use crate::tables::Owner;
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet;

/// Checks, before anything is edited, that a packet may take this exit: time to live, and length after encapsulation.
///
/// We fragment nothing. The sender of an IPv4 packet that might be fragmented is told of the MTU too, and fragments the next one
/// itself: pods' interfaces have the right MTU, so this is for others.
#[inline(always)]
pub(super) fn fits(cx: &Cx<'_>, inbound: &Inbound, way: Exit, trail: &mut Trail) -> Result<(), Refusal> {
    let headers = &inbound.headers;
    let mtu = way.mtu();
    let used_up = (headers.ttl <= 1) & is_hop(inbound.sender, way.is_host());
    if used_up | (headers.l3_total > u32::from(mtu)) {
        return Err(misfit(cx, headers, used_up, mtu, trail));
    }
    Ok(())
}

#[cold]
fn misfit(cx: &Cx<'_>, headers: &Headers, used_up: bool, mtu: u16, trail: &mut Trail) -> Refusal {
    if used_up {
        return Refusal::ttl_exceeded(cx.tables, headers);
    }
    trail.mtu = Some(mtu);
    Refusal::too_big(cx.tables, headers, mtu)
}

/// Between the node's own stack and the network we are no router of our own.
#[inline(always)]
fn is_hop(from: Sender, to_host: bool) -> bool {
    (from != Sender::Host) & !to_host
}

/// Counts this node as a hop.
#[inline(always)]
pub(super) fn hop(bytes: &mut [u8], inbound: &Inbound, way: Exit) {
    if is_hop(inbound.sender, way.is_host()) {
        // `fits` has seen that something is left.
        let _left = decrement_ttl(bytes, &inbound.headers);
    }
}

/// Writes the link header, or the outer headers, and says by which port the frame leaves. `destination` is where the IP packet
/// goes, for the neighbours whose MAC is derived from it.
#[inline(always)]
pub(super) fn emit(
    cx: &Cx<'_>,
    packet: &mut Packet,
    inbound: &Inbound,
    way: Exit,
    destination: Ip,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    if inbound.headers.has(HeaderFlags::UNFINISHED) {
        settle_checksum(cx, packet, &inbound.headers, way);
    }
    let derived = || MacAddr::from_ip(destination.to_std());
    let (dst, src, verdict) = match way {
        Exit::Pod { port, mac, .. } => (mac.unwrap_or_else(derived), MacAddr::GATEWAY, Verdict::Forward(port)),
        Exit::Host { port, mac, .. } => (mac.unwrap_or_else(derived), MacAddr::GATEWAY, Verdict::Host(port)),
        Exit::Native { port, mac, .. } => (mac, cx.tables.runtime.underlay.mac, Verdict::Forward(port)),
        Exit::Vxlan { port, tunnel, .. } => {
            let tunnel = cx.tables.routes.tunnel(tunnel);
            trail.encap = Some(tunnel.node);
            return match vxlan::encap(cx.arena, &mut packet.frame, &tunnel.template, inbound.headers.tos, inbound.hashed.hash) {
                true => Ok(Verdict::Encap(port)),
                false => Err(Refusal::Silent(DropReason::InvalidPacket)),
            };
        }
    };
    ethernet::set_macs(cx.arena.bytes_mut(&mut packet.frame), dst, src);
    Ok(verdict)
}

/// Finishes a checksum that the sender left to hardware, or leaves it to the kernel where that is less work: on the way to a pod or the
/// node's own stack, which take the packet for what it is, and nobody ever sums a packet that is not to leave the node. A network
/// device might not know what to do for a packet inside another.
#[cold]
fn settle_checksum(cx: &Cx<'_>, packet: &mut Packet, headers: &Headers, way: Exit) {
    let leaves = match way {
        Exit::Pod { .. } | Exit::Host { .. } => {
            checksum_field(headers).is_some_and(|field| cx.arena.leave_checksum(&packet.frame, headers.l4.into(), field))
        }
        Exit::Native { .. } | Exit::Vxlan { .. } => false,
    };
    if !leaves {
        // It is all there: `is_unfinished` has read the field.
        let _finished = finish_checksum(cx.arena, &mut packet.frame, headers);
    }
}

/// The way to an address. Where only the neighbour is unknown this is noted, so that the kernel can be asked for it.
pub(super) fn resolve(cx: &mut Cx<'_>, owner: &Owner, destination: Ip) -> Result<ExitId, DropReason> {
    let exit = cx.tables.routes.resolve(owner, destination);
    if exit == Err(DropReason::FibLookupFailed) {
        cx.local.unresolved = Some(destination);
    }
    exit
}

/// Translates a packet and sends it out.
#[inline(always)]
pub(super) fn edit_and_emit(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    inbound: &Inbound,
    rewrite: &Rewrite,
    destination: Ip,
    way: Exit,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    let bytes = cx.arena.bytes_mut(&mut packet.frame);
    rewrite.apply(bytes, &inbound.headers)?;
    hop(bytes, inbound, way);
    emit(cx, packet, inbound, way, destination, trail)
}
