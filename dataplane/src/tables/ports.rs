//! What the stages ask about a port.

use hashbrown::HashMap;

use super::gates::{Gate, TunnelEnd};
use crate::io::PortId;
use crate::model::{Ip, MacAddr, NodeState};
use crate::runtime::{PortKind, Runtime};

/// A port as packets meet it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// Who is at the other end.
    pub side: Side,
    /// As [`Port::mac`](crate::runtime::Port::mac).
    pub mac: Option<MacAddr>,
    /// Transport checksums may be unfinished.
    pub unfinished_checksums: bool,
}

/// Who is at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// A pod, with its addresses; `None` = not in the snapshot yet.
    Pod(Option<Box<[Ip]>>),
    /// The network of the nodes.
    Uplink,
    /// The node's own stack.
    Host,
}

/// All ports, by [`PortId`].
#[derive(Debug, Default)]
pub struct Ports {
    entries: Vec<Option<PortEntry>>,
    /// Of the same numbers.
    gates: Vec<Gate>,
    overlay: TunnelEnd,
}

impl Ports {
    /// Joins the attached ports with the pods of the snapshot.
    pub fn compile(state: &NodeState, runtime: &Runtime) -> Self {
        let local = state.endpoints.iter().filter(|e| e.node == state.this_node && !e.host_network);
        let pods: HashMap<(&str, &str), &[std::net::IpAddr]> =
            local.map(|e| ((e.namespace.as_str(), e.name.as_str()), e.addresses.as_slice())).collect();
        let entry = |port: &crate::runtime::Port| {
            let side = match &port.kind {
                PortKind::Pod { namespace, name } => {
                    Side::Pod(pods.get(&(namespace.as_str(), name.as_str())).map(|a| a.iter().map(|a| Ip::from(*a)).collect()))
                }
                PortKind::Uplink => Side::Uplink,
                PortKind::Host => Side::Host,
                PortKind::Vacant => return None,
            };
            Some(PortEntry { side, mac: port.mac, unfinished_checksums: port.unfinished_checksums })
        };
        let entries: Vec<_> = runtime.ports.iter().map(entry).collect();
        let gates = entries.iter().map(|entry| entry.as_ref().map_or(Gate::CLOSED, Gate::new)).collect();
        Self { entries, gates, overlay: TunnelEnd::new(state, runtime).unwrap_or_default() }
    }

    /// A port, if it is attached.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&PortEntry> {
        self.entries.get(usize::from(id.0))?.as_ref()
    }

    /// The same, by number, in the form that the hot lane uses.
    #[inline(always)]
    pub(crate) fn gates(&self) -> &[Gate] {
        &self.gates
    }

    /// Our end of the overlay.
    #[inline(always)]
    pub(crate) fn overlay(&self) -> &TunnelEnd {
        &self.overlay
    }

    /// How many there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}
