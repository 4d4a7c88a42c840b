//! How a frame ends, and why.
//!
//! Every frame that is received ends in exactly one [`Verdict`]: `received = forward + host + reply + drop`.

use serde::{Deserialize, Serialize};

use crate::io::PortId;

/// How a frame ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves by this port, to a pod or natively by the uplink.
    Forward(PortId),
    /// Leaves by the uplink inside VXLAN; counted as forward.
    Encap(PortId),
    /// To the node's own stack, by this port.
    Host(PortId),
    /// The frame was turned into an answer to its sender and leaves by the port where it came in. With a reason it is a
    /// refusal (RST, ICMP error), counted under that reason among the rejects.
    Reply(Option<DropReason>),
    /// Discarded in silence.
    Drop(DropReason),
}

impl Verdict {
    /// Its name: `forward`, `host`, `reply` or `drop`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward(_) | Self::Encap(_) => "forward",
            Self::Host(_) => "host",
            Self::Reply(_) => "reply",
            Self::Drop(_) => "drop",
        }
    }

    /// Why the frame was dropped or refused.
    pub const fn reason(self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) | Self::Reply(Some(reason)) => Some(reason),
            _ => None,
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal $name:literal $words:literal,)*) => {
        /// Why a frame was dropped or refused. Codes are public: append, never renumber, never reuse. Those below 220 are
        /// Cilium's, with its meaning (cilium `pkg/monitor/api/drop.go`); those from 220 on are our own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "u8", try_from = "u8")]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant = $code,)* }

        impl DropReason {
            /// All reasons, by code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The public name, as in JSON, metrics and filters.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// One line in an operator's words.
            pub const fn words(self) -> &'static str { match self { $(Self::$variant => $words,)* } }
            /// The public number.
            pub const fn code(self) -> u8 { self as u8 }
            /// Finds a reason by its number.
            pub const fn from_code(code: u8) -> Option<Self> { match code { $($code => Some(Self::$variant),)* _ => None } }
        }
    };
}

impl From<DropReason> for u8 {
    fn from(reason: DropReason) -> Self {
        reason.code()
    }
}

impl TryFrom<u8> for DropReason {
    type Error = String;
    fn try_from(code: u8) -> Result<Self, String> {
        Self::from_code(code).ok_or_else(|| format!("{code} is no drop reason"))
    }
}

