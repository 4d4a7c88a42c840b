//! The kernel does what this crate asks it, in namespaces of the test's own. Needs root.

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use weir_host::{
    Monitor, Net, Netns, NewRoute, POD_INTERFACE, PodLink, Reach, VethEnd, Vxlan, attach_pod, detach_pod, guard, offload, sysctl,
};

/// Namespaces of one test, removed at its end however it ends.
struct Space {
    prefix: String,
}

impl Space {
    fn new(test: &str) -> Self {
        remove_leftovers();
        Self { prefix: format!("weirhost{}-{test}-", std::process::id()) }
    }
    fn netns(&self, name: &str) -> Netns {
        match Netns::create(&format!("{}{name}", self.prefix)) {
            Ok(netns) => netns,
            Err(error) => panic!("these tests make network namespaces: {error}"),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for name in Netns::list(&self.prefix).expect("namespaces can be listed") {
            Netns::delete(&name).expect("own namespaces can be removed");
        }
    }
}

/// Removes the namespaces of test processes that are no more.
fn remove_leftovers() {
    for name in Netns::list("weirhost").expect("namespaces can be listed") {
        let pid = name.trim_start_matches("weirhost").split('-').next().unwrap_or_default();
        if !std::path::Path::new("/proc").join(pid).exists() {
            Netns::delete(&name).expect("leftovers can be removed");
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
fn cidr(text: &str) -> IpNet {
    text.parse().expect("an address block")
}
fn end<'a>(name: &'a str, netns: Option<&'a Netns>) -> VethEnd<'a> {
    VethEnd { name, mac: None, mtu: 1500, queues: 1, netns }
}

/// Two namespaces `a` and `b` joined by `up0` with addresses of both families, .1 and .2.
fn pair(space: &Space) -> (Netns, Netns) {
    let (a, b) = (space.netns("a"), space.netns("b"));
    for netns in [&a, &b] {
        netns.run(sysctl::quiet_ipv6).unwrap().unwrap();
    }
    Net::open_in(&a).unwrap().create_veth(&end("up0", None), &end("up0", Some(&b))).unwrap();
    for (netns, last) in [(&a, 1), (&b, 2)] {
        let net = Net::open_in(netns).unwrap();
        net.add_address("up0", cidr(&format!("10.9.0.{last}/24"))).unwrap();
        net.add_address("up0", cidr(&format!("fd09::{last}/64"))).unwrap();
        net.set_up("up0").unwrap();
        net.set_up("lo").unwrap();
    }
    for netns in [&a, &b] {
        assert!(Net::open_in(netns).unwrap().wait_running("up0").unwrap());
    }
    (a, b)
}

fn ping(from: &Netns, to: &str) -> bool {
    let run = || Command::new("ping").args(["-c", "1", "-W", "2", "-q", to]).output().expect("ping is installed");
    from.run(run).unwrap().status.success()
}

#[test]
fn a_namespace_is_made_listed_entered_and_removed() {
    let space = Space::new("life");
    let netns = space.netns("x");
    let name = netns.name().to_owned();
    assert!(Netns::exists(&name));
    assert_eq!(Netns::list(&space.prefix).unwrap(), std::slice::from_ref(&name));
    assert!(Netns::create(&name).unwrap_err().is_exists());
    let outside = Netns::current().unwrap().inode().unwrap();
    let inside = netns.run(|| Netns::current().unwrap().inode().unwrap()).unwrap();
    assert_ne!(outside, inside);
    assert_eq!(inside, netns.inode().unwrap());
    assert_eq!(Netns::current().unwrap().inode().unwrap(), outside, "the calling thread stays where it was");
    Netns::delete(&name).unwrap();
    Netns::delete(&name).unwrap();
    assert!(!Netns::exists(&name));
    assert!(Netns::open(&name).unwrap_err().is_absent());
}

#[test]
fn links_are_made_as_asked_and_described_as_they_are() {
    let space = Space::new("links");
    let (a, b) = (space.netns("a"), space.netns("b"));
    let net = Net::open_in(&a).unwrap();
    let mac = [0x0a, 0x58, 10, 0, 0, 1];
    net.create_veth(
        &VethEnd { name: "host0", mac: None, mtu: 1450, queues: 2, netns: None },
        &VethEnd { name: "eth0", mac: Some(mac), mtu: 1450, queues: 2, netns: Some(&b) },
    )
    .unwrap();
    let link = net.link("host0").unwrap();
    assert_eq!((link.mtu, link.rx_queues, link.tx_queues, link.up), (1450, 2, 2, false));
    assert_eq!(link.kind.as_deref(), Some("veth"));
    assert_eq!(link.xdp_program, None);
    let other = Net::open_in(&b).unwrap();
    assert_eq!(other.link("eth0").unwrap().mac, Some(mac));

    net.create_bridge("br0", None, 1500).unwrap();
    net.set_master("host0", "br0").unwrap();
    net.set_up("host0").unwrap();
    net.set_mtu("host0", 9000).unwrap();
    let link = net.link("host0").unwrap();
    assert_eq!((link.master, link.up, link.mtu), (Some(net.link("br0").unwrap().index), true, 9000));
    net.set_down("host0").unwrap();
    net.set_mac("host0", [2, 0, 0, 0, 0, 9]).unwrap();
    assert_eq!(net.link("host0").unwrap().mac, Some([2, 0, 0, 0, 0, 9]));

    net.set_netns("br0", &b).unwrap_err();
    net.set_netns("host0", &b).unwrap();
    assert!(net.find_link("host0").unwrap().is_none());
    assert!(net.link("host0").unwrap_err().to_string().contains("no interface host0"));
    other.delete_link("host0").unwrap();
    other.delete_link("host0").unwrap();
    assert!(other.find_link("eth0").unwrap().is_none(), "the other end goes along");
    let names: Vec<String> = net.links().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["lo", "br0"]);
}

#[test]
fn addresses_routes_and_neighbours_come_back_as_they_were_set() {
    let space = Space::new("l3");
    let (a, b) = pair(&space);
    assert!(ping(&a, "10.9.0.2") && ping(&a, "fd09::2"));
    let net = Net::open_in(&a).unwrap();
    let index = net.link("up0").unwrap().index;
    for (destination, via) in [("10.77.0.0/16", "10.9.0.2"), ("fd77::/48", "fd09::2")] {
        let route = NewRoute { via: Some(ip(via)), mtu: Some(1400), onlink: true, ..NewRoute::direct(cidr(destination), "up0") };
        net.replace_route(&route).unwrap();
        net.replace_route(&route).unwrap();
        let found: Vec<_> = net.routes().unwrap().into_iter().filter(|r| r.destination == cidr(destination)).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].hops[0].via, found[0].hops[0].index, found[0].mtu), (Some(ip(via)), index, Some(1400)));
        assert_eq!(found[0].protocol, weir_host::ROUTE_PROTOCOL);
        net.remove_route(&route).unwrap();
        net.remove_route(&route).unwrap();
        assert!(!net.routes().unwrap().iter().any(|r| r.destination == cidr(destination)));
    }
    let own: Vec<IpNet> = net.addresses().unwrap().into_iter().filter(|a| !a.narrow).map(|a| a.net).collect();
    assert!(own.contains(&cidr("10.9.0.1/24")) && own.contains(&cidr("fd09::1/64")), "{own:?}");

