//! Connection tracking cases: real packets through the pipeline of the node under test, natively routed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use weir_dataplane::conntrack::{ConnTable, FlowState, TableConfig, Tuple};
use weir_dataplane::craft::Craft;
use weir_dataplane::events::{CtState, Event, Observer, Trail};
use weir_dataplane::io::mem::MemIo;
use weir_dataplane::io::{Batch, Packet, PacketIo, PortId};
use weir_dataplane::model::{Ip, proto};
use weir_dataplane::nat::quoted_tuple;
use weir_dataplane::parse::{Parsed, parse};
use weir_dataplane::pipeline::{Cx, Local, is_stale_service_flow, process};
use weir_dataplane::runtime::PortKind;
use weir_dataplane::service::Affinity;
use weir_dataplane::tables::{OwnerKind, Tables};
use weir_dataplane::verdict::Verdict;
use weir_dataplane::wire::{checksum, ethernet, icmp, icmpv6, ipv4, ipv6};
use weir_dataplane::yaml::{Node, Source};

use super::case::{Config, IcmpPart, Inner, PacketAnswer, PacketProto, PacketStep, PacketVerdict, Step};
use super::objects::Objects;
use super::report::Tally;
use super::world::World;

/// Flows at once.
const CONNECTIONS_MAX: u32 = 1024;
/// Empty batches after which expiry has looked at every entry, whatever its share of a batch.
const SWEEP_BATCHES: u32 = CONNECTIONS_MAX;
/// Sequence numbers of a case are relative to this.
const INITIAL_SEQUENCE: u32 = 1_000_000;
/// The clock of the first packet, and what passes between two packets without times, in nanoseconds.
const START: u64 = 1_000_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Judges the packets of a step, one after the other.
pub(super) fn judge<'t>(
    source: &Source,
    config: Option<&Config>,
    step: &Step,
    changes: &'t [Node<'t>],
    mut objects: Objects<'t>,
    seed: u64,
    tally: &mut Tally<'_>,
) -> Result<(), String> {
    let clients: Vec<IpAddr> = step.packets.iter().filter_map(|p| Some(Place::parse(p.from.as_deref()?).ok()?.address)).collect();
    let compile = |objects: &Objects<'_>, before: Option<&Tables>| {
        let world = World::with_clients(objects.snapshot(source)?, config, &clients);
        let node = config.map_or("", |c| c.this_node.as_str());
        let (state, runtime) = world.compile(node).map_err(|error| error.to_string())?;
        let generation = before.map_or(1, |t| t.generation + 1);
        Ok::<_, String>(Tables::compile_shared(state.into(), runtime.into(), generation, before))
    };
    let mut bench = Bench::new(compile(&objects, None)?, seed)?;
    for (packet, node) in step.packets.iter().zip(changes) {
        if let Some(seconds) = packet.at {
            bench.advance_to(START + (seconds * 1e9) as u64);
        }
        let (apply, delete) = (node.field("apply"), node.field("delete"));
        if apply.is_some() || delete.is_some() {
            objects.apply(apply.map_or(&[], |n| n.list()));
            objects.delete(delete.map_or(&[], |n| n.list()));
            bench.publish(compile(&objects, Some(&bench.tables))?);
        }
        if let Some(expected) = &packet.expect {
            let text = |place: &Option<String>| place.clone().unwrap_or_default();
            let between = (format!("packet {} {}", packet.n, text(&packet.from)), text(&packet.to));
            match bench.run(packet).map(|seen| bench.compare(expected, &seen)) {
                Ok(None) => tally.pass(),
                Ok(Some((expected, got, why))) => tally.fail((&between.0, &between.1), expected, got, why),
                Err(why) => tally.fail((&between.0, &between.1), format!("{:?}", expected.verdict), "no answer".into(), why),
            }
        }
    }
    Ok(())
}

/// An address with or without a port; `*` is a port that translation chose.
#[derive(Clone, Debug)]
struct Place {
    text: String,
    address: IpAddr,
    port: Option<Port>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Number(u16),
    Any,
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let (address, port) = match text.strip_suffix(":*") {
            Some(address) => (address.trim_matches(['[', ']']).parse().ok(), Some(Port::Any)),
            None => match text.parse::<SocketAddr>() {
                Ok(at) => (Some(at.ip()), Some(Port::Number(at.port()))),
                Err(_) => (text.parse().ok(), None),
            },
        };
        let address = address.ok_or_else(|| format!("{text} is no address"))?;
        Ok(Self { text: text.into(), address, port })
    }
}

