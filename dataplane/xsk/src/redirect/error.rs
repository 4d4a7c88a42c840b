//! What can go wrong with the program, its attachments and its maps, in words that say what to do.

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::link::Link;

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

pub(super) fn program_error(error: ProgramError) -> io::Error {
    errno(&error).unwrap_or_else(|| io::Error::other(error.to_string()))
}

pub(super) fn map_error(map: &'static str, error: MapError) -> RedirectError {
    RedirectError::Map { map, source: errno(&error).unwrap_or_else(|| io::Error::other(error.to_string())) }
}

/// Removing what is not there is no mistake.
pub(super) fn gone(map: &'static str, result: Result<(), MapError>) -> Result<(), RedirectError> {
    match result.map_err(|error| map_error(map, error)) {
        Err(RedirectError::Map { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn load_error(error: EbpfError) -> RedirectError {
    match errno(&error) {
        Some(source) if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            RedirectError::Permission { what: "load the redirect program".into(), source }
        }
        Some(source) => RedirectError::Load(format!("{error}: {source}")),
        None => RedirectError::Load(error.to_string()),
    }
}

pub(super) fn attach_error(interface: &str, link: &Link, source: io::Error) -> RedirectError {
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
    fn a_foreign_program_is_named_with_what_to_do() {
        let error = RedirectError::Foreign { interface: "eth0".into(), programs: vec![42, 7] };
        assert_eq!(
            error.to_string(),
            "cannot attach to eth0: it already carries XDP program 42, 7\n  try: `bpftool prog show id 42` shows whose it is; `ip link \
             set dev eth0 xdp off` removes it, unless a running program holds it: then stop that program"
        );
    }
}
