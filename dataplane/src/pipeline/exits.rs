//! The last stage: does it fit the way out, and the link header of the next hop.

use super::{Cx, Inbound, Refusal, Sender};
use crate::events::Trail;
use crate::io::Packet;
use crate::model::MacAddr;
use crate::nat::decrement_ttl;
use crate::overlay::vxlan;
use crate::parse::{HeaderFlags, Headers};
use crate::route::{Exit, ExitId};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet;

/// Checks, before anything is edited, that a packet may take this exit: time to live, and length after encapsulation.
///
/// An IPv4 packet that may be fragmented is dropped too: pods' interfaces have the right MTU, so their stacks fragment themselves.
pub(super) fn fits(cx: &Cx<'_>, inbound: &Inbound, exit: ExitId, trail: &mut Trail) -> Result<(), Refusal> {
    let headers = &inbound.headers;
    let (is_host, mtu) = match cx.tables.routes.exit(exit) {
        Exit::Host { mtu, .. } => (true, mtu),
        Exit::Pod { mtu, .. } | Exit::Native { mtu, .. } | Exit::Vxlan { mtu, .. } => (false, mtu),
    };
    if headers.ttl <= 1 && is_hop(inbound.sender, is_host) {
        return Err(Refusal::ttl_exceeded(cx.tables, headers));
    }
    if headers.l3_total > u32::from(mtu) {
        trail.mtu = Some(mtu);
        return Err(match headers.has(HeaderFlags::DF) {
            true => Refusal::too_big(cx.tables, headers, mtu),
            false => Refusal::Silent(DropReason::FragmentationNotSupported),
        });
    }
    Ok(())
}

/// Between the node's own stack and the network we are no router of our own.
fn is_hop(from: Sender, to_host: bool) -> bool {
    from != Sender::Host && !to_host
}

/// Counts this node as a hop.
pub(super) fn hop(cx: &Cx<'_>, packet: &mut Packet, inbound: &Inbound, exit: ExitId) {
    if is_hop(inbound.sender, matches!(cx.tables.routes.exit(exit), Exit::Host { .. })) {
        // `fits` has seen that something is left.
        let _left = decrement_ttl(cx.arena.bytes_mut(&mut packet.frame), &inbound.headers);
    }
}

/// Writes the link header, or the outer headers, and says by which port the frame leaves. `trail.after` has the destination.
pub(super) fn emit(
    cx: &Cx<'_>,
    packet: &mut Packet,
    headers: &Headers,
    exit: ExitId,
    flow_hash: u64,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    let destination = || MacAddr::from_ip(trail.after.unwrap_or(headers.tuple).dst.to_std());
    let (dst, src, verdict) = match cx.tables.routes.exit(exit) {
        Exit::Pod { port, mac, .. } => (mac.unwrap_or_else(destination), MacAddr::GATEWAY, Verdict::Forward(port)),
        Exit::Host { port, mac, .. } => (mac.unwrap_or_else(destination), MacAddr::GATEWAY, Verdict::Host(port)),
        Exit::Native { port, mac, .. } => (mac, cx.tables.runtime.underlay.mac, Verdict::Forward(port)),
        Exit::Vxlan { port, tunnel, .. } => {
            let tunnel = cx.tables.routes.tunnel(tunnel);
            trail.encap = Some(tunnel.node);
            return match vxlan::encap(cx.arena, &mut packet.frame, &tunnel.template, headers.tos, flow_hash) {
                true => Ok(Verdict::Encap(port)),
                false => Err(Refusal::Silent(DropReason::InvalidPacket)),
            };
        }
    };
    ethernet::set_macs(cx.arena.bytes_mut(&mut packet.frame), dst, src);
    Ok(verdict)
}
