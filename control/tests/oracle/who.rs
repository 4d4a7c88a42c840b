//! Who has an address, as policies and services see it. Plain searches through the objects.

use std::net::IpAddr;

use weir_control::source::objects::{Node, Pod, Snapshot};

/// The owner of an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who<'s> {
    /// A living pod with an address of its own.
    Pod(&'s Pod),
    /// A node, or a pod on its host network, which is seen as its node (E1.30 b).
    Node(&'s Node),
    /// Anybody else.
    Outside,
}

impl<'s> Who<'s> {
    /// Finds the owner. A finished pod owns nothing (E1.39); a pod without address is never found (E1.40).
    pub(crate) fn at(snapshot: &'s Snapshot, address: IpAddr) -> Self {
        let mut hosted = None;
        for pod in snapshot.pods.iter().filter(|p| !p.finished && p.addresses.contains(&address)) {
            if !pod.host_network {
                return Self::Pod(pod);
            }
            hosted = pod.node.as_deref();
        }
        let node = snapshot.nodes.iter().find(|n| n.addresses.contains(&address) || hosted == Some(&n.meta.name));
        node.map_or(Self::Outside, Self::Node)
    }

    /// The pod.
    pub(crate) fn pod(self) -> Option<&'s Pod> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }

    /// Tells whether this is the node of that name.
    pub(crate) fn is_node(self, name: &str) -> bool {
        matches!(self, Self::Node(node) if node.meta.name == name)
    }
}
