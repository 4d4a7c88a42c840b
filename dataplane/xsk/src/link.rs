//! What the kernel says of one interface: index, MTU, queues, attached XDP programs.
//!
//! One `RTM_GETLINK` per question, on a fresh socket of the calling thread's network namespace. Used for attaching and for
//! error messages that name the real cause; never on the packet path. Format: rtnetlink(7), linux/if_link.h.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// One interface, as the kernel describes it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index, unique in its network namespace.
    pub ifindex: u32,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Receive queues that are in use.
    pub rx_queues: u32,
    /// Ids of the XDP programs that it carries.
    pub xdp_programs: Vec<u32>,
}

const RTM_GETLINK: u16 = 18;
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// `nlmsghdr` and `ifinfomsg`: 16 bytes each.
const HEADER_BYTES: usize = 32;
/// Asks the kernel not to list the statistics, which we do not read.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

impl Link {
    /// Asks the kernel about the interface `name`.
    ///
    /// # Errors
    /// `NotFound` where there is none of that name; else what the netlink socket says.
    pub fn query(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() >= 16 || name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no interface can have this name"));
        }
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let mut request = vec![0; HEADER_BYTES];
        request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        push_attribute(&mut request, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        push_attribute(&mut request, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        let len = request.len() as u32;
        request[..4].copy_from_slice(&len.to_ne_bytes());
        send(&socket, &request, SendFlags::empty())?;
        let mut reply = vec![0; 32 * 1024];
        let (count, _) = recv(&socket, &mut reply[..], RecvFlags::empty())?;
        let mut link = Self::parse(&reply[..count])?;
        // Netlink tells how many queues the device was made with, ethtool how many it uses.
        if let Some(queues) = channels(&socket, name) {
            link.rx_queues = queues;
        }
        Ok(link)
    }

    fn parse(reply: &[u8]) -> io::Result<Self> {
        let short = || io::Error::new(io::ErrorKind::InvalidData, "netlink answered with too few bytes");
        let kind = reply.get(4..6).map(u16_at).ok_or_else(short)?;
        if kind == NLMSG_ERROR {
            let code = reply.get(16..20).map(u32_at).ok_or_else(short)? as i32;
            return Err(match -code {
                libc::ENODEV => io::Error::new(io::ErrorKind::NotFound, "no such interface"),
                errno => io::Error::from_raw_os_error(errno),
            });
        }
        if kind != RTM_NEWLINK || reply.len() < HEADER_BYTES {
            return Err(short());
        }
        let mut link = Self { ifindex: u32_at(&reply[20..24]), rx_queues: 1, ..Self::default() };
        for (kind, value) in attributes(&reply[HEADER_BYTES..]) {
            match kind {
                IFLA_MTU if value.len() == 4 => link.mtu = u32_at(value),
                IFLA_NUM_RX_QUEUES if value.len() == 4 => link.rx_queues = u32_at(value),
                IFLA_XDP => {
                    for (kind, value) in attributes(value) {
                        let id = if value.len() == 4 { u32_at(value) } else { 0 };
                        let names_program = (IFLA_XDP_PROG_ID..=IFLA_XDP_HW_PROG_ID).contains(&kind);
                        if names_program && id != 0 && !link.xdp_programs.contains(&id) {
                            link.xdp_programs.push(id);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(link)
    }
}

/// Receive queues in use, as `ethtool -l` says; `None` for drivers that do not say.
fn channels(socket: &OwnedFd, name: &str) -> Option<u32> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    /// `struct ethtool_channels` of linux/ethtool.h.
    #[repr(C)]
    struct Channels {
        command: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, max: [0; 4], rx: 0, tx: 0, other: 0, combined: 0 };
    // SAFETY: `ifreq` is bytes, integers and pointers, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: the request holds a terminated name (`query` checked its length) and a pointer to a `Channels`, which the
    // command reads and writes; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    Some(channels.rx + channels.combined).filter(|queues| result == 0 && *queues > 0)
}

fn u16_at(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

fn u32_at(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((value.len() + 4) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Type and value of each attribute; stops at the first that is cut.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes.get(..2)?));
        let value = bytes.get(4..len)?;
        // The two highest bits mark nesting and byte order.
        let kind = u16_at(&bytes[2..4]) & 0x3fff;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_carries_no_program() {
        let link = Link::query("lo").unwrap();
        assert_eq!((link.ifindex, link.rx_queues, link.xdp_programs.len()), (1, 1, 0));
    }

    #[test]
    fn an_interface_that_is_not_there_is_not_found() {
        for name in ["weirnothere", "", "a-name-that-is-far-too-long"] {
            assert_eq!(Link::query(name).unwrap_err().kind(), io::ErrorKind::NotFound, "{name:?}");
        }
    }

    #[test]
    fn cut_answers_are_errors_not_panics() {
        let mut reply = vec![0; HEADER_BYTES];
        reply[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        push_attribute(&mut reply, IFLA_MTU, &1500u32.to_ne_bytes());
        for len in 0..reply.len() {
            let _ = Link::parse(&reply[..len]);
        }
        assert_eq!(Link::parse(&reply).unwrap().mtu, 1500);
    }
}