    let peer_mac = Net::open_in(&b).unwrap().link("up0").unwrap().mac;
    let known = net.neighbours().unwrap();
    for address in ["10.9.0.2", "fd09::2"] {
        assert_eq!(known.iter().find(|n| n.ip == ip(address)).and_then(|n| n.mac), peer_mac);
    }
    net.set_neighbour("up0", ip("10.9.0.99"), [2, 0, 0, 0, 0, 99]).unwrap();
    let set = net.neighbours().unwrap().into_iter().find(|n| n.ip == ip("10.9.0.99")).unwrap();
    assert_eq!((set.mac, set.state), (Some([2, 0, 0, 0, 0, 99]), Reach::Good));
    net.remove_address("up0", cidr("10.9.0.1/24")).unwrap();
    net.remove_address("up0", cidr("10.9.0.1/24")).unwrap();
    assert!(!net.addresses().unwrap().iter().any(|a| a.net == cidr("10.9.0.1/24")));
}

#[test]
fn the_monitor_reports_changes_and_a_probe_resolves_a_neighbour() {
    let space = Space::new("monitor");
    let (a, _b) = pair(&space);
    let net = Net::open_in(&a).unwrap();
    let monitor = a.run(Monitor::open).unwrap().unwrap();
    while monitor.wait(Duration::from_millis(300)).unwrap() {}
    let idle = Instant::now();
    assert!(!monitor.wait(Duration::from_millis(20)).unwrap());
    assert!(idle.elapsed() >= Duration::from_millis(20));
    let index = net.link("up0").unwrap().index;
    for address in ["10.9.0.2", "fd09::2"] {
        assert!(!net.picture().unwrap().neighbours.iter().any(|n| n.ip == ip(address)));
        net.probe_neighbour(index, ip(address)).unwrap();
        assert!(monitor.wait(Duration::from_secs(2)).unwrap());
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let found = net.picture().unwrap().neighbours.into_iter().find(|n| n.ip == ip(address));
            if found.is_some_and(|n| n.mac.is_some()) {
                break;
            }
            assert!(Instant::now() < deadline, "{address} is not resolved: {found:?}");
            monitor.wait(Duration::from_millis(100)).unwrap();
        }
    }
    while monitor.wait(Duration::from_millis(100)).unwrap() {}
    net.replace_route(&NewRoute { via: Some(ip("10.9.0.2")), ..NewRoute::direct(cidr("0.0.0.0/0"), "up0") }).unwrap();
    assert!(monitor.wait(Duration::from_secs(2)).unwrap(), "a new route is a change");
    assert!(net.picture().unwrap().routes.iter().any(|r| r.destination == cidr("0.0.0.0/0")));
}

