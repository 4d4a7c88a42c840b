//! Names of everything that a lab makes. All derive from the lab's name, so that labs stand beside each other and `down`
//! finds what belongs to its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Names in `/run/netns` are file names: 255 bytes. Longer ones are cut and made unique by a hash.
const NETNS_NAME_MAX: usize = 200;

/// The name of a lab: lower-case letters and digits, so that no lab's names begin with another lab's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabName(String);

/// The text is no name for a lab.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no name for a lab: use 1 to 20 lower-case letters and digits")]
pub struct InvalidLabName(String);

impl FromStr for LabName {
    type Err = InvalidLabName;
    fn from_str(text: &str) -> Result<Self, InvalidLabName> {
        let good = (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if good { Ok(Self(text.into())) } else { Err(InvalidLabName(text.into())) }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// What the names of all its namespaces begin with.
    pub(super) fn prefix(&self) -> String {
        format!("weir-{}-", self.0)
    }
    /// The namespace of the network between the nodes.
    pub(super) fn underlay(&self) -> String {
        format!("{}underlay", self.prefix())
    }
    /// The namespace of the host outside the cluster.
    pub(super) fn outside(&self) -> String {
        format!("{}outside", self.prefix())
    }
    /// The namespace of a node.
    pub(super) fn node(&self, name: &str) -> String {
        shortened(format!("{}node-{name}", self.prefix()))
    }
    /// The namespace of a pod. The first dot ends the Kubernetes namespace, which cannot have one itself.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> String {
        shortened(format!("{}pod-{namespace}.{name}", self.prefix()))
    }
    /// Where the lab's files are: `node.yaml`, the daemon's socket, log and process number, the lab's record.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/weir").join(&self.0)
    }
}

fn shortened(name: String) -> String {
    if name.len() <= NETNS_NAME_MAX {
        return name;
    }
    let mut end = NETNS_NAME_MAX - 17;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}.{:016x}", &name[..end], hash(&name))
}

/// The name of an interface that belongs to `owner`: `prefix` of at most 5 bytes and 10 hexadecimal digits.
pub(super) fn interface(prefix: &str, owner: &str) -> String {
    format!("{prefix}{:010x}", hash(owner) & 0xff_ffff_ffff)
}

/// FNV-1a, 64 bits. Why not the standard library's: names must not change with the toolchain.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_labs_nodes_and_pods_apart() {
        let lab: LabName = "lab".parse().unwrap();
        assert_eq!(lab.node("node-a"), "weir-lab-node-node-a");
        assert_eq!(lab.pod("shop", "web-0"), "weir-lab-pod-shop.web-0");
        assert_ne!(lab.pod("a-b", "c"), lab.pod("a", "b-c"));
        for bad in ["", "a-b", "Lab", "lab/x", "a.b", "123456789012345678901"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn long_names_fit_and_stay_distinct() {
        let lab: LabName = "lab".parse().unwrap();
        let long = "x".repeat(253);
        let (one, two) = (lab.pod(&"n".repeat(63), &format!("{long}1")), lab.pod(&"n".repeat(63), &format!("{long}2")));
        assert!(one.len() <= NETNS_NAME_MAX && two.len() <= NETNS_NAME_MAX);
        assert_ne!(one, two);
        assert!(interface("weir", "shop/web-0").len() <= 15);
        assert_ne!(interface("weir", "shop/web-0"), interface("weir", "shop/web-1"));
    }
}
