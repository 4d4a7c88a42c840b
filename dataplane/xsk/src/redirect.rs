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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

use crate::link::Link;

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

/// Why an interface could not be attached, or a map not be written.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The process may not do this.
    #[error(
        "cannot {what}: {source}\n  loading and attaching BPF programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON\n  try: run it as root, or give the service these capabilities"
    )]
    Permission {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not take the program.
    #[error("cannot load the redirect program: {0}\n  it needs Linux 5.18 or newer")]
    Load(String),
    /// There is no such interface.
    #[error("cannot attach to {interface}: no such interface\n  try: `ip link show` for the names of this node")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Somebody else's program is there.
    #[error("cannot attach to {interface}: it already carries XDP program {}\n  try: `bpftool prog show id {}` shows whose it is; `ip link set dev {interface} xdp off` removes it, unless a running program holds it: then stop that program", list(.programs), .programs.first().unwrap_or(&0))]
    Foreign {
        /// Its name.
        interface: String,
        /// Ids of the programs there.
        programs: Vec<u32>,
    },
    /// The MTU is too big for this driver to run a program.
    #[error(
        "cannot attach to {interface}: {source}\n  its MTU of {mtu} is too big for XDP in its driver\n  try: `ip link set dev {interface} mtu 1500`          or: mode: skb"
    )]
    Mtu {
        /// Its name.
        interface: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pod's end of a veth sends by more queues than the host's end receives by.
    #[error(
        "cannot attach to {interface}: {source}\n  it has {queues} receive queues and the other end of the veth sends by more\n  try: `ethtool -L` at the other end with tx {queues}"
    )]
    Queues {
        /// Its name.
        interface: String,
        /// Its receive queues.
        queues: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface receives by more queues than there are workers.
    #[error(
        "cannot attach to {interface}: it has {queues} receive queues and {served} of them would be served\n  what arrives by the others would be lost\n  try: `ethtool -L {interface} combined {served}` (veth: `rx {served}`), or workers: {queues}"
    )]
    Unserved {
        /// Its name.
        interface: String,
        /// Its receive queues.
        queues: u32,
        /// Queues that have a worker.
        served: u16,
    },
    /// Zero copy was asked for.
    #[error(
        "cannot attach to {interface} without copying\n  all ports of a worker share one memory, and the kernel shares it without copying only among devices that all can (veth cannot)\n  try: mode: auto"
    )]
    NoZeroCopy {
        /// Its name.
        interface: String,
    },
    /// The driver cannot run XDP programs.
    #[error("cannot attach to {interface} in the driver: {source}\n  try: mode: auto          or: mode: skb")]
    NoDriverSupport {
        /// Its name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such port, or its number is out of range or in use.
    #[error("port {index}: {words}")]
    Index {
        /// The port.
        index: u16,
        /// What is wrong.
        words: String,
    },
    /// Anything else that the kernel said of one interface.
    #[error("cannot attach to {interface}: {source}")]
    Attach {
        /// Its name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map did not take an entry.
    #[error("cannot update the redirect program's map {map}: {source}{}", if matches!(.source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) { "\n  it is full" } else { "" })]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// `7, 8`
fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// `struct port` of `bpf/redirect.c`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PortEntry {
    first_slot: u32,
    queues: u16,
    kind: u16,
}
/// `struct settings`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Settings {
    vtep_port: u16,
    masquerade_low: u16,
    masquerade_high: u16,
    unused: u16,
}
/// `struct address`: IPv6, or IPv4 as `::ffff:a.b.c.d`.
type Address = [u8; 16];
/// `struct frontend`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Frontend {
    address: Address,
    port_be: [u8; 2],
    proto: u8,
    unused: u8,
}
const _: () = assert!(size_of::<PortEntry>() == 8 && size_of::<Settings>() == 8 && size_of::<Frontend>() == 20);
// SAFETY: integers without padding; any bits are valid.
unsafe impl Pod for PortEntry {}
// SAFETY: as above.
unsafe impl Pod for Settings {}
// SAFETY: as above.
unsafe impl Pod for Frontend {}

