//! Attaching a pod: its veth pair, addresses, routes and offloads, and the guard on the host's end.
//!
//! Serves whoever makes pods: the lab, and CNI. Nothing here knows of Kubernetes or of the dataplane's process.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Result;
use crate::link::{Mac, VethEnd};
use crate::net::Net;
use crate::netns::Netns;
use crate::offload;
use crate::route::NewRoute;
use crate::sysctl;

/// The name of a pod's interface inside the pod.
pub const POD_INTERFACE: &str = "eth0";

/// What a pod's network shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The name of the host's end, at most 15 bytes.
    pub host_end: String,
    /// The MAC of the pod's end.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Gateways, one per family at most; used for the families of which the pod has an address.
    pub gateways: Vec<IpAddr>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// MTU of the paths to all that is not `near`, bytes.
    pub path_mtu: u32,
    /// Networks within which packets may be as long as `mtu`: the node's other pods.
    pub near: Vec<IpNet>,
    /// Queues of both ends in each direction: one per worker.
    pub queues: u32,
}

/// Makes the veth pair between the namespaces `node` and `pod` and configures both ends. The host's end is guarded
/// ([`guard`]) before it comes up.
///
/// # Errors
/// [`crate::Error::Refused`]; `EEXIST` if either end is there already. What was made is taken back.
pub fn attach_pod(node: &Netns, pod: &Netns, link: &PodLink) -> Result<()> {
    let host_end = link.host_end.as_str();
    pod.run(sysctl::quiet_ipv6)??;
    let net = Net::open_in(node)?;
    net.create_veth(
        &VethEnd { name: host_end, mac: None, mtu: link.mtu, queues: link.queues, netns: None },
        &VethEnd { name: POD_INTERFACE, mac: Some(link.mac), mtu: link.mtu, queues: link.queues, netns: Some(pod) },
    )?;
    let configured = node.run(|| guard(host_end)).and_then(|guarded| {
        guarded?;
        net.set_up(host_end)?;
        pod.run(|| configure_pod(link))?
    });
    if configured.is_err()
        && let Err(error) = net.delete_link(host_end)
    {
        tracing::warn!(host_end, %error, "cannot take back a veth pair that could not be configured");
    }
    configured
}

/// Removes a pod's veth pair; one that is not there is fine.
///
/// # Errors
/// [`crate::Error::Refused`].
pub fn detach_pod(node: &Netns, host_end: &str) -> Result<()> {
    Net::open_in(node)?.delete_link(host_end)
}

/// Configures the pod's end, in the pod's namespace.
fn configure_pod(link: &PodLink) -> Result<()> {
    let net = Net::open()?;
    net.set_up("lo")?;
    offload::leave_checksums(POD_INTERFACE)?;
    for &ip in &link.addresses {
        net.add_address(POD_INTERFACE, IpNet::from(ip))?;
    }
    net.set_up(POD_INTERFACE)?;
    for &gateway in link.gateways.iter().filter(|gateway| link.addresses.iter().any(|ip| ip.is_ipv4() == gateway.is_ipv4())) {
        route_by(&net, gateway, link)?;
    }
    if !net.wait_running(POD_INTERFACE)? {
        tracing::warn!(host_end = link.host_end, "the pod's interface has no carrier yet");
    }
    Ok(())
}

/// Routes everything of the gateway's family to it, what is near with longer packets. It need not be in a subnet of the pod's.
fn route_by(net: &Net, gateway: IpAddr, link: &PodLink) -> Result<()> {
    let everywhere = if gateway.is_ipv4() { IpNet::new_assert([0; 4].into(), 0) } else { IpNet::new_assert([0u8; 16].into(), 0) };
    net.replace_route(&NewRoute::direct(gateway.into(), POD_INTERFACE))?;
    let by_gateway = |destination| NewRoute { via: Some(gateway), onlink: true, ..NewRoute::direct(destination, POD_INTERFACE) };
    net.replace_route(&NewRoute { mtu: Some(link.path_mtu), ..by_gateway(everywhere) })?;
    for near in link.near.iter().filter(|near| near.addr().is_ipv4() == gateway.is_ipv4()) {
        net.replace_route(&by_gateway(*near))?;
    }
    Ok(())
}

/// Makes an interface of the calling thread's namespace one by which the kernel itself neither receives nor forwards
/// anything: what XDP does not take is lost. So a pod stays cut off when the dataplane is gone.
///
/// Several locks, because each can be opened by somebody who does not know: setting `ip_forward` resets every interface's
/// own `forwarding`. IPv4 packets fail the strict reverse path test, since no route leads to the interface; ARP is not
/// answered; IPv6 is off (`net/ipv6/ip6_input.c`, `ip6_rcv_core` drops what such an interface receives). What a pod sends
/// to its gateway is besides addressed to a MAC that no kernel interface has.
///
/// # Errors
/// [`crate::Error::Refused`].
pub fn guard(name: &str) -> Result<()> {
    for (family, knob, value) in [
        ("ipv6", "disable_ipv6", "1"),
        ("ipv6", "forwarding", "0"),
        ("ipv6", "accept_ra", "0"),
        ("ipv4", "forwarding", "0"),
        ("ipv4", "rp_filter", "1"),
        ("ipv4", "accept_local", "0"),
        ("ipv4", "arp_ignore", "8"),
        ("ipv4", "proxy_arp", "0"),
    ] {
        sysctl::set_all(&[(&format!("net/{family}/conf/{name}/{knob}"), value)])?;
    }
    Ok(())
}
