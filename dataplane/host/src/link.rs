//! Interfaces: what is there, and making veth pairs, bridges and VXLAN devices.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage, LinkXdp,
};

use crate::error::{Error, Result};
use crate::net::Net;
use crate::netns::Netns;

/// How long [`Net::wait_running`] waits; a busy machine takes some milliseconds.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(3);

/// A MAC address in the order of the wire.
pub type Mac = [u8; 6];

/// What the kernel says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; `None` where it has none of 6 bytes.
    pub mac: Option<Mac>,
    /// Largest IP packet it takes, in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// It has a carrier as well, and the kernel's protocols have taken notice (`IFF_RUNNING`).
    pub carrier: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// `veth`, `bridge`, `vxlan`, …; `None` for physical ones.
    pub kind: Option<String>,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// The number of the program in an XDP hook of it, if there is any.
    pub xdp_program: Option<u32>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its MAC; `None` = random.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Receive and transmit queues. An XDP program on one end wants as many receive queues there as the other end has
    /// transmit queues (`drivers/net/veth.c`, `veth_xdp_set`: else `ENOSPC`).
    pub queues: u32,
    /// The namespace in which it appears; `None` = that of the [`Net`].
    pub netns: Option<&'a Netns>,
}

/// A VXLAN device to be made, as flannel makes its `flannel.1`: no learning, no multicast, a fixed port.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// The node's address: source of the outer header, whose family this decides.
    pub local: IpAddr,
    /// The device's MAC: the destination of inner frames to this node.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Net {
    /// All interfaces.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn links(&self) -> Result<Vec<Link>> {
        let request = message(vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])]);
        let answers = self.dump(&RouteNetlinkMessage::GetLink(request), &|| "list interfaces".into())?;
        Ok(answers.iter().filter_map(link_of).collect())
    }

    /// One interface by name; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn find_link(&self, name: &str) -> Result<Option<Link>> {
        let request = message(vec![LinkAttribute::IfName(name.into()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])]);
        match self.request(&RouteNetlinkMessage::GetLink(request), 0, &|| format!("look for interface {name}")) {
            Ok(answers) => Ok(answers.iter().find_map(link_of)),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One interface by name.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn link(&self, name: &str) -> Result<Link> {
        self.find_link(name)?.ok_or_else(|| Error::NoSuchLink { name: name.into() })
    }

    pub(crate) fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name)?.index)
    }

    /// Makes a veth pair, both ends down.
    ///
    /// # Errors
    /// [`Error::Refused`]; `EEXIST` if a name is taken.
    pub fn create_veth(&self, end: &VethEnd<'_>, peer: &VethEnd<'_>) -> Result<()> {
        let mut attributes = veth_attributes(end);
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message(veth_attributes(peer))))),
        ]));
        self.create(message(attributes), &|| format!("create the veth pair {} and {}", end.name, peer.name))
    }

    /// Makes a VXLAN device, down. It takes and sends IPv6 datagrams with a zero UDP checksum too (RFC 6935).
    ///
    /// # Errors
    /// [`Error::Refused`]; `EEXIST` if the name, or the VNI on this port and family, is taken.
    pub fn create_vxlan(&self, device: &Vxlan<'_>) -> Result<()> {
        let mut data = vec![InfoVxlan::Id(device.vni), InfoVxlan::Port(device.port), InfoVxlan::Learning(false)];
        match device.local {
            IpAddr::V4(local) => data.push(InfoVxlan::Local(local)),
            IpAddr::V6(local) => {
                data.extend([InfoVxlan::Local6(local), InfoVxlan::UDPZeroCsumTX(true), InfoVxlan::UDPZeroCsumRX(true)]);
            }
        }
        let attributes = vec![
            LinkAttribute::IfName(device.name.into()),
            LinkAttribute::Address(device.mac.to_vec()),
            LinkAttribute::Mtu(device.mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
        ];
        self.create(message(attributes), &|| format!("create the VXLAN device {}", device.name))
    }

    /// Makes a bridge, down, that forwards at once: no spanning tree, no multicast snooping.
    ///
    /// # Errors
    /// [`Error::Refused`]; `EEXIST` if the name is taken.
    pub fn create_bridge(&self, name: &str, mac: Option<Mac>, mtu: u32) -> Result<()> {
        let data = vec![InfoBridge::StpState(BridgeStpState::Disabled), InfoBridge::MulticastSnooping(false)];
        let mut attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Mtu(mtu)];
        attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))]));
        self.create(message(attributes), &|| format!("create the bridge {name}"))
    }

    fn create(&self, request: LinkMessage, action: &dyn Fn() -> String) -> Result<()> {
        self.request(&RouteNetlinkMessage::NewLink(request), NLM_F_CREATE | NLM_F_EXCL, action).map(drop)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn set_up(&self, name: &str) -> Result<()> {
        self.set_flags(name, LinkFlags::Up, "bring up")
    }

    /// Takes an interface down.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn set_down(&self, name: &str) -> Result<()> {
        self.set_flags(name, LinkFlags::empty(), "take down")
    }

    fn set_flags(&self, name: &str, flags: LinkFlags, verb: &str) -> Result<()> {
        let mut request = LinkMessage::default();
        request.header.index = self.index(name)?;
        request.header.flags = flags;
        request.header.change_mask = LinkFlags::Up;
        self.request(&RouteNetlinkMessage::SetLink(request), 0, &|| format!("{verb} {name}")).map(drop)
    }

    /// Waits until an interface that is up can be used, at most 3 s. The kernel tells its protocols of a new
    /// carrier a little later (`net/core/link_watch.c`); until then IPv6 has no routes there. Returns whether it is.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn wait_running(&self, name: &str) -> Result<bool> {
        let deadline = Instant::now() + RUNNING_TIMEOUT;
        loop {
            let running = self.link(name)?.carrier;
            if running || Instant::now() >= deadline {
                return Ok(running);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sets an interface's MTU in bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.set(name, LinkAttribute::Mtu(mtu), &|| format!("set the MTU of {name} to {mtu}"))
    }

    /// Sets an interface's MAC.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn set_mac(&self, name: &str, mac: Mac) -> Result<()> {
        self.set(name, LinkAttribute::Address(mac.to_vec()), &|| format!("set the MAC of {name}"))
    }

    /// Makes an interface a port of the bridge `master`.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`] for either; [`Error::Refused`].
    pub fn set_master(&self, name: &str, master: &str) -> Result<()> {
        let index = self.index(master)?;
        self.set(name, LinkAttribute::Controller(index), &|| format!("make {name} a port of {master}"))
    }

    /// Moves an interface into another namespace.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`]; [`Error::Refused`].
    pub fn set_netns(&self, name: &str, netns: &Netns) -> Result<()> {
        self.set(name, LinkAttribute::NetNsFd(netns.file().as_raw_fd()), &|| format!("move {name} to the namespace {}", netns.name()))
    }

    fn set(&self, name: &str, attribute: LinkAttribute, action: &dyn Fn() -> String) -> Result<()> {
        let mut request = message(vec![attribute]);
        request.header.index = self.index(name)?;
        self.request(&RouteNetlinkMessage::SetLink(request), 0, action).map(drop)
    }

    /// Deletes an interface (of a veth pair, both ends). One that is not there is fine.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn delete_link(&self, name: &str) -> Result<()> {
        let request = message(vec![LinkAttribute::IfName(name.into())]);
        match self.request(&RouteNetlinkMessage::DelLink(request), 0, &|| format!("delete interface {name}")) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }
}

fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn veth_attributes(end: &VethEnd<'_>) -> Vec<LinkAttribute> {
    let mut attributes = vec![
        LinkAttribute::IfName(end.name.into()),
        LinkAttribute::Mtu(end.mtu),
        LinkAttribute::NumTxQueues(end.queues),
        LinkAttribute::NumRxQueues(end.queues),
    ];
    attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(end.netns.map(|netns| LinkAttribute::NetNsFd(netns.file().as_raw_fd())));
    attributes
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Running),
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        kind: None,
        rx_queues: 1,
        tx_queues: 1,
        master: None,
        xdp_program: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
            LinkAttribute::NumTxQueues(count) => link.tx_queues = *count,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None });
            }
            LinkAttribute::Xdp(infos) => {
                link.xdp_program = infos.iter().find_map(|info| match info {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if *id != 0 => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
