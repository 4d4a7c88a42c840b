//! Which keys a case may have. What is not among them would be ignored, and an expectation that is ignored holds: so it is a fault.

use weir_dataplane::yaml::{Fault, Node, Source, Value};

/// Statements for readers, wherever they stand.
const WORDS: [&str; 10] = ["note", "source", "ref", "upstream_says", "doubtful", "alt", "title", "name", "features", "distinct"];

/// The keys of one kind of item; after a slash, the kind of the items below it.
type Keys = &'static [&'static str];

/// Every kind of item. Objects and what has addresses as keys are not looked into.
const KINDS: [(&str, Keys); 16] = [
    (
        "case",
        &[
            "id",
            "kind",
            "snapshot",
            "config/config",
            "then/step",
            "invalid/invalid",
            LISTS[0],
            LISTS[1],
            LISTS[2],
            LISTS[3],
            LISTS[4],
            LISTS[5],
            LISTS[6],
        ],
    ),
    ("step", &["apply", "delete/object", LISTS[0], LISTS[1], LISTS[2], LISTS[3], LISTS[4], LISTS[5], LISTS[6]]),
    ("config", &["this_node", "cluster_cidrs", "masquerade_all", "nodeport_addresses", "service_cidrs", "proxy_healthy"]),
    ("object", &["apiVersion", "kind", "namespace"]),
    ("pairs", &["from", "to", "port", "protocol", "verdict", "family", "self"]),
    ("flow", &["from", "from_kind", "to", "protocol", "expect/answer"]),
    ("answer", &["verdict", "endpoints", "snat", "policy"]),
    ("health", &["service", "port", "expect/status"]),
    ("status", &["status", "local_endpoints", "closed"]),
    ("entry", &["protocol", "orig_dst", "orig_dport", "reply_src", "keep"]),
    ("sequence", &["steps/connection"]),
    ("connection", &["at", "from", "to", "protocol", "expect"]),
    ("fact", &["id", "level", "statement"]),
    ("packet", &["n", "at", "proto", "from", "to", "tcp/tcp", "icmp/icmp", "expect/fate", "apply", "delete/object"]),
    ("fate", &["verdict", "also", "from", "to", "inner/inner", "track", "state"]),
    ("invalid", &["object", "valid", "reason"]),
];
const LISTS: [&str; 7] =
    ["expect/pairs", "flows/flow", "healthchecks/health", "conntrack/entry", "affinity/sequence", "facts/fact", "packets/packet"];
/// Parts of packets.
const PARTS: [(&str, Keys); 3] = [
    ("tcp", &["flags", "seq", "ack", "len"]),
    ("icmp", &["type", "code", "id", "seq", "mtu", "inner/inner"]),
    ("inner", &["proto", "from", "to"]),
];

/// Finds the first key of a case that means nothing.
pub(super) fn check(source: &Source, case: &Node<'_>) -> Result<(), Fault> {
    check_item(source, case, "case", "")
}

fn check_item(source: &Source, item: &Node<'_>, kind: &str, path: &str) -> Result<(), Fault> {
    if let Value::List(items) = &item.value {
        return items.iter().enumerate().try_for_each(|(n, item)| check_item(source, item, kind, &format!("{path}[{n}]")));
    }
    let Some((_, keys)) = KINDS.iter().chain(&PARTS).find(|(known, _)| *known == kind) else { return Ok(()) };
    for (name, value) in item.map() {
        let path = if path.is_empty() { name.name.to_string() } else { format!("{path}.{}", name.name) };
        let known = keys.iter().map(|key| key.split_once('/').unwrap_or((key, ""))).find(|(key, _)| *key == name.name);
        match known {
            Some((_, below)) => check_item(source, value, below, &path)?,
            None if WORDS.contains(&&*name.name) => {}
            None => return Err(source.fault(name.at, path, "is no key of the case format")),
        }
    }
    Ok(())
}
