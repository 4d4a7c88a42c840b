//! The hot lane: clean packets of known flows, which are nearly all.
//!
//! Clean is what needs no decision: Ethernet for us, IPv4 without options or IPv6 without extension headers, TCP or UDP, not a
//! fragment, in one buffer, lengths in order, time to live left; and VXLAN over IPv4 around such a packet. It is followed if its flow is in a
//! steady state, decided under the tables in force, and its sender is the one that the flow's direction was last
//! [proven](super::Way) for: link filter, key, sender and generation together determine what the guards of the general lane would
//! say. Whatever else there is to say about a packet is said there: this lane edits nothing before it is sure, refuses
//! nothing and inserts nothing.
//!
//! What it does to a packet must be what the general lane does; `tests/lanes.rs` holds them together.
//!
//! Every header is taken once as an array of fixed size, so that its fields need no check of their own, and kept in the form in
//! which the connection table has it.

use weir_xsk::{Arena, Frame};

use super::{Cx, Way};
use crate::conntrack::{ConnTable, Direction, FlowState, Hashed, Isa, Key, Lookup, Probe, Ticks, Tuple};
use crate::counters::{Counters, PortCounters, Stage};
use crate::events::Observer;
use crate::io::Packet;
use crate::model::{Ip, proto};
use crate::nat::edit_transport;
use crate::overlay::vxlan::{OVERHEAD_V4, OVERHEAD_V6};
use crate::parse::{HeaderFlags, Headers};
use crate::route::Departure;
use crate::tables::{Gate, LinkFamily, TunnelEnd};
use crate::wire::{checksum, chunk, ethernet, ipv4, ipv6, tcp, udp};

/// A frame as this lane sees it: one cache line, written in place from batch to batch.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Arrival {
    key: Key,
    /// Of the key.
    hash: u64,
    /// Where its flow may be.
    probe: Probe,
    /// Length of the IP packet.
    total: u16,
    /// Bytes in front of the link header of this packet: those of VXLAN, or none.
    outer: u8,
    tos: u8,
    /// Who sent the outer packet, where there is one.
    peer: u32,
    tcp_flags: u8,
    /// As the [`Gate`]'s.
    hop: u8,
    is_udp: bool,
    /// `None` where the frame is not clean, and then nothing else is true.
    family: Option<LinkFamily>,
}

const _: () = assert!(size_of::<Arrival>() == 64);

impl Arrival {
    pub(super) const BLANK: Self = Self {
        key: Key::BLANK,
        hash: 0,
        probe: Probe::NONE,
        total: 0,
        outer: 0,
        tos: 0,
        peer: 0,
        tcp_flags: 0,
        hop: 0,
        is_udp: false,
        family: None,
    };
}

