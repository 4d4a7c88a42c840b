//! A lab is made, changed and taken down on a real kernel. Needs root.

use std::net::IpAddr;
use std::process::{Command, Output};
use std::sync::Arc;

use weir_control::lab::{self, LabName, Outcome, Up};
use weir_dataplane::model::{Endpoint, MacAddr, Node, NodeConfig, NodeState, OverlayMode};
use weir_host::{Net, Netns};

/// A lab of one test, taken down at its end however it ends.
struct Guard(LabName);

impl Guard {
    fn new(test: &str) -> Self {
        Self(format!("t{}{test}", std::process::id()).parse().expect("a name for a lab"))
    }
    fn up(&self, state: &NodeState, mode: OverlayMode) -> Outcome {
        let mut config = NodeConfig::offline("node-a");
        config.overlay.mode = mode;
        match lab::up(Up { name: self.0.clone(), state: state.clone(), config, daemon: None }) {
            Ok(outcome) => outcome,
            Err(error) => panic!("labs need root: {error:#}"),
        }
    }
    /// The namespace of a place, as `status` tells it.
    fn netns(&self, place: &str) -> String {
        let status = lab::status(&self.0).expect("a status");
        status.places.iter().find(|p| p.place == place).unwrap_or_else(|| panic!("no {place} in {status:?}")).netns.clone()
    }
    fn run(&self, place: &str, command: &[&str]) -> Output {
        let netns = Netns::open(&self.netns(place)).expect("the namespace of a place");
        netns.run(|| Command::new(command[0]).args(&command[1..]).output().expect("the command is installed")).unwrap()
    }
    fn ping(&self, from: &str, to: &str, size: &str) -> bool {
        self.run(from, &["ping", "-c", "1", "-W", "2", "-q", "-M", "do", "-s", size, to]).status.success()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        lab::down(&self.0).expect("a lab can be taken down");
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}
fn node(letter: &str, number: u8) -> Node {
    let addresses = ips(&[&format!("10.0.0.{}", number + 9), &format!("fd00:10::{}", number + 9)]);
    let pod_cidrs = vec![format!("10.244.{number}.0/24").parse().unwrap(), format!("fd00:244:{number}::/64").parse().unwrap()];
    Node { name: format!("node-{letter}"), vtep_mac: MacAddr::from_ip(addresses[0]), addresses, pod_cidrs }
}
fn pod(name: &str, node: u32, last: u8) -> Endpoint {
    let addresses = ips(&[&format!("10.244.{}.{last}", node + 1), &format!("fd00:244:{}::{last}", node + 1)]);
    Endpoint { namespace: "shop".into(), name: name.into(), node, addresses, host_network: false, identity: 0 }
}
/// Weir's node-a with one pod; the kernel nodes node-b with two and node-c with one.
fn cluster() -> NodeState {
    NodeState {
        nodes: vec![node("a", 1), node("b", 2), node("c", 3)],
        endpoints: vec![pod("a-0", 0, 10), pod("b-0", 1, 10), pod("b-1", 1, 11), pod("c-0", 2, 10)].into(),
        ..NodeState::default()
    }
}

#[test]
fn kernel_nodes_reach_each_others_pods_in_both_families() {
    for (mode, size) in [(OverlayMode::Vxlan, ["1422", "1402"]), (OverlayMode::Native, ["1472", "1452"])] {
        let lab = Guard::new(if mode == OverlayMode::Vxlan { "vxlan" } else { "native" });
        let outcome = lab.up(&cluster(), mode);
        assert_eq!((outcome.made, outcome.kept, outcome.removed), (9, 0, 0));
        for (to, size) in ["10.244.3.10", "fd00:244:3::10"].into_iter().zip(size) {
            assert!(lab.ping("shop/b-0", to, size), "{mode:?}: from another node's pod to {to} with the largest packet");
            assert!(lab.ping("node/node-b", to, "56"), "{mode:?}: from another node to {to}");
        }
        for to in ["10.244.2.11", "fd00:244:2::11"] {
            assert!(lab.ping("shop/b-0", to, "56"), "{mode:?}: within a kernel node to {to}");
        }
        for to in ["10.0.0.10", "fd00:10::10", "10.0.0.12", "fd00:10::12"] {
            assert!(lab.ping("outside", to, "56"), "{mode:?}: from the outside to the node {to}");
        }
        for to in ["10.0.0.254", "fd00:10::fe", "192.0.2.1", "2001:db8::1"] {
            assert!(lab.ping("node/node-a", to, "56"), "{mode:?}: from Weir's node to the outside's {to}");
        }
        assert!(!lab.ping("outside", "10.244.3.10", "56"), "{mode:?}: the outside knows no pods");
        // Nobody moves packets on Weir's node: without the daemon its pods are cut off.
        assert!(!lab.ping("node/node-a", "10.244.1.10", "56"));
        assert!(!lab.ping("shop/a-0", "10.0.0.10", "56"));
        if mode == OverlayMode::Native {
            let routes = lab.run("node/node-a", &["ip", "-o", "route", "show", "10.244.3.0/24"]).stdout;
            assert!(String::from_utf8_lossy(&routes).contains("via 10.0.0.12 dev eth1"), "the kernel's routes are the overlay");
        }
    }
}

#[test]
fn what_weir_answers_for_a_pods_gateway_is_all_that_is_missing() {
    let lab = Guard::new("pod");
    lab.up(&cluster(), OverlayMode::Vxlan);
    let show = |command: &[&str]| String::from_utf8_lossy(&lab.run("shop/a-0", command).stdout).into_owned();
    let link = show(&["ip", "link", "show", "eth0"]);
    assert!(link.contains("mtu 60000") && link.contains("0a:58:0a:f4:01:0a") && link.contains("LOWER_UP"), "{link}");
    let addresses = show(&["ip", "-o", "addr", "show", "eth0"]);
    assert!(addresses.contains("10.244.1.10/32") && addresses.contains("fd00:244:1::10/128") && !addresses.contains("tentative"));
    let routes = show(&["ip", "route"]) + &show(&["ip", "-6", "route"]);
    assert!(routes.contains("default via 169.254.1.1 dev eth0") && routes.contains("default via fe80::1 dev eth0"), "{routes}");
    for near in ["10.244.1.0/24 via 169.254.1.1 dev eth0", "fd00:244:1::/64 via fe80::1 dev eth0"] {
        assert!(routes.lines().any(|route| route.starts_with(near) && !route.contains(" mtu ")), "{routes}");
    }
    let defaults = routes.lines().filter(|route| route.starts_with("default "));
    assert_eq!(defaults.filter(|route| route.contains(" mtu 1450")).count(), 2, "{routes}");
    let offloads = show(&["ethtool", "-k", "eth0"]);
    assert!(offloads.contains("tx-checksum-ip-generic: on") && offloads.contains("tcp-segmentation-offload: off"), "{offloads}");
    assert!(show(&["ip", "-o", "link", "show", "lo"]).contains("LOWER_UP"));
}

#[test]
fn a_second_up_changes_only_what_the_snapshot_changed() {
    let lab = Guard::new("again");
    let mut state = cluster();
    lab.up(&state, OverlayMode::Vxlan);
    let kept = lab.up(&state, OverlayMode::Vxlan);
    assert_eq!((kept.made, kept.kept, kept.removed), (0, 9, 0));

    // A pod gets another address, one goes, one comes, and a node with a pod.
    let inode = |place: &str| Netns::open(&lab.netns(place)).unwrap().inode().unwrap();
    let before = (inode("shop/b-0"), inode("node/node-b"), inode("shop/a-0"));
    let gone = lab.netns("shop/b-1");
    state.nodes.push(node("d", 4));
    state.endpoints = vec![pod("a-0", 0, 20), pod("a-1", 0, 21), pod("b-0", 1, 10), pod("c-0", 2, 10), pod("d-0", 3, 10)].into();
    let outcome = lab.up(&state, OverlayMode::Vxlan);
    assert_eq!((outcome.made, outcome.kept, outcome.removed), (4, 7, 1));
    assert_eq!((inode("shop/b-0"), inode("node/node-b")), (before.0, before.1));
    assert!(!Netns::exists(&gone));
    let addresses = lab.run("shop/a-0", &["ip", "-o", "addr"]).stdout;
    assert!(String::from_utf8_lossy(&addresses).contains("10.244.1.20/32"));
    assert!(lab.ping("shop/b-0", "10.244.4.10", "56") && lab.ping("shop/d-0", "fd00:244:2::10", "56"));

    // Somebody removed a namespace by hand, and the node is gone again.
    Netns::delete(&lab.netns("shop/c-0")).unwrap();
    state.nodes.pop();
    Arc::make_mut(&mut state.endpoints).pop();
    let outcome = lab.up(&state, OverlayMode::Vxlan);
    assert_eq!((outcome.made, outcome.kept, outcome.removed), (1, 8, 2));
    assert!(lab.ping("shop/b-0", "10.244.3.10", "56"));
    let routes = lab.run("node/node-b", &["ip", "route"]).stdout;
    assert!(!String::from_utf8_lossy(&routes).contains("10.244.4.0"), "routes to a node that is gone are gone");
}

#[test]
fn down_removes_all_of_its_own_lab_and_nothing_else() {
    let links = || Net::open().unwrap().links().unwrap();
    let before = links();
    let (one, two) = (Guard::new("one"), Guard::new("two"));
    let state = cluster();
    one.up(&state, OverlayMode::Vxlan);
    two.up(&state, OverlayMode::Vxlan);
    assert!(lab::down(&one.0).unwrap().is_empty());
    let left = Netns::list(&format!("weir-{}-", one.0)).unwrap();
    assert!(left.is_empty() && !one.0.run_dir().exists(), "{left:?}");
    assert!(lab::down(&one.0).unwrap().is_empty(), "down is fine where nothing is up");
    assert!(two.ping("shop/b-0", "10.244.3.10", "56"), "the other lab lives");

    // A process that somebody runs in a pod is named and left alone, and a record that was lost changes nothing.
    let netns = Netns::open(&two.netns("shop/b-0")).unwrap();
    let mut sleeper = netns.run(|| Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
    std::fs::remove_file(two.0.run_dir().join("lab.json")).unwrap();
    assert_eq!(lab::down(&two.0).unwrap(), [(sleeper.id() as i32, "sleep".to_owned())]);
    assert!(sleeper.try_wait().unwrap().is_none());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(Netns::list(&format!("weir-{}-", two.0)).unwrap().is_empty() && !two.0.run_dir().exists());
    assert_eq!(links(), before, "the machine's own interfaces are as they were");
}

#[test]
fn down_leaves_a_folder_that_is_no_labs_alone() {
    let name: LabName = format!("t{}nolab", std::process::id()).parse().unwrap();
    let folder = name.run_dir();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("dataplane.sock"), "somebody's").unwrap();
    let still_running = lab::down(&name);
    let kept = std::fs::read_to_string(folder.join("dataplane.sock"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(still_running.unwrap(), []);
    assert_eq!(kept.unwrap(), "somebody's");
}
