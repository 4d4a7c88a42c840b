//! One packet of a replay as people and programs read it: the JSON line of the contract, and words.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::io::PortId;
use weir_dataplane::model::{Direction, Ip, NodeState, ServiceIndex, proto};
use weir_dataplane::parse::{HeaderFlags, Headers};
use weir_dataplane::policy::{Explained, Query, explain};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::verdict::{DropReason, Verdict};

use super::fate::Fate;

/// One line of `weir replay -o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Number in the capture, from 1.
    pub n: u64,
    /// When, as the capture says (RFC 3339).
    pub time: String,
    /// Port where it came in: `uplink`, `host` or `namespace/pod`.
    #[serde(rename = "in")]
    pub in_port: String,
    /// `forward`, `host`, `reply` or `drop`.
    pub verdict: &'static str,
    /// Name of the drop reason, also of a refusal.
    pub reason: Option<&'static str>,
    /// Port by which it left.
    pub out: Option<String>,
    /// Source as it came in, the inner one of an overlay packet: `ip:port`, or the address alone.
    pub src: Option<String>,
    /// Destination likewise.
    pub dst: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    pub proto: Option<String>,
    /// The Service that was asked for.
    pub service: Option<ServiceName>,
    /// The backend that it chose, or keeps to.
    pub backend: Option<String>,
    /// What policy said, where a side denies or a rule admits.
    pub policy: Option<PolicySide>,
    /// Number of the reason.
    pub reason_code: Option<u8>,
    /// `new`, `established`, `reply`, `related` or `invalid`.
    pub state: Option<&'static str>,
    /// Source after translation, where it changed.
    pub snat: Option<String>,
    /// Destination after translation, where it changed.
    pub dnat: Option<String>,
    /// The overlay that it leaves in.
    pub encap: Option<Encap>,
    /// The node whose overlay packet it came in.
    pub decap: Option<String>,
    /// The largest IP packet that the way out takes, where this one was too big.
    pub mtu: Option<u16>,
}

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `ports[].name`; `null` where it has none.
    pub port: Option<String>,
}

/// The outer headers of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Encap {
    /// Network identifier.
    pub vni: u32,
    /// The remote node's address.
    pub vtep: String,
}

/// What policy said of the side that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicySide {
    /// Which side.
    pub direction: Direction,
    /// The judgement.
    #[serde(flatten)]
    pub explained: Explained,
}

/// Names what fates refer to by number, for one node.
#[derive(Debug)]
pub struct Namer<'a> {
    state: &'a NodeState,
    runtime: &'a Runtime,
    /// What was explained before: a flow's packets, and those of flows alike, ask the same.
    explained: HashMap<(u32, Direction, Ip, u8, u16, bool), Explained>,
}

/// Explanations kept; beyond that they are made anew.
const EXPLAINED_MAX: usize = 65_536;

impl<'a> Namer<'a> {
    /// Names things of this state and node.
    pub fn new(state: &'a NodeState, runtime: &'a Runtime) -> Self {
        Self { state, runtime, explained: HashMap::new() }
    }

