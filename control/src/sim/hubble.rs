//! Flows in the JSON of Hubble: `GetFlowsResponse` in proto3 JSON, one per line, as `hubble observe --input-file` reads it.
//!
//! Messages and numbers: cilium `api/v1/observer/observer.proto` and `api/v1/flow/flow.proto`.

use std::fmt::{self, Display};
use std::io::{self, Write};

use serde_json::json;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::flows::{EventType, Flow, PacketHead, Party, Verdict};
use weir_dataplane::model::{Direction, Ip, MacAddr, PolicyKind, proto};
use weir_dataplane::policy::Explained;
use weir_dataplane::verdict::DropReason;
use weir_dataplane::wire::tcp;

use super::bytes::{Clock, address, field, mac, number, quoted, text};

/// Event types of Cilium's monitor.
const TYPE_DROP: u8 = 1;
const TYPE_TRACE: u8 = 4;
/// Observation points of trace events; `to-endpoint` is 0 in the event, 101 in the flow.
const TO_ENDPOINT: u8 = 0;
const TO_STACK: u8 = 3;
const TO_OVERLAY: u8 = 4;
const TO_NETWORK: u8 = 11;

/// Writes lines.
#[derive(Debug, Default)]
pub struct Messages {
    clock: Clock,
    line: Vec<u8>,
}

