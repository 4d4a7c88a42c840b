//! The whole path on real kernels: TCP stacks in namespaces that speak through our AF_XDP workers to each other, to
//! services, to a plain Linux node over VXLAN, and to the outside. Real programs: curl, ping, nc, python's http.server.
//!
//! One lab for all tests of this file; its name carries the process number, so that it can run beside others. Needs root.

mod lab_support;

use std::time::{Duration, Instant};

use lab_support::{Lab, digest_of, exec_ok};

/// Every test shares one lab: they must not change the snapshot. Those that do have files of their own.
fn lab() -> &'static Lab {
    Lab::shared("e2e")
}

/// What curl says the server answered: `http.server` of each pod serves a file with the pod's name.
fn fetch(from: &str, url: &str) -> Result<String, String> {
    lab().exec(from, &["curl", "-sS", "--globoff", "--max-time", "5", &format!("{url}/name")])
}

#[test]
fn pods_of_one_node_reach_each_other() {
    for address in ["10.244.1.20", "fd00:244:1::20"] {
        exec_ok(lab(), "t/client", &["ping", "-c", "3", "-i", "0.1", "-W", "2", address]);
    }
    assert_eq!(fetch("t/client", "http://10.244.1.20:8080").as_deref(), Ok("server"));
    assert_eq!(fetch("t/client", "http://[fd00:244:1::20]:8080").as_deref(), Ok("server"));
}

