//! The lines of `-o hubble` against the published messages: every field is one that Hubble's JSON reader knows, of the type
//! that it expects, every enum value has a name there, and drop numbers fit their names.
//!
//! From cilium `api/v1/flow/flow.proto` and `api/v1/observer/observer.proto` (Apache-2.0), v1.19. Listed are the messages that Weir
//! writes, whole: a field that is written and not listed is a fault. proto3 JSON takes the names as the proto has them.

use std::process::Command;

use serde_json::Value;

/// Fields of a message, with the type of each; `[]` before a type is `repeated`.
const MESSAGES: &[(&str, &[(&str, &str)])] = &[
    ("GetFlowsResponse", &[("flow", "Flow"), ("node_name", "string"), ("time", "Timestamp")]),
    (
        "Flow",
        &[
            ("time", "Timestamp"),
            ("uuid", "string"),
            ("verdict", "Verdict"),
            ("drop_reason", "uint32"),
            ("ethernet", "Ethernet"),
            ("IP", "IP"),
            ("l4", "Layer4"),
            ("tunnel", "Tunnel"),
            ("source", "Endpoint"),
            ("destination", "Endpoint"),
            ("Type", "FlowType"),
            ("node_name", "string"),
            ("event_type", "CiliumEventType"),
            ("source_service", "Service"),
            ("destination_service", "Service"),
            ("traffic_direction", "TrafficDirection"),
            ("policy_match_type", "uint32"),
            ("trace_observation_point", "TraceObservationPoint"),
            ("trace_reason", "TraceReason"),
            ("drop_reason_desc", "DropReason"),
            ("is_reply", "bool"),
            ("interface", "NetworkInterface"),
            ("emitter", "Emitter"),
            ("egress_allowed_by", "[]Policy"),
            ("ingress_allowed_by", "[]Policy"),
            ("egress_denied_by", "[]Policy"),
            ("ingress_denied_by", "[]Policy"),
            ("Summary", "string"),
        ],
    ),
    ("Ethernet", &[("source", "string"), ("destination", "string")]),
    (
        "IP",
        &[("source", "string"), ("source_xlated", "string"), ("destination", "string"), ("ipVersion", "IPVersion"), ("encrypted", "bool")],
    ),
    ("Layer4", &[("TCP", "TCP"), ("UDP", "UDP"), ("SCTP", "SCTP"), ("ICMPv4", "ICMP"), ("ICMPv6", "ICMP")]),
    ("TCP", &[("source_port", "uint32"), ("destination_port", "uint32"), ("flags", "TCPFlags")]),
    ("UDP", &[("source_port", "uint32"), ("destination_port", "uint32")]),
    ("SCTP", &[("source_port", "uint32"), ("destination_port", "uint32")]),
    ("ICMP", &[("type", "uint32"), ("code", "uint32")]),
    (
        "TCPFlags",
        &[
            ("FIN", "bool"),
            ("SYN", "bool"),
            ("RST", "bool"),
            ("PSH", "bool"),
            ("ACK", "bool"),
            ("URG", "bool"),
            ("ECE", "bool"),
            ("CWR", "bool"),
            ("NS", "bool"),
        ],
    ),
    ("Tunnel", &[("protocol", "Tunnel.Protocol"), ("IP", "IP"), ("l4", "Layer4"), ("vni", "uint32")]),
    (
        "Endpoint",
        &[
            ("ID", "uint32"),
            ("identity", "uint32"),
            ("cluster_name", "string"),
            ("namespace", "string"),
            ("labels", "[]string"),
            ("pod_name", "string"),
        ],
    ),
    ("CiliumEventType", &[("type", "int32"), ("sub_type", "int32")]),
    ("Service", &[("name", "string"), ("namespace", "string")]),
    ("NetworkInterface", &[("index", "uint32"), ("name", "string")]),
    ("Emitter", &[("name", "string"), ("version", "string")]),
    ("Policy", &[("name", "string"), ("namespace", "string"), ("labels", "[]string"), ("revision", "uint64"), ("kind", "string")]),
];

