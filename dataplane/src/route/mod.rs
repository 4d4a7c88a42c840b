//! Ways out of the node: a local pod, a remote node inside VXLAN, the underlay, the node's own stack.
//!
//! Sits after policy and source translation. A flow remembers its [`ExitId`] together with the generation that it is of;
//! under another generation it is resolved anew. The kernel is the routing control plane: next hops are its routes and
//! neighbours as [`Runtime`] has them.

mod departure;

use hashbrown::HashMap;

use crate::io::PortId;
use crate::model::{Ip, MacAddr, NodeConfig, NodeIndex, NodeState, OverlayMode};
use crate::overlay::vxlan::{Remote, Template, mtu_overhead};
use crate::runtime::{PortKind, Runtime};
use crate::tables::{Owner, OwnerKind, Ranges};
use crate::verdict::DropReason;
use crate::wire::vxlan::Vni;

pub(crate) use departure::Departure;

/// An exit of one generation: index into [`Routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitId(pub u32);

/// A way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// To a local pod.
    Pod {
        /// Its port.
        port: PortId,
        /// Its MAC; `None` = derived from its address.
        mac: Option<MacAddr>,
        /// Largest IP packet, bytes.
        mtu: u16,
    },
    /// To the node's own stack.
    Host {
        /// The host port.
        port: PortId,
        /// MAC of the node's end; `None` = derived from the address.
        mac: Option<MacAddr>,
        /// Largest IP packet, bytes.
        mtu: u16,
    },
    /// To another node, encapsulated.
    Vxlan {
        /// The uplink.
        port: PortId,
        /// Which [`Tunnel`].
        tunnel: u32,
        /// Largest inner IP packet, bytes.
        mtu: u16,
    },
    /// To a neighbour on the underlay, as it is.
    Native {
        /// The uplink.
        port: PortId,
        /// The next hop.
        mac: MacAddr,
        /// Largest IP packet, bytes.
        mtu: u16,
    },
}

impl Exit {
    /// The largest IP packet that it takes, bytes; of an encapsulating one, the largest inner packet.
    #[inline(always)]
    pub const fn mtu(&self) -> u16 {
        match *self {
            Self::Pod { mtu, .. } | Self::Host { mtu, .. } | Self::Vxlan { mtu, .. } | Self::Native { mtu, .. } => mtu,
        }
    }
    /// Tells whether it leads to the node's own stack.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}

/// The way to one node's VTEP.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// The node.
    pub node: NodeIndex,
    /// Its VTEP's address.
    pub vtep: Ip,
    /// The outer headers.
    pub template: Template,
}

/// What the kernel's routes say of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Unroutable,
    /// The destination itself is a neighbour.
    OnLink,
    Via(Ip),
}

/// All exits of one generation. The first ones are the ports', in their order.
#[derive(Debug)]
pub struct Routes {
    exits: Vec<Exit>,
    /// Of the same numbers.
    departures: Vec<Departure>,
    tunnels: Vec<Tunnel>,
    /// Exit of each node's pods where they are reached by the overlay.
    of_node: Vec<Result<ExitId, DropReason>>,
    neighbours: HashMap<Ip, ExitId>,
    kernel: Ranges<Hop>,
    host: Option<ExitId>,
    this_node: NodeIndex,
    overlay: bool,
}

impl Routes {
    /// Resolves everything that can be resolved ahead of packets.
    pub fn compile(state: &NodeState, runtime: &Runtime) -> Self {
        let underlay = &runtime.underlay;
        let uplink = runtime.uplink();
        let exit_of_port = |(index, port): (usize, &crate::runtime::Port)| {
            let (id, mac, mtu) = (PortId(index as u16), port.mac, port.mtu);
            match port.kind {
                PortKind::Pod { .. } => Exit::Pod { port: id, mac, mtu },
                PortKind::Host => Exit::Host { port: id, mac, mtu },
                // Hold the places of these ports; nothing resolves to them.
                PortKind::Uplink | PortKind::Vacant => Exit::Native { port: id, mac: MacAddr::default(), mtu },
            }
        };
        let mut routes = Self {
            exits: runtime.ports.iter().enumerate().map(exit_of_port).collect(),
            departures: Vec::new(),
            tunnels: Vec::new(),
            of_node: Vec::new(),
            neighbours: HashMap::new(),
            kernel: Ranges::build(&hops(runtime), &Hop::Unroutable, |hop, new| *hop = *new),
            host: runtime.host().map(|port| ExitId(port.0.into())),
            this_node: state.this_node,
            overlay: runtime.config.overlay.mode == OverlayMode::Vxlan,
        };
        let mtu = underlay.mtu;
        if let Some(port) = uplink {
            for (address, mac) in &underlay.neighbours {
                let id = routes.push(Exit::Native { port, mac: *mac, mtu });
                routes.neighbours.insert(Ip::from(*address), id);
            }
        }
        routes.of_node = (0..state.nodes.len() as NodeIndex).map(|node| routes.tunnel_to(state, runtime, node)).collect();
        // A flow keeps 16 bits of an exit's number; those beyond are for the general lane.
        let kept = routes.exits.iter().take(usize::from(u16::MAX));
        routes.departures = kept.map(|exit| Departure::new(exit, &routes.tunnels, underlay.mac)).collect();
        routes
    }

