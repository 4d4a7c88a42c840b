//! The first packet of a flow: service, policy, masquerade and route, each asked once, and the entry that every later packet follows.

use super::admit::is_to_overlay;
use super::established::{current_exit, follow, opening_kind, prove, proven, segment_numbers};
use super::exits::{edit_and_emit, emit, fits, resolve};
use super::hot::Arrival;
use super::refusal::Refusal;
use super::{Cx, Inbound, Sender, Way, odd};
use crate::conntrack::tcp::Numbers;
use crate::conntrack::{FirstPacket, FlowInit, FlowState, Hashed, Hit, InsertError, Key, Leg, NO_OWNER, NOT_COUNTED, Ticks, Tuple};
use crate::events::{CtState, Trail};
use crate::io::Packet;
use crate::model::{Direction, Ip, OnInvalid, proto};
use crate::nat::{Rewrite, select_source};
use crate::parse::Headers;
use crate::policy::Judgement;
use crate::service::{Chosen, Selection};
use crate::tables::{Owner, OwnerKind};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{chunk, icmp, icmpv6, tcp};

/// What is known of the first packet of a flow before its turn comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreseen {
    /// The owner of its source.
    source: Owner,
    /// The backend, where nothing that may happen before its turn could change the choice.
    chosen: Option<Chosen>,
    /// The owner of its destination, or of the backend.
    destination: Owner,
    /// The reply's tuple, if nothing else is translated.
    reply: Hashed,
}

impl Foreseen {
    pub(super) const BLANK: Self = Self { source: Owner::BLANK, chosen: None, destination: Owner::BLANK, reply: Hashed::BLANK };
}

/// Chooses the backends of the first packets of a batch and asks for the memory that they will need, all at once: what is known of
/// their ends, and where the index will have their replies. What a packet that then is refused has foreseen is lost with it.
// Not inlined: the hot lane would grow beyond what a compiler takes into its form for newer processors.
#[inline(never)]
pub(super) fn foresee(cx: &mut Cx<'_>, arrivals: &[Arrival], foreseen: &mut [Foreseen]) {
    let (tables, random) = (cx.tables, &mut cx.local.random);
    // In two rounds, of which each has few lookups that wait for one another: those of several packets then go side by side.
    for (arrival, place) in arrivals.iter().zip(&mut *foreseen).filter(|(arrival, _)| arrival.is_unknown()) {
        let tuple = arrival.tuple();
        place.source = *tables.owner(tuple.src);
        place.chosen = tables.services.foresee(&tuple, tables.origin_of(&place.source), random);
    }
    for (arrival, place) in arrivals.iter().zip(foreseen).filter(|(arrival, _)| arrival.is_unknown()) {
        let (dst, dport) = match &place.chosen {
            Some(Chosen { backend, .. }) => (backend.address, backend.port),
            None => arrival.destination(),
        };
        place.reply = cx.conns.prepare(arrival.answer(dst, dport));
        place.destination = *tables.owner(dst);
    }
}

/// The tuple with the backend as its destination.
#[inline(always)]
fn seen_by(tuple: &Tuple, chosen: Option<&Chosen>) -> Tuple {
    chosen.map_or(*tuple, |Chosen { backend, .. }| Tuple { dst: backend.address, dport: backend.port, ..*tuple })
}

/// The first packet of a flow: decides everything about it, once.
#[inline(never)]
pub(super) fn first_packet(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound<'_>, trail: &mut Trail) -> Result<Verdict, Refusal> {
    decide(cx, packet, inbound, trail)
}

