//! Case files as they are written: the format of `weir test`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use weir_dataplane::model::{Family, Protocol};

/// What kind of truth a file states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Policy,
    PolicyCluster,
    Services,
    Conntrack,
    Validation,
}

/// What the whole file says; the objects are read from the tree.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) kind: Kind,
    #[serde(default)]
    pub(super) config: Option<Config>,
}

/// The node under test.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) this_node: String,
    /// `None` = there is no way to tell pods from others.
    #[serde(default)]
    pub(super) cluster_cidrs: Option<Vec<IpNet>>,
    #[serde(default)]
    pub(super) masquerade_all: bool,
    #[serde(default)]
    pub(super) nodeport_addresses: Vec<IpNet>,
    #[serde(default)]
    pub(super) service_cidrs: Vec<IpNet>,
    #[serde(default = "yes")]
    pub(super) proxy_healthy: bool,
}

fn yes() -> bool {
    true
}

/// What must hold of one state of the objects: the file's own lists, or those of an item of `then`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub(super) expect: Vec<Pairs>,
    pub(super) flows: Vec<Flow>,
    pub(super) healthchecks: Vec<HealthCheck>,
    pub(super) conntrack: Vec<CleanUp>,
    pub(super) affinity: Vec<Sequence>,
    pub(super) facts: Vec<serde::de::IgnoredAny>,
    pub(super) packets: Vec<PacketStep>,
}

/// One value or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// An item of `expect`: a cross product.
#[derive(Debug, Deserialize)]
pub(super) struct Pairs {
    pub(super) from: OneOrMany<String>,
    pub(super) to: OneOrMany<String>,
    pub(super) port: OneOrMany<u16>,
    pub(super) protocol: OneOrMany<Protocol>,
    pub(super) verdict: PolicyVerdict,
    #[serde(default)]
    pub(super) family: Option<FamilyName>,
    #[serde(default, rename = "self")]
    pub(super) with_self: bool,
}

/// What policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PolicyVerdict {
    Allow,
    Deny,
}

/// A family as case files write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum FamilyName {
    IPv4,
    IPv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::IPv4 => Self::V4,
            FamilyName::IPv6 => Self::V6,
        }
    }
}

/// An item of `flows`.
#[derive(Debug, Deserialize)]
pub(super) struct Flow {
    pub(super) name: String,
    pub(super) from: IpAddr,
    pub(super) to: std::net::SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) expect: FlowAnswer,
}

/// What becomes of a flow to a service address.
#[derive(Debug, Deserialize)]
pub(super) struct FlowAnswer {
    pub(super) verdict: FlowVerdict,
    #[serde(default)]
    pub(super) endpoints: Vec<std::net::SocketAddr>,
    #[serde(default)]
    pub(super) snat: Option<Snat>,
    #[serde(default)]
    pub(super) policy: std::collections::BTreeMap<std::net::SocketAddr, PolicyVerdict>,
}

/// What a service does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FlowVerdict {
    Forward,
    Reject,
    Drop,
    Pass,
}

/// Whether the source is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Snat {
    None,
    NodeIp,
}

/// An item of `healthchecks`.
#[derive(Debug, Deserialize)]
pub(super) struct HealthCheck {
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) expect: HealthAnswer,
}

/// What a health check answers; no status where nobody listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct HealthAnswer {
    pub(super) status: Option<u16>,
    pub(super) local_endpoints: Option<u32>,
    pub(super) closed: bool,
}

/// An item of `conntrack` in a services case: does a tracked flow outlive a change of endpoints?
#[derive(Debug, Deserialize)]
pub(super) struct CleanUp {
    pub(super) protocol: Protocol,
    pub(super) orig_dst: IpAddr,
    pub(super) orig_dport: u16,
    pub(super) reply_src: IpAddr,
    pub(super) keep: bool,
}

/// An item of `affinity`.
#[derive(Debug, Deserialize)]
pub(super) struct Sequence {
    pub(super) name: String,
    pub(super) steps: Vec<Connection>,
}

/// One new connection.
#[derive(Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) at: u32,
    pub(super) from: IpAddr,
    pub(super) to: std::net::SocketAddr,
    #[serde(default = "tcp")]
    pub(super) protocol: Protocol,
    pub(super) expect: Stickiness,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// Which endpoint a connection gets, compared with the client's one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stickiness {
    Any,
    Same,
    Other,
}

/// An item of `packets`: a packet, or a change of the snapshot (whose objects are read from the tree).
#[derive(Debug, Deserialize)]
pub(super) struct PacketStep {
    pub(super) n: u32,
    #[serde(default)]
    pub(super) at: Option<f64>,
    #[serde(default)]
    pub(super) proto: Option<PacketProto>,
    #[serde(default)]
    pub(super) from: Option<String>,
    #[serde(default)]
    pub(super) to: Option<String>,
    #[serde(default)]
    pub(super) tcp: Option<TcpPart>,
    #[serde(default)]
    pub(super) icmp: Option<IcmpPart>,
    #[serde(default)]
    pub(super) expect: Option<PacketAnswer>,
}

/// Protocols of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum PacketProto {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
    #[serde(rename = "ICMP")]
    Icmp,
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}

/// Numbers are relative to the initial ones.
#[derive(Debug, Deserialize)]
pub(super) struct TcpPart {
    pub(super) flags: String,
    #[serde(default)]
    pub(super) seq: u32,
    #[serde(default)]
    pub(super) ack: u32,
    #[serde(default)]
    pub(super) len: usize,
}

/// An ICMP message.
#[derive(Debug, Deserialize)]
pub(super) struct IcmpPart {
    #[serde(rename = "type")]
    pub(super) kind: u8,
    #[serde(default)]
    pub(super) code: u8,
    #[serde(default)]
    pub(super) id: u16,
    #[serde(default)]
    pub(super) seq: u16,
    #[serde(default)]
    pub(super) mtu: u32,
    #[serde(default)]
    pub(super) inner: Option<Inner>,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Inner {
    pub(super) proto: PacketProto,
    pub(super) from: String,
    pub(super) to: String,
}

/// What becomes of a packet.
#[derive(Debug, Deserialize)]
pub(super) struct PacketAnswer {
    pub(super) verdict: PacketVerdict,
    #[serde(default)]
    pub(super) also: Option<PacketVerdict>,
    #[serde(default)]
    pub(super) from: Option<String>,
    #[serde(default)]
    pub(super) to: Option<String>,
    #[serde(default)]
    pub(super) inner: Option<Inner>,
    #[serde(default)]
    pub(super) state: Option<String>,
    #[serde(default)]
    pub(super) track: Option<String>,
    /// Says in words from which flow's port this one's must differ: from all before it.
    #[serde(default)]
    pub(super) distinct: Option<serde::de::IgnoredAny>,
}

/// How a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PacketVerdict {
    Forward,
    Drop,
    Reject,
    Local,
}