impl Arrival {
    /// Tells whether this is a clean frame of which the index knew nothing.
    #[inline(always)]
    pub(super) fn is_unknown(&self) -> bool {
        self.family.is_some() && !self.probe.is_some()
    }
    /// Tells whether it may be one that can be followed: clean, and the index knew something.
    #[inline(always)]
    pub(super) fn may_be_known(&self) -> bool {
        self.family.is_some() && self.probe.is_some()
    }
    /// The tuple of a clean frame, inside the overlay's headers where it has some.
    #[inline(always)]
    pub(super) fn tuple(&self) -> Tuple {
        self.key.tuple()
    }
    /// Where it goes: address and port.
    #[inline(always)]
    pub(super) fn destination(&self) -> (Ip, u16) {
        let Tuple { dst, dport, .. } = self.key.tuple();
        (dst, dport)
    }
    /// The key of what answers it, if it is sent on to this destination.
    #[inline(always)]
    pub(super) fn answer(&self, dst: Ip, dport: u16) -> Key {
        self.key.answer(dst, dport)
    }
    /// The same for the general lane, which knows whether it was `opened`: taken out of an overlay packet.
    #[inline(always)]
    pub(super) fn hashed(&self, opened: bool) -> Option<Hashed> {
        (self.family.is_some() && opened == (self.outer != 0)).then(|| ConnTable::hashed_key(&self.key, self.hash))
    }
    /// Writes what [`parse`](crate::parse::parse) would find in a clean `frame` that is no overlay packet. `None` where there is more
    /// to say of its addresses than that they are somebody's.
    #[inline(always)]
    pub(super) fn headers(&self, frame: &[u8], headers: &mut Headers) -> Option<()> {
        let tuple = self.tuple();
        let (flags, l4, ttl) = match self.family.filter(|_| self.outer == 0)? {
            LinkFamily::V4 => {
                // Neither 0/8, nor 127/8, nor multicast and what is above it.
                let plain = |address: u32| matches!(address >> 24, 1..=126 | 128..=223);
                let ip: &[u8; ipv4::LEN] = chunk(frame, ethernet::LEN)?;
                if !(plain(tuple.src.low32()) & plain(tuple.dst.low32())) {
                    return None;
                }
                let df = if ip[6] & (ipv4::DONT_FRAGMENT >> 8) as u8 != 0 { HeaderFlags::DF } else { HeaderFlags::NONE };
                (df, ethernet::LEN + ipv4::LEN, ip[ipv4::TTL])
            }
            LinkFamily::V6 => {
                // Neither ::, nor ::1, nor a mapped one, nor multicast.
                let plain = |address: u128| matches!((address >> 112) as u16, 1..0xff00);
                let ip: &[u8; ipv6::LEN] = chunk(frame, ethernet::LEN)?;
                if !(plain(tuple.src.0) & plain(tuple.dst.0)) {
                    return None;
                }
                (HeaderFlags::V6.with(HeaderFlags::DF), ethernet::LEN + ipv6::LEN, ip[ipv6::HOP_LIMIT])
            }
        };
        let link = frame.first_chunk()?;
        let (dst_mac, src_mac) = (ethernet::dst(link), ethernet::src(link));
        let (l3, l4, l3_total) = (ethernet::LEN as u16, l4 as u16, u32::from(self.total));
        let (tos, tcp_flags) = (self.tos, self.tcp_flags);
        *headers = Headers { tuple, src_mac, dst_mac, l3, l4, l3_total, flags, ttl, tos, tcp_flags, ..Headers::BLANK };
        Some(())
    }
}

/// What the packets of a batch meet here, taken out of its places so that a loop over them has it at hand.
#[derive(Clone, Copy)]
pub(super) struct Lane<'a, I> {
    flows: Lookup<'a, I>,
    arena: &'a Arena,
    gates: &'a [Gate],
    overlay: &'a TunnelEnd,
    departures: &'a [Departure],
    generation: u32,
    now: Ticks,
    /// The overlay was used a moment ago.
    encapsulates: bool,
}

impl<'a, I: Isa> Lane<'a, I> {
    #[inline(always)]
    pub(super) fn new(cx: &Cx<'a>, isa: I) -> Self {
        let (tables, arena) = (cx.tables, cx.arena);
        Self {
            flows: cx.conns.lookup_with(isa),
            arena,
            gates: tables.ports.gates(),
            overlay: tables.ports.overlay(),
            departures: tables.routes.departures(),
            generation: tables.generation,
            now: Ticks::from_nanos(cx.now),
            encapsulates: cx.local.encapsulates,
        }
    }
}

