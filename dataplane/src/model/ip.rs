//! Addresses and protocols as the packet path holds them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An address of either family in one word: IPv6 as it is, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2). Host order.
///
/// One type for both families keeps every table and every stage single. A *frame* whose IPv6 header carries a mapped
/// address is refused by the parser, so the two can never be confused.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "IpAddr", into = "IpAddr")]
pub struct Ip(pub u128);

const MAPPED: u128 = 0xffff << 32;

impl Ip {
    /// Makes an address from the four bytes of an IPv4 header field, in host order.
    pub const fn v4(addr: u32) -> Self {
        Self(MAPPED | addr as u128)
    }
    /// Tells whether this is an IPv4 address.
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }
    /// The family of this address.
    pub const fn family(self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }
    /// The low 32 bits: the IPv4 address in host order, if it is one.
    pub const fn low32(self) -> u32 {
        self.0 as u32
    }
    /// The address as the standard library has it.
    pub fn to_std(self) -> IpAddr {
        if self.is_v4() { IpAddr::V4(Ipv4Addr::from(self.low32())) } else { IpAddr::V6(Ipv6Addr::from(self.0)) }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        ip.to_std()
    }
}
impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => Self::v4(u32::from(a)),
            IpAddr::V6(a) => Self(u128::from(a)),
        }
    }
}
impl From<Ipv4Addr> for Ip {
    fn from(addr: Ipv4Addr) -> Self {
        Self::v4(u32::from(addr))
    }
}
impl From<Ipv6Addr> for Ip {
    fn from(addr: Ipv6Addr) -> Self {
        Self(u128::from(addr))
    }
}
impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_std().fmt(f)
    }
}
impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_std().fmt(f)
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    #[default]
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

/// A transport protocol that Kubernetes objects can name; TCP where they name none (E0.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, protocol 6.
    #[default]
    Tcp,
    /// UDP, protocol 17.
    Udp,
    /// SCTP, protocol 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as IP headers carry it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Sctp => proto::SCTP,
        }
    }
}

/// IANA protocol numbers used in `Tuple::proto`.
pub mod proto {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}

/// A MAC address in the order of the wire.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All ones (IEEE 802).
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The MAC of the pods' gateway, on every port. No kernel interface carries it: once the daemon is gone, the node's
    /// own stack drops what pods still send to it, as frames for another host (fail closed).
    pub const GATEWAY: Self = Self([0x02, 0x77, 0x65, 0x69, 0x72, 0x01]);

    /// The MAC that Weir gives to whoever owns `addr` unless told otherwise: `0a:58` and the IPv4 address, or `0a:59` and
    /// the folded IPv6 address. Stable, local, unicast; the form that the CNI bridge plugin and OVN use.
    pub fn from_ip(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => {
                let [b0, b1, b2, b3] = a.octets();
                Self([0x0a, 0x58, b0, b1, b2, b3])
            }
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                let [b0, b1, b2, b3] = ((bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32).to_be_bytes();
                Self([0x0a, 0x59, b0, b1, b2, b3])
            }
        }
    }
    /// Tells whether the group bit is set (multicast and broadcast).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}
impl std::str::FromStr for MacAddr {
    type Err = InvalidMac;
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(|| InvalidMac(text.into()))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac(text.into()))?;
        }
        if parts.next().is_some() { Err(InvalidMac(text.into())) } else { Ok(Self(bytes)) }
    }
}
impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;
    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

/// The text is not six hexadecimal bytes separated by colons.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a MAC address (six hexadecimal bytes separated by colons)")]
pub struct InvalidMac(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_mix_and_text_round_trips() {
        let v4: IpAddr = "10.244.1.5".parse().unwrap();
        let v6: IpAddr = "fd00::5".parse().unwrap();
        for addr in [v4, v6] {
            assert_eq!(Ip::from(addr).to_std(), addr);
            assert_eq!(Ip::from(addr).is_v4(), addr.is_ipv4());
        }
        let mac = MacAddr::from_ip(v4);
        assert_eq!(mac.to_string(), "0a:58:0a:f4:01:05");
        assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        assert!("0a:58:0a:f4:01".parse::<MacAddr>().is_err());
    }
}