/// The same, inlined for the place where nearly all of them come by: what it gives stays in registers there.
#[inline(always)]
pub(super) fn decide(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound<'_>, trail: &mut Trail) -> Result<Verdict, Refusal> {
    let tuple = inbound.headers.tuple;
    let kind = opening_kind(cx.arena.bytes(&packet.frame), &inbound.headers);
    let state = FlowState::opening(tuple.proto, kind).filter(|_| !is_icmp_without_question(&inbound.headers));
    trail.state = if state.is_some() { CtState::New } else { CtState::Invalid };
    let tables = cx.tables;

    if state.is_none() && cx.tables.runtime.config.conntrack.invalid == OnInvalid::Drop && !is_for_the_node(cx, inbound) {
        return Err(Refusal::Silent(DropReason::InvalidConntrack)); // E2.44
    }
    if odd::is_ping_to_service(tables, &inbound.headers) {
        return odd::answer_ping(cx, packet, inbound);
    }

    // Service: which backend (E2.8 to E2.35). It changes the destination alone.
    let foreseen = inbound.foreseen;
    let source = foreseen.map_or_else(|| tables.owner(tuple.src), |foreseen| &foreseen.source);
    let early = foreseen.and_then(|foreseen| foreseen.chosen);
    let chosen = if early.is_some() { early } else { choose_backend(cx, &tuple, source, trail)? };
    let via_service = chosen.is_some();
    if let Some(Chosen { service, backend, .. }) = chosen {
        (trail.service, trail.backend) = (Some(service), Some(backend));
        if state.is_none() {
            return Err(Refusal::Silent(DropReason::InvalidConntrack));
        }
    }
    let seen = seen_by(&tuple, chosen.as_ref());
    let prepared;
    let (destination, mut reply) = match foreseen {
        Some(foreseen) if early.is_some() == via_service => (&foreseen.destination, &foreseen.reply),
        _ => {
            prepared = cx.conns.prepare(Key::new(&seen.inverse()));
            (tables.owner(seen.dst), &prepared)
        }
    };
    debug_assert_eq!(destination, tables.owner(seen.dst));
    debug_assert_eq!(reply.hash, cx.conns.hash(&seen.inverse()));
    if !via_service && inbound.sender == Sender::Uplink && destination.kind == OwnerKind::OwnNode {
        // Nothing of ours: the node's own stack decides.
        let exit = tables.routes.resolve(destination, seen.dst)?;
        trail.after = Some(tuple);
        return emit(cx, packet, inbound, tables.routes.exit(exit), tuple.dst, trail);
    }
    if !via_service && is_transit(inbound.sender, &destination.kind) {
        return Err(Refusal::Silent(DropReason::OtherHost));
    }
    // A Service with a node's address as its endpoint must not carry overlay packets of a client's making: masqueraded, they
    // would come from this node, which its peers believe.
    if is_to_overlay(tables, &seen, &destination.kind) && (via_service || inbound.sender != Sender::Host) {
        return Err(Refusal::Silent(DropReason::EncapsulationProhibited));
    }

    // Policy: after the service choice, before source translation (E1.25). Both sides must allow (E1.6).
    if matches!(source.kind, OwnerKind::LocalPod { .. }) {
        let judged = tables.judge_owners(source, Direction::Egress, destination, seen.proto, seen.dport, via_service);
        trail.egress = Some(judged);
        obey(cx, judged, &tuple)?;
    }
    if matches!(destination.kind, OwnerKind::LocalPod { .. }) {
        let judged = tables.judge_owners(destination, Direction::Ingress, source, seen.proto, seen.dport, via_service);
        trail.ingress = Some(judged);
        obey(cx, judged, &tuple)?;
    }

    // Route: both ways, so that the reply's first packet is a known one already.
    let exit = resolve(cx, destination, seen.dst)?;
    let back = tables.routes.resolve(source, seen.src).ok();
    let way = tables.routes.exit(exit);
    fits(cx, inbound, way, trail)?;
    // Masquerade: pods towards the outside, and services where E2.27 says so.
    let outside = !destination.in_cluster && destination.kind != OwnerKind::OwnNode;
    let leaves = match inbound.sender {
        Sender::Pod => outside && !destination.keeps_source,
        // The node asks a service that another node's own stack answers: only the port tells the answer as ours.
        Sender::Host => outside && via_service,
        Sender::Uplink | Sender::Tunnel(_) => false,
    };
    let Some(state) = state else {
        // E2.44, `conntrack.invalid: forward`: as it is, and nothing is remembered; so what must be translated cannot go.
        if leaves {
            return Err(Refusal::Silent(DropReason::InvalidConntrack));
        }
        trail.after = Some(seen);
        return edit_and_emit(cx, packet, inbound, &Rewrite::default(), seen.dst, way, trail);
    };

    let is_node_itself = source.kind == OwnerKind::OwnNode && destination.in_cluster;
    let (mut to, masqueraded) = (seen, leaves || chosen.is_some_and(|chosen| chosen.masquerade) && !is_node_itself);
    let prepared;
    if masqueraded {
        to = translate_source(cx, &seen)?;
        prepared = cx.conns.prepare(Key::new(&to.inverse()));
        reply = &prepared;
    }

    // Conntrack: from here on every packet of the flow follows.
    let owner = match (inbound.sender, destination.kind) {
        (Sender::Pod, _) => u32::from(packet.in_port.0),
        // What comes to a pod uses up its share, not its neighbours'.
        (_, OwnerKind::LocalPod { port: Some(port), .. }) => u32::from(port.0),
        _ => NO_OWNER,
    };
    let ways = [proven(tables, exit, inbound.sender, packet.in_port), back.map_or(Way::UNKNOWN, |exit| Way::new(exit, None))];
    // Of another protocol than TCP, what stands in the place of its numbers: nobody asks for it.
    let numbers = chunk(cx.arena.bytes(&packet.frame), usize::from(inbound.headers.l4) + tcp::NUMBERS);
    let numbers = numbers.map_or_else(Numbers::default, |bits| Numbers::from_bits(u64::from_be_bytes(*bits)));
    let first = FirstPacket { bytes: inbound.headers.l3_total, numbers };
    let flow = NewFlow { ways, first, owner, counter: chosen.map_or(NOT_COUNTED, |chosen| chosen.counter), state };
    let mut rewrite = Rewrite::compile(&tuple, &to);
    let (now, init) = (Ticks::from_nanos(cx.now), flow.init(&rewrite, tables.generation));
    match cx.conns.enter(&mut cx.local.conns, [&inbound.hashed, reply], &init, now) {
        Ok(_) => {}
        Err(InsertError::Exists(other)) => match enter_beside(cx, inbound, flow, to, other)? {
            Some(beside) => rewrite = beside,
            None => return join(cx, packet, inbound, other, trail),
        },
        Err(InsertError::Full | InsertError::ShareExceeded | InsertError::Busy) => {
            return Err(Refusal::Silent(DropReason::CtMapInsertionFailed));
        }
    }
    let Rewrite { src, dst, sport, dport, .. } = rewrite;
    trail.after = Some(Tuple { src, dst, sport, dport, proto: tuple.proto });
    edit_and_emit(cx, packet, inbound, &rewrite, dst, way, trail)
}