/// What became of a packet.
struct Seen {
    verdict: Verdict,
    trail: Trail,
    /// Its tuple as it came.
    tuple: Tuple,
    /// Its tuple as it left.
    left: Option<Tuple>,
    /// The tuple that it quotes.
    quoted: Option<Tuple>,
    state: Option<FlowState>,
}

#[derive(Default)]
struct Recorder(Option<Trail>);

impl Observer for Recorder {
    fn packet(&mut self, event: &Event<'_>) {
        self.0 = Some(*event.trail);
    }
}

/// The node under test.
struct Bench {
    tables: Tables,
    conns: ConnTable,
    affinity: Affinity,
    local: Local,
    io: MemIo,
    now: u64,
    /// The ports that translation chose: the text that stands for them, and the packets that it chose them for.
    chosen: Vec<(String, Tuple, u16)>,
    /// Identifiers of echo requests as they left.
    identifiers: HashMap<u16, u16>,
}

impl Bench {
    fn new(tables: Tables, seed: u64) -> Result<Self, String> {
        let table = TableConfig { max: CONNECTIONS_MAX, key: u128::from(seed), workers: 1, owners: 64, share: CONNECTIONS_MAX };
        let conns = ConnTable::new(&table).map_err(|error| error.to_string())?;
        let worker = conns.worker().ok_or("the connection table has no place for a worker")?;
        Ok(Self {
            affinity: Affinity::new(CONNECTIONS_MAX, seed),
            local: Local::new(worker, CONNECTIONS_MAX, seed),
            io: MemIo::new(16, 9216).map_err(|error| error.to_string())?,
            now: START,
            chosen: Vec::new(),
            identifiers: HashMap::new(),
            tables,
            conns,
        })
    }

    /// Lets time pass, and the upkeep of the tables with it.
    fn advance_to(&mut self, now: u64) {
        if now > self.now {
            self.now = now;
            for _ in 0..SWEEP_BATCHES {
                self.process(&mut Vec::new(), &mut ());
            }
        }
    }

    /// Puts new tables in force and forgets what they make stale (E2.39).
    fn publish(&mut self, tables: Tables) {
        self.tables = tables;
        let now = weir_dataplane::conntrack::Ticks::from_nanos(self.now);
        let mut stale = Vec::new();
        if let Some(mut reader) = self.conns.reader() {
            self.conns.dump(&mut reader, 0, CONNECTIONS_MAX + 1, now, |flow| {
                if is_stale_service_flow(&self.tables, &flow.original) {
                    stale.push(flow.entry);
                }
            });
        }
        for entry in stale {
            self.conns.remove(&mut self.local.conns, entry);
        }
    }

    fn process<O: Observer>(&mut self, batch: &mut Batch, observer: &mut O) {
        let (tables, conns, affinity, arena) = (&self.tables, &self.conns, &self.affinity, self.io.arena());
        process(&mut Cx { tables, conns, affinity, arena, local: &mut self.local, now: self.now }, batch, observer);
    }

    /// Sends one packet.
    fn run(&mut self, packet: &PacketStep) -> Result<Seen, String> {
        let (frame, tuple) = self.frame(packet)?;
        let port = self.port(tuple.src)?;
        self.now += MILLISECOND;
        if !self.io.push(port, &frame) {
            return Err("the frame is too long".into());
        }
        let mut batch = Batch::new();
        self.io.rx(&mut batch).map_err(|error| error.to_string())?;
        let mut recorder = Recorder::default();
        self.process(&mut batch, &mut recorder);
        let Some(Packet { frame, verdict, .. }) = batch.pop() else { return Err("the frame is gone".into()) };
        let bytes = self.io.arena().bytes(&frame).to_vec();
        self.io.free(frame);

        let headers = match parse(&bytes) {
            Ok(Parsed::Ip(headers)) => Some(headers),
            _ => None,
        };
        let state = self.conns.lookup(self.conns.hash(&tuple), &tuple).map(|hit| self.conns.flow(hit).state);
        if let Some(headers) = &headers
            && packet.icmp.as_ref().is_some_and(|i| is_echo_request(packet, i))
        {
            self.identifiers.insert(tuple.sport, headers.tuple.sport);
        }
        let trail = recorder.0.unwrap_or_default();
        let quoted = headers.as_ref().and_then(|h| quoted_tuple(&bytes, h));
        Ok(Seen { verdict, trail, tuple, left: headers.map(|h| h.tuple), quoted, state })
    }