reasons! {
    /// A pod sends with an address or MAC that is not its own, or the inner source does not belong to the VTEP's node.
    InvalidSourceIp = 132 "INVALID_SOURCE_IP" "the sender does not own this source address",
    /// Isolated, and no rule allows this flow (E1.5).
    PolicyDenied = 133 "POLICY_DENIED" "a network policy isolates the pod and no rule allows this flow",
    /// The link, network or transport header contradicts itself or the frame's length.
    InvalidPacket = 134 "INVALID_PACKET_DROPPED" "malformed header",
    /// The packet belongs to no connection and cannot open one (E2.44).
    InvalidConntrack = 135 "CT_TRUNCATED_OR_INVALID_HEADER" "belongs to no connection and cannot open one",
    /// Does not fit the next link and must not be fragmented.
    FragmentationNeeded = 136 "CT_MISSING_TCP_ACK_FLAG" "too big for the path and must not be fragmented",
    /// EtherType that the dataplane does not forward.
    UnsupportedL3 = 139 "UNSUPPORTED_L3_PROTOCOL" "EtherType not handled",
    /// Transport protocol that cannot be forwarded where it would have to be translated.
    UnknownL4 = 142 "UNKNOWN_L4_PROTOCOL" "transport protocol not handled",
    /// The address was a pod's and is nobody's now.
    StaleOrUnroutableIp = 151 "STALE_OR_UNROUTABLE_IP" "the address belongs to no pod",
    /// The connection table, or this pod's share of it, is full.
    CtMapInsertionFailed = 155 "CT_MAP_INSERTION_FAILED" "connection table full",
    /// IPv6 extension headers in an illegal order, too many or cut.
    InvalidIpv6Extension = 156 "INVALID_IPV6_EXTENSION_HEADER" "invalid IPv6 extension header",
    /// A fragment that would need reassembly here.
    FragmentationNotSupported = 157 "IP_FRAGMENTATION_NOT_SUPPORTED" "fragment cannot be handled",
    /// The Service has no usable endpoint (E2.13).
    ServiceBackendNotFound = 158 "SERVICE_BACKEND_NOT_FOUND" "the service has no usable endpoint",
    /// No VTEP is known for the node.
    NoTunnelEndpoint = 160 "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT" "no tunnel endpoint for the node",
    /// Link-level protocol (LLC, STP, unknown) that the dataplane does not forward.
    UnsupportedL2 = 166 "UNSUPPORTED_L2_PROTOCOL" "link protocol not handled",
    /// No free port for masquerading.
    NoMappingForMasquerade = 167 "NO_MAPPING_FOR_NAT_MASQUERADE" "no free source port for masquerading",
    /// No route or no neighbour towards the destination.
    FibLookupFailed = 169 "FIB_LOOKUP_FAILED" "no route to the destination",
    /// A pod sends to the overlay's own port.
    EncapsulationProhibited = 170 "ENCAPSULATION_TRAFFIC_IS_PROHIBITED" "pods may not send overlay traffic",
    /// A later fragment whose first one was never seen.
    FirstFragmentNotFound = 175 "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND" "first fragment not seen",
    /// `loadBalancerSourceRanges` does not name the client (E2.32).
    LbSourceRange = 177 "DENIED_BY_LB_SRC_RANGE_CHECK" "source outside loadBalancerSourceRanges",
    /// An explicit Deny of a cluster-wide policy.
    PolicyDeny = 181 "POLICY_DENY" "a cluster policy denies this flow",
    /// A VLAN tag on a port that carries none.
    VlanFiltered = 182 "VLAN_FILTERED" "VLAN tag not allowed on this port",
    /// VXLAN with another network identifier.
    InvalidVni = 183 "INVALID_VNI" "unknown VXLAN network identifier",
    /// Time to live used up.
    TtlExceeded = 196 "TTL_EXCEEDED" "TTL exceeded",
    /// An answer that is rate limited.
    RateLimited = 198 "DROP_RATE_LIMITED" "rate limited",
    /// The port is attached but its pod is not in the snapshot yet.
    EndpointNotReady = 203 "DROP_EP_NOT_READY" "the pod is not in the snapshot yet",
    /// The Service is Local and no endpoint is on this node (E2.14).
    ServiceNoLocalBackend = 220 "SERVICE_NO_LOCAL_BACKEND" "the service is Local and has no endpoint on this node",
    /// Ping or another protocol to a Service's address (E2.6).
    ServiceNotProxied = 221 "SERVICE_PROTOCOL_NOT_PROXIED" "services answer only on their ports",
    /// No Service port at an allocated ClusterIP (E2.4).
    ServicePortNotFound = 222 "SERVICE_PORT_NOT_FOUND" "the service has no such port",
    /// Nobody owns this address of the service range (E2.4).
    ServiceAddressUnallocated = 223 "SERVICE_ADDRESS_UNALLOCATED" "no service has this address",
    /// A ClusterIP is asked for from outside the cluster (E2.7).
    ServiceNotExternal = 224 "SERVICE_NOT_EXTERNAL" "ClusterIPs are not served to the outside",
    /// VXLAN from an address that is no node's.
    UnknownVtep = 225 "UNKNOWN_VTEP" "VXLAN from an unknown node",
    /// Multicast or broadcast, which is not forwarded.
    Multicast = 226 "MULTICAST_NOT_FORWARDED" "multicast and broadcast are not forwarded",
    /// An ARP or neighbour discovery frame that asks nothing of us.
    NeighbourIgnored = 227 "NEIGHBOUR_IGNORED" "ARP or neighbour discovery that asks nothing of us",
    /// The frame is for another MAC.
    OtherHost = 228 "OTHER_HOST" "the frame is for another host",
    /// The port by which it would leave is not attached or its queue is full.
    PortUnavailable = 229 "PORT_UNAVAILABLE" "the port is not attached or its queue is full",
}

const _: () = assert!(size_of::<Verdict>() <= 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_round_trip() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_code(reason.code()), Some(*reason));
            assert!(index == 0 || DropReason::ALL[index - 1].code() < reason.code(), "{reason:?} out of order");
        }
    }
}
