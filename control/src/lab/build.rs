//! Making the parts of a lab: the network between the nodes, nodes that are plain kernels, Weir's node, pods.
//!
//! Every function makes one part whole or fails; [`super::up`] decides which parts are needed. Nothing outside the lab's
//! own namespaces is touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use weir_dataplane::model::{GATEWAY_V4, GATEWAY_V6, MacAddr, OverlayMode};
use weir_host::{Net, Netns, NewRoute, PodLink, ROUTE_PROTOCOL, Result, VethEnd, Vxlan, attach_pod, offload, sysctl};

use super::names::{LabName, interface};
use super::plan::{LabNode, LabPlan, LabPod};

/// The bridge that joins the nodes' uplinks.
const UNDERLAY_BRIDGE: &str = "br0";
/// A node's uplink, and the outside host's.
pub(super) const UPLINK: &str = "eth1";
/// The bridge of a kernel node's pods.
const POD_BRIDGE: &str = "cni0";
/// A kernel node's VXLAN devices, by the family of the outer headers, named as flannel names them.
const VXLAN_V4: &str = "flannel.1";
const VXLAN_V6: &str = "flannel-v6.1";
/// Addresses of the outside host that are in no node's subnet: "the internet" (RFC 5737, RFC 3849).
const BEYOND: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The name of the port of the underlay's bridge that leads to the node (or outside) called `name`.
fn underlay_port(name: &str) -> String {
    interface("p", name)
}

/// The name of a pod's interface in its node's namespace.
pub(super) fn host_end(pod: &LabPod) -> String {
    interface("weir", &pod.place())
}

/// The MAC of a pod's own interface.
pub(super) fn pod_mac(pod: &LabPod) -> MacAddr {
    pod.addresses.first().map(|ip| MacAddr::from_ip(*ip)).unwrap_or_default()
}

fn everywhere(v4: bool) -> IpNet {
    if v4 { IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0) } else { IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0) }
}