    /// Where a packet with this source comes in.
    fn port(&self, source: Ip) -> Result<PortId, String> {
        let runtime = &self.tables.runtime;
        let port = match self.tables.owner(source).kind {
            OwnerKind::LocalPod { endpoint, .. } => {
                let pod = &self.tables.state.endpoints[endpoint as usize];
                runtime.pod(&pod.namespace, &pod.name)
            }
            OwnerKind::OwnNode => runtime.port(|kind| matches!(kind, PortKind::Host)),
            _ => runtime.uplink(),
        };
        port.ok_or_else(|| format!("no port for {}", source))
    }

    /// The ports that a place may have: the one that is written there, or those chosen under its name, the last one first.
    fn places(&self, place: Option<&str>) -> Result<(Ip, Vec<u16>), String> {
        let place = Place::parse(place.ok_or("a packet without from or to")?)?;
        let ports = match place.port {
            Some(Port::Number(port)) => vec![port],
            Some(Port::Any) => self.chosen.iter().rev().filter(|(text, ..)| *text == place.text).map(|(.., port)| *port).collect(),
            None => vec![0],
        };
        if ports.is_empty() {
            return Err(format!("{} is not known yet", place.text));
        }
        Ok((place.address.into(), ports))
    }

    /// Reads a tuple. Where several flows had their port chosen under one name, that of a flow which has this tuple, as it comes or
    /// as an error quotes it, is meant: of several such, the one whose other end is `wanted`.
    fn tuple(&self, kind: PacketProto, from: Option<&str>, to: Option<&str>, wanted: Option<&str>) -> Result<Tuple, String> {
        let ((src, sports), (dst, dports)) = (self.places(from)?, self.places(to)?);
        let pairs = sports.iter().flat_map(|sport| dports.iter().map(move |dport| (*sport, *dport)));
        let tuples: Vec<Tuple> = pairs.map(|(sport, dport)| Tuple { src, dst, sport, dport, proto: number(kind) }).collect();
        let wanted = wanted.and_then(|text| Place::parse(text).ok());
        let fits = |tuple: &Tuple| {
            let found = [*tuple, tuple.inverse()].into_iter().find_map(|t| self.conns.lookup(self.conns.hash(&t), &t));
            let to = found.map(|hit| self.conns.flow(hit).to);
            let is_wanted = |to: &Tuple| {
                wanted.as_ref().is_none_or(|place| {
                    [(to.dst, to.dport), (to.src, to.sport)].iter().any(|(address, port)| {
                        *address == place.address.into()
                            && place.port.is_none_or(|wanted| wanted == Port::Any || wanted == Port::Number(*port))
                    })
                })
            };
            (to.is_some_and(|to| is_wanted(&to)), to.is_some())
        };
        let best = tuples.iter().rev().max_by_key(|tuple| fits(tuple));
        best.copied().ok_or_else(|| "a packet without an address".into())
    }