    /// The state that names come from.
    pub fn state(&self) -> &'a NodeState {
        self.state
    }

    /// The name of this node.
    pub fn node(&self) -> &'a str {
        &self.runtime.config.node
    }

    /// The whole line.
    pub fn row(&mut self, n: u64, time: u64, fate: &Fate) -> Row {
        let (src, dst) = fate.headers.as_ref().map(ends).unzip();
        let after = fate.headers.as_ref().zip(fate.trail.after).map(|(h, after)| (h, Changed::new(&h.tuple, &after)));
        let side =
            |changed: fn(&Changed) -> Option<(Ip, u16)>| after.as_ref().and_then(|(h, c)| changed(c).map(|(ip, port)| end(h, ip, port)));
        Row {
            n,
            time: timestamp(time),
            in_port: self.port(fate.in_port),
            verdict: fate.verdict_name(),
            reason: fate.reason().map(DropReason::name),
            out: fate.out_port().map(|port| self.port(port)),
            src,
            dst,
            proto: fate.headers.as_ref().map(|h| protocol(h.tuple.proto)),
            service: fate.trail.service.and_then(|index| self.service(index)),
            backend: fate.trail.backend.map(|b| SocketAddr::new(b.address.to_std(), b.port).to_string()),
            policy: self.policy(fate),
            reason_code: fate.reason().map(DropReason::code),
            state: fate.state_name(),
            snat: side(|c| c.src),
            dnat: side(|c| c.dst),
            encap: self.encap(fate),
            decap: fate.decap.and_then(|node| self.state.nodes.get(node as usize)).map(|node| node.name.clone()),
            mtu: fate.trail.mtu,
        }
    }

    /// The name of a port.
    pub fn port(&self, port: PortId) -> String {
        self.runtime.ports.get(usize::from(port.0)).map_or_else(|| format!("port {}", port.0), |p| p.name.clone())
    }

    /// The name of a Service port.
    pub fn service(&self, index: ServiceIndex) -> Option<ServiceName> {
        let service = self.state.services.get(index as usize)?;
        let port = Some(service.port_name.clone()).filter(|name| !name.is_empty());
        Some(ServiceName { namespace: service.namespace.clone(), name: service.name.clone(), port })
    }

    /// The overlay that a packet left in.
    pub fn encap(&self, fate: &Fate) -> Option<Encap> {
        let (this, node) = (self.state.nodes.get(self.state.this_node as usize)?, self.state.nodes.get(fate.trail.encap? as usize)?);
        let vtep = [true, false].into_iter().find_map(|v4| this.primary(v4).and(node.primary(v4)))?;
        matches!(fate.verdict, Verdict::Encap(_)).then(|| Encap { vni: self.runtime.config.overlay.vni, vtep: vtep.to_string() })
    }

    /// What policy said of the side that denies, else of the side where a rule admits.
    fn policy(&mut self, fate: &Fate) -> Option<PolicySide> {
        let sides = [(Direction::Egress, fate.trail.egress), (Direction::Ingress, fate.trail.ingress)];
        let judged = || sides.into_iter().filter_map(|(direction, judgement)| Some((direction, judgement?)));
        let (direction, _) = judged().find(|(_, j)| !j.allowed).or_else(|| judged().rfind(|(_, j)| j.rule.is_some()))?;
        let headers = fate.headers.as_ref()?;
        let seen = seen_by_policy(fate, headers);
        let (pod, peer) = match direction {
            Direction::Egress => (headers.tuple.src, seen.dst),
            Direction::Ingress => (seen.dst, headers.tuple.src),
        };
        let endpoint = endpoint_of(self.state, pod.to_std())?;
        let via_service = fate.trail.service.is_some();
        let key = (endpoint, direction, peer, seen.proto, seen.dport, via_service);
        if let Some(explained) = self.explained.get(&key) {
            return Some(PolicySide { direction, explained: explained.clone() });
        }
        let query = Query { pod: endpoint, direction, peer, protocol: seen.proto, port: seen.dport, via_service };
        let explained = explain(self.state, self.runtime, &query);
        if self.explained.len() >= EXPLAINED_MAX {
            self.explained.clear();
        }
        self.explained.insert(key, explained.clone());
        Some(PolicySide { direction, explained })
    }
}

/// The flow as policies see it: after the service choice, before source translation (E1.25).
fn seen_by_policy(fate: &Fate, headers: &Headers) -> Tuple {
    match fate.trail.backend {
        Some(backend) => Tuple { dst: backend.address, dport: backend.port, ..headers.tuple },
        None => headers.tuple,
    }
}

/// The live pod, off the host network, that has an address.
pub fn endpoint_of(state: &NodeState, address: IpAddr) -> Option<u32> {
    state.endpoints.iter().position(|e| !e.host_network && e.addresses.contains(&address)).map(|index| index as u32)
}

/// The ends of a tuple that translation changed.
struct Changed {
    src: Option<(Ip, u16)>,
    dst: Option<(Ip, u16)>,
}

