//! Following the kernel, which is the routing control plane: next hops, routes into the host pair, what of the uplink is ours, and
//! ports whose interface is gone.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weir_host::{Monitor, Picture};
use weir_xsk::UplinkFilter;

use super::ports::Attached;
use super::{Daemon, Inner, underlay};
use crate::io::PortId;
use crate::model::{FrontendKind, NodeState, OverlayMode};
use crate::runtime::{PortKind, Underlay};
use crate::worker::Handle;

/// How often workers are asked for destinations without a next hop.
const TICK: Duration = Duration::from_millis(200);
/// How often the node's network is looked at without any event: next hops are confirmed then. Less than the kernel's own
/// time until a neighbour is stale (15 s and more), and rare enough to cost nothing.
const LOOK: Duration = Duration::from_secs(3);

impl Daemon {
    /// Looks at the node's network and follows it: next hops, routes into the host pair, what of the uplink is ours, ports
    /// whose interface is gone.
    pub(super) fn look(&self, inner: &mut Inner) -> anyhow::Result<()> {
        let picture = inner.net.picture()?;
        let gone = |attached: &Attached| !picture.links.iter().any(|link| link.index == attached.index);
        let lost: Vec<PortId> = inner.attached.iter().filter(|(_, at)| gone(at)).map(|(id, _)| PortId(*id)).collect();
        for port in lost {
            let old = &inner.runtime.ports[usize::from(port.0)];
            match old.kind {
                PortKind::Host => {
                    tracing::error!(interface = old.name, "the host pair is gone: the node reaches no pods until the daemon is restarted")
                }
                _ => tracing::warn!(interface = old.name, "the interface is gone"),
            }
            self.close_port(inner, port);
        }
        if let Some(uplink) = &self.config.uplink
            && inner.runtime.uplink().is_none()
            && picture.links.iter().any(|link| link.name == uplink.interface)
        {
            self.open_uplink(inner)?;
        }
        let uplink = self.config.uplink.as_ref().map(|uplink| uplink.interface.as_str());
        let underlay = underlay::read(&picture, uplink);
        inner.redirect.set_uplink(self.filter(&inner.tables.state, &underlay))?;
        inner.host.lead(&inner.tables.state, &underlay.addresses);
        if let Some(uplink) = uplink {
            self.probe(inner, &picture, &underlay, uplink);
        }
        inner.runtime.underlay = underlay;
        if inner.published != inner.runtime {
            self.put_in_force(inner, None);
        }
        let generation = inner.tables.generation;
        inner.http.set_healthy(self.workers.iter().all(|worker| !worker.has_ended() && worker.in_force() >= generation));
        if inner.http.lacks_ports() {
            let Inner { http, tables, .. } = inner;
            http.follow(&tables.state, &self.config.services.node_port_cidrs);
        }
        Ok(())
    }

    fn probe(&self, inner: &Inner, picture: &Picture, underlay: &Underlay, uplink: &str) {
        let state = &inner.tables.state;
        let others = state.nodes.iter().enumerate().filter(|(index, _)| *index != state.this_node as usize);
        let mut targets: Vec<IpAddr> = others.flat_map(|(_, node)| node.addresses.iter().copied()).collect();
        targets.extend(self.workers.iter().flat_map(|worker| std::iter::from_fn(|| worker.unresolved())));
        underlay::probe(&inner.net, picture, underlay, uplink, targets.into_iter());
    }

    /// What of the uplink's traffic is ours under a state.
    fn filter(&self, state: &NodeState, underlay: &Underlay) -> UplinkFilter {
        let config = &self.config;
        let (first, last) = config.masquerade.ports;
        let served = |kind| kind != FrontendKind::ClusterIp || config.services.external_cluster_ip;
        let cidrs = state.cluster.pod_cidrs.iter().flatten().chain(state.nodes.iter().flat_map(|node| &node.pod_cidrs));
        UplinkFilter {
            vtep_port: (config.overlay.mode == OverlayMode::Vxlan).then_some(config.overlay.port),
            masquerade: Some(first..=last),
            node_addresses: underlay.addresses.iter().copied().collect(),
            pod_cidrs: cidrs.map(|cidr| (cidr.network(), cidr.prefix_len())).collect(),
            frontends: state
                .services
                .iter()
                .flat_map(|s| s.frontends.iter().filter(|f| served(f.kind)).map(|f| (f.address, s.protocol.number(), f.port)))
                .collect(),
        }
    }

    /// Follows the kernel until [`stop`](Self::stop); runs on a thread of its own.
    ///
    /// # Errors
    /// Where the kernel's changes cannot be subscribed to, or a worker has ended: the daemon must end too, so that what it guards
    /// is not half served.
    pub fn follow(&self) -> anyhow::Result<()> {
        let monitor = Monitor::open()?;
        let mut looked = Instant::now();
        while !self.stopping.load(Ordering::Relaxed) {
            let changed = monitor.wait(TICK)?;
            if let Some(worker) = self.workers.iter().find(|worker| worker.has_ended()) {
                anyhow::bail!("the worker on core {} has ended", worker.core);
            }
            let mut inner = self.lock();
            self.reclaim(&mut inner);
            if !changed && looked.elapsed() < LOOK && !self.workers.iter().any(Handle::has_unresolved) {
                continue;
            }
            looked = Instant::now();
            if let Err(error) = self.look(&mut inner) {
                tracing::error!(error = format!("{error:#}"), "cannot follow the node's network");
            }
        }
        Ok(())
    }
}