    /// Builds a packet, and tells the tuple under which it is tracked.
    fn frame(&self, packet: &PacketStep) -> Result<(Vec<u8>, Tuple), String> {
        let kind = packet.proto.ok_or("a packet without proto")?;
        let answer = packet.expect.as_ref();
        let mut tuple = self.tuple(kind, packet.from.as_deref(), packet.to.as_deref(), answer.and_then(|e| e.to.as_deref()))?;
        let Some(message) = &packet.icmp else {
            let mut craft = Craft::new(tuple);
            if let Some(part) = &packet.tcp {
                craft.tcp_flags = flags(&part.flags)?;
                craft.seq = INITIAL_SEQUENCE.wrapping_add(part.seq);
                craft.ack = INITIAL_SEQUENCE.wrapping_add(part.ack);
                craft.payload = vec![0; part.len];
            }
            // Cases know no chunks: what is new opens, and all else is data (RFC 9260 §3.2).
            if kind == PacketProto::Sctp && self.conns.lookup(self.conns.hash(&tuple), &tuple).is_some() {
                craft.payload = vec![0, 0, 0, 4];
            }
            return Ok((craft.frame(), tuple));
        };
        if !is_error(kind, message) {
            let reply = !is_echo_request(packet, message);
            let known = self.identifiers.get(&message.id).filter(|_| reply);
            let id = known.copied().unwrap_or(message.id);
            (tuple.sport, tuple.dport) = (id, id);
        }
        let mut craft = Craft::new(tuple);
        if let Some(inner) = &message.inner {
            let wanted = answer.and_then(|e| e.inner.as_ref()).map(|inner| inner.from.as_str());
            let mut quoted = self.tuple(inner.proto, Some(&inner.from), Some(&inner.to), wanted)?;
            if quoted.is_icmp() {
                // What is quoted is an echo as it left.
                let id = self.identifiers.get(&message.id).or(self.identifiers.values().next()).copied().unwrap_or(message.id);
                (quoted.sport, quoted.dport) = (id, id);
            }
            craft.payload = Craft::new(quoted).frame().split_off(ethernet::LEN);
        }
        let mut frame = craft.frame();
        finish_icmp(&mut frame, &tuple, message).ok_or("an ICMP packet with addresses of the other family")?;
        Ok((frame, tuple))
    }

    /// Compares; what differs is (expected, got, why).
    fn compare(&mut self, expected: &PacketAnswer, seen: &Seen) -> Option<(String, String, String)> {
        let (verdict, reason) = match seen.verdict {
            Verdict::Forward(_) | Verdict::Encap(_) => (PacketVerdict::Forward, None),
            Verdict::Host(_) | Verdict::Reply(None) => (PacketVerdict::Local, None),
            Verdict::Reply(Some(reason)) => (PacketVerdict::Reject, Some(reason)),
            Verdict::Drop(reason) => (PacketVerdict::Drop, Some(reason)),
        };
        let why = reason.map_or(String::new(), |r| r.words().to_owned());
        if verdict != expected.verdict && Some(verdict) != expected.also {
            return Some((format!("{:?}", expected.verdict), format!("{verdict:?}"), why));
        }
        if verdict == PacketVerdict::Forward {
            let ends = seen.left.map(|t| [(t.src, t.sport), (t.dst, t.dport)]);
            let wanted = [expected.from.as_deref(), expected.to.as_deref()];
            if let Some(difference) = self.differs(wanted, ends, seen.tuple, expected.distinct.is_some()) {
                return Some(difference);
            }
            if let Some(Inner { from, to, .. }) = &expected.inner {
                let ends = seen.quoted.map(|t| [(t.src, t.sport), (t.dst, t.dport)]);
                if let Some((expected, got, why)) = self.differs([Some(from), Some(to)], ends, seen.tuple, false) {
                    return Some((format!("inner {expected}"), format!("inner {got}"), why));
                }
            }
        }
        if let Some(wanted) = &expected.state {
            let got = seen.state.map_or("none", name);
            if got != wanted {
                return Some((format!("state {wanted}"), format!("state {got}"), why));
            }
        }
        let invalid = seen.trail.state == CtState::Invalid;
        let wanted = expected.track.as_deref().map(|track| track == "invalid");
        wanted.filter(|wanted| *wanted != invalid).map(|wanted| (format!("invalid: {wanted}"), format!("invalid: {invalid}"), why))
    }

    /// Compares addresses, learning the ports that translation chose.
    /// `asked` is the packet as it came: one flow keeps its port, and `distinct` ones have ports of their own.
    fn differs(
        &mut self,
        wanted: [Option<&str>; 2],
        ends: Option<[(Ip, u16); 2]>,
        asked: Tuple,
        distinct: bool,
    ) -> Option<(String, String, String)> {
        for (end, text) in wanted.iter().enumerate().filter_map(|(end, text)| text.map(|text| (end, text))) {
            let got = ends.map(|ends| ends[end]);
            let holds = match (Place::parse(text), got) {
                (Ok(place), Some((address, port))) => {
                    let same_port = match place.port {
                        None => true,
                        Some(Port::Number(number)) => number == port,
                        Some(Port::Any) => self.keeps_port(place.text, asked, port, distinct),
                    };
                    Ip::from(place.address) == address && same_port
                }
                _ => false,
            };
            if !holds {
                let side = ["from", "to"][end];
                let got = got.map_or("nothing".into(), |(address, port)| SocketAddr::new(address.to_std(), port).to_string());
                return Some((format!("{side} {text}"), format!("{side} {got}"), String::new()));
            }
        }
        None
    }
}

