//! Packets of known flows on the general lane: does what was decided for their direction, and looks at it anew where the tables
//! have changed since.

use super::exits::{edit_and_emit, fits, resolve};
use super::first::first_packet;
use super::refusal::Refusal;
use super::{Cx, Inbound, Sender, Way};
use crate::conntrack::tcp::{Fit, Numbers};
use crate::conntrack::{FlowDir, FlowState, FlowView, Hit, Ticks, Tuple};
use crate::events::{CtState, Hears, Observer, Trail};
use crate::io::{Packet, PortId};
use crate::model::{Direction, OnChange, OnInvalid, proto};
use crate::nat::{Rewrite, RewriteFlags};
use crate::parse::Headers;
use crate::route::ExitId;
use crate::service::Backend;
use crate::tables::{OwnerKind, Tables};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{chunk, tcp};

/// A packet of a known flow: does what was decided for its direction.
#[inline(always)]
pub(super) fn established<O: Observer>(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    inbound: &Inbound,
    hit: Hit,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    let headers = &inbound.headers;
    let view = cx.conns.flow(hit);
    let kind = opening_kind(cx.arena.bytes(&packet.frame), headers);
    let steady = view.state.is_steady(hit.dir) && kind & FlowState::UNSTEADY_FLAGS == 0;
    if !steady && view.state.is_reopened_by(headers.tuple.proto, kind) {
        cx.conns.remove(&mut cx.local.conns, hit.entry);
        return first_packet(cx, packet, inbound, trail);
    }
    if view.generation != cx.tables.generation && has_changed_hands(cx, hit) {
        cx.conns.remove(&mut cx.local.conns, hit.entry);
        return first_packet(cx, packet, inbound, trail);
    }
    let numbers = segment_numbers(cx.arena.bytes(&packet.frame), headers);
    let fit = numbers.filter(|_| !steady).map_or(Fit::Belongs, |numbers| cx.conns.fit(hit, &view, kind, numbers));
    if fit == Fit::Invalid && cx.tables.runtime.config.conntrack.invalid == OnInvalid::Drop {
        trail.state = CtState::Invalid;
        return Err(Refusal::Silent(DropReason::InvalidConntrack)); // E2.44
    }
    if O::HEARS == Hears::Everything {
        note_established(cx, hit, &view, trail);
    }
    let outcome =
        current_exit(cx, hit, &view, trail).and_then(|exit| follow(cx, packet, inbound, &view, exit, trail).map(|verdict| (exit, verdict)));
    let (exit, verdict) = match outcome {
        Ok(way) => way,
        Err(refusal) => {
            if O::HEARS == Hears::Decisions {
                note_established(cx, hit, &view, trail);
            }
            return Err(refusal);
        }
    };
    if fit == Fit::Belongs {
        if !steady {
            cx.conns.advance(hit, &view, kind);
        }
        if let Some(numbers) = numbers {
            cx.conns.note_numbers(hit, view.state, kind, numbers);
        }
    }
    cx.conns.touch(hit, headers.l3_total, Ticks::from_nanos(cx.now));
    prove(cx, hit, &view, exit, inbound.sender, packet.in_port);
    Ok(verdict)
}

/// Notes that the guards have let a packet pass, from whom, and where to.
pub(super) fn prove(cx: &Cx<'_>, hit: Hit, view: &FlowView, exit: ExitId, sender: Sender, in_port: PortId) {
    let way = proven(cx.tables, exit, sender, in_port);
    if way.from != Way::NONE && (view.leg.exit, view.generation) != (way.bits(), cx.tables.generation) {
        cx.conns.set_exit(hit, way.bits(), cx.tables.generation);
    }
}

/// The way by an exit of a packet that the guards have let pass; from nobody where the hot lane could not know them again.
#[inline]
pub(super) fn proven(tables: &Tables, exit: ExitId, sender: Sender, in_port: PortId) -> Way {
    let Sender::Tunnel(node) = sender else { return Way::new(exit, Some(ExitId(in_port.0.into()))) };
    let way = Way::new(exit, tables.routes.to_node(node).ok());
    // The hot lane knows a peer by its VTEP's address: that must lead the guard to the same node.
    let is_known = tables.routes.vtep(way.from).is_some_and(|vtep| tables.owner(vtep).kind == OwnerKind::OtherNode(node));
    if is_known { way } else { Way::new(exit, None) }
}

/// The exit of a flow's direction, found anew where it was decided under other tables.
#[inline(always)]
pub(super) fn current_exit(cx: &mut Cx<'_>, hit: Hit, view: &FlowView, trail: &mut Trail) -> Result<ExitId, Refusal> {
    match Way::from_bits(view.leg.exit).exit() {
        Some(exit) if view.generation == cx.tables.generation => Ok(exit),
        _ => revalidate(cx, hit, trail),
    }
}

