//! Routes of the main table.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};

use crate::address::family_of;
use crate::error::Result;
use crate::net::Net;

/// The routing protocol number (`rtm_protocol`) that routes made here carry: tells them from those of others.
pub const ROUTE_PROTOCOL: u8 = 119;

/// A route of the main table, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// By which ways; more than one for multipath routes; none for those that refuse.
    pub hops: Vec<Hop>,
    /// The source address that the node itself prefers on it.
    pub source: Option<IpAddr>,
    /// Its own MTU in bytes.
    pub mtu: Option<u32>,
    /// Preference among routes to the same destination, low first.
    pub metric: u32,
    /// `rtm_protocol`: who made it.
    pub protocol: u8,
    /// Packets are refused or dropped (unreachable, prohibit, blackhole).
    pub refuses: bool,
}

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The interface that it leaves by.
    pub index: u32,
    /// The next router; `None` where destinations are neighbours themselves.
    pub via: Option<IpAddr>,
    /// Unusable for now: the interface or its carrier is down.
    pub dead: bool,
}

/// A route to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewRoute<'a> {
    /// Where it leads.
    pub destination: IpNet,
    /// The interface that it leaves by.
    pub dev: &'a str,
    /// The next router; `None` where destinations are neighbours themselves.
    pub via: Option<IpAddr>,
    /// The router is a neighbour although no subnet of the interface says so.
    pub onlink: bool,
    /// The source address that the node itself shall prefer.
    pub source: Option<IpAddr>,
    /// Its own MTU in bytes.
    pub mtu: Option<u32>,
}

impl<'a> NewRoute<'a> {
    /// A route to neighbours on `dev`; set other fields with struct update syntax.
    pub fn direct(destination: IpNet, dev: &'a str) -> Self {
        Self { destination, dev, via: None, onlink: false, source: None, mtu: None }
    }
}

impl Net {
    /// All routes of the main table of both families.
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn routes(&self) -> Result<Vec<Route>> {
        let answers = self.dump(&RouteNetlinkMessage::GetRoute(RouteMessage::default()), &|| "list routes".into())?;
        Ok(answers.iter().filter_map(route_of).collect())
    }

    /// Makes a route, in place of one to the same destination.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn replace_route(&self, route: &NewRoute<'_>) -> Result<()> {
        let message = RouteNetlinkMessage::NewRoute(self.route_message(route)?);
        let action = || format!("add a route to {} by {}", route.destination, route.dev);
        self.request(&message, NLM_F_CREATE | NLM_F_REPLACE, &action).map(drop)
    }

    /// Removes a route; one that is not there is fine.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn remove_route(&self, route: &NewRoute<'_>) -> Result<()> {
        let message = RouteNetlinkMessage::DelRoute(self.route_message(route)?);
        match self.request(&message, 0, &|| format!("remove the route to {} by {}", route.destination, route.dev)) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    fn route_message(&self, route: &NewRoute<'_>) -> Result<RouteMessage> {
        let destination = route.destination.trunc();
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        message.header.scope = if route.via.is_none() && destination.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        message.header.kind = RouteType::Unicast;
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        if destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(destination.addr().into()));
        }
        message.attributes.push(RouteAttribute::Oif(self.index(route.dev)?));
        message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        Ok(message)
    }
}

fn route_of(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let table = message.attributes.iter().find_map(|a| if let RouteAttribute::Table(id) = a { Some(*id) } else { None });
    // A cloned entry is the kernel's cache of one destination, not a route.
    if table.unwrap_or(u32::from(header.table)) != u32::from(RouteHeader::RT_TABLE_MAIN) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let refuses = match header.kind {
        RouteType::Unicast => false,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => true,
        _ => return None,
    };
    let any: IpAddr = if header.address_family == netlink_packet_route::AddressFamily::Inet {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route {
        destination: IpNet::new(any, header.destination_prefix_length).ok()?,
        hops: Vec::new(),
        source: None,
        mtu: None,
        metric: 0,
        protocol: header.protocol.into(),
        refuses,
    };
    let mut index = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNet::new(ip_of(address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::PrefSource(address) => route.source = ip_of(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            RouteAttribute::MultiPath(hops) => {
                route.hops.extend(hops.iter().map(|hop| Hop {
                    index: hop.interface_index,
                    via: gateway_of(&hop.attributes),
                    dead: hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown),
                }));
            }
            _ => {}
        }
    }
    if let (Some(index), true, false) = (index, route.hops.is_empty(), refuses) {
        let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
        route.hops.push(Hop { index, via: gateway_of(&message.attributes), dead });
    }
    Some(route)
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        // An IPv4 route by an IPv6 router (RFC 8950).
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