impl Messages {
    /// Writes the line of one flow, with its end.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, out: &mut impl Write, flow: &Flow) -> io::Result<()> {
        let line = &mut self.line;
        line.clear();
        text(line, r#"{"flow":{"time":""#);
        self.clock.timestamp(line, flow.time);
        text(line, r#"","verdict":"#);
        quoted(line, verdict(flow.verdict()));
        message(line, flow);
        text(line, r#"},"node_name":"#);
        quoted(line, &flow.node);
        text(line, r#","time":""#);
        self.clock.timestamp(line, flow.time);
        text(line, "\"}\n");
        out.write_all(line)
    }
}

/// The line that tells of events that never came.
pub fn lost_line(count: u64) -> String {
    // Numbers of 64 bits are strings in proto3's JSON.
    json!({ "lost_events": { "source": "HUBBLE_RING_BUFFER", "num_events_lost": count.to_string() } }).to_string()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped => "DROPPED",
    }
}

/// The fields of a `Flow` that follow its time and verdict.
fn message(line: &mut Vec<u8>, flow: &Flow) {
    if let Some(reason) = flow.reason {
        let (code, name) = cilium(reason);
        named_number(line, "drop_reason", code.into());
        named(line, "drop_reason_desc", name);
    }
    if let Some(packet) = &flow.packet {
        if packet.src_mac != MacAddr::default() || packet.dst_mac != MacAddr::default() {
            text(line, r#","ethernet":{"source":""#);
            mac(line, packet.src_mac);
            text(line, r#"","destination":""#);
            mac(line, packet.dst_mac);
            text(line, "\"}");
        }
        let (dst, dport) = destination(flow, &packet.tuple);
        ip(line, &Tuple { dst, ..packet.tuple }, flow.after.as_ref());
        l4(line, packet, dport);
        endpoint(line, "source", flow.source.as_deref());
        endpoint(line, "destination", flow.destination.as_deref());
        // Writing to a Vec cannot fail.
        drop(write!(line, r#","Summary":"{}""#, summary(packet)));
    }
    text(line, r#","Type":"L3_L4""#);
    named(line, "node_name", &flow.node);
    let (kind, sub_type) = event_type(flow);
    text(line, r#","event_type":{"type":"#);
    number(line, kind.into());
    named_number(line, "sub_type", sub_type.into());
    line.push(b'}');
    if let Some(service) = &flow.service {
        text(line, r#","destination_service":{"name":"#);
        quoted(line, &service.name);
        named(line, "namespace", &service.namespace);
        line.push(b'}');
    }
    if let Some(direction) = flow.direction() {
        named(line, "traffic_direction", if direction == Direction::Ingress { "INGRESS" } else { "EGRESS" });
    }
    let point = match flow.event_type() {
        EventType::ToEndpoint => Some("TO_ENDPOINT"),
        EventType::ToStack => Some("TO_STACK"),
        EventType::ToOverlay => Some("TO_OVERLAY"),
        EventType::ToNetwork | EventType::Trace => Some("TO_NETWORK"),
        EventType::Drop => None,
    };
    if let Some(point) = point {
        named(line, "trace_observation_point", point);
    }
    if let Some(reply) = flow.state.is_reply() {
        text(line, if reply { r#","is_reply":true"# } else { r#","is_reply":false"# });
    }
    if let Some(reason) = trace_reason(flow.state.name()) {
        named(line, "trace_reason", reason);
    }
    if let Some(encap) = &flow.encap {
        text(line, r#","tunnel":{"protocol":"VXLAN","IP":{"destination":"#);
        quoted(line, &encap.vtep);
        line.push(b'}');
        named_number(line, "vni", encap.vni.into());
        line.push(b'}');
    }
    text(line, r#","interface":{"name":"#);
    quoted(line, flow.out_port.as_ref().unwrap_or(&flow.in_port));
    line.push(b'}');
    if let Some(side) = &flow.policy {
        let Explained { allowed, by, denied_by, isolated_by, .. } = &side.explained;
        let ingress = side.direction == Direction::Ingress;
        let (allowed_by, is_denied_by) =
            if ingress { ("ingress_allowed_by", "ingress_denied_by") } else { ("egress_allowed_by", "egress_denied_by") };
        policies(line, allowed_by, by.iter().map(|rule| (&rule.namespace, &rule.name, rule.kind)));
        match denied_by {
            Some(rule) => policies(line, is_denied_by, [(&rule.namespace, &rule.name, rule.kind)]),
            None if *allowed => {}
            None => policies(line, is_denied_by, isolated_by.iter().map(|policy| (&policy.namespace, &policy.name, policy.kind))),
        }
    }
    text(line, concat!(r#","emitter":{"name":"weir","version":""#, env!("CARGO_PKG_VERSION"), "\"}"));
}

/// A field that is a string.
fn named(line: &mut Vec<u8>, key: &str, value: &str) {
    field(line, key);
    quoted(line, value);
}

/// A field that is a number.
fn named_number(line: &mut Vec<u8>, key: &str, value: u64) {
    field(line, key);
    number(line, value);
}

/// What `write` adds for each item, with commas between.
fn listed<T>(line: &mut Vec<u8>, items: impl IntoIterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            line.push(b',');
        }
        write(line, item);
    }
}

/// A list of policies; nothing where there are none.
fn policies<'a>(line: &mut Vec<u8>, key: &str, list: impl IntoIterator<Item = (&'a Option<String>, &'a String, PolicyKind)>) {
    let mut list = list.into_iter().peekable();
    if list.peek().is_none() {
        return;
    }
    field(line, key);
    line.push(b'[');
    listed(line, list, |line, (namespace, name, kind)| {
        text(line, r#"{"name":"#);
        quoted(line, name);
        named(line, "namespace", namespace.as_deref().unwrap_or_default());
        // Writing to a Vec cannot fail.
        drop(write!(line, r#","kind":"{kind:?}"}}"#));
    });
    line.push(b']');
}

/// Number and name of Cilium's reason: our own where it has the same, else the nearest.
pub fn cilium(reason: DropReason) -> (u8, &'static str) {
    let nearest = match reason {
        DropReason::ServiceNoLocalBackend
        | DropReason::ServiceNotProxied
        | DropReason::ServicePortNotFound
        | DropReason::ServiceAddressUnallocated
        | DropReason::ServiceNotExternal => DropReason::ServiceBackendNotFound,
        DropReason::UnknownVtep => DropReason::NoTunnelEndpoint,
        DropReason::Multicast | DropReason::OtherHost | DropReason::NeighbourIgnored => DropReason::UnsupportedL2,
        DropReason::PortUnavailable => DropReason::EndpointNotReady,
        same => same,
    };
    (nearest.code(), nearest.name())
}

/// Whom a packet is for, after the service choice, or of a reply, before the source translation that it answers: Cilium's events
/// have the packet as it goes on, and beside a pod's name its own port belongs. The Service is `destination_service`.
pub fn destination(flow: &Flow, tuple: &Tuple) -> (Ip, u16) {
    match (flow.backend, flow.state.is_reply()) {
        (Some(backend), Some(false) | None) => (backend.ip().into(), backend.port()),
        (_, Some(true)) => flow.after.map_or((tuple.dst, tuple.dport), |after| (after.dst, after.dport)),
        (None, _) => (tuple.dst, tuple.dport),
    }
}

fn ip(line: &mut Vec<u8>, tuple: &Tuple, after: Option<&Tuple>) {
    text(line, r#","IP":{"source":""#);
    address(line, tuple.src);
    text(line, r#"","destination":""#);
    address(line, tuple.dst);
    text(line, if tuple.is_v4() { r#"","ipVersion":"IPv4""# } else { r#"","ipVersion":"IPv6""# });
    if let Some(after) = after.filter(|after| after.src != tuple.src) {
        text(line, r#","source_xlated":""#);
        address(line, after.src);
        line.push(b'"');
    }
    line.push(b'}');
}

fn l4(line: &mut Vec<u8>, packet: &PacketHead, dport: u16) {
    let name = match packet.tuple.proto {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        proto::ICMP => "ICMPv4",
        proto::ICMPV6 => "ICMPv6",
        _ => return,
    };
    text(line, r#","l4":{""#);
    text(line, name);
    if matches!(packet.tuple.proto, proto::ICMP | proto::ICMPV6) {
        text(line, r#"":{"type":"#);
        number(line, packet.icmp_type.into());
        named_number(line, "code", packet.icmp_code.into());
    } else {
        text(line, r#"":{"source_port":"#);
        number(line, packet.tuple.sport.into());
        named_number(line, "destination_port", dport.into());
    }
    if packet.tuple.proto == proto::TCP {
        text(line, r#","flags":{"#);
        listed(line, flags(packet.tcp_flags), |line, flag| {
            quoted(line, flag);
            text(line, ":true");
        });
        line.push(b'}');
    }
    text(line, "}}");
}

fn flags(bits: u8) -> impl Iterator<Item = &'static str> {
    let names = [(tcp::FIN, "FIN"), (tcp::SYN, "SYN"), (tcp::RST, "RST"), (tcp::PSH, "PSH"), (tcp::ACK, "ACK")];
    names.into_iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| name)
}

/// What Hubble's printers still show of a packet; nothing in it needs an escape.
pub fn summary(packet: &PacketHead) -> impl Display {
    const ICMP: [(u8, &str); 4] = [(0, "EchoReply"), (3, "DestinationUnreachable"), (8, "EchoRequest"), (11, "TimeExceeded")];
    const ICMPV6: [(u8, &str); 7] = [
        (1, "DestinationUnreachable"),
        (2, "PacketTooBig"),
        (3, "TimeExceeded"),
        (128, "EchoRequest"),
        (129, "EchoReply"),
        (135, "NeighborSolicitation"),
        (136, "NeighborAdvertisement"),
    ];
    let (protocol, tcp_flags, kind) = (packet.tuple.proto, packet.tcp_flags, packet.icmp_type);
    fmt::from_fn(move |f| {
        let icmp = |f: &mut fmt::Formatter<'_>, names: &[(u8, &str)]| match names.iter().find(|(number, _)| *number == kind) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "type {kind}"),
        };
        match protocol {
            proto::TCP => {
                f.write_str("TCP Flags: ")?;
                flags(tcp_flags).enumerate().try_for_each(|(n, flag)| {
                    f.write_str(if n > 0 { ", " } else { "" })?;
                    f.write_str(flag)
                })
            }
            proto::UDP => f.write_str("UDP"),
            proto::SCTP => f.write_str("SCTP"),
            proto::ICMP => f.write_str("ICMPv4 ").and_then(|()| icmp(f, &ICMP)),
            proto::ICMPV6 => f.write_str("ICMPv6 ").and_then(|()| icmp(f, &ICMPV6)),
            other => write!(f, "IP protocol {other}"),
        }
    })
}

fn endpoint(line: &mut Vec<u8>, key: &str, party: Option<&Party>) {
    field(line, key);
    let Some(Party { identity, labels, pod }) = party else { return text(line, "{}") };
    text(line, r#"{"identity":"#);
    number(line, (*identity).into());
    if let Some(pod) = pod {
        named(line, "namespace", &pod.namespace);
    }
    text(line, r#","labels":["#);
    listed(line, labels, |line, label| quoted(line, label));
    line.push(b']');
    if let Some(pod) = pod {
        named(line, "pod_name", &pod.name);
    }
    line.push(b'}');
}

fn event_type(flow: &Flow) -> (u8, u8) {
    match (flow.event_type(), flow.reason) {
        (EventType::Drop, reason) => (TYPE_DROP, reason.map_or(0, |reason| cilium(reason).0)),
        (EventType::ToEndpoint, _) => (TYPE_TRACE, TO_ENDPOINT),
        (EventType::ToStack, _) => (TYPE_TRACE, TO_STACK),
        (EventType::ToOverlay, _) => (TYPE_TRACE, TO_OVERLAY),
        (EventType::ToNetwork | EventType::Trace, _) => (TYPE_TRACE, TO_NETWORK),
    }
}

fn trace_reason(state: Option<&str>) -> Option<&'static str> {
    Some(match state? {
        "new" => "NEW",
        "established" => "ESTABLISHED",
        "reply" => "REPLY",
        "related" => "RELATED",
        _ => return None,
    })
}
