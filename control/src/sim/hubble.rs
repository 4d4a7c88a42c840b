//! Flows in the JSON of Hubble: `GetFlowsResponse` in proto3 JSON, one per line, as `hubble observe --input-file` reads it.
//!
//! Messages and numbers: cilium `api/v1/observer/observer.proto` and `api/v1/flow/flow.proto`.

use serde_json::{Map, Value, json};
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{Direction, Ip, MacAddr, proto};
use weir_dataplane::parse::Headers;
use weir_dataplane::verdict::{DropReason, Verdict};
use weir_dataplane::wire::tcp;

use super::fate::Fate;
use super::row::{Encap, Namer, Row, endpoint_of};

/// Event types of Cilium's monitor.
const TYPE_DROP: u8 = 1;
const TYPE_TRACE: u8 = 4;
/// Observation points of trace events; `to-endpoint` is 0 in the event, 101 in the flow.
const TO_ENDPOINT: u8 = 0;
const TO_STACK: u8 = 3;
const TO_OVERLAY: u8 = 4;
const TO_NETWORK: u8 = 11;

/// One line, without its end.
pub fn line(namer: &mut Namer<'_>, row: &Row, fate: &Fate) -> String {
    let node = namer.node();
    json!({ "flow": flow(namer, row, fate), "node_name": node, "time": row.time }).to_string()
}

fn flow(namer: &Namer<'_>, row: &Row, fate: &Fate) -> Value {
    let mut flow = Map::new();
    let mut put = |key: &str, value: Value| {
        flow.insert(key.to_owned(), value);
    };
    put("time", json!(row.time));
    put("verdict", json!(if fate.reason().is_some() { "DROPPED" } else { "FORWARDED" }));
    if let Some(reason) = fate.reason() {
        let (code, name) = cilium(reason);
        put("drop_reason", json!(code));
        put("drop_reason_desc", json!(name));
    }
    if let Some(headers) = &fate.headers {
        if headers.src_mac != MacAddr::default() || headers.dst_mac != MacAddr::default() {
            put("ethernet", json!({ "source": headers.src_mac.to_string(), "destination": headers.dst_mac.to_string() }));
        }
        put("IP", ip(&headers.tuple, fate.trail.after.as_ref()));
        if let Some(l4) = l4(headers) {
            put("l4", l4);
        }
        put("source", endpoint(namer, headers.tuple.src));
        let seen = fate.trail.backend.map_or(headers.tuple.dst, |b| b.address);
        put("destination", endpoint(namer, seen));
        put("Summary", json!(summary(headers)));
    }
    put("Type", json!("L3_L4"));
    put("node_name", json!(namer.node()));
    let (kind, sub_type) = event_type(row, fate);
    put("event_type", json!({ "type": kind, "sub_type": sub_type }));
    if let Some(service) = &row.service {
        put("destination_service", json!({ "name": service.name, "namespace": service.namespace }));
    }
    let direction = row.policy.as_ref().map(|side| side.direction).or_else(|| {
        let local = |ip: Ip| endpoint_of(namer.state(), ip.to_std()).is_some();
        let headers = fate.headers.as_ref()?;
        if row.in_port.contains('/') { Some(Direction::Egress) } else { local(headers.tuple.dst).then_some(Direction::Ingress) }
    });
    if let Some(direction) = direction {
        put("traffic_direction", json!(if direction == Direction::Ingress { "INGRESS" } else { "EGRESS" }));
    }
    if kind == TYPE_TRACE {
        let point = match sub_type {
            TO_ENDPOINT => "TO_ENDPOINT",
            TO_STACK => "TO_STACK",
            TO_OVERLAY => "TO_OVERLAY",
            _ => "TO_NETWORK",
        };
        put("trace_observation_point", json!(point));
    }
    if let Some(reply) = fate.is_reply() {
        put("is_reply", json!(reply));
    }
    if let Some(reason) = trace_reason(row.state) {
        put("trace_reason", json!(reason));
    }
    if let Some(Encap { vni, vtep }) = &row.encap {
        put("tunnel", json!({ "protocol": "VXLAN", "IP": { "destination": vtep }, "vni": vni }));
    }
    put("interface", json!({ "name": row.out.as_ref().unwrap_or(&row.in_port) }));
    if let Some(side) = &row.policy {
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
    Value::Object(flow)
}

fn policy(namespace: &Option<String>, name: &str, kind: weir_dataplane::model::PolicyKind) -> Value {
    json!({ "name": name, "namespace": namespace.as_deref().unwrap_or_default(), "kind": format!("{kind:?}") })
}

/// Number and name of Cilium's reason: our own where it has the same, else the nearest.
fn cilium(reason: DropReason) -> (u8, &'static str) {
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

fn l4(headers: &Headers) -> Option<Value> {
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
fn summary(headers: &Headers) -> String {
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

/// Who has an address: a pod with its labels, a node, or the world, with Cilium's reserved identities.
fn endpoint(namer: &Namer<'_>, ip: Ip) -> Value {
    let state = namer.state();
    let address = ip.to_std();
    if let Some(pod) = endpoint_of(state, address).and_then(|index| state.endpoints.get(index as usize)) {
        let labels = state.identities.get(pod.identity as usize).map(|identity| &identity.labels);
        let mut labels: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("k8s:{key}={value}")).collect();
        labels.push(format!("k8s:io.kubernetes.pod.namespace={}", pod.namespace));
        // Identities of pods begin above the reserved ones (256).
        return json!({ "identity": 256 + pod.identity, "namespace": pod.namespace, "labels": labels, "pod_name": pod.name });
    }
    let (identity, label) = match state.nodes.iter().position(|n| n.addresses.contains(&address)) {
        Some(node) if node as u32 == state.this_node => (1, "reserved:host"),
        Some(_) => (6, "reserved:remote-node"),
        None => (2, "reserved:world"),
    };
    json!({ "identity": identity, "labels": [label] })
}

fn event_type(row: &Row, fate: &Fate) -> (u8, u8) {
    if let Some(reason) = fate.reason() {
        return (TYPE_DROP, cilium(reason).0);
    }
    let sub_type = match fate.verdict {
        Verdict::Encap(_) => TO_OVERLAY,
        Verdict::Host(_) => TO_STACK,
        _ if row.out.as_ref().is_some_and(|out| out.contains('/')) => TO_ENDPOINT,
        _ => TO_NETWORK,
    };
    (TYPE_TRACE, sub_type)
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
