//! Flow events as people ask for them: what became of which packet, in names.
//!
//! A worker notes what it decided as plain [`Record`]s in a [`ring`] of its own and never waits for a reader. The daemon's
//! [`Hub`] empties the rings, keeps the latest decisions, gives them names ([`Namer`]) by the tables that they were made under
//! and hands them to whoever follows. `weir replay` and `weir trace` name what they see by the same [`Namer`]. The fixed part of
//! all this, numbers in memory, is the worker's; everything that allocates is the reader's.

mod drops;
mod filter;
mod hub;
mod ledger;
mod naming;
mod ring;
mod watch;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use drops::{DROP_ROWS_MAX, DropCause, DropRow, Drops};
pub use filter::{End, EventType, Filter, Labels, Term, Test, Verdict};
pub use hub::{Following, Hub, Query, RECENT_MAX};
pub use ledger::{Entry, Ledger};
pub use naming::Namer;
pub use ring::{Reader, Record, Writer, ring};
pub use watch::Watch;

use crate::conntrack::Tuple;
use crate::events::CtState;
use crate::model::{Direction, MacAddr, proto};
use crate::parse::{HeaderFlags, Headers};
use crate::policy::Explained;
use crate::verdict::DropReason;

/// One packet: how it ended and why, in names of the generation that decided, which all packets share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// When, nanoseconds since 1970.
    pub time: u64,
    /// The node that decided.
    pub node: Arc<str>,
    /// Number of the state that it worked by.
    pub generation: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was dropped or refused.
    pub reason: Option<DropReason>,
    /// Port where it came in: `namespace/pod`, or the interface.
    pub in_port: Arc<str>,
    /// Port by which it left, likewise.
    pub out_port: Option<Arc<str>>,
    /// What connection tracking says.
    pub state: CtState,
    /// What its headers say as they came in, the inner ones of an overlay packet; `None` where there is no IP packet.
    pub packet: Option<PacketHead>,
    /// The tuple after translation.
    pub after: Option<Tuple>,
    /// Who sent it.
    pub source: Option<Arc<Party>>,
    /// Who it is for, after the service choice.
    pub destination: Option<Arc<Party>>,
    /// The Service that was asked for.
    pub service: Option<Arc<ServiceName>>,
    /// The backend that it chose, or keeps to.
    pub backend: Option<SocketAddr>,
    /// What policy said, where a side denies or a rule admits.
    pub policy: Option<Arc<PolicySide>>,
    /// The overlay that it leaves in.
    pub encap: Option<Arc<Encap>>,
    /// The node whose overlay packet it came in.
    pub decap: Option<Arc<str>>,
    /// The largest IP packet that the way out takes, where this one was too big.
    pub mtu: Option<u16>,
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// To a pod, or natively by the uplink.
    Forward,
    /// By the uplink inside VXLAN.
    Encap,
    /// To the node's own stack.
    Host,
    /// Answered.
    Reply,
    /// Refused with an answer.
    Reject,
    /// Discarded.
    Drop,
}

impl Outcome {
    /// The verdict that it belongs to: `forward`, `host`, `reply` or `drop`.
    pub fn verdict(self) -> &'static str {
        match self {
            Self::Forward | Self::Encap => "forward",
            Self::Host => "host",
            Self::Reply | Self::Reject => "reply",
            Self::Drop => "drop",
        }
    }
}

/// What a flow event keeps of a packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketHead {
    /// Addresses, protocol and ports.
    pub tuple: Tuple,
    /// Ethernet source; zero where there is no Ethernet header.
    pub src_mac: MacAddr,
    /// Ethernet destination, likewise.
    pub dst_mac: MacAddr,
    /// Bytes of the IP packet.
    pub len: u32,
    /// The flags byte of TCP, else 0.
    pub tcp_flags: u8,
    /// Type of an ICMP message, else 0.
    pub icmp_type: u8,
    /// Code of an ICMP message, else 0.
    pub icmp_code: u8,
    /// A later fragment, which has no ports.
    pub later_fragment: bool,
}

impl From<&Headers> for PacketHead {
    fn from(headers: &Headers) -> Self {
        let Headers { tuple, src_mac, dst_mac, l3_total: len, tcp_flags, icmp_type, icmp_code, .. } = *headers;
        let later_fragment = headers.has(HeaderFlags::FRAGMENT_LATER);
        Self { tuple, src_mac, dst_mac, len, tcp_flags, icmp_type, icmp_code, later_fragment }
    }
}

impl PacketHead {
    /// Tells whether its tuple has ports.
    pub fn has_ports(&self) -> bool {
        matches!(self.tuple.proto, proto::TCP | proto::UDP | proto::SCTP) && !self.later_fragment
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// Number as Hubble's readers know it: 1 this node, 2 the world, 6 another node, from 256 on a pod's identity.
    pub identity: u32,
    /// `k8s:key=value` of a pod, else `reserved:…`.
    pub labels: Vec<String>,
    /// The pod that has it.
    pub pod: Option<PodName>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `ports[].name`; `null` where it has none.
    pub port: Option<String>,
}

/// The outer headers of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encap {
    /// Network identifier.
    pub vni: u32,
    /// The remote node's address.
    pub vtep: String,
}

/// What policy said of the side that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySide {
    /// Which side.
    pub direction: Direction,
    /// The judgement.
    #[serde(flatten)]
    pub explained: Explained,
}

/// `ingress isolated by shop/p; shop/p rule 0 fails on port: …`
impl fmt::Display for PolicySide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })?;
        let explained = &self.explained;
        if let Some(rule) = &explained.denied_by {
            write!(f, " denied by {rule}")
        } else if explained.allowed {
            f.write_str(" allowed")?;
            listed(f, " by ", &explained.by)
        } else {
            f.write_str(" isolated")?;
            listed(f, " by ", &explained.isolated_by)?;
            explained.nearest.as_ref().map_or(Ok(()), |nearest| write!(f, "; {nearest}"))
        }
    }
}

/// ` by a and b`; nothing where there is nothing.
fn listed(f: &mut fmt::Formatter<'_>, first: &str, items: &[impl fmt::Display]) -> fmt::Result {
    items.iter().enumerate().try_for_each(|(n, item)| write!(f, "{}{item}", if n == 0 { first } else { " and " }))
}