/// Reads a batch and asks for the memory of its flows, in stages: what one stage asks for has arrived when the next one reads it.
///
/// Frames that are not clean take part with what is left in their place: a prefetch of anything is harmless, a branch is not free.
/// Tells whether there may be first packets among the frames.
#[inline(always)]
pub(super) fn look<I: Isa, O: Observer>(
    lane: &Lane<'_, I>,
    counters: &mut Counters,
    batch: &[Packet],
    arrivals: &mut [Arrival],
    observer: &mut O,
) -> bool {
    let lane = *lane;
    if lane.encapsulates {
        for packet in batch {
            lane.arena.prefetch_headroom(&packet.frame);
        }
    }
    counters.received += batch.len() as u64;
    // As many as there are gates, so that one check is good for both.
    let (ports, gone) = counters.ports.split_at_mut(lane.gates.len());
    for (packet, arrival) in batch.iter().zip(&mut *arrivals) {
        let in_port = usize::from(packet.in_port.0);
        arrival.family = match (lane.gates.get(in_port), ports.get_mut(in_port)) {
            (Some(gate), Some(port)) => {
                port.rx(packet.frame.total_len());
                read(&lane, gate, &packet.frame, arrival)
            }
            _ => {
                if let Some(port) = in_port.checked_sub(lane.gates.len()).and_then(|index| gone.get_mut(index)) {
                    port.rx(packet.frame.total_len());
                }
                None
            }
        };
        arrival.probe = lane.flows.prefetch_bucket(arrival.hash);
    }
    observer.stage(Stage::Parse, batch.len());
    let mut unfound = false;
    for arrival in &mut *arrivals {
        let is_v6 = arrival.family == Some(LinkFamily::V6);
        if lane.flows.prefetch_entry(is_v6, arrival.hash, &mut arrival.probe) {
            unfound = true;
        }
    }
    if unfound {
        for arrival in arrivals {
            lane.flows.prefetch_second(arrival.family == Some(LinkFamily::V6), arrival.hash, &mut arrival.probe);
        }
    }
    observer.stage(Stage::Lookup, batch.len());
    unfound
}

/// Reads the headers of a clean frame.
#[inline(always)]
fn read<I: Isa>(lane: &Lane<'_, I>, gate: &Gate, frame: &Frame, arrival: &mut Arrival) -> Option<LinkFamily> {
    let mut frame = lane.arena.bytes(frame);
    let mut link = &gate.link;
    arrival.hop = gate.hop;
    arrival.outer = 0;
    // What comes to our end of the overlay and is not opened here has no flow as it is.
    if gate.is_uplink
        && let Some((peer, inner)) = inner_frame(frame, lane.overlay)
    {
        (arrival.outer, arrival.peer) = (OVERHEAD_V4 as u8, peer);
        (frame, link) = (inner, &lane.overlay.link);
    }
    // A frame with less than the length of a TCP header behind an UDP header is rare enough not to be clean.
    let head: &[u8; LEN_V4] = frame.first_chunk()?;
    let family = match link.family(head.first_chunk()?)? {
        LinkFamily::V4 => read_v4(head, frame.len(), lane.flows, arrival)?,
        LinkFamily::V6 => read_v6(frame.first_chunk()?, frame.len(), lane.flows, arrival)?,
    };
    let is_whole = !gate.unfinished_checksums || !is_unfinished(frame, arrival);
    is_whole.then_some(family)
}

/// Link, network and TCP header.
const LEN_V4: usize = ethernet::LEN + ipv4::LEN + tcp::LEN;
/// Likewise.
const LEN_V6: usize = ethernet::LEN + ipv6::LEN + tcp::LEN;

/// The frame inside a clean overlay packet, and who sent it.
#[inline(always)]
fn inner_frame<'a>(frame: &'a [u8], end: &TunnelEnd) -> Option<(u32, &'a [u8])> {
    /// Congestion was met on the way, or a mark that must be carried over (RFC 6040 §4.2).
    const MARKED: u8 = 1;
    let head: &[u8; OVERHEAD_V4] = frame.first_chunk()?;
    let [_, _, _, _, _, _, _, _, _, _, _, _, e0, e1, ip @ ..] = head;
    let (ip, payload): (&[u8; ipv4::LEN], _) = ip.split_first_chunk()?;
    let [_, _, p0, p1, l0, l1, _, _, vxlan @ ..] = payload else { return None };
    let ours = (u16::from_be_bytes([*e0, *e1]) == ethernet::IPV4)
        & (u16::from_be_bytes([*p0, *p1]) == end.port)
        & (ip[9] == proto::UDP)
        & (ip[16..] == end.address)
        & (*vxlan == end.header);
    let total = total_if_plain(ip)?;
    let whole = usize::from(u16::from_be_bytes([*l0, *l1])) + ipv4::LEN == usize::from(total);
    if !(ours & whole) | (ip[1] & MARKED != 0) {
        return None;
    }
    let peer = u32::from_be_bytes([ip[12], ip[13], ip[14], ip[15]]);
    Some((peer, frame.get(OVERHEAD_V4..ethernet::LEN + usize::from(total))?))
}

