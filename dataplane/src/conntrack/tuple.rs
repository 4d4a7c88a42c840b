//! The key of a connection.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{Ip, proto};

/// One direction of a flow, as a packet of it carries it. Host order.
///
/// ICMP and ICMPv6 echo: both ports are the identifier, in the request as in the reply, so that [`Tuple::inverse`] holds
/// for them too. Protocols without ports, and other ICMP: both ports are 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: Ip,
    /// Destination address; of the same family.
    pub dst: Ip,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IANA protocol number (`model::proto`).
    pub proto: u8,
}

impl Tuple {
    /// The tuple that the other side would answer with, were nothing translated.
    pub const fn inverse(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }
    /// Tells whether both addresses are IPv4.
    pub const fn is_v4(&self) -> bool {
        self.src.is_v4()
    }
    /// Tells whether the protocol is ICMP or ICMPv6, where the "ports" are an identifier.
    pub const fn is_icmp(&self) -> bool {
        self.proto == proto::ICMP || self.proto == proto::ICMPV6
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]:{} > [{}]:{}", self.proto, self.src, self.sport, self.dst, self.dport)
    }
}
