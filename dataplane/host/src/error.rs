//! What can go wrong when talking to the kernel, in words that say what, where and what to do.

use std::fmt;
use std::io;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a request.
    #[error("cannot {action}: {source}{}{}", Detail(detail.as_deref()), Hint(source))]
    Refused {
        /// What was asked for, with the interface and the namespace.
        action: String,
        /// The kernel's own explanation, where it gave one.
        detail: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// There is no interface of that name.
    #[error("there is no interface {name} in this network namespace\n  try: ip link show")]
    NoSuchLink {
        /// The name asked for.
        name: String,
    },
    /// There is no network namespace of that name.
    #[error("there is no network namespace {name}\n  try: ip netns list")]
    NoSuchNetns {
        /// The name asked for.
        name: String,
    },
    /// The kernel sent something that is no netlink message.
    #[error("the kernel's answer to \"{action}\" could not be read: {detail}")]
    Malformed {
        /// What was asked for.
        action: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        Self::Refused { action: action.into(), detail: None, source }
    }
    pub(crate) fn errno(action: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self::io(action, errno.into())
    }
    /// The kernel's error number, if it was the kernel that refused.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
    /// The thing to be made is there already (`EEXIST`).
    pub fn is_exists(&self) -> bool {
        self.raw_os_error() == Some(nix::errno::Errno::EEXIST as i32)
    }
    /// The thing asked for is not there.
    pub fn is_absent(&self) -> bool {
        use nix::errno::Errno;
        matches!(self, Self::NoSuchLink { .. } | Self::NoSuchNetns { .. })
            || [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL].iter().any(|&e| self.raw_os_error() == Some(e as i32))
    }
    /// The caller lacks a capability (`EPERM`, `EACCES`).
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

struct Detail<'a>(Option<&'a str>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |text| write!(f, "\n  the kernel says: {text}"))
    }
}

struct Hint<'a>(&'a io::Error);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.kind() == io::ErrorKind::PermissionDenied {
            f.write_str("\n  try: run it as root (CAP_NET_ADMIN, and CAP_SYS_ADMIN for namespaces, are needed)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let error = Error::io("set the MTU of eth0 to 9000", io::Error::from_raw_os_error(1));
        let text = error.to_string();
        assert!(text.starts_with("cannot set the MTU of eth0 to 9000: Operation not permitted"), "{text}");
        assert!(text.contains("try: run it as root"), "{text}");
        assert!(error.is_denied() && !error.is_absent());
        assert!(Error::NoSuchLink { name: "eth9".into() }.is_absent());
    }
}
