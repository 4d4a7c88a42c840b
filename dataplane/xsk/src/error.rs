//! What can go wrong with ports: each error says what, where, and what to do.

use std::io;

use crate::link::Link;

/// Why the memory or a socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The process may not do this.
    #[error(
        "cannot {what}: {source}\n  AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF\n  try: run it as root, or give the service these capabilities"
    )]
    Permission {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("cannot attach to {interface} queue {queue}: no such interface\n  try: `ip link show` for the names of this node")]
    NoInterface {
        /// Its name.
        interface: String,
        /// The queue that was asked for.
        queue: u32,
    },
    /// The interface has fewer queues.
    #[error("cannot attach to {interface} queue {queue}: {source}\n  {}\n  try: fewer workers, or `ethtool -L {interface} combined {}`", has_queues(.interface, *.queues), .queue + 1)]
    NoQueue {
        /// Its name.
        interface: String,
        /// The queue that was asked for.
        queue: u32,
        /// How many there are.
        queues: u32,
        /// What the kernel said, or would have said.
        source: io::Error,
    },
    /// Another socket has the queue.
    #[error(
        "cannot attach to {interface} queue {queue}: {source}\n  another AF_XDP socket has this queue: another weir-dataplane, or a program that is just ending\n  try: `ss --xdp -a -p` shows who it is; `--takeover` replaces a running weir-dataplane"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The place is taken already.
    #[error("cannot attach to {interface} queue {queue}: port {index} is in use by {by}\n  try: remove that port first")]
    IndexTaken {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The port's index.
        index: u16,
        /// The interface there.
        by: String,
    },
    /// Anything else that the kernel said of one socket.
    #[error("cannot attach to {interface} queue {queue}: {source}\n  {detail}")]
    Socket {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What is known of the interface.
        detail: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory itself could not be made.
    #[error("cannot make the packet memory of {slots} slots of {slot_bytes} bytes ({} MiB): {source}\n  try: a smaller number of frames", (u64::from(*.slots) * u64::from(*.slot_bytes)) >> 20)]
    Memory {
        /// How many slots.
        slots: u32,
        /// Bytes of each.
        slot_bytes: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The numbers cannot work.
    #[error("cannot make the packet memory: {0}")]
    Config(String),
}

/// `eth0 has 2 queues (0..=1)`
fn has_queues(interface: &str, queues: u32) -> String {
    match queues {
        1 => format!("{interface} has 1 queue (0)"),
        _ => format!("{interface} has {queues} queues (0..={})", queues.saturating_sub(1)),
    }
}

impl PortError {
    /// Finds the words for what bind said of `interface`.
    pub(crate) fn of_bind(interface: &str, queue: u32, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { what: format!("attach to {interface} queue {queue}"), source },
            Some(libc::EBUSY) => Self::Busy { interface, queue, source },
            Some(libc::ENODEV) => Self::NoInterface { interface, queue },
            _ => match Link::query(&interface) {
                Ok(link) if queue >= link.rx_queues => Self::NoQueue { interface, queue, queues: link.rx_queues, source },
                Ok(link) => {
                    let detail = format!("{}, MTU {}", has_queues(&interface, link.rx_queues), link.mtu);
                    Self::Socket { interface, queue, detail, source }
                }
                Err(_) => Self::NoInterface { interface, queue },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_queue_is_named_with_those_that_exist() {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        let error = PortError::NoQueue { interface: "eth0".into(), queue: 3, queues: 2, source };
        assert_eq!(
            error.to_string(),
            "cannot attach to eth0 queue 3: Invalid argument (os error 22)\n  eth0 has 2 queues (0..=1)\n  \
             try: fewer workers, or `ethtool -L eth0 combined 4`"
        );
    }
}