/// Enters a flow that shares a tuple with another one. Where that is the reply's, the source port changes, as two connections of a
/// client by way of two services to one backend need it. Gives what becomes of its packets then; `None` where another worker was
/// faster with this very flow.
#[cold]
fn enter_beside(cx: &mut Cx<'_>, inbound: &Inbound<'_>, flow: NewFlow, to: Tuple, other: Hit) -> Result<Option<Rewrite>, Refusal> {
    let tuple = &inbound.headers.tuple;
    if cx.conns.flow(other).tuple == *tuple {
        return Ok(None);
    }
    let to = free_source(cx, &to, to.src).ok_or(Refusal::Silent(DropReason::NoMappingForMasquerade))?;
    let rewrite = Rewrite::compile(tuple, &to);
    let (now, init) = (Ticks::from_nanos(cx.now), flow.init(&rewrite, cx.tables.generation));
    let reply = cx.conns.prepare(Key::new(&to.inverse()));
    let entered = cx.conns.enter(&mut cx.local.conns, [&inbound.hashed, &reply], &init, now);
    entered.map(|_| Some(rewrite)).map_err(|_| Refusal::Silent(DropReason::CtMapInsertionFailed))
}

/// Where another worker was faster, its choice of a backend counts, and so does the way there.
#[cold]
fn join(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, hit: Hit, trail: &mut Trail) -> Result<Verdict, Refusal> {
    let view = cx.conns.flow(hit);
    let exit = current_exit(cx, hit, &view, trail)?;
    trail.after = Some(view.to);
    let kind = opening_kind(cx.arena.bytes(&packet.frame), &inbound.headers);
    let numbers = segment_numbers(cx.arena.bytes(&packet.frame), &inbound.headers);
    let verdict = follow(cx, packet, inbound, &view, exit, trail)?;
    if let Some(numbers) = numbers {
        cx.conns.note_numbers(hit, view.state, kind, numbers);
    }
    cx.conns.touch(hit, inbound.headers.l3_total, Ticks::from_nanos(cx.now));
    prove(cx, hit, &view, exit, inbound.sender, packet.in_port);
    Ok(verdict)
}