/// Looks at a flow with new tables: is there still a way, and is it still allowed (E1.37)?
#[cold]
fn revalidate(cx: &mut Cx<'_>, hit: Hit, trail: &mut Trail) -> Result<ExitId, Refusal> {
    let tables = cx.tables;
    let view = cx.conns.flow(hit);
    if view.generation != tables.generation && has_changed_hands(cx, hit) {
        cx.conns.remove(&mut cx.local.conns, hit.entry);
        return Err(Refusal::Silent(DropReason::StaleOrUnroutableIp));
    }
    let on_change = tables.runtime.config.policy.on_change;
    if on_change != OnChange::Keep {
        let original = cx.conns.flow(Hit { dir: FlowDir::Original, ..hit });
        let seen = Tuple { src: original.tuple.src, sport: original.tuple.sport, ..original.to };
        let sides = [(Direction::Egress, seen.src, seen.dst), (Direction::Ingress, seen.dst, seen.src)];
        for (direction, pod, peer) in sides {
            let judged = tables.judge(pod, direction, peer, seen.proto, seen.dport, original.nat_dst);
            if !judged.allowed {
                *(if direction == Direction::Egress { &mut trail.egress } else { &mut trail.ingress }) = Some(judged);
            }
            match judged.reason {
                None => {}
                // The entry stays until it expires, so that the other end is told too.
                Some(reason) if on_change == OnChange::Drain && seen.proto == proto::TCP => {
                    return Err(Refusal::prohibited(reason, &view.tuple));
                }
                Some(reason) => {
                    cx.conns.remove(&mut cx.local.conns, hit.entry);
                    return Err(Refusal::Silent(reason));
                }
            }
        }
    }
    let exit = resolve(cx, tables.owner(view.to.dst), view.to.dst)?;
    cx.conns.set_exit(hit, Way::new(exit, None).bits(), tables.generation);
    Ok(exit)
}

/// Tells whether a flow of an older generation belonged to a pod whose address is another's now, or nobody's.
#[cold]
fn has_changed_hands(cx: &Cx<'_>, hit: Hit) -> bool {
    !cx.tables.reassigned.is_empty() && is_orphaned_flow(cx.tables, &cx.conns.flow(Hit { dir: FlowDir::Original, ..hit }))
}

/// Translates a packet as its flow's direction says and sends it out.
#[inline(always)]
pub(super) fn follow(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    inbound: &Inbound,
    view: &FlowView,
    exit: ExitId,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    let way = cx.tables.routes.exit(exit);
    fits(cx, inbound, way, trail)?;
    edit_and_emit(cx, packet, inbound, &rewrite_of(view), view.to.dst, way, trail)
}

#[inline(always)]
fn rewrite_of(view: &FlowView) -> Rewrite {
    let Tuple { src, dst, sport, dport, .. } = view.to;
    let flags = RewriteFlags::from_bits(u8::from(view.nat_src) | u8::from(view.nat_dst) << 1);
    Rewrite { src, dst, sport, dport, l3_delta: view.leg.l3_delta, l4_delta: view.leg.l4_delta, flags }
}

/// What the state machines want to know of a packet: TCP flags, the type of the first SCTP chunk, else 0.
#[inline(always)]
pub(super) fn opening_kind(bytes: &[u8], headers: &Headers) -> u8 {
    /// The common header of SCTP, which the first chunk follows (RFC 9260 §3).
    const SCTP_HEADER: usize = 12;
    match headers.tuple.proto {
        proto::SCTP => bytes.get(usize::from(headers.l4) + SCTP_HEADER).copied().unwrap_or(u8::MAX),
        _ => headers.tcp_flags,
    }
}

/// Sequence and acknowledgment number of a TCP segment over IPv4.
#[inline(always)]
pub(super) fn segment_numbers(bytes: &[u8], headers: &Headers) -> Option<Numbers> {
    let is_tcp = headers.tuple.proto == proto::TCP && !headers.is_v6();
    let bits = is_tcp.then(|| chunk(bytes, usize::from(headers.l4) + tcp::NUMBERS))??;
    Some(Numbers::from_bits(u64::from_be_bytes(*bits)))
}

#[inline(never)]
fn note_established(cx: &Cx<'_>, hit: Hit, view: &FlowView, trail: &mut Trail) {
    // What only a packet that goes nowhere has, it has already.
    let Trail { egress, ingress, mtu, .. } = *trail;
    *trail = Trail { state: CtState::Established(hit.dir), after: Some(view.to), egress, ingress, mtu, ..Trail::default() };
    let (asked, backend) = match hit.dir {
        FlowDir::Original => (view.tuple, (view.to.dst, view.to.dport)),
        FlowDir::Reply => (view.to.inverse(), (view.tuple.src, view.tuple.sport)),
    };
    let translated = match hit.dir {
        FlowDir::Original => view.nat_dst,
        FlowDir::Reply => view.nat_src,
    };
    if translated {
        trail.backend = Some(Backend { address: backend.0, port: backend.1 });
        trail.service = cx.tables.services.service_at(asked.dst, asked.proto, asked.dport);
    }
}

/// Tells whether a flow that was made under an older generation must be forgotten, because an address of it was a pod's and is
/// so no more: the next pod with this address was never asked about, and never allowed, what its predecessor was.
pub fn is_orphaned_flow(tables: &Tables, original: &FlowView) -> bool {
    let (asked, to) = (&original.tuple, &original.to);
    [asked.src, asked.dst, to.src, to.dst].iter().any(|address| tables.reassigned.contains(address))
}

/// Tells whether a UDP flow must be forgotten because its service changed (E2.39): it was sent to a service whose endpoint serves
/// no longer, or untranslated to what is a service now. TCP and SCTP are kept (E2.40).
pub fn is_stale_service_flow(tables: &Tables, original: &FlowView) -> bool {
    let asked = &original.tuple;
    if asked.proto != proto::UDP {
        return false;
    }
    match (tables.services.service_at(asked.dst, asked.proto, asked.dport), original.nat_dst) {
        (Some(service), true) => !tables.services.is_serving(service, original.to.dst, original.to.dport),
        (Some(_), false) => true,
        // The Service itself is gone. A translated destination that was no service does not exist.
        (None, translated) => translated,
    }
}
