//! Neighbours (ARP and NDP) and the forwarding entries of VXLAN devices.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::family_of;
use crate::error::Result;
use crate::link::Mac;
use crate::net::Net;

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The interface that it is behind.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC; `None` while or because it cannot be resolved.
    pub mac: Option<Mac>,
    /// How good that is.
    pub state: Reach,
}

/// How good the kernel's knowledge of a neighbour is (RFC 4861 §7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Configured, or confirmed a short while ago.
    Good,
    /// Not confirmed lately, or being confirmed: usable; the kernel checks it when it sends there itself.
    Stale,
    /// Being asked for the first time.
    Incomplete,
    /// Does not answer.
    Failed,
}

impl Net {
    /// All neighbours of both families that are not multicast.
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let answers = self.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), &|| "list neighbours".into())?;
        Ok(answers.iter().filter_map(neighbour_of).collect())
    }

    /// Tells the kernel a neighbour's MAC for good.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn set_neighbour(&self, dev: &str, ip: IpAddr, mac: Mac) -> Result<()> {
        let mut message = message(self.index(dev)?, ip, NeighbourState::Permanent);
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.write(message, &|| format!("set the neighbour {ip} of {dev}"))
    }

    /// Asks the kernel to resolve a neighbour, or to confirm it, as if it had a packet for it (`NTF_USE`).
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn probe_neighbour(&self, index: u32, ip: IpAddr) -> Result<()> {
        let mut message = message(index, ip, NeighbourState::None);
        message.header.flags = NeighbourFlags::Use;
        self.write(message, &|| format!("resolve the neighbour {ip} of interface number {index}"))
    }

    /// Tells a VXLAN device that inner frames to `mac` go to the node `vtep`.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchLink`]; [`crate::Error::Refused`].
    pub fn set_fdb(&self, dev: &str, mac: Mac, vtep: IpAddr) -> Result<()> {
        let mut message = message(self.index(dev)?, vtep, NeighbourState::Permanent);
        message.header.family = AddressFamily::Bridge;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.write(message, &|| format!("forward to the VTEP {vtep} by {dev}"))
    }

    fn write(&self, message: NeighbourMessage, action: &dyn Fn() -> String) -> Result<()> {
        self.request(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, action).map(drop)
    }
}

fn message(index: u32, ip: IpAddr, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(ip);
    message.header.ifindex = index;
    message.header.state = state;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    message
}

fn neighbour_of(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let state = match message.header.state {
        NeighbourState::Permanent | NeighbourState::Reachable => Reach::Good,
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => Reach::Stale,
        NeighbourState::Incomplete => Reach::Incomplete,
        NeighbourState::Failed => Reach::Failed,
        // NUD_NOARP: multicast and loopback; NUD_NONE: nothing known.
        _ => return None,
    };
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        _ => None,
    })?;
    let usable = matches!(state, Reach::Good | Reach::Stale);
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) if usable => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(Neighbour { index: message.header.ifindex, ip, mac, state })
}