/// Makes the namespace with the bridge that joins the nodes.
pub(super) fn underlay(lab: &LabName, plan: &LabPlan) -> Result<()> {
    let netns = Netns::create(&lab.underlay())?;
    // The bridge's namespace is a wire: it has no addresses and speaks no IP.
    netns.run(|| sysctl::set_all(&[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")]))??;
    let net = Net::open_in(&netns)?;
    net.create_bridge(UNDERLAY_BRIDGE, None, plan.underlay_mtu)?;
    net.set_up(UNDERLAY_BRIDGE)
}

/// Makes a namespace with an uplink on the underlay's bridge. `name` is unique in the lab; `queues` those of the uplink.
fn with_uplink(
    lab: &LabName,
    plan: &LabPlan,
    netns: &str,
    name: &str,
    mac: Option<MacAddr>,
    addresses: &[IpNet],
    queues: u32,
) -> Result<Netns> {
    let underlay = Net::open_in(&Netns::open(&lab.underlay())?)?;
    let netns = Netns::create(netns)?;
    netns.run(sysctl::quiet_ipv6)??;
    let port = underlay_port(name);
    // What a part that was removed by its name alone may have left on the bridge.
    underlay.delete_link(&port)?;
    let end = |name, mac, netns| VethEnd { name, mac, mtu: plan.underlay_mtu, queues, netns };
    underlay.create_veth(&end(port.as_str(), None, None), &end(UPLINK, mac.map(|mac| mac.0), Some(&netns)))?;
    underlay.set_master(&port, UNDERLAY_BRIDGE)?;
    underlay.set_up(&port)?;
    let net = Net::open_in(&netns)?;
    net.set_up("lo")?;
    for &address in addresses {
        net.add_address(UPLINK, address)?;
    }
    net.set_up(UPLINK)?;
    net.wait_running(UPLINK)?;
    Ok(netns)
}

/// Makes the host outside the cluster.
pub(super) fn outside(lab: &LabName, plan: &LabPlan) -> Result<()> {
    let netns = with_uplink(lab, plan, &lab.outside(), "outside", None, &plan.outside, 1)?;
    let net = Net::open_in(&netns)?;
    // Frames on a real wire have their checksums.
    netns.run(|| offload::switch_off(UPLINK))??;
    for address in BEYOND {
        net.add_address("lo", address.into())?;
    }
    Ok(())
}

/// Makes a node's namespace and what in it does not depend on other nodes. Kernel nodes get a bridge for their pods and
/// VXLAN devices; on Weir's node the daemon does that work.
pub(super) fn node(lab: &LabName, plan: &LabPlan, index: usize) -> Result<()> {
    let node = &plan.nodes[index];
    let mac = node.primary(true).or_else(|| node.primary(false)).map(|ip| {
        let MacAddr(mut bytes) = MacAddr::from_ip(ip);
        // Not the VTEP's, which is made of the same address: one is on the wire, the other inside VXLAN.
        bytes[1] = 0x5a;
        MacAddr(bytes)
    });
    let queues = if index == plan.this_node { plan.queues } else { 1 };
    let netns = with_uplink(lab, plan, &lab.node(&node.name), &node.name, mac, &node.addresses, queues)?;
    netns.run(sysctl::enable_forwarding)??;
    let net = Net::open_in(&netns)?;
    for outside in &plan.outside {
        let v4 = outside.addr().is_ipv4();
        if node.primary(v4).is_some() {
            net.replace_route(&NewRoute { via: Some(outside.addr()), ..NewRoute::direct(everywhere(v4), UPLINK) })?;
        }
    }
    if index == plan.this_node { Ok(()) } else { kernel_node(plan, node, &netns, &net) }
}

fn kernel_node(plan: &LabPlan, node: &LabNode, netns: &Netns, net: &Net) -> Result<()> {
    netns.run(|| {
        // Frames on a real wire have their checksums. Overlay packets may come by the other family's device.
        offload::switch_off(UPLINK)?;
        sysctl::set_all(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])
    })??;
    let gateways = node.gateways();
    net.create_bridge(POD_BRIDGE, gateways.first().map(|gateway| MacAddr::from_ip(gateway.addr()).0), plan.pod_mtu)?;
    for &gateway in &gateways {
        net.add_address(POD_BRIDGE, gateway)?;
    }
    net.set_up(POD_BRIDGE)?;
    for pod_address in node.pod_cidrs.iter().filter(|cidr| cidr.prefix_len() == cidr.max_prefix_len()) {
        net.replace_route(&NewRoute::direct(*pod_address, POD_BRIDGE))?;
    }
    if plan.mode == OverlayMode::Native {
        return Ok(());
    }
    let mut own: Vec<IpAddr> = [true, false].into_iter().filter_map(|v4| node.overlay_address(v4)).collect();
    for (name, v4) in [(VXLAN_V4, true), (VXLAN_V6, false)] {
        let Some(local) = node.primary(v4) else { continue };
        let mtu = plan.vxlan_mtu(v4);
        net.create_vxlan(&Vxlan { name, vni: plan.vni, port: plan.port, local, mac: node.vtep_mac.0, mtu })?;
        // As what the node itself sends from: on one of the devices is enough.
        for address in own.drain(..) {
            net.add_address(name, address.into())?;
        }
        net.set_up(name)?;
    }
    Ok(())
}

/// Sets the routes that lead from a node to the pods of all other nodes, and removes those that lead to nodes which are
/// gone. On Weir's node only where the overlay is the kernel's routes.
pub(super) fn routes(lab: &LabName, plan: &LabPlan, index: usize) -> Result<()> {
    let node = &plan.nodes[index];
    let net = Net::open_in(&Netns::open(&lab.node(&node.name))?)?;
    let mut wanted: Vec<IpNet> = Vec::new();
    for other in plan.nodes.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, other)| other) {
        for &destination in &other.pod_cidrs {
            let v4 = destination.addr().is_ipv4();
            match plan.mode {
                OverlayMode::Native => {
                    let Some(via) = other.primary(v4) else { continue };
                    net.replace_route(&NewRoute { via: Some(via), ..NewRoute::direct(destination, UPLINK) })?;
                }
                OverlayMode::Vxlan if index == plan.this_node => continue,
                OverlayMode::Vxlan => {
                    let (Some(outer_v4), Some(via)) = (node.outer_v4(other), other.overlay_address(v4)) else { continue };
                    let Some(vtep) = other.primary(outer_v4) else { continue };
                    let dev = if outer_v4 { VXLAN_V4 } else { VXLAN_V6 };
                    net.set_neighbour(dev, via, other.vtep_mac.0)?;
                    net.set_fdb(dev, other.vtep_mac.0, vtep)?;
                    net.replace_route(&NewRoute { via: Some(via), onlink: true, ..NewRoute::direct(destination, dev) })?;
                }
            }
            wanted.push(destination.trunc());
        }
    }
    for v4 in [true, false] {
        wanted.push(everywhere(v4));
    }
    let links = net.links()?;
    let ours = [UPLINK, VXLAN_V4, VXLAN_V6];
    for route in net.routes()?.iter().filter(|route| route.protocol == ROUTE_PROTOCOL && !wanted.contains(&route.destination)) {
        let dev = route.hops.first().and_then(|hop| links.iter().find(|link| link.index == hop.index)).map(|link| link.name.as_str());
        if let Some(dev) = dev.filter(|dev| ours.contains(dev)) {
            net.remove_route(&NewRoute { via: route.hops[0].via, ..NewRoute::direct(route.destination, dev) })?;
        }
    }
    Ok(())
}

