//! Interfaces that go under the daemon's feet and come back, and what it changed of one and must give back. Needs root.

mod lab_support;

use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, exec_ok};
use weir_control::lab::LabName;
use weir_dataplane::admin::client::Client;
use weir_dataplane::admin::protocol::{Request, Response};
use weir_dataplane::model::{GATEWAY_V4, GATEWAY_V6, MacAddr, PodPort};
use weir_host::{Netns, PodLink, attach_pod, detach_pod};

/// Waits until a pod is reached, or is not.
fn await_ping(lab: &Lab, from: &str, to: &str, reached: bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while lab.exec(from, &["ping", "-c", "1", "-W", "1", to]).is_ok() != reached {
        assert!(Instant::now() < deadline, "{from} to {to}: still not {reached}: {}", lab.status());
    }
}

fn node_ip(lab: &Lab, arguments: &str) {
    exec_ok(lab, "node/node-a", &[&["ip"], arguments.split_whitespace().collect::<Vec<_>>().as_slice()].concat());
}

/// Tells whether the uplink takes VLAN tags off.
fn strips_vlan_tags(lab: &Lab) -> bool {
    let features = lab.exec("node/node-a", &["ethtool", "-k", "eth1"]).unwrap();
    let line = features.lines().find(|line| line.starts_with("rx-vlan-offload:")).unwrap_or_else(|| panic!("{features}"));
    line.contains(": on")
}

#[test]
fn an_uplink_that_goes_and_comes_back_is_taken_up_again_and_given_back_as_it_was() {
    let lab = Lab::up("uplink", &cluster("e2e"));
    await_ping(&lab, "t/client", "10.244.2.20", true);
    assert!(!strips_vlan_tags(&lab), "the redirect program would take tagged packets for untagged ones");
    let pid = lab.daemon_pid();
    let link: serde_json::Value = serde_json::from_str(&lab.exec("node/node-a", &["ip", "-j", "link", "show", "eth1"]).unwrap()).unwrap();
    let mac = link[0]["address"].as_str().unwrap();

    node_ip(&lab, "link delete eth1");
    await_ping(&lab, "t/client", "10.244.2.20", false);
    exec_ok(&lab, "t/client", &["ping", "-c", "1", "-W", "2", "10.244.1.20"]);

    let underlay = lab.netns("underlay");
    node_ip(&lab, &format!("link add eth1 address {mac} type veth peer name back netns {underlay}"));
    node_ip(&lab, &format!("-n {underlay} link set back master br0 up"));
    for arguments in [
        "address add 10.0.0.10/24 dev eth1",
        "address add fd00:10::10/64 dev eth1 nodad",
        "link set eth1 up",
        "route replace default via 10.0.0.254 dev eth1",
    ] {
        node_ip(&lab, arguments);
    }
    await_ping(&lab, "t/client", "10.244.2.20", true);
    await_ping(&lab, "t/remote", "fd00:244:1::20", true);
    await_ping(&lab, "t/client", "10.0.0.254", true);
    assert!(!strips_vlan_tags(&lab));
    assert_eq!(lab.daemon_pid(), pid, "the daemon lives on");
    lab.assert_sums_meet();

    lab.end_daemon("TERM");
    assert!(strips_vlan_tags(&lab), "the uplink stays without an offload that it had");
}

#[test]
fn a_pods_veth_that_was_made_anew_is_another_port() {
    let lab = Lab::up("veth", &cluster("e2e"));
    await_ping(&lab, "t/client", "10.244.1.20", true);
    let port = lab.status()["ports"].as_array().unwrap().iter().find(|port| port["pod"] == "t/server").unwrap().clone();
    let host_end = port["name"].as_str().unwrap().to_owned();
    let name: LabName = lab.name().parse().unwrap();
    let places = weir_control::lab::status(&name).unwrap().places;
    let netns = |place: &str| Netns::open(&places.iter().find(|p| p.place == place).unwrap().netns).unwrap();
    let (node, pod) = (netns("node/node-a"), netns("t/server"));
    let addresses: Vec<std::net::IpAddr> = ["10.244.1.20", "fd00:244:1::20"].iter().map(|text| text.parse().unwrap()).collect();
    let mac = MacAddr::from_ip(addresses[0]);
    let link = PodLink {
        host_end: host_end.clone(),
        mac: mac.0,
        addresses,
        gateways: vec![GATEWAY_V4, GATEWAY_V6],
        mtu: 1450,
        path_mtu: 1450,
        near: Vec::new(),
        queues: 1,
    };
    let mut client = Client::connect(&lab.socket(), Duration::from_secs(10)).unwrap();
    for pause in [0, 1000] {
        // At once, and after the daemon has seen it go.
        detach_pod(&node, &host_end).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        attach_pod(&node, &pod, &link).unwrap();
        let port = PodPort { pod: "t/server".into(), interface: host_end.clone(), mac: Some(mac) };
        assert!(matches!(client.call(&Request::AttachPod { port }), Ok(Response::Done)));
        await_ping(&lab, "t/client", "10.244.1.20", true);
        await_ping(&lab, "t/server", "fd00:244:1::10", true);
        let ports = lab.status()["ports"].as_array().unwrap().iter().filter(|port| port["pod"] == "t/server").count();
        assert_eq!(ports, 1);
    }
    // It takes short packets now, and who sends longer ones is told.
    let said = lab.exec("t/client", &["ping", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", "3000", "10.244.1.20"]).unwrap_err();
    assert!(said.contains("mtu = 1450") || said.contains("mtu=1450"), "{said}");
    lab.assert_sums_meet();
}
