//! What is not a whole packet of a flow: ICMP errors, later fragments, pings to the gateway and to services.

use super::established::{current_exit, established, follow};
use super::exits::{emit, fits, hop};
use super::first::first_packet;
use super::{Cx, Inbound, Refusal, Sender, admit};
use crate::answer;
use crate::conntrack::{Ticks, Tuple};
use crate::events::{CtState, Observer, Trail};
use crate::io::Packet;
use crate::nat;
use crate::parse::{HeaderFlags, Headers};
use crate::tables::{OwnerKind, Tables};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{icmp, icmpv6};

/// Tells whether a packet cannot be looked up by its own tuple, or has its ports to be remembered.
#[inline(always)]
pub(super) fn is_odd(headers: &Headers) -> bool {
    headers.has(HeaderFlags::ICMP_ERROR.with(HeaderFlags::FRAGMENT))
}

/// Sends such a packet on.
#[cold]
pub(super) fn forward<O: Observer>(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, trail: &mut Trail) -> Result<Verdict, Refusal> {
    *trail = Trail::default();
    let headers = &inbound.headers;
    if admit::is_gateway(headers.tuple.dst) {
        return to_gateway(cx, packet, inbound);
    }
    if headers.has(HeaderFlags::FRAGMENT_LATER) {
        return later_fragment(cx, packet, inbound, trail);
    }
    if headers.has(HeaderFlags::ICMP_ERROR) {
        return icmp_error(cx, packet, inbound, trail);
    }
    // A first fragment is a packet like any other, whose ports the later ones will need.
    cx.local.fragments.learn(&headers.tuple, headers.frag_id, Ticks::from_nanos(cx.now));
    match cx.conns.find(&inbound.hashed) {
        Some(hit) => established::<O>(cx, packet, inbound, hit, trail),
        None => first_packet(cx, packet, inbound, trail),
    }
}

/// The gateway is nobody, but answers to ping.
fn to_gateway(cx: &Cx<'_>, packet: &mut Packet, inbound: &Inbound) -> Result<Verdict, Refusal> {
    if matches!(inbound.sender, Sender::Pod | Sender::Host) && answer::echo_reply(cx.arena.bytes_mut(&mut packet.frame), &inbound.headers) {
        return Ok(Verdict::Reply(None));
    }
    Err(Refusal::Silent(DropReason::StaleOrUnroutableIp))
}

/// A later fragment goes where the first one went; it opens no flow.
fn later_fragment(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, trail: &mut Trail) -> Result<Verdict, Refusal> {
    let unknown = Refusal::Silent(DropReason::FirstFragmentNotFound);
    let headers = &inbound.headers;
    let tuple = cx.local.fragments.complete(&headers.tuple, headers.frag_id, Ticks::from_nanos(cx.now)).ok_or(unknown)?;
    let hashed = cx.conns.hashed(&tuple);
    let hit = cx.conns.find(&hashed).ok_or(unknown)?;
    let view = cx.conns.flow(hit);
    trail.state = CtState::Established(hit.dir);
    let exit = current_exit(cx, hit, &view, trail)?;
    let whole = Inbound { hashed, ..*inbound };
    trail.after = Some(view.to);
    let verdict = follow(cx, packet, &whole, &view, exit, trail)?;
    cx.conns.touch(hit, headers.l3_total, Ticks::from_nanos(cx.now));
    Ok(verdict)
}

/// An error about a flow takes the flow's way, against the direction of the packet that it quotes (E1.36, E2.47).
fn icmp_error(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, trail: &mut Trail) -> Result<Verdict, Refusal> {
    let quoted = nat::quoted_tuple(cx.arena.bytes(&packet.frame), &inbound.headers).map(|quoted| quoted.inverse());
    let hit = quoted.and_then(|tuple| cx.conns.lookup(cx.conns.hash(&tuple), &tuple));
    let related = hit.map(|hit| (hit, cx.conns.flow(hit))).filter(|(_, view)| may_report(cx.tables, inbound, &view.tuple));
    let Some((hit, view)) = related else { return unrelated(cx, packet, inbound, trail) };
    trail.state = CtState::Related(hit.dir);
    let exit = current_exit(cx, hit, &view, trail)?;
    let way = cx.tables.routes.exit(exit);
    fits(cx, inbound, way, trail)?;
    nat::translate_error(cx.arena.bytes_mut(&mut packet.frame), &inbound.headers, &view.tuple, &view.to)?;
    trail.after = Some(view.to);
    hop(cx.arena.bytes_mut(&mut packet.frame), inbound, way);
    emit(cx, packet, inbound, way, view.to.dst, trail)
}

/// Tells whether an error may be about packets of the inverse of `along`, with which it travels. It is for their sender alone:
/// else whoever knows a flow could send by it to anybody, past every policy. A pod is no router and reports what was sent to
/// itself; what pods of this node were sent, nobody on the network can report.
fn may_report(tables: &Tables, inbound: &Inbound, along: &Tuple) -> bool {
    let Tuple { src, dst, .. } = inbound.headers.tuple;
    let is_near = match inbound.sender {
        Sender::Pod => src == along.src,
        Sender::Host => true,
        Sender::Uplink | Sender::Tunnel(_) => !matches!(tables.owner(along.src).kind, OwnerKind::LocalPod { .. }),
    };
    dst == along.dst && is_near
}

/// An error about nothing that we know: the node's own matter, or nobody's.
fn unrelated(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, trail: &mut Trail) -> Result<Verdict, Refusal> {
    trail.state = CtState::Invalid;
    let destination = inbound.headers.tuple.dst;
    let owner = cx.tables.owner(destination);
    if inbound.sender == Sender::Uplink && owner.kind == OwnerKind::OwnNode {
        let exit = cx.tables.routes.resolve(owner, destination)?;
        return emit(cx, packet, inbound, cx.tables.routes.exit(exit), destination, trail);
    }
    Err(Refusal::Silent(DropReason::InvalidConntrack))
}

/// An echo request to a ClusterIP that is to be answered (E2.6).
pub(super) fn is_ping_to_service(tables: &Tables, headers: &Headers) -> bool {
    let request = if headers.is_v6() { icmpv6::ECHO_REQUEST } else { icmp::ECHO_REQUEST };
    headers.has(HeaderFlags::ICMP_ECHO)
        && headers.icmp_type == request
        && tables.runtime.config.services.answer_ping
        && tables.services.is_pingable(headers.tuple.dst)
}

/// Answers it in the service's name.
pub(super) fn answer_ping(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound) -> Result<Verdict, Refusal> {
    match answer::echo_reply(cx.arena.bytes_mut(&mut packet.frame), &inbound.headers) {
        true => super::refusal::return_to_sender(cx, packet, inbound, None),
        false => Err(Refusal::Silent(DropReason::ServiceNotProxied)),
    }
}