/// The length of an IPv4 packet with an intact header that has no options and is no fragment.
#[inline(always)]
fn total_if_plain(ip: &[u8; ipv4::LEN]) -> Option<u16> {
    /// Of the first eight bytes: version and header length, more fragments and offset.
    const MASK: u64 = u64::from_le_bytes([0xff, 0, 0, 0, 0, 0, ((ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) >> 8) as u8, 0xff]);
    let first = u64::from_le_bytes(*ip.first_chunk()?);
    let plain = first & MASK == ipv4::VERSION_IHL as u64 && checksum::is_header_intact(ip);
    plain.then_some(((first >> 16) as u16).swap_bytes())
}

#[inline(always)]
fn read_v4<I: Isa>(head: &[u8; LEN_V4], len: usize, flows: Lookup<'_, I>, arrival: &mut Arrival) -> Option<LinkFamily> {
    let (ip, l4): (&[u8; ipv4::LEN], &[u8; tcp::LEN]) = (head[ethernet::LEN..].first_chunk()?, head.last_chunk()?);
    let total = total_if_plain(ip)?;
    if (ip[ipv4::TTL] <= 1) | (ethernet::LEN + usize::from(total) > len) {
        return None;
    }
    let number = ip[9];
    let ports;
    (ports, arrival.tcp_flags) = transport(l4, number, i32::from(total) - ipv4::LEN as i32)?;
    (arrival.total, arrival.tos, arrival.is_udp) = (total, ip[1], number == proto::UDP);
    let addresses = u64::from_be_bytes(*ip.last_chunk()?);
    arrival.key.set_v4(addresses, ports, number);
    arrival.hash = flows.hash(&Key::v4(addresses, ports, number));
    Some(LinkFamily::V4)
}

#[inline(always)]
fn read_v6<I: Isa>(head: &[u8; LEN_V6], len: usize, flows: Lookup<'_, I>, arrival: &mut Arrival) -> Option<LinkFamily> {
    let (ip, l4): (&[u8; ipv6::LEN], &[u8; tcp::LEN]) = (head[ethernet::LEN..].first_chunk()?, head.last_chunk()?);
    let payload = u16::from_be_bytes([ip[4], ip[5]]);
    let total = payload.checked_add(ipv6::LEN as u16)?;
    if (ip[0] >> 4 != 6) | (ip[ipv6::HOP_LIMIT] <= 1) | (ethernet::LEN + usize::from(total) > len) {
        return None;
    }
    let number = ip[6];
    let ports;
    (ports, arrival.tcp_flags) = transport(l4, number, i32::from(payload))?;
    (arrival.total, arrival.tos, arrival.is_udp) = (total, ip[0] << 4 | ip[1] >> 4, number == proto::UDP);
    let (src, dst) = ipv6::addresses(ip);
    arrival.key = Key::v6(src.0, dst.0, ports, number);
    arrival.hash = flows.hash(&arrival.key);
    Some(LinkFamily::V6)
}

