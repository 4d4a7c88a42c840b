//! Flows in the JSON of Hubble: `GetFlowsResponse` in proto3 JSON, one per line, as `hubble observe --input-file` reads it.
//!
//! Messages and numbers: cilium `api/v1/observer/observer.proto` and `api/v1/flow/flow.proto`.

use serde_json::{Map, Value, json};
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::flows::{Encap, EventType, Flow, PacketHead, Party};
use weir_dataplane::model::{Direction, MacAddr, proto};
use weir_dataplane::verdict::DropReason;
use weir_dataplane::wire::tcp;

use super::row::timestamp;

/// Event types of Cilium's monitor.
const TYPE_DROP: u8 = 1;
const TYPE_TRACE: u8 = 4;
/// Observation points of trace events; `to-endpoint` is 0 in the event, 101 in the flow.
const TO_ENDPOINT: u8 = 0;
const TO_STACK: u8 = 3;
const TO_OVERLAY: u8 = 4;
const TO_NETWORK: u8 = 11;

/// One line, without its end.
pub fn line(flow: &Flow) -> String {
    let time = timestamp(flow.time);
    json!({ "flow": message(flow, &time), "node_name": flow.node, "time": time }).to_string()
}

/// The line that tells of events that never came.
pub fn lost_line(count: u64) -> String {
    // Numbers of 64 bits are strings in proto3's JSON.
    json!({ "lost_events": { "source": "HUBBLE_RING_BUFFER", "num_events_lost": count.to_string() } }).to_string()
}

fn message(flow: &Flow, time: &str) -> Value {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| {
        fields.insert(key.to_owned(), value);
    };
    put("time", json!(time));
    put("verdict", json!(flow.verdict()));
    if let Some(reason) = flow.reason {
        let (code, name) = cilium(reason);
        put("drop_reason", json!(code));
        put("drop_reason_desc", json!(name));
    }
    if let Some(packet) = &flow.packet {
        if packet.src_mac != MacAddr::default() || packet.dst_mac != MacAddr::default() {
            put("ethernet", json!({ "source": packet.src_mac.to_string(), "destination": packet.dst_mac.to_string() }));
        }
        put("IP", ip(&packet.tuple, flow.after.as_ref()));
        if let Some(l4) = l4(packet) {
            put("l4", l4);
        }
        put("source", endpoint(flow.source.as_ref()));
        put("destination", endpoint(flow.destination.as_ref()));
        put("Summary", json!(summary(packet)));
    }
    put("Type", json!("L3_L4"));
    put("node_name", json!(flow.node));
    let (kind, sub_type) = event_type(flow);
    put("event_type", json!({ "type": kind, "sub_type": sub_type }));
    if let Some(service) = &flow.service {
        put("destination_service", json!({ "name": service.name, "namespace": service.namespace }));
    }
    if let Some(direction) = flow.direction() {
        put("traffic_direction", json!(if direction == Direction::Ingress { "INGRESS" } else { "EGRESS" }));
    }
    let point = match flow.event_type() {
        EventType::ToEndpoint => Some("TO_ENDPOINT"),
        EventType::ToStack => Some("TO_STACK"),
        EventType::ToOverlay => Some("TO_OVERLAY"),
        EventType::ToNetwork | EventType::Trace => Some("TO_NETWORK"),
        EventType::Drop => None,
    };
    if let Some(point) = point {
        put("trace_observation_point", json!(point));
    }
    if let Some(reply) = flow.state.is_reply() {
        put("is_reply", json!(reply));
    }
    if let Some(reason) = trace_reason(flow.state.name()) {
        put("trace_reason", json!(reason));
    }
    if let Some(Encap { vni, vtep }) = &flow.encap {
        put("tunnel", json!({ "protocol": "VXLAN", "IP": { "destination": vtep }, "vni": vni }));
    }
    put("interface", json!({ "name": flow.out_port.as_ref().unwrap_or(&flow.in_port) }));
    if let Some(side) = &flow.policy {
        let word = if side.direction == Direction::Ingress { "ingress" } else { "egress" };
        let rules = side.explained.by.iter().map(|r| policy(&r.namespace, &r.name, r.kind));
        let denied: Vec<Value> = match &side.explained.denied_by {
            Some(r) => vec![policy(&r.namespace, &r.name, r.kind)],
            None if side.explained.allowed => Vec::new(),
            None => side.explained.isolated_by.iter().map(|p| policy(&p.namespace, &p.name, p.kind)).collect(),
        };
        let allowed: Vec<Value> = rules.collect();
        for (list, key) in [(allowed, "allowed_by"), (denied, "denied_by")] {
            if !list.is_empty() {
                put(&format!("{word}_{key}"), Value::Array(list));
            }
        }
    }
    put("emitter", json!({ "name": "weir", "version": env!("CARGO_PKG_VERSION") }));
    Value::Object(fields)
}

