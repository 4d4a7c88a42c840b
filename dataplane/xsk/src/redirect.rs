//! The XDP program that brings packets to the workers' sockets, and its maps.
//!
//! One program and one socket map for all ports (slot = port index x queues + queue): 110 ports attach in a tenth of a
//! second. What the program decides stands in `bpf/redirect.c`, which is a screen and a half. Program, maps and links
//! belong to the process alone: nothing is pinned, and an attachment is a `bpf_link`, which ends with its descriptor. So
//! nothing is left when the process ends, however it ends.
//!
//! Known limits. A VLAN tag that the device takes off and hands over beside the frame is invisible to the program, which
//! then takes a tagged packet for an untagged one: the uplink's `rxvlan` offload must be off, and with a veth as uplink the
//! other end's `txvlan`. A later fragment that arrives before its first one goes to the kernel, which drops it in time.
//! Sockets work on copies: see [`AttachMode::ZeroCopy`].

mod error;
mod maps;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};

use crate::link::Link;
pub use error::RedirectError;
use error::{attach_error, gone, load_error, map_error, program_error};
use maps::{Address, Frontend, PortEntry, Settings, canonical, frontend, mapped, prefix};

static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o"));

/// What a port is for: decides what of its traffic the workers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PortRole {
    /// The host end of a pod's veth: everything.
    Pod = 0,
    /// The veth by which the node's own stack reaches pods and services: everything.
    Host = 1,
    /// The node's own NIC: only what [`UplinkFilter`] says, all else stays with the kernel.
    Uplink = 2,
}

/// Where on the way in an interface's packets are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver; by the kernel's generic code where the driver cannot.
    #[default]
    Auto,
    /// In the driver, without copying packets. Always refused: all ports of a worker share one UMEM, and the kernel lets
    /// devices join a zero copy UMEM only if each can do it (`xp_assign_dev_shared` in net/xdp/xsk_buff_pool.c); veth cannot.
    ZeroCopy,
    /// In the driver, packets are copied into our memory.
    Copy,
    /// By the kernel's generic code, after it made a socket buffer.
    Skb,
}

/// What was chosen where [`AttachMode::Auto`] left it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver, copied into our memory.
    Copy,
    /// By the kernel's generic code.
    Skb,
}

impl Attached {
    /// The public name, as in `weir status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Skb => "skb",
        }
    }
}

/// What of the uplink's traffic is ours. Everything that is not stays with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkFilter {
    /// UDP port of the overlay at the node's addresses.
    pub vtep_port: Option<u16>,
    /// Ports and echo ids at the node's addresses to which masqueraded flows are answered.
    pub masquerade: Option<RangeInclusive<u16>>,
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Address and prefix length of every pod network of the cluster: packets from or to them are ours.
    pub pod_cidrs: BTreeSet<(IpAddr, u8)>,
    /// Address, IP protocol and port of all that is served to the outside: NodePorts, load balancer and external addresses.
    pub frontends: BTreeSet<(IpAddr, u8, u16)>,
}

struct Attachment {
    ifindex: u32,
    // Detaches when dropped.
    _link: FdLink,
}

/// The loaded program, its attachments and its maps. All end with it.
pub struct Redirect {
    // Before the program: an attachment that outlived the port map would let packets pass.
    attached: BTreeMap<u16, Attachment>,
    ports: HashMap<MapData, u32, PortEntry>,
    sockets: XskMap<MapData>,
    settings: Array<MapData, Settings>,
    node_addresses: HashMap<MapData, Address, u8>,
    pod_cidrs: LpmTrie<MapData, Address, u8>,
    frontends: HashMap<MapData, Frontend, u8>,
    filter: UplinkFilter,
    program: Ebpf,
    ports_max: u16,
    queues: u16,
}