#[test]
fn pods_of_one_node_send_long_packets_to_each_other_and_short_ones_to_others() {
    let ping =
        |size: &str, mode: &str, to: &str| lab().exec("t/client", &["ping", "-c", "2", "-i", "0.2", "-W", "2", "-M", mode, "-s", size, to]);
    for to in ["10.244.1.20", "fd00:244:1::20", "169.254.1.1"] {
        ping("59000", "do", to).unwrap();
    }
    // Longer ones leave as fragments, which are long themselves.
    ping("65000", "dont", "10.244.1.20").unwrap();
    ping("1422", "do", "10.244.2.20").unwrap();
    let said = ping("1423", "do", "10.244.2.20").unwrap_err();
    assert!(said.contains("message too long"), "the pod does not know the path's MTU: {said}");
    // A pod whose routes say nothing of it learns it from who cannot send on what it sent.
    for to in ["10.244.2.20", "10.0.0.254"] {
        exec_ok(lab(), "t/guarded", &["ip", "route", "replace", to, "via", "169.254.1.1", "dev", "eth0", "onlink"]);
        let said = lab().exec("t/guarded", &["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "59000", to]).unwrap_err();
        assert!(said.contains("Frag needed and DF set (mtu = 1"), "{to}: {said}");
    }
}

#[test]
fn pods_reach_a_kernel_node_over_vxlan_and_back() {
    for address in ["10.244.2.20", "fd00:244:2::20"] {
        exec_ok(lab(), "t/client", &["ping", "-c", "3", "-i", "0.1", "-W", "2", address]);
    }
    assert_eq!(fetch("t/client", "http://10.244.2.20:8080").as_deref(), Ok("remote"));
    assert_eq!(fetch("t/client", "http://[fd00:244:2::20]:8080").as_deref(), Ok("remote"));
    assert_eq!(fetch("t/remote", "http://10.244.1.20:8080").as_deref(), Ok("server"));
    assert_eq!(fetch("t/remote", "http://[fd00:244:1::20]:8080").as_deref(), Ok("server"));
}

#[test]
fn a_cluster_ip_leads_to_local_and_to_remote_backends() {
    assert_eq!(fetch("t/client", "http://10.96.0.20").as_deref(), Ok("server"));
    assert_eq!(fetch("t/client", "http://[fd00:96::20]").as_deref(), Ok("server"));
    assert_eq!(fetch("t/client", "http://10.96.0.21").as_deref(), Ok("remote"));
    assert_eq!(fetch("t/client", "http://[fd00:96::21]").as_deref(), Ok("remote"));
    let seen: std::collections::BTreeSet<_> = (0..24).map(|_| fetch("t/client", "http://10.96.0.22").unwrap()).collect();
    assert_eq!(seen, ["remote".to_owned(), "server".to_owned()].into(), "24 connections met one backend only");
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    assert_eq!(fetch("t/server", "http://10.96.0.20").as_deref(), Ok("server"));
    assert_eq!(fetch("t/server", "http://[fd00:96::20]").as_deref(), Ok("server"));
}

#[test]
fn the_node_reaches_pods_and_services() {
    for url in ["http://10.244.1.20:8080", "http://[fd00:244:1::20]:8080", "http://10.96.0.20", "http://[fd00:96::20]"] {
        assert_eq!(fetch("node/node-a", url).as_deref(), Ok("server"), "{url}");
    }
    for url in ["http://10.244.2.20:8080", "http://[fd00:244:2::20]:8080", "http://10.96.0.21", "http://[fd00:96::21]"] {
        assert_eq!(fetch("node/node-a", url).as_deref(), Ok("remote"), "{url}");
    }
    exec_ok(lab(), "node/node-a", &["ping", "-c", "2", "-i", "0.1", "-W", "2", "10.244.1.30"]);
}

#[test]
fn pods_reach_the_outside_under_the_nodes_address() {
    for (url, seen) in [("http://10.0.0.254:8080", "10.0.0.10"), ("http://[fd00:10::fe]:8080", "fd00:10::10")] {
        assert_eq!(fetch("t/client", url).as_deref(), Ok("outside"), "{url}");
        let log = lab().server_log("outside");
        assert!(log.lines().any(|line| line.trim_start_matches("::ffff:").starts_with(seen)), "{seen} is not in:\n{log}");
    }
    exec_ok(lab(), "t/client", &["ping", "-c", "2", "-i", "0.1", "-W", "2", "10.0.0.254"]);
}

#[test]
fn the_gateway_answers_and_distances_are_counted() {
    exec_ok(lab(), "t/client", &["ping", "-c", "2", "-i", "0.1", "-W", "2", "169.254.1.1"]);
    let said = lab().exec("t/client", &["ping", "-c", "1", "-W", "2", "-t", "1", "10.244.2.20"]).unwrap_err();
    assert!(said.contains("Time to live exceeded"), "{said}");
}

#[test]
fn a_policy_denies_and_the_counter_says_why() {
    assert_eq!(fetch("t/client", "http://10.244.1.30:8080").as_deref(), Ok("guarded"));
    let before = lab().drops("POLICY_DENIED");
    for (from, url) in [("t/server", "http://10.244.1.30:8080"), ("t/remote", "http://[fd00:244:1::30]:8080")] {
        let said = fetch(from, url).unwrap_err();
        assert!(said.contains("timed out") || said.contains("Timeout"), "{from}: {said}");
    }
    assert!(lab().drops("POLICY_DENIED") >= before + 2);
}

#[test]
fn inside_a_pod_no_policy_is_met_e1_35() {
    for address in ["127.0.0.1", "[::1]", "10.244.1.30", "[fd00:244:1::30]"] {
        assert_eq!(fetch("t/guarded", &format!("http://{address}:8080")).as_deref(), Ok("guarded"), "{address}");
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let start = Instant::now();
    let said = fetch("t/client", "http://10.96.0.23").unwrap_err();
    assert!(said.contains("Connection refused") || said.contains("Could not connect") || said.contains("Couldn't connect"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[test]
fn ten_megabytes_arrive_as_they_were_sent() {
    let expected = lab().big_file_digest();
    for url in ["http://10.96.0.20", "http://10.96.0.21", "http://[fd00:96::21]", "http://10.244.2.20:8080"] {
        let got = digest_of(lab(), "t/client", &format!("{url}/big"));
        assert_eq!(got, expected, "{url}");
    }
}

#[test]
fn every_frame_is_accounted_for() {
    exec_ok(lab(), "t/client", &["ping", "-c", "20", "-i", "0.01", "-W", "2", "10.244.2.20"]);
    let status = lab().status();
    let packets = &status["packets"];
    let count = |name: &str| packets[name].as_u64().unwrap();
    assert_eq!(count("received"), count("forward") + count("host") + count("reply") + count("drop"), "{status}");
    assert_eq!(status["frames"]["lost"], 0, "{status}");
    let drops: u64 = status["drops"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(drops, count("drop"), "{status}");
}