fn policy(namespace: &Option<String>, name: &str, kind: weir_dataplane::model::PolicyKind) -> Value {
    json!({ "name": name, "namespace": namespace.as_deref().unwrap_or_default(), "kind": format!("{kind:?}") })
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

fn ip(tuple: &Tuple, after: Option<&Tuple>) -> Value {
    let mut ip = json!({
        "source": tuple.src.to_string(),
        "destination": tuple.dst.to_string(),
        "ipVersion": if tuple.is_v4() { "IPv4" } else { "IPv6" },
    });
    if let Some(after) = after.filter(|after| after.src != tuple.src) {
        ip["source_xlated"] = json!(after.src.to_string());
    }
    ip
}

fn l4(headers: &PacketHead) -> Option<Value> {
    let ports = || json!({ "source_port": headers.tuple.sport, "destination_port": headers.tuple.dport });
    Some(match headers.tuple.proto {
        proto::TCP => {
            let mut ports = ports();
            ports["flags"] = flags(headers.tcp_flags).map(|name| (name.to_owned(), Value::Bool(true))).collect::<Map<_, _>>().into();
            json!({ "TCP": ports })
        }
        proto::UDP => json!({ "UDP": ports() }),
        proto::SCTP => json!({ "SCTP": ports() }),
        proto::ICMP => json!({ "ICMPv4": { "type": headers.icmp_type, "code": headers.icmp_code } }),
        proto::ICMPV6 => json!({ "ICMPv6": { "type": headers.icmp_type, "code": headers.icmp_code } }),
        _ => return None,
    })
}

fn flags(bits: u8) -> impl Iterator<Item = &'static str> {
    let names = [(tcp::FIN, "FIN"), (tcp::SYN, "SYN"), (tcp::RST, "RST"), (tcp::PSH, "PSH"), (tcp::ACK, "ACK")];
    names.into_iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| name)
}

/// The line that Hubble's printers still show.
pub fn summary(headers: &PacketHead) -> String {
    match headers.tuple.proto {
        proto::TCP => format!("TCP Flags: {}", flags(headers.tcp_flags).collect::<Vec<_>>().join(", ")),
        proto::UDP => "UDP".into(),
        proto::SCTP => "SCTP".into(),
        proto::ICMP => format!(
            "ICMPv4 {}",
            icmp_name(headers.icmp_type, &[(0, "EchoReply"), (3, "DestinationUnreachable"), (8, "EchoRequest"), (11, "TimeExceeded")])
        ),
        proto::ICMPV6 => format!(
            "ICMPv6 {}",
            icmp_name(
                headers.icmp_type,
                &[
                    (1, "DestinationUnreachable"),
                    (2, "PacketTooBig"),
                    (3, "TimeExceeded"),
                    (128, "EchoRequest"),
                    (129, "EchoReply"),
                    (135, "NeighborSolicitation"),
                    (136, "NeighborAdvertisement")
                ]
            )
        ),
        other => format!("IP protocol {other}"),
    }
}

fn icmp_name(kind: u8, names: &[(u8, &str)]) -> String {
    names.iter().find(|(number, _)| *number == kind).map_or_else(|| format!("type {kind}"), |(_, name)| (*name).to_owned())
}

fn endpoint(party: Option<&Party>) -> Value {
    match party {
        Some(Party { identity, labels, pod: Some(pod) }) => {
            json!({ "identity": identity, "namespace": pod.namespace, "labels": labels, "pod_name": pod.name })
        }
        Some(Party { identity, labels, pod: None }) => json!({ "identity": identity, "labels": labels }),
        None => json!({}),
    }
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