/// Ports as a [`Key`] has them, and TCP's flags, if this is a TCP or UDP header that does not contradict the segment's length.
///
/// At random half and half a branch on the protocol costs 7 ns, so there is none: every field is read as if it were there.
#[inline(always)]
fn transport(header: &[u8; tcp::LEN], number: u8, segment_len: i32) -> Option<(u32, u8)> {
    /// The shortest header by protocol; longer than any, of those that are no concern of this lane.
    static SHORTEST: [i32; 256] = {
        let mut least = [i32::MAX; 256];
        (least[proto::TCP as usize], least[proto::UDP as usize]) = (tcp::LEN as i32, udp::LEN as i32);
        least
    };
    // RFC 9293 §3.1, RFC 768: the header, or header and data, lie within the packet.
    let udp_len = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let (tcp_len, flags) = (u32::from(header[12] >> 4) * 4, header[13]);
    let (len, flags) = (by_protocol(number, udp_len, tcp_len) as i32, by_protocol(number, 0, flags.into()) as u8);
    if (len < SHORTEST[usize::from(number)]) | (len > segment_len) {
        return None;
    }
    Some((u32::from_be_bytes(*header.first_chunk()?).rotate_left(16), flags))
}

/// Chooses without a branch.
#[inline(always)]
fn by_protocol(number: u8, udp: u32, tcp: u32) -> u32 {
    std::hint::select_unpredictable(number == proto::TCP, tcp, udp)
}

/// Tells whether the sender's stack left the checksum of a packet that was read to hardware; see
/// [`is_unfinished`](crate::parse::is_unfinished). Not inlined: packets of ports that never do so need the registers.
#[inline(never)]
fn is_unfinished(frame: &[u8], arrival: &Arrival) -> bool {
    let Tuple { src, dst, proto: number, .. } = arrival.tuple();
    let l3_len = if src.is_v4() { ipv4::LEN } else { ipv6::LEN };
    let Some(header) = chunk::<{ tcp::LEN }>(frame, ethernet::LEN + l3_len) else { return false };
    let field = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let len = by_protocol(number, field(4), u32::from(arrival.total) - l3_len as u32);
    let found = by_protocol(number, field(udp::CHECKSUM), field(tcp::CHECKSUM));
    found == u32::from(checksum::fold(checksum::pseudo(src, dst, number, len)))
}

/// Does with the first packets of a batch what was decided for their flows, up to one that it cannot follow. Gives how many those
/// are. `followed` counts them by [`Kind`](crate::route::Kind).
#[inline(always)]
pub(super) fn follow_run<I: Isa>(
    lane: &Lane<'_, I>,
    ports: &mut [PortCounters],
    batch: &mut [Packet],
    arrivals: &[Arrival],
    followed: &mut [u64; 3],
) -> usize {
    let lane = *lane;
    for (index, (packet, arrival)) in batch.iter_mut().zip(arrivals).enumerate() {
        let exit = match arrival.family {
            Some(LinkFamily::V4) => follow::<_, false>(&lane, packet, arrival),
            Some(LinkFamily::V6) => follow::<_, true>(&lane, packet, arrival),
            None => None,
        };
        let Some(exit) = exit else { return index };
        packet.verdict = exit.verdict;
        if let Some(port) = ports.get_mut(usize::from(exit.port.0)) {
            port.tx(packet.frame.len());
        }
        followed[exit.kind as usize] += 1;
    }
    batch.len()
}