    fn tunnel_to(&mut self, state: &NodeState, runtime: &Runtime, node: NodeIndex) -> Result<ExitId, DropReason> {
        let underlay = &runtime.underlay;
        let (this, remote) = (state.nodes.get(self.this_node as usize), &state.nodes[node as usize]);
        let pair = [true, false].into_iter().find_map(|v4| Some((this?.primary(v4)?, remote.primary(v4)?)));
        let (source, vtep) = pair.filter(|_| node != self.this_node).ok_or(DropReason::NoTunnelEndpoint)?;
        let port = runtime.uplink().ok_or(DropReason::PortUnavailable)?;
        let next_hop = self.underlay(vtep.into())?;
        let Exit::Native { mac: next_hop, .. } = self.exit(next_hop) else { return Err(DropReason::FibLookupFailed) };
        let remote_end = Remote {
            src_mac: underlay.mac,
            dst_mac: next_hop,
            src: source.into(),
            dst: vtep.into(),
            port: runtime.config.overlay.port,
            vni: vni(&runtime.config),
            vtep_src: this.map(|n| n.vtep_mac).unwrap_or_default(),
            vtep_dst: remote.vtep_mac,
        };
        let tunnel = self.tunnels.len() as u32;
        self.tunnels.push(Tunnel { node, vtep: vtep.into(), template: Template::new(&remote_end) });
        let mtu = underlay.mtu.saturating_sub(mtu_overhead(vtep.is_ipv6()) as u16);
        Ok(self.push(Exit::Vxlan { port, tunnel, mtu }))
    }

    fn push(&mut self, exit: Exit) -> ExitId {
        self.exits.push(exit);
        ExitId(self.exits.len() as u32 - 1)
    }

    /// Finds the way to `destination`, which `owner` owns.
    ///
    /// # Errors
    /// `EndpointNotReady` for a pod without a port, `StaleOrUnroutableIp` for nobody's address in a pod CIDR,
    /// `NoTunnelEndpoint`, `FibLookupFailed` and `PortUnavailable` where there is no way.
    pub fn resolve(&self, owner: &Owner, destination: Ip) -> Result<ExitId, DropReason> {
        match owner.kind {
            OwnerKind::LocalPod { port, .. } => port.map(|p| ExitId(p.0.into())).ok_or(DropReason::EndpointNotReady),
            OwnerKind::OwnNode => self.host.ok_or(DropReason::PortUnavailable),
            OwnerKind::Nobody(Some(node)) if node == self.this_node => Err(DropReason::StaleOrUnroutableIp),
            OwnerKind::RemotePod { node, .. } | OwnerKind::Nobody(Some(node)) if self.overlay => self.to_node(node),
            OwnerKind::Nobody(None) if self.overlay && owner.in_cluster => Err(DropReason::StaleOrUnroutableIp),
            OwnerKind::RemotePod { .. } | OwnerKind::OtherNode(_) | OwnerKind::Nobody(_) => self.underlay(destination),
        }
    }

    /// Finds the neighbour by which the kernel would send to `destination`.
    ///
    /// # Errors
    /// `FibLookupFailed` without a route or a resolved neighbour.
    pub fn underlay(&self, destination: Ip) -> Result<ExitId, DropReason> {
        let neighbour = match self.kernel.find(destination) {
            Hop::Unroutable => return Err(DropReason::FibLookupFailed),
            Hop::OnLink => destination,
            Hop::Via(hop) => *hop,
        };
        self.neighbours.get(&neighbour).copied().ok_or(DropReason::FibLookupFailed)
    }

    /// The way through the overlay to a node's VTEP.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn to_node(&self, node: NodeIndex) -> Result<ExitId, DropReason> {
        self.of_node.get(node as usize).copied().unwrap_or(Err(DropReason::NoTunnelEndpoint))
    }

    /// An exit of this generation.
    #[inline]
    pub fn exit(&self, id: ExitId) -> Exit {
        self.exits[id.0 as usize]
    }

    /// The exits of this generation, by number, in the form that the hot lane uses.
    #[inline(always)]
    pub(crate) fn departures(&self) -> &[Departure] {
        &self.departures
    }

    /// The VTEP that a tunnel of that number leads to.
    pub(crate) fn vtep(&self, id: u16) -> Option<Ip> {
        // Those that the hot lane knows.
        match self.exits[..self.departures.len()].get(usize::from(id))? {
            Exit::Vxlan { tunnel, .. } => Some(self.tunnel(*tunnel).vtep),
            _ => None,
        }
    }

    /// What an exit of kind [`Exit::Vxlan`] refers to.
    #[inline]
    pub fn tunnel(&self, index: u32) -> &Tunnel {
        &self.tunnels[index as usize]
    }
}

/// The overlay's network; the configuration's reader refuses numbers of more than 24 bits.
pub fn vni(config: &NodeConfig) -> Vni {
    Vni::try_from(config.overlay.vni & 0xff_ffff).unwrap_or_else(|_| unreachable!("24 bits are left"))
}

fn hops(runtime: &Runtime) -> Vec<(ipnet::IpNet, Hop)> {
    let hop = |via: Option<std::net::IpAddr>| via.map_or(Hop::OnLink, |via| Hop::Via(via.into()));
    runtime.underlay.routes.iter().map(|route| (route.prefix, hop(route.via))).collect()
}
