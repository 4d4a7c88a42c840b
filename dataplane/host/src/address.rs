//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Result;
use crate::net::Net;

/// An address of this namespace's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The interface that carries it.
    pub index: u32,
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
    /// Link-local or host-local: not an address to be reached at from elsewhere.
    pub narrow: bool,
}

impl Net {
    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn addresses(&self) -> Result<Vec<Address>> {
        let answers = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), &|| "list addresses".into())?;
        Ok(answers.iter().filter_map(address_of).collect())
    }

    /// Gives an interface an address; one that it has already is fine. IPv6 addresses can be used at once.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn add_address(&self, name: &str, net: IpNet) -> Result<()> {
        let message = RouteNetlinkMessage::NewAddress(self.address_message(name, net)?);
        self.request(&message, NLM_F_CREATE | NLM_F_REPLACE, &|| format!("add the address {net} to {name}")).map(drop)
    }

    /// Takes an address from an interface; one that it does not have is fine.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn remove_address(&self, name: &str, net: IpNet) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(self.address_message(name, net)?);
        match self.request(&message, 0, &|| format!("remove the address {net} from {name}")) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    fn address_message(&self, name: &str, net: IpNet) -> Result<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header.index = self.index(name)?;
        message.header.family = family_of(net.addr());
        message.header.prefix_len = net.prefix_len();
        message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
        if net.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Ok(message)
    }
}

pub(crate) fn family_of(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_of(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    // On point-to-point links IFA_ADDRESS is the peer's; IFA_LOCAL, where present, is always the own one.
    let own = message.attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    let any = message.attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None });
    let net = IpNet::new(own.or(any)?, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net, narrow: matches!(message.header.scope, AddressScope::Link | AddressScope::Host) })
}