impl Settings {
    fn of(filter: &UplinkFilter) -> Self {
        let (masquerade_low, masquerade_high) = filter.masquerade.as_ref().map_or((1, 0), |range| (*range.start(), *range.end()));
        Self { vtep_port: filter.vtep_port.unwrap_or(0), masquerade_low, masquerade_high, unused: 0 }
    }
}

fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn prefix(cidr: &(IpAddr, u8)) -> Key<Address> {
    let bits = if cidr.0.is_ipv4() { 96 + cidr.1.min(32) } else { cidr.1.min(128) };
    Key::new(u32::from(bits), mapped(cidr.0))
}

fn frontend(entry: &(IpAddr, u8, u16)) -> Frontend {
    Frontend { address: mapped(entry.0), port_be: entry.2.to_be_bytes(), proto: entry.1, unused: 0 }
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

/// Length and masked address of a prefix.
fn canonical(key: &Key<Address>) -> (u32, u128) {
    let bits = key.prefix_len();
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (bits, u128::from_be_bytes(key.data()) & mask)
}

fn xdp(program: &mut Ebpf) -> Result<&mut Xdp, RedirectError> {
    let found = program.program_mut("redirect").and_then(|program| program.try_into().ok());
    found.ok_or_else(|| RedirectError::Load("program redirect is missing".into()))
}

/// The kernel's own words somewhere in an error of aya.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(io::Error::from_raw_os_error(errno));
        }
        next = error.source();
    }
    None
}

fn program_error(error: ProgramError) -> io::Error {
    errno(&error).unwrap_or_else(|| io::Error::other(error.to_string()))
}

fn map_error(map: &'static str, error: MapError) -> RedirectError {
    RedirectError::Map { map, source: errno(&error).unwrap_or_else(|| io::Error::other(error.to_string())) }
}

/// Removing what is not there is no mistake.
fn gone(map: &'static str, result: Result<(), MapError>) -> Result<(), RedirectError> {
    match result.map_err(|error| map_error(map, error)) {
        Err(RedirectError::Map { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn load_error(error: EbpfError) -> RedirectError {
    match errno(&error) {
        Some(source) if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            RedirectError::Permission { what: "load the redirect program".into(), source }
        }
        Some(source) => RedirectError::Load(format!("{error}: {source}")),
        None => RedirectError::Load(error.to_string()),
    }
}

fn attach_error(interface: &str, link: &Link, source: io::Error) -> RedirectError {
    let interface = interface.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => RedirectError::Permission { what: format!("attach to {interface}"), source },
        Some(libc::ENODEV) => RedirectError::NoInterface { interface },
        Some(libc::ERANGE) => RedirectError::Mtu { interface, mtu: link.mtu, source },
        Some(libc::ENOSPC) => RedirectError::Queues { interface, queues: link.rx_queues, source },
        Some(libc::EOPNOTSUPP) => RedirectError::NoDriverSupport { interface, source },
        // Somebody was faster.
        Some(libc::EBUSY | libc::EEXIST) => {
            let programs = Link::query(&interface).map(|link| link.xdp_programs).unwrap_or_default();
            RedirectError::Foreign { interface, programs }
        }
        _ => RedirectError::Attach { interface, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_differ_in_host_bits_are_one() {
        let of = |text: &str, bits| canonical(&prefix(&(text.parse().unwrap(), bits)));
        assert_eq!(of("10.244.1.0", 16), of("10.244.2.3", 16));
        assert_ne!(of("10.244.0.0", 16), of("10.244.0.0", 17));
        assert_eq!(of("fd00::", 0), of("::", 0));
        assert_eq!(of("10.0.0.1", 32).0, 128);
    }

    #[test]
    fn no_masquerading_matches_no_port() {
        let settings = Settings::of(&UplinkFilter::default());
        assert!(settings.masquerade_low > settings.masquerade_high);
        assert_eq!(settings.vtep_port, 0);
    }

    #[test]
    fn a_foreign_program_is_named_with_what_to_do() {
        let error = RedirectError::Foreign { interface: "eth0".into(), programs: vec![42, 7] };
        assert_eq!(
            error.to_string(),
            "cannot attach to eth0: it already carries XDP program 42, 7\n  try: `bpftool prog show id 42` shows whose it is; `ip link \
             set dev eth0 xdp off` removes it, unless a running program holds it: then stop that program"
        );
    }
}