impl Changed {
    fn new(before: &Tuple, after: &Tuple) -> Self {
        let changed = |old: (Ip, u16), new: (Ip, u16)| (old != new).then_some(new);
        Self {
            src: changed((before.src, before.sport), (after.src, after.sport)),
            dst: changed((before.dst, before.dport), (after.dst, after.dport)),
        }
    }
}

fn ends(headers: &Headers) -> (String, String) {
    let tuple = &headers.tuple;
    (end(headers, tuple.src, tuple.sport), end(headers, tuple.dst, tuple.dport))
}

/// `ip:port` where the protocol has ports, else the address alone.
fn end(headers: &Headers, ip: Ip, port: u16) -> String {
    let has_ports = matches!(headers.tuple.proto, proto::TCP | proto::UDP | proto::SCTP) && !headers.has(HeaderFlags::FRAGMENT_LATER);
    if has_ports { SocketAddr::new(ip.to_std(), port).to_string() } else { ip.to_string() }
}

/// The name of an IP protocol; its number where it has none.
pub fn protocol(number: u8) -> String {
    match number {
        proto::ICMP => "icmp".into(),
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::ICMPV6 => "icmpv6".into(),
        proto::SCTP => "sctp".into(),
        other => other.to_string(),
    }
}

/// Nanoseconds since 1970 as RFC 3339, UTC.
pub fn timestamp(time: u64) -> String {
    // 2^64 nanoseconds end in 2554, within what a timestamp holds.
    jiff::Timestamp::from_nanosecond(time.into()).map_or_else(|_| time.to_string(), |t| t.to_string())
}

impl Row {
    /// Why it ended as it did, in a line: the reason, the policy, the service, the way.
    pub fn why(&self) -> String {
        let mut parts = Vec::new();
        if let Some(reason) = self.reason {
            parts.push(reason.to_owned());
        }
        if let Some(side) = &self.policy {
            parts.push(side.words());
        }
        if let Some(service) = &self.service {
            let port = service.port.as_ref().map(|p| format!(":{p}")).unwrap_or_default();
            parts.push(format!("svc/{}/{}{port}", service.namespace, service.name));
        }
        for (name, value) in [("to", &self.dnat), ("from", &self.snat)] {
            if let Some(value) = value {
                parts.push(format!("{name} {value}"));
            }
        }
        if let Some(encap) = &self.encap {
            parts.push(format!("vxlan {} vni {}", encap.vtep, encap.vni));
        }
        if let Some(node) = &self.decap {
            parts.push(format!("from node {node}"));
        }
        if let Some(mtu) = self.mtu {
            parts.push(format!("mtu {mtu}"));
        }
        parts.join(", ")
    }
}

impl PolicySide {
    /// `ingress denied: shop/p isolates; nearest rule 0 fails on port: …`
    pub fn words(&self) -> String {
        let side = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let explained = &self.explained;
        let name = |namespace: &Option<String>, name: &str| match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        if let Some(rule) = &explained.denied_by {
            return format!("{side} denied by {} rule {}", name(&rule.namespace, &rule.name), rule.rule);
        }
        if explained.allowed {
            let by: Vec<String> = explained.by.iter().map(|r| format!("{} rule {}", name(&r.namespace, &r.name), r.rule)).collect();
            return if by.is_empty() { format!("{side} allowed") } else { format!("{side} allowed by {}", by.join(" and ")) };
        }
        let isolated: Vec<String> = explained.isolated_by.iter().map(|p| name(&p.namespace, &p.name)).collect();
        let mut words = format!("{side} isolated by {}", isolated.join(" and "));
        if let Some(nearest) = &explained.nearest {
            let rule = nearest.rule.map(|r| format!(" rule {r}")).unwrap_or_default();
            words.push_str(&format!("; {}{rule} fails on {}: {}", name(&nearest.namespace, &nearest.name), nearest.fails, nearest.detail));
        }
        words
    }
}