/// Lets the outside reach the addresses of Services by Weir's node, as a load balancer or a router would.
pub(super) fn outside_routes(lab: &LabName, plan: &LabPlan) -> Result<()> {
    let net = Net::open_in(&Netns::open(&lab.outside())?)?;
    let node = &plan.nodes[plan.this_node];
    for &vip in &plan.vips {
        // An address of the nodes' own subnet, or of the node itself, needs no route.
        if let Some(via) = node.primary(vip.is_ipv4())
            && !plan.nodes.iter().flat_map(|node| &node.addresses).any(|net| net.addr() == vip)
        {
            net.replace_route(&NewRoute { via: Some(via), ..NewRoute::direct(vip.into(), UPLINK) })?;
        }
    }
    Ok(())
}

/// Makes a pod's namespace and attaches it to its node.
pub(super) fn pod(lab: &LabName, plan: &LabPlan, index: usize, pod: &LabPod) -> Result<()> {
    let node = &plan.nodes[index];
    let node_netns = Netns::open(&lab.node(&node.name))?;
    let netns = Netns::create(&lab.pod(&pod.namespace, &pod.name))?;
    let is_weirs = index == plan.this_node;
    let link = PodLink {
        host_end: host_end(pod),
        mac: pod_mac(pod).0,
        addresses: pod.addresses.clone(),
        gateways: if is_weirs { vec![GATEWAY_V4, GATEWAY_V6] } else { node.gateways().iter().map(IpNet::addr).collect() },
        mtu: if is_weirs { plan.local_mtu } else { plan.pod_mtu },
        path_mtu: plan.pod_mtu,
        near: if is_weirs { node.pod_cidrs.clone() } else { Vec::new() },
        queues: if is_weirs { plan.queues } else { 1 },
    };
    let net = Net::open_in(&node_netns)?;
    net.delete_link(&link.host_end)?;
    attach_pod(&node_netns, &netns, &link)?;
    if !is_weirs {
        net.set_master(&link.host_end, POD_BRIDGE)?;
    }
    Ok(())
}

/// Removes what a part has in namespaces other than its own: the port of a node on the underlay's bridge.
pub(super) fn unplug_node(lab: &LabName, name: &str) -> Result<()> {
    match Netns::open(&lab.underlay()) {
        Ok(netns) => Net::open_in(&netns)?.delete_link(&underlay_port(name)),
        Err(e) if e.is_absent() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes a pod's interface from its node's namespace.
pub(super) fn unplug_pod(lab: &LabName, node: &str, place: &str) -> Result<()> {
    match Netns::open(&lab.node(node)) {
        Ok(netns) => weir_host::detach_pod(&netns, &interface("weir", place)),
        Err(e) if e.is_absent() => Ok(()),
        Err(e) => Err(e),
    }
}