/// Does with a packet of a family what was decided for its flow, and gives the exit by which it leaves; `None`, and nothing has
/// happened, where that is not plainly known.
#[inline(always)]
fn follow<'a, I: Isa, const V6: bool>(lane: &Lane<'a, I>, packet: &mut Packet, arrival: &Arrival) -> Option<&'a Departure> {
    let direction = lane.flows.direction(arrival.probe, &arrival.key, V6)?;
    let (way, generation) = direction.exit();
    let way = Way::from_bits(way);
    let exit = lane.departures.get(usize::from(way.exit))?;
    if arrival.outer == 0 {
        if way.from != packet.in_port.0 {
            return None;
        }
    } else if lane.departures.get(usize::from(way.from))?.vtep != u64::from(arrival.peer) {
        return None;
    }
    let known = (arrival.tcp_flags & FlowState::UNSTEADY_FLAGS == 0) & (generation == lane.generation);
    if !known | (arrival.total > exit.mtu) {
        return None;
    }
    let len = u32::from(exit.overhead) + ethernet::LEN as u32 + u32::from(arrival.total);
    // Bytes are changed from here on; the slice is as long as the headers that were read, and what comes in front.
    let bytes = lane.arena.reframe(&mut packet.frame, u32::from(arrival.outer), u32::from(exit.overhead), len)?;
    direction.count(u32::from(arrival.total), lane.now);
    let inner_len = ethernet::LEN + usize::from(arrival.total);
    let hop = exit.hop & arrival.hop;
    match &exit.tunnel {
        None => edit::<I, V6, 0, LEN_V4, LEN_V6>(lane, bytes, arrival, &direction, hop, |front| {
            *front.first_chunk_mut()? = exit.link;
            Some(())
        })?,
        Some(template) if !template.is_over_v6() => {
            edit::<I, V6, OVERHEAD_V4, { OVERHEAD_V4 + LEN_V4 }, { OVERHEAD_V4 + LEN_V6 }>(
                lane,
                bytes,
                arrival,
                &direction,
                hop,
                |front| {
                    template.write_over_v4(front.first_chunk_mut()?, inner_len, arrival.tos, arrival.hash);
                    Some(())
                },
            )?;
        }
        Some(template) => {
            edit::<I, V6, OVERHEAD_V6, { OVERHEAD_V6 + LEN_V4 }, { OVERHEAD_V6 + LEN_V6 }>(
                lane,
                bytes,
                arrival,
                &direction,
                hop,
                |front| {
                    template.write_over_v6(front.first_chunk_mut()?, inner_len, arrival.tos, arrival.hash);
                    Some(())
                },
            )?;
        }
    }
    Some(exit)
}

/// Writes what goes in front of an IP packet whose link header is `AT` bytes from the start, by `front`; then its addresses, ports,
/// time to live and checksums. The constants besides are where its TCP header ends in each family.
#[inline(always)]
fn edit<I: Isa, const V6: bool, const AT: usize, const END_V4: usize, const END_V6: usize>(
    lane: &Lane<'_, I>,
    bytes: &mut [u8],
    arrival: &Arrival,
    direction: &Direction<'_>,
    hop: u8,
    front: impl Fn(&mut [u8]) -> Option<()>,
) -> Option<()> {
    const { assert!(END_V4 == AT + LEN_V4 && END_V6 == AT + LEN_V6) };
    let (l4, ports) = if V6 {
        let head: &mut [u8; END_V6] = bytes.first_chunk_mut()?;
        front(head)?;
        let (ip, l4) = head[AT + ethernet::LEN..].split_first_chunk_mut::<{ ipv6::LEN }>()?;
        let (addresses, ports) = direction.translated_v6(&lane.flows.partner(arrival.probe));
        ip[ipv6::HOP_LIMIT] -= hop;
        for (field, word) in ip[8..].as_chunks_mut().0.iter_mut().zip(addresses) {
            *field = word.to_be_bytes();
        }
        (l4, ports)
    } else {
        let head: &mut [u8; END_V4] = bytes.first_chunk_mut()?;
        front(head)?;
        let (ip, l4) = head[AT + ethernet::LEN..].split_first_chunk_mut::<{ ipv4::LEN }>()?;
        let (addresses, ports, l3_delta) = direction.translated_v4();
        let field = u16::from_be_bytes([ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]]);
        let field = checksum::update(checksum::update(field, l3_delta), if hop == 0 { 0 } else { ipv4::HOP_DELTA });
        ip[ipv4::TTL] -= hop;
        [ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]] = field.to_be_bytes();
        *ip.last_chunk_mut()? = addresses.to_be_bytes();
        direction.note_numbers(u64::from_be_bytes(*chunk(l4, tcp::NUMBERS)?));
        (l4, ports)
    };
    edit_transport(l4.first_chunk_mut()?, arrival.is_udp, ports, direction.l4_delta());
    Some(())
}
