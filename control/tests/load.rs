//! Load by iperf3, and idleness: what the daemon does with much and with nothing to do. Needs root.
//!
//! `WEIR_LONG=1` sends for 60 s each way instead of 2.

mod lab_support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, text};
use serde_json::Value;

/// Least rate of TCP, Gbit/s: far below what even a debug build on a busy machine moves; less is a fault, not slowness.
const TCP_GBPS_MIN: f64 = 0.05;

#[test]
fn everything_is_accounted_for_under_load() {
    let seconds = if std::env::var_os("WEIR_LONG").is_some() { "60" } else { "2" };
    let lab = Lab::up("load", &cluster("e2e"));
    let mut server = lab
        .command("t/remote", &["setpriv", "--pdeathsig", "KILL", "iperf3", "--server"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let run = |what: &str, arguments: &[&str]| {
        let all = [&["iperf3", "--json", "--time", seconds], arguments].concat();
        let output = lab.command("t/client", &all).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let end = &report["end"];
        let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
        let gbps = sum["bits_per_second"].as_f64().unwrap() / 1e9;
        let status = lab.assert_sums_meet();
        println!("{what}: {gbps:.2} Gbit/s; kernel: {}", status["kernel"]);
        gbps
    };
    for (what, arguments) in [
        ("TCP to the kernel node", &["-c", "10.244.2.20"][..]),
        ("TCP from the kernel node", &["-c", "10.244.2.20", "-R"]),
        ("TCP to the kernel node, IPv6", &["-c", "fd00:244:2::20"]),
        ("TCP through a ClusterIP", &["-c", "10.96.0.21"]),
        ("TCP through a ClusterIP, backwards", &["-c", "10.96.0.21", "-R"]),
    ] {
        let gbps = run(what, arguments);
        assert!(gbps > TCP_GBPS_MIN, "{what}: {gbps} Gbit/s");
    }
    run("UDP to the kernel node", &["-c", "10.244.2.20", "-u", "-b", "300M", "-l", "1200"]);
    run("UDP from the kernel node", &["-c", "10.244.2.20", "-u", "-b", "300M", "-l", "1200", "-R"]);
    // More than fits through: what is too much is lost in counted ways.
    run("UDP flood of small datagrams", &["-c", "10.244.2.20", "-u", "-b", "0", "-l", "64"]);
    server.kill().unwrap();
    server.wait().unwrap();
    let status = lab.assert_sums_meet();
    let frames = &status["frames"];
    assert_eq!(frames["tx"].as_u64().unwrap() + frames["completion"].as_u64().unwrap(), 0, "what was to be sent is sent: {frames}");
}

/// Processor time of all threads of a process so far.
fn processor_time(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

#[test]
fn a_node_of_110_idle_pods_costs_less_than_a_hundredth_of_a_core() {
    let folder = tempfile::tempdir().unwrap();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\nspec: {podCIDR: 10.244.1.0/24}\nstatus: {addresses: [{type: \
                InternalIP, address: 10.0.0.10}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: t}\n";
    let pod = |n: u32| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: t, name: p{n}}}\nspec: {{nodeName: node-a, containers: [{{name: m, \
             image: x}}]}}\nstatus: {{phase: Running, podIP: 10.244.1.{0}, podIPs: [{{ip: 10.244.1.{0}}}]}}\n",
            n + 10
        )
    };
    let snapshot = folder.path().join("cluster.yaml");
    std::fs::write(&snapshot, node.to_owned() + &(0..110).map(pod).collect::<String>()).unwrap();
    let start = Instant::now();
    let lab = Lab::up("idle", &snapshot);
    println!("110 pods are up after {:?}", start.elapsed());
    assert_eq!(lab.status()["ports"].as_array().unwrap().len(), 112);
    std::thread::sleep(Duration::from_secs(1));

    let pid = lab.daemon_pid();
    let before = processor_time(&pid);
    std::thread::sleep(Duration::from_secs(10));
    let spent = processor_time(&pid) - before;
    println!("10 s of idleness cost {spent:?}");
    assert!(spent < Duration::from_millis(100), "10 s of idleness cost {spent:?}");
    lab_support::exec_ok(&lab, "t/p0", &["ping", "-c", "1", "-W", "1", "10.244.1.119"]);
    lab.assert_sums_meet();
}
