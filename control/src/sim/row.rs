//! One packet of a replay as people and programs read it: the JSON line of the contract, and words.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
pub use weir_dataplane::flows::{Encap, Namer, PolicySide, ServiceName};
use weir_dataplane::flows::{Flow, PacketHead};
use weir_dataplane::model::{Ip, NodeState, proto};
use weir_dataplane::verdict::DropReason;

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

impl Row {
    /// The line of packet number `n`.
    pub fn new(n: u64, flow: &Flow) -> Self {
        let packet = flow.packet.as_ref();
        let changed = packet.zip(flow.after).map(|(packet, after)| (packet, Changed::new(&packet.tuple, &after)));
        let side = |of: fn(&Changed) -> Option<(Ip, u16)>| changed.as_ref().and_then(|(p, c)| of(c).map(|(ip, port)| end(p, ip, port)));
        Self {
            n,
            time: timestamp(flow.time),
            in_port: flow.in_port.clone(),
            verdict: flow.outcome.verdict(),
            reason: flow.reason.map(DropReason::name),
            out: flow.out_port.clone(),
            src: packet.map(|p| end(p, p.tuple.src, p.tuple.sport)),
            dst: packet.map(|p| end(p, p.tuple.dst, p.tuple.dport)),
            proto: packet.map(|p| protocol(p.tuple.proto)),
            service: flow.service.clone(),
            backend: flow.backend.map(|backend| backend.to_string()),
            policy: flow.policy.clone(),
            reason_code: flow.reason.map(DropReason::code),
            state: flow.state.name(),
            snat: side(|c| c.src),
            dnat: side(|c| c.dst),
            encap: flow.encap.clone(),
            decap: flow.decap.clone(),
            mtu: flow.mtu,
        }
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

/// `ip:port` where the protocol has ports, else the address alone.
pub fn end(packet: &PacketHead, ip: Ip, port: u16) -> String {
    if packet.has_ports() { SocketAddr::new(ip.to_std(), port).to_string() } else { ip.to_string() }
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