/// Values of an enum, with their numbers.
const ENUMS: &[(&str, &[(&str, u64)])] = &[
    ("Verdict", &[("FORWARDED", 1), ("DROPPED", 2), ("ERROR", 3), ("AUDIT", 4), ("REDIRECTED", 5), ("TRACED", 6), ("TRANSLATED", 7)]),
    ("FlowType", &[("L3_L4", 1), ("L7", 2), ("SOCK", 3)]),
    ("IPVersion", &[("IP_NOT_USED", 0), ("IPv4", 1), ("IPv6", 2)]),
    ("Tunnel.Protocol", &[("UNKNOWN", 0), ("VXLAN", 1), ("GENEVE", 2)]),
    ("TrafficDirection", &[("TRAFFIC_DIRECTION_UNKNOWN", 0), ("INGRESS", 1), ("EGRESS", 2)]),
    ("TraceReason", &[("NEW", 1), ("ESTABLISHED", 2), ("REPLY", 3), ("RELATED", 4)]),
    (
        "TraceObservationPoint",
        &[
            ("TO_HOST", 2),
            ("TO_STACK", 3),
            ("TO_OVERLAY", 4),
            ("FROM_ENDPOINT", 5),
            ("FROM_NETWORK", 10),
            ("TO_NETWORK", 11),
            ("TO_ENDPOINT", 101),
        ],
    ),
    (
        "DropReason",
        &[
            ("INVALID_SOURCE_IP", 132),
            ("POLICY_DENIED", 133),
            ("INVALID_PACKET_DROPPED", 134),
            ("CT_TRUNCATED_OR_INVALID_HEADER", 135),
            ("CT_MISSING_TCP_ACK_FLAG", 136),
            ("CT_UNKNOWN_L4_PROTOCOL", 137),
            ("UNSUPPORTED_L3_PROTOCOL", 139),
            ("UNKNOWN_L4_PROTOCOL", 142),
            ("STALE_OR_UNROUTABLE_IP", 151),
            ("CT_MAP_INSERTION_FAILED", 155),
            ("INVALID_IPV6_EXTENSION_HEADER", 156),
            ("IP_FRAGMENTATION_NOT_SUPPORTED", 157),
            ("SERVICE_BACKEND_NOT_FOUND", 158),
            ("NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT", 160),
            ("UNSUPPORTED_L2_PROTOCOL", 166),
            ("NO_MAPPING_FOR_NAT_MASQUERADE", 167),
            ("FIB_LOOKUP_FAILED", 169),
            ("ENCAPSULATION_TRAFFIC_IS_PROHIBITED", 170),
            ("FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", 175),
            ("DENIED_BY_LB_SRC_RANGE_CHECK", 177),
            ("POLICY_DENY", 181),
            ("VLAN_FILTERED", 182),
            ("INVALID_VNI", 183),
            ("TTL_EXCEEDED", 196),
            ("DROP_RATE_LIMITED", 198),
            ("DROP_HOST_NOT_READY", 202),
            ("DROP_EP_NOT_READY", 203),
        ],
    ),
];

/// Says what is wrong with a value of a type, if anything is.
fn fault(kind: &str, value: &Value, at: &str) -> Option<String> {
    if let Some(item) = kind.strip_prefix("[]") {
        let Some(items) = value.as_array() else { return Some(format!("{at} is not repeated: {value}")) };
        return items.iter().find_map(|value| fault(item, value, at));
    }
    if let Some((_, fields)) = MESSAGES.iter().find(|(name, _)| *name == kind) {
        let Some(object) = value.as_object() else { return Some(format!("{at} is no message: {value}")) };
        return object.iter().find_map(|(key, value)| match fields.iter().find(|(name, _)| name == key) {
            Some((_, kind)) => fault(kind, value, &format!("{at}.{key}")),
            None => Some(format!("{kind} has no field {key} (at {at})")),
        });
    }
    let good = match kind {
        "string" => value.is_string(),
        "bool" => value.is_boolean(),
        "uint32" => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
        "int32" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        // RFC 3339, UTC.
        "Timestamp" => value.as_str().is_some_and(|text| text.len() >= 20 && text.as_bytes()[10] == b'T' && text.ends_with('Z')),
        _ => {
            let values = ENUMS.iter().find(|(name, _)| *name == kind).unwrap_or_else(|| panic!("no list of {kind}")).1;
            value.as_str().is_some_and(|name| values.iter().any(|(value, _)| *value == name))
        }
    };
    (!good).then(|| format!("{at} is no {kind}: {value}"))
}

#[test]
fn every_line_is_a_flow_as_hubble_defines_it() {
    let mut captures = Vec::new();
    for scenario in std::fs::read_dir(weir_fixtures::root().join("scenarios")).unwrap() {
        let folder = scenario.unwrap().path();
        captures.push((folder.join("snapshot.yaml"), folder.join("in.pcap")));
    }
    let shared = weir_fixtures::shared_captures().expect("../shared/pcaps is missing: these captures are shared beside the project");
    let files = std::fs::read_dir(shared).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.to_string_lossy().contains(".pcap"));
    captures.extend(files.map(|capture| (weir_fixtures::root().join("clusters/shop"), capture)));

    let (mut lines, mut seen) = (0, std::collections::BTreeSet::new());
    for (snapshot, capture) in captures {
        for per in ["packet", "flow"] {
            let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
            weir.args(["replay", "-o", "hubble", "--node", "node-a", "--per", per, "-f"]).arg(&snapshot);
            let output = weir.arg("--pcap").arg(&capture).output().unwrap();
            assert!(output.status.success(), "{}: {}", capture.display(), String::from_utf8_lossy(&output.stderr));
            for line in String::from_utf8(output.stdout).unwrap().lines() {
                let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if let Some(fault) = fault("GetFlowsResponse", &value, "") {
                    panic!("{}: {fault}\n{line}", capture.display());
                }
                let flow = &value["flow"];
                // What the CLI prints comes from these.
                for field in ["time", "verdict", "event_type", "Type", "node_name"] {
                    assert!(!flow[field].is_null(), "no {field}: {line}");
                }
                if let Some(name) = flow["drop_reason_desc"].as_str() {
                    let numbers = ENUMS.iter().find(|(name, _)| *name == "DropReason").unwrap().1;
                    let number = numbers.iter().find(|(reason, _)| *reason == name).unwrap().1;
                    assert_eq!((&flow["drop_reason"], &flow["event_type"]["sub_type"]), (&number.into(), &number.into()), "{line}");
                }
                seen.extend(flow.as_object().unwrap().keys().cloned());
                lines += 1;
            }
        }
    }
    assert!(lines > 5_000, "{lines} lines");
    for field in ["tunnel", "ingress_denied_by", "ingress_allowed_by", "trace_reason", "is_reply", "destination_service", "l4"] {
        assert!(seen.contains(field), "no line has {field}");
    }
}