impl Redirect {
    /// Loads the program with room for `ports_max` ports of `queues` queues each. Attaches nothing; no packet of an uplink
    /// is ours yet.
    ///
    /// # Errors
    /// `Permission` or `Load`.
    pub fn load(ports_max: u16, queues: u16) -> Result<Self, RedirectError> {
        // Without relocations against kernel types the kernel's BTF need not be read, which takes up to 0.7 s.
        let mut program = EbpfLoader::new()
            .btf(None)
            .map_max_entries("ports", u32::from(ports_max))
            .map_max_entries("sockets", u32::from(ports_max) * u32::from(queues))
            .load(PROGRAM)
            .map_err(load_error)?;
        let xdp = xdp(&mut program)?;
        xdp.load().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
        let mut take = |name: &'static str| program.take_map(name).ok_or_else(|| RedirectError::Load(format!("map {name} is missing")));
        let bad = |error: MapError| RedirectError::Load(error.to_string());
        let mut redirect = Self {
            attached: BTreeMap::new(),
            ports: HashMap::try_from(take("ports")?).map_err(bad)?,
            sockets: XskMap::try_from(take("sockets")?).map_err(bad)?,
            settings: Array::try_from(take("settings")?).map_err(bad)?,
            node_addresses: HashMap::try_from(take("node_addresses")?).map_err(bad)?,
            pod_cidrs: LpmTrie::try_from(take("pod_cidrs")?).map_err(bad)?,
            frontends: HashMap::try_from(take("frontends")?).map_err(bad)?,
            filter: UplinkFilter::default(),
            program,
            ports_max,
            queues,
        };
        // The map starts with zeroes, by which port 0 would be masqueraded.
        redirect.settings.set(0, Settings::of(&redirect.filter), 0).map_err(|error| map_error("settings", error))?;
        Ok(redirect)
    }

