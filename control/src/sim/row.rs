//! One packet of a replay as people and programs read it: the JSON line of the contract, and words.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
pub use weir_dataplane::flows::{Encap, Namer, PolicySide, ServiceName};
use weir_dataplane::flows::{Flow, PacketHead};
use weir_dataplane::model::{Ip, NodeState, proto};
use weir_dataplane::verdict::DropReason;

use super::table::why;

/// One line of `weir replay -o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Number in the capture, from 1.
    pub n: u64,
    /// When, as the capture says (RFC 3339).
    pub time: String,
    /// Port where it came in: `uplink`, `host` or `namespace/pod`.
    #[serde(rename = "in")]
    pub in_port: Arc<str>,
    /// `forward`, `host`, `reply` or `drop`.
    pub verdict: &'static str,
    /// Name of the drop reason, also of a refusal.
    pub reason: Option<&'static str>,
    /// Port by which it left.
    pub out: Option<Arc<str>>,
    /// Source as it came in, the inner one of an overlay packet: `ip:port`, or the address alone.
    pub src: Option<String>,
    /// Destination likewise.
    pub dst: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    pub proto: Option<String>,
    /// The Service that was asked for.
    pub service: Option<Arc<ServiceName>>,
    /// The backend that it chose, or keeps to.
    pub backend: Option<String>,
    /// What policy said, where a side denies or a rule admits.
    pub policy: Option<Arc<PolicySide>>,
    /// Number of the reason.
    pub reason_code: Option<u8>,
    /// `new`, `established`, `reply`, `related` or `invalid`.
    pub state: Option<&'static str>,
    /// Source after translation, where it changed.
    pub snat: Option<String>,
    /// Destination after translation, where it changed.
    pub dnat: Option<String>,
    /// The overlay that it leaves in.
    pub encap: Option<Arc<Encap>>,
    /// The node whose overlay packet it came in.
    pub decap: Option<Arc<str>>,
    /// The largest IP packet that the way out takes, where this one was too big.
    pub mtu: Option<u16>,
    /// Why it ended as it did, in a line.
    #[serde(skip)]
    pub why: String,
}

impl Row {
    /// The line of packet number `n`.
    pub fn new(n: u64, flow: &Flow) -> Self {
        let mut words = Vec::new();
        why(&mut words, flow);
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
            proto: packet.map(|p| protocol(p.tuple.proto).into_owned()),
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
            why: String::from_utf8_lossy(&words).into_owned(),
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
pub fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        proto::ICMP => "icmp".into(),
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::ICMPV6 => "icmpv6".into(),
        proto::SCTP => "sctp".into(),
        other => other.to_string().into(),
    }
}

/// Nanoseconds since 1970 as RFC 3339, UTC.
pub fn timestamp(time: u64) -> String {
    // 2^64 nanoseconds end in 2554, within what a timestamp holds.
    jiff::Timestamp::from_nanosecond(time.into()).map_or_else(|_| time.to_string(), |t| t.to_string())
}