impl Bench {
    /// Tells whether a chosen port is that of the same flow before or, of a new flow, differs where it must; and remembers it.
    fn keeps_port(&mut self, text: String, asked: Tuple, port: u16, distinct: bool) -> bool {
        let before = self.chosen.iter().filter(|(of, ..)| *of == text);
        let same_flow = before.clone().find(|(_, flow, _)| *flow == asked);
        if let Some((.., before)) = same_flow {
            return *before == port;
        }
        let taken = before.clone().any(|(.., before)| *before == port);
        self.chosen.push((text, asked, port));
        !(distinct && taken)
    }
}

/// Gives an ICMP echo the type, code and rest of `message`, and its checksum.
fn finish_icmp(frame: &mut [u8], tuple: &Tuple, message: &IcmpPart) -> Option<()> {
    let is_v6 = tuple.proto == proto::ICMPV6;
    let l4 = ethernet::LEN + if is_v6 { ipv6::LEN } else { ipv4::LEN };
    let segment = frame.get_mut(l4..)?;
    let rest = match (is_v6, message.kind) {
        (true, icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY) | (false, icmp::ECHO_REQUEST | icmp::ECHO_REPLY) => {
            u32::from(tuple.sport) << 16 | u32::from(message.seq)
        }
        _ => message.mtu, // RFC 1191 §4, RFC 4443 §3.2
    };
    segment.get_mut(..2)?.copy_from_slice(&[message.kind, message.code]);
    segment.get_mut(icmp::CHECKSUM..icmp::CHECKSUM + 2)?.fill(0);
    segment.get_mut(icmp::IDENTIFIER..icmp::LEN)?.copy_from_slice(&rest.to_be_bytes());
    let pseudo = if is_v6 { checksum::pseudo(tuple.src, tuple.dst, tuple.proto, segment.len() as u32) } else { 0 };
    let value = checksum::full(segment, pseudo);
    segment.get_mut(icmp::CHECKSUM..icmp::CHECKSUM + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

fn is_error(kind: PacketProto, message: &IcmpPart) -> bool {
    if kind == PacketProto::Icmpv6 { icmpv6::is_error(message.kind) } else { icmp::is_error(message.kind) }
}

fn is_echo_request(packet: &PacketStep, message: &IcmpPart) -> bool {
    let request = if packet.proto == Some(PacketProto::Icmpv6) { icmpv6::ECHO_REQUEST } else { icmp::ECHO_REQUEST };
    message.kind == request
}

fn number(kind: PacketProto) -> u8 {
    match kind {
        PacketProto::Tcp => proto::TCP,
        PacketProto::Udp => proto::UDP,
        PacketProto::Sctp => proto::SCTP,
        PacketProto::Icmp => proto::ICMP,
        PacketProto::Icmpv6 => proto::ICMPV6,
    }
}

/// TCP flags from their letters (RFC 9293 §3.1).
fn flags(letters: &str) -> Result<u8, String> {
    letters.chars().try_fold(0, |flags, letter| {
        let bit = "FSRPAU".find(letter).ok_or_else(|| format!("{letter} is no TCP flag"))?;
        Ok(flags | 1 << bit)
    })
}

/// A state in the words of Linux' conntrack.
fn name(state: FlowState) -> &'static str {
    match state {
        FlowState::Unreplied => "UNREPLIED",
        FlowState::Replied => "REPLIED",
        FlowState::SynSent => "SYN_SENT",
        FlowState::SynRecv => "SYN_RECV",
        FlowState::Established | FlowState::SctpEstablished => "ESTABLISHED",
        FlowState::FinWait => "FIN_WAIT",
        FlowState::CloseWait => "CLOSE_WAIT",
        FlowState::LastAck => "LAST_ACK",
        FlowState::TimeWait => "TIME_WAIT",
        FlowState::Close => "CLOSE",
        FlowState::CookieWait => "COOKIE_WAIT",
        FlowState::CookieEchoed => "COOKIE_ECHOED",
        FlowState::ShutdownSent => "SHUTDOWN_SENT",
        FlowState::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
        FlowState::SctpClosed => "CLOSED",
    }
}