    /// Attaches the program to `interface`, as port `index`. Until [`set_socket`](Self::set_socket) was called for its
    /// queues, before or after, packets for the workers are dropped.
    ///
    /// # Errors
    /// All but `Load`. An interface that carries another XDP program is refused and stays as it is.
    pub fn attach(&mut self, index: u16, interface: &str, role: PortRole, mode: AttachMode) -> Result<Attached, RedirectError> {
        if index >= self.ports_max {
            return Err(RedirectError::Index { index, words: format!("there is room for {} ports", self.ports_max) });
        }
        if self.attached.contains_key(&index) {
            return Err(RedirectError::Index { index, words: "is attached already".into() });
        }
        let name = || interface.to_owned();
        let link = Link::query(interface).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RedirectError::NoInterface { interface: name() },
            _ => RedirectError::Attach { interface: name(), source },
        })?;
        if !link.xdp_programs.is_empty() {
            return Err(RedirectError::Foreign { interface: name(), programs: link.xdp_programs });
        }
        if link.rx_queues > u32::from(self.queues) {
            return Err(RedirectError::Unserved { interface: name(), queues: link.rx_queues, served: self.queues });
        }
        let (first, second) = match mode {
            AttachMode::ZeroCopy => return Err(RedirectError::NoZeroCopy { interface: name() }),
            AttachMode::Auto => (Attached::Copy, Some(Attached::Skb)),
            AttachMode::Copy => (Attached::Copy, None),
            AttachMode::Skb => (Attached::Skb, None),
        };
        let entry = PortEntry { first_slot: u32::from(index) * u32::from(self.queues), queues: self.queues, kind: role as u16 };
        self.ports.insert(link.ifindex, entry, 0).map_err(|error| map_error("ports", error))?;
        let mut result = self.link(&link, first).map(|fd| (fd, first));
        if let (Err(error), Some(second)) = (&result, second)
            && error.raw_os_error() == Some(libc::EOPNOTSUPP)
        {
            result = self.link(&link, second).map(|fd| (fd, second));
        }
        match result {
            Ok((fd, attached)) => {
                self.attached.insert(index, Attachment { ifindex: link.ifindex, _link: fd });
                Ok(attached)
            }
            Err(source) => {
                let _ = self.ports.remove(&link.ifindex);
                Err(attach_error(interface, &link, source))
            }
        }
    }

    fn link(&mut self, link: &Link, attached: Attached) -> io::Result<FdLink> {
        let mode = match attached {
            Attached::Copy => XdpMode::Driver,
            Attached::Skb => XdpMode::Skb,
        };
        let xdp = xdp(&mut self.program).map_err(io::Error::other)?;
        let id = xdp.attach_to_if_index(link.ifindex, mode).map_err(program_error)?;
        let owned = xdp.take_link(id).map_err(program_error)?;
        // An attachment by netlink, which aya falls back to, would outlive the process.
        FdLink::try_from(owned).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// Detaches port `index`; its packets are the kernel's again. Tells whether it was attached.
    pub fn detach(&mut self, index: u16) -> bool {
        let Some(attachment) = self.attached.remove(&index) else { return false };
        let ifindex = attachment.ifindex;
        drop(attachment);
        let _ = self.ports.remove(&ifindex);
        true
    }

    /// Brings packets of `queue` of port `index` to `socket`, which must be bound to just that queue. A socket that is
    /// closed leaves the map by itself.
    ///
    /// # Errors
    /// `Index` or `Map`.
    pub fn set_socket(&mut self, index: u16, queue: u16, socket: BorrowedFd<'_>) -> Result<(), RedirectError> {
        if index >= self.ports_max || queue >= self.queues {
            let words = format!("queue {queue}: there is room for {} ports of {} queues", self.ports_max, self.queues);
            return Err(RedirectError::Index { index, words });
        }
        let slot = u32::from(index) * u32::from(self.queues) + u32::from(queue);
        self.sockets.set(slot, socket.as_raw_fd(), 0).map_err(|error| map_error("sockets", error))
    }

    /// Says anew what of the uplink's traffic is ours. What is ours before and after is ours at every moment between: new
    /// entries go in before old ones go out.
    ///
    /// # Errors
    /// `Map`: what was ours before still is then, and part of the new may be.
    pub fn set_uplink(&mut self, filter: UplinkFilter) -> Result<(), RedirectError> {
        let old = &self.filter;
        for address in filter.node_addresses.difference(&old.node_addresses) {
            self.node_addresses.insert(mapped(*address), 1, 0).map_err(|error| map_error("node_addresses", error))?;
        }
        for cidr in filter.pod_cidrs.difference(&old.pod_cidrs) {
            self.pod_cidrs.insert(&prefix(cidr), 1, 0).map_err(|error| map_error("pod_cidrs", error))?;
        }
        for entry in filter.frontends.difference(&old.frontends) {
            self.frontends.insert(frontend(entry), 1, 0).map_err(|error| map_error("frontends", error))?;
        }
        self.settings.set(0, Settings::of(&filter), 0).map_err(|error| map_error("settings", error))?;
        // Two CIDRs that differ in their host bits only are one prefix to the kernel: what the new filter has stays.
        let kept: BTreeSet<_> = filter.pod_cidrs.iter().map(|cidr| canonical(&prefix(cidr))).collect();
        for address in old.node_addresses.difference(&filter.node_addresses) {
            gone("node_addresses", self.node_addresses.remove(&mapped(*address)))?;
        }
        for cidr in old.pod_cidrs.difference(&filter.pod_cidrs) {
            if !kept.contains(&canonical(&prefix(cidr))) {
                gone("pod_cidrs", self.pod_cidrs.remove(&prefix(cidr)))?;
            }
        }
        for entry in old.frontends.difference(&filter.frontends) {
            gone("frontends", self.frontends.remove(&frontend(entry)))?;
        }
        self.filter = filter;
        Ok(())
    }
}

fn xdp(program: &mut Ebpf) -> Result<&mut Xdp, RedirectError> {
    let found = program.program_mut("redirect").and_then(|program| program.try_into().ok());
    found.ok_or_else(|| RedirectError::Load("program redirect is missing".into()))
}