#[test]
fn offloads_are_switched_off_and_the_rest_stays() {
    let space = Space::new("offload");
    let (a, _b) = pair(&space);
    let features = || a.run(|| offload::active_features("up0")).unwrap().unwrap();
    let before = features();
    assert!(before.contains("tx-checksum-ip-generic") && before.contains("tx-tcp-segmentation"), "{before:?}");
    a.run(|| offload::switch_off("up0")).unwrap().unwrap();
    let after = features();
    for feature in &before {
        assert_eq!(after.contains(feature), !offload::postpones_work(feature), "{feature}: {after:?}");
    }
    let refused = a.run(|| offload::switch_off("nothere")).unwrap().unwrap_err();
    assert!(refused.to_string().contains("nothere"), "{refused}");
}

#[test]
fn two_kernel_vxlan_devices_talk_in_both_families() {
    let space = Space::new("vxlan");
    let (a, b) = pair(&space);
    for (netns, own, other) in [(&a, 1u8, 2u8), (&b, 2, 1)] {
        let net = Net::open_in(netns).unwrap();
        let mac = |node| [0x0a, 0x58, 0, 0, 0, node];
        for (name, local, remote, inside, beyond) in [
            ("vx4", format!("10.9.0.{own}"), format!("10.9.0.{other}"), format!("10.8.0.{own}/32"), format!("10.8.0.{other}")),
            ("vx6", format!("fd09::{own}"), format!("fd09::{other}"), format!("fd08::{own}/128"), format!("fd08::{other}")),
        ] {
            net.create_vxlan(&Vxlan { name, vni: 1, port: 8472, local: ip(&local), mac: mac(own), mtu: 1430 }).unwrap();
            net.add_address(name, cidr(&inside)).unwrap();
            net.set_up(name).unwrap();
            net.replace_route(&NewRoute { source: Some(cidr(&inside).addr()), ..NewRoute::direct(ip(&beyond).into(), name) }).unwrap();
            for _ in 0..2 {
                net.set_neighbour(name, ip(&beyond), mac(other)).unwrap();
                net.set_fdb(name, mac(other), ip(&remote)).unwrap();
            }
        }
    }
    assert!(ping(&a, "10.8.0.2"));
    assert!(ping(&b, "fd08::1"));
}

