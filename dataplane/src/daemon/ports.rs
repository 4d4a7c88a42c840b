//! The ports: taken up, given up, and attached again where a pod was made anew.
//!
//! Opens the sockets of every worker and attaches the redirect program. A port enters the runtime here; packets flow with the
//! next tables, which [`publish`](super::publish) makes.

use anyhow::Context;
use weir_host::offload;
use weir_xsk::{AttachMode, PortConfig, PortRole, Redirect};

use super::{Daemon, Inner};
use crate::io::PortId;
use crate::model::{MacAddr, PodPort, XdpMode};
use crate::runtime::{Port, PortKind};

/// Most ports at a time: pods (kubelet's own limit is 110), the uplink and the host port. A worker's 16,384 frames suffice for so
/// many: the first 16 get 256 each, all others 64, which makes 10,752; where ports that are busy have grown before, others start
/// with less. With many more, idle pods would starve the uplink.
pub const PORTS_MAX: u16 = 120;
/// Frames that wait for packets at each port and queue at most, as far as there are enough for all ports: a ring's worth.
const WAITING: u32 = 2048;
/// The offload by which an interface hands VLAN tags over beside the packet, as the kernel spells it.
const VLAN_STRIPPING: &str = "rx-vlan-hw-parse";

/// What of an attached port is nobody's business but the daemon's.
pub(super) struct Attached {
    /// The interface's number: one that was made anew under the same name is another one.
    pub(super) index: u32,
    /// `copy` or `skb`.
    pub(super) mode: &'static str,
}

impl Daemon {
    /// Attaches the uplink, the host port and the pods of the configuration, in this order.
    pub(super) fn attach_first(&self) -> anyhow::Result<()> {
        let mut inner = self.lock();
        self.open_uplink(&mut inner)?;
        let (host, mac) = (inner.host.port_end.clone(), inner.host.mac);
        self.open_port(&mut inner, PortKind::Host, &host, Some(mac), AttachMode::Auto)?;
        for port in &self.config.pods {
            self.open_pod(&mut inner, port)?;
        }
        self.look(&mut inner)
    }

    pub(super) fn open_uplink(&self, inner: &mut Inner) -> anyhow::Result<()> {
        let Some(uplink) = &self.config.uplink else { return Ok(()) };
        let mode = match uplink.mode {
            XdpMode::Auto => AttachMode::Auto,
            XdpMode::Zerocopy => AttachMode::ZeroCopy,
            XdpMode::Copy => AttachMode::Copy,
            XdpMode::Skb => AttachMode::Skb,
        };
        let mac = inner.net.link(&uplink.interface)?.mac.map(MacAddr);
        self.open_port(inner, PortKind::Uplink, &uplink.interface, mac, mode)?;
        inner.vlan_stripping = stop_vlan_stripping(&uplink.interface);
        Ok(())
    }

    /// Takes up a pod's port.
    ///
    /// # Errors
    /// Where the interface is not as it must be; nothing has changed then.
    pub fn attach_pod(&self, port: &PodPort) -> anyhow::Result<()> {
        let mut inner = self.lock();
        self.open_pod(&mut inner, port)?;
        self.look(&mut inner)
    }

    /// Gives a pod's port up. One that is not there is fine.
    ///
    /// # Errors
    /// Where the workers do not take the new tables.
    pub fn detach_pod(&self, pod: &str) -> anyhow::Result<()> {
        let mut inner = self.lock();
        let (namespace, name) = pod_name(pod)?;
        if let Some(port) = inner.runtime.pod(namespace, name) {
            self.close_port(&mut inner, port);
            self.look(&mut inner)?;
        }
        Ok(())
    }

    fn open_pod(&self, inner: &mut Inner, port: &PodPort) -> anyhow::Result<()> {
        let (namespace, name) = pod_name(&port.pod)?;
        if let Some(open) = inner.runtime.pod(namespace, name) {
            let index = inner.attached.get(&open.0).map(|attached| attached.index);
            if inner.runtime.ports[usize::from(open.0)].name == port.interface && index == Some(inner.net.link(&port.interface)?.index) {
                return Ok(());
            }
            // The pod was made anew behind another interface.
            self.close_port(inner, open);
        }
        weir_host::guard(&port.interface)?;
        let kind = PortKind::Pod { namespace: namespace.into(), name: name.into() };
        self.open_port(inner, kind, &port.interface, port.mac, AttachMode::Auto)
    }