/// Asks the services about a new flow; `None` where it is no service that it wants.
#[inline(never)]
fn choose_backend(cx: &mut Cx<'_>, tuple: &Tuple, source: &Owner, trail: &mut Trail) -> Result<Option<Chosen>, Refusal> {
    let tables = cx.tables;
    let in_services = || tables.owner(tuple.dst).in_services;
    let origin = tables.origin_of(source);
    let now_secs = (cx.now / 1_000_000_000) as u32;
    let conns = cx.conns;
    let connections = |counter| conns.counted(counter).unwrap_or(0);
    match tables.services.select(tuple, origin, in_services, cx.affinity, connections, now_secs, &mut cx.local.random) {
        Selection::NotService => Ok(None),
        Selection::Refuse(reason, service) => {
            trail.service = service;
            Err(Refusal::unreachable(reason, tuple))
        }
        Selection::Drop(reason, service) => {
            trail.service = service;
            Err(Refusal::Silent(reason))
        }
        Selection::Backend(chosen) => Ok(Some(chosen)),
    }
}

/// Turns a denial into what the operator wants of it (E1.41).
fn obey(cx: &Cx<'_>, judged: Judgement, tuple: &Tuple) -> Result<(), Refusal> {
    match judged.reason {
        None => Ok(()),
        Some(reason) if cx.tables.runtime.config.policy.deny_action == crate::model::DenyAction::Reject => {
            Err(Refusal::prohibited(reason, tuple))
        }
        Some(reason) => Err(Refusal::Silent(reason)),
    }
}

/// Finds the tuple with which a masqueraded flow leaves.
fn translate_source(cx: &mut Cx<'_>, seen: &Tuple) -> Result<Tuple, Refusal> {
    // Their checksums cover the addresses, and we know neither (RFC 3828 §3.1, RFC 4340 §9.1).
    if matches!(seen.proto, proto::UDP_LITE | proto::DCCP) {
        return Err(Refusal::Silent(DropReason::UnknownL4));
    }
    let no_mapping = Refusal::Silent(DropReason::NoMappingForMasquerade);
    let address = cx.tables.own_address(seen.is_v4()).ok_or(no_mapping)?;
    free_source(cx, seen, address).ok_or(no_mapping)
}

fn free_source(cx: &mut Cx<'_>, seen: &Tuple, address: Ip) -> Option<Tuple> {
    let (first, last) = cx.tables.runtime.config.masquerade.ports;
    let conns = cx.conns;
    let taken = |reply: &Tuple| conns.lookup(conns.hash(reply), reply).is_some();
    select_source(seen, address, &(first..=last), &mut cx.local.random, taken)
}

/// What was decided about a new flow besides its tuples.
struct NewFlow {
    /// There and back; the first packet's is proven.
    ways: [Way; 2],
    first: FirstPacket,
    owner: u32,
    counter: u32,
    state: FlowState,
}

impl NewFlow {
    fn init(&self, rewrite: &Rewrite, generation: u32) -> FlowInit {
        let leg = |way: Way, (l3_delta, l4_delta)| Leg { exit: way.bits(), l3_delta, l4_delta };
        FlowInit {
            original: leg(self.ways[0], (rewrite.l3_delta, rewrite.l4_delta)),
            reply: leg(self.ways[1], rewrite.deltas_back()),
            first: self.first,
            generation,
            owner: self.owner,
            counter: self.counter,
            state: self.state,
        }
    }
}

/// What the node's own stack judges: natively received, for one of its addresses.
fn is_for_the_node(cx: &Cx<'_>, inbound: &Inbound) -> bool {
    inbound.sender == Sender::Uplink && cx.tables.owner(inbound.headers.tuple.dst).kind == OwnerKind::OwnNode
}

/// An ICMP message that is no question, such as an echo reply of which nobody knows: it opens no flow (E2.44).
fn is_icmp_without_question(headers: &Headers) -> bool {
    match headers.tuple.proto {
        proto::ICMP => !icmp::is_query(headers.icmp_type),
        proto::ICMPV6 => !icmpv6::is_query(headers.icmp_type),
        _ => false,
    }
}

/// This node is no router between others: what the network sends must be for it, its pods or its services.
fn is_transit(from: Sender, destination: &OwnerKind) -> bool {
    let network = matches!(from, Sender::Uplink | Sender::Tunnel(_));
    network && !matches!(destination, OwnerKind::LocalPod { .. } | OwnerKind::OwnNode)
}
