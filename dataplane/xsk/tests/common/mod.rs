//! Network namespaces, veth pairs and raw sockets for tests. Each test has a namespace of its own that nobody else can
//! see and that ends with its thread and sockets, so there is nothing to clean up, also after a crash.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use weir_xsk::{Link, PortConfig};

/// EtherType for experiments (IEEE 802 §9.2.4): nothing on the machine answers it.
pub(crate) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Runs `test` in a network namespace of its own.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces and AF_XDP sockets: run it as root");
    let result = std::thread::spawn(|| {
        // SAFETY: the thread was made for this and ends after it; file descriptors and memory stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
        // No neighbour discovery of the kernel between our frames.
        for of in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1").expect("sysctl");
        }
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of the calling thread.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a veth pair, both ends up in this namespace.
pub(crate) fn veth(one: &str, other: &str) {
    ip(&format!("link add {one} type veth peer name {other}"));
    ip(&format!("link set {one} up"));
    ip(&format!("link set {other} up"));
}

/// How tests bind.
pub(crate) fn port(interface: &str) -> PortConfig {
    PortConfig { interface: interface.into(), queue: 0, waiting: 128 }
}

/// Sends and receives whole frames on an interface, past every protocol.
pub(crate) struct Raw(OwnedFd);

impl Raw {
    pub(crate) fn open(interface: &str) -> Self {
        let link = Link::query(interface).unwrap();
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: makes a descriptor; it is checked and owned below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, all.into()) };
        assert!(fd >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: just opened, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `sockaddr_ll` is integers, for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = link.ifindex as i32;
        // SAFETY: the address is of the size that is given and outlives the call.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
        assert_eq!(result, 0, "bind to {interface}: {}", io::Error::last_os_error());
        Self(fd)
    }

    /// Sends one frame; tells whether the interface took it.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        rustix::net::send(&self.0, frame, rustix::net::SendFlags::empty()).is_ok()
    }

    /// The next frame that has come in.
    pub(crate) fn recv(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 1 << 16];
            // SAFETY: as in `open`.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: buffer and address are writable for the sizes given and outlive the call.
            let count = unsafe {
                libc::recvfrom(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0, (&raw mut from).cast(), &raw mut from_len)
            };
            if count < 0 {
                return None;
            }
            // What this end itself sends passes here too.
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                frame.truncate(count as usize);
                return Some(frame);
            }
        }
    }

    /// The next frame that `wanted` likes, within a second.
    pub(crate) fn recv_where(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            match self.recv() {
                Some(frame) if wanted(&frame) => return Some(frame),
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        None
    }
}

/// A frame of `len` bytes whose content depends on `n`.
pub(crate) fn frame(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, ETHERTYPE[0], ETHERTYPE[1]];
    bytes.extend(n.to_be_bytes());
    bytes.extend((0..len.saturating_sub(18)).map(|at| (at as u32).wrapping_mul(31).wrapping_add(n) as u8));
    bytes
}