#[test]
fn a_pod_is_attached_and_its_host_end_lets_nothing_through() {
    let space = Space::new("pod");
    let (node, pod) = (space.netns("node"), space.netns("pod"));
    // A node that forwards, with an address that the pod could want to reach.
    node.run(sysctl::enable_forwarding).unwrap().unwrap();
    let net = Net::open_in(&node).unwrap();
    net.set_up("lo").unwrap();
    net.add_address("lo", cidr("10.9.9.9/32")).unwrap();
    net.add_address("lo", cidr("fd09::9/128")).unwrap();
    let link = PodLink {
        host_end: "weir0123".into(),
        mac: [0x0a, 0x58, 10, 244, 1, 5],
        addresses: vec![ip("10.244.1.5"), ip("fd00:244:1::5")],
        gateways: vec![ip("169.254.1.1"), ip("fe80::1")],
        mtu: 60_000,
        path_mtu: 1450,
        near: vec![cidr("10.244.1.0/24"), cidr("fd00:244:1::/64")],
        queues: 1,
    };
    attach_pod(&node, &pod, &link).unwrap();
    assert!(attach_pod(&node, &pod, &link).unwrap_err().is_exists());

    let inside = Net::open_in(&pod).unwrap();
    let eth0 = inside.link(POD_INTERFACE).unwrap();
    assert_eq!((eth0.mac, eth0.mtu, eth0.up, eth0.carrier), (Some(link.mac), 60_000, true, true));
    let routes = inside.routes().unwrap();
    for (any, gateway) in [("0.0.0.0/0", "169.254.1.1"), ("::/0", "fe80::1")] {
        let default = routes.iter().find(|r| r.destination == cidr(any)).unwrap();
        assert_eq!((default.hops[0].via, default.mtu), (Some(ip(gateway)), Some(1450)));
        let near = routes.iter().find(|r| link.near.contains(&r.destination) && r.destination.addr().is_ipv4() == ip(gateway).is_ipv4());
        assert_eq!(near.map(|r| (r.hops[0].via, r.mtu)), Some((Some(ip(gateway)), None)));
    }
    let active = pod.run(|| offload::active_features(POD_INTERFACE)).unwrap().unwrap();
    assert!(!active.iter().any(|feature| feature.ends_with("-segmentation")), "{active:?}");
    assert!(active.contains("tx-scatter-gather") && active.contains("tx-checksum-ip-generic"), "{active:?}");
    assert!(net.addresses().unwrap().iter().all(|a| a.index != net.link("weir0123").unwrap().index), "the host's end has no address");

    // The worst pod: it knows the host end's MAC and addresses its frames to it. Nothing may get through, not even after
    // somebody switched forwarding on again for every interface.
    let host_mac = net.link("weir0123").unwrap().mac.unwrap();
    inside.set_neighbour(POD_INTERFACE, ip("169.254.1.1"), host_mac).unwrap();
    inside.set_neighbour(POD_INTERFACE, ip("fe80::1"), host_mac).unwrap();
    node.run(sysctl::enable_forwarding).unwrap().unwrap();
    let listener = node.run(|| UdpSocket::bind("[::]:7777")).unwrap().unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for target in ["10.9.9.9:7777", "[fd09::9]:7777"] {
        let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        pod.run(|| UdpSocket::bind(any).unwrap().send_to(b"hello", target)).unwrap().unwrap();
    }
    assert!(listener.recv(&mut [0; 16]).is_err(), "the node's stack heard the pod");

    // The same datagram comes through once the guard is undone: the test can tell.
    node.run(|| {
        sysctl::set("net/ipv6/conf/weir0123/disable_ipv6", "0").unwrap();
        sysctl::set("net/ipv6/conf/weir0123/accept_dad", "0").unwrap();
    })
    .unwrap();
    pod.run(|| UdpSocket::bind("[::]:0").unwrap().send_to(b"hello", "[fd09::9]:7777")).unwrap().unwrap();
    assert_eq!(listener.recv(&mut [0; 16]).unwrap(), 5);
    node.run(|| guard("weir0123")).unwrap().unwrap();
    assert_eq!(node.run(|| sysctl::read("net/ipv6/conf/weir0123/disable_ipv6")).unwrap().unwrap(), "1");

    detach_pod(&node, "weir0123").unwrap();
    detach_pod(&node, "weir0123").unwrap();
    assert!(inside.find_link(POD_INTERFACE).unwrap().is_none());
}

#[test]
fn sockets_opened_inside_stay_inside() {
    let space = Space::new("sockets");
    let (a, b) = pair(&space);
    let listener = b.run(|| TcpListener::bind("10.9.0.2:80")).unwrap().unwrap();
    let accept = std::thread::spawn(move || listener.accept().map(drop));
    a.run(|| TcpStream::connect("10.9.0.2:80")).unwrap().unwrap();
    accept.join().unwrap().unwrap();
    let error = a.run(|| TcpStream::connect("10.9.0.1:80")).unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