    /// Opens sockets on every worker, attaches the program, and enters the port into the runtime; packets flow with the next
    /// tables. Nothing is left behind on failure.
    fn open_port(&self, inner: &mut Inner, kind: PortKind, interface: &str, mac: Option<MacAddr>, mode: AttachMode) -> anyhow::Result<()> {
        let link = inner.net.link(interface)?;
        let ports = &mut inner.runtime.ports;
        let port = PortId(ports.iter().position(|port| port.kind == PortKind::Vacant).unwrap_or(ports.len()) as u16);
        anyhow::ensure!(port.0 < PORTS_MAX, "cannot attach to {interface}: all {PORTS_MAX} ports are taken");
        let role = match kind {
            PortKind::Uplink => PortRole::Uplink,
            PortKind::Host => PortRole::Host,
            PortKind::Pod { .. } | PortKind::Vacant => PortRole::Pod,
        };
        // Sockets first: while the program is attached and a socket is missing, packets for it are lost.
        let opened = self.open_sockets(&mut inner.redirect, port, interface);
        let attached = match opened.and_then(|()| Ok(inner.redirect.attach(port.0, interface, role, mode)?)) {
            Ok(attached) => attached,
            Err(error) => {
                self.workers.iter().for_each(|worker| worker.detach(port));
                return Err(error);
            }
        };
        tracing::info!(interface, ?kind, mode = attached.name(), "port attached");
        inner.attached.insert(port.0, Attached { index: link.index, mode: attached.name() });
        let new = Port {
            kind,
            name: interface.into(),
            mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            unfinished_checksums: link.kind.as_deref() == Some("veth"),
        };
        match ports.get_mut(usize::from(port.0)) {
            Some(vacant) => *vacant = new,
            None => ports.push(new),
        }
        Ok(())
    }

    fn open_sockets(&self, redirect: &mut Redirect, port: PortId, interface: &str) -> anyhow::Result<()> {
        for (queue, worker) in self.workers.iter().enumerate() {
            let config = PortConfig { interface: interface.into(), queue: queue as u32, waiting: WAITING };
            worker.attach(port, &config, |socket| Ok(redirect.set_socket(port.0, queue as u16, socket)?))?;
        }
        Ok(())
    }

    pub(super) fn close_port(&self, inner: &mut Inner, port: PortId) {
        let old = std::mem::replace(&mut inner.runtime.ports[usize::from(port.0)], Port::vacant());
        inner.redirect.detach(port.0);
        inner.attached.remove(&port.0);
        // First nobody sends there any more, then it goes.
        self.put_in_force(inner, None);
        self.workers.iter().for_each(|worker| worker.detach(port));
        tracing::info!(interface = old.name, "port detached");
    }
}

/// Has the uplink leave VLAN tags in their packets: one beside its packet is invisible to the redirect program, which would
/// take the packet for one of ours. Tells whether that is to be taken back.
fn stop_vlan_stripping(uplink: &str) -> bool {
    let stop = || {
        let strips = offload::active_features(uplink)?.contains(VLAN_STRIPPING);
        if strips {
            offload::switch(uplink, &[VLAN_STRIPPING], false)?;
        }
        weir_host::Result::Ok(strips)
    };
    stop().unwrap_or_else(|error: weir_host::Error| {
        tracing::warn!(%error, "the uplink may take VLAN tags off; what comes tagged is then taken for untagged");
        false
    })
}

/// Splits `namespace/name`.
fn pod_name(pod: &str) -> anyhow::Result<(&str, &str)> {
    pod.split_once('/').with_context(|| format!("{pod:?} names no pod\n  try: namespace/name"))
}

/// Lets the uplink take VLAN tags off again.
pub(super) fn resume_vlan_stripping(uplink: &str) {
    if let Err(error) = offload::switch(uplink, &[VLAN_STRIPPING], true) {
        tracing::warn!(%error, "the uplink stays without VLAN offload");
    }
}
