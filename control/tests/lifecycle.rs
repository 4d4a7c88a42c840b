//! A daemon that is killed, ended or replaced: what it leaves behind, and what stays cut off. Each test has a lab of its own.
//! Needs root.

mod lab_support;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, exec_ok, status_at};
use serde_json::Value;

/// The gateway of all pods: a MAC that no kernel interface has.
const GATEWAY: &str = "02:77:65:69:72:01";

fn fetch(lab: &Lab, from: &str, url: &str, seconds: &str) -> Result<String, String> {
    lab.exec(from, &["curl", "-sS", "--globoff", "--max-time", seconds, &format!("{url}/name")])
}

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab_support/frames.py").display().to_string()
}

/// What `ip -j` says in the node's namespace.
fn ip(lab: &Lab, arguments: &[&str]) -> Value {
    serde_json::from_str(&lab.exec("node/node-a", &[&["ip", "-j"], arguments].concat()).unwrap()).unwrap()
}

fn mac_of(lab: &Lab, interface: &str) -> String {
    ip(lab, &["link", "show", "dev", interface])[0]["address"].as_str().unwrap().to_owned()
}

/// Counts, in the pod `to`, frames that `send` makes others send.
fn frames_at(lab: &Lab, to: &str, send: impl FnOnce()) -> u32 {
    let mut counter =
        lab.command(to, &["python3", &script(), "count", "eth0", "1.5"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(counter.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "listening");
    send();
    let count = lines.next().unwrap().unwrap().parse().unwrap();
    assert!(counter.wait().unwrap().success());
    count
}

#[test]
fn a_killed_daemon_leaves_guarded_pods_cut_off_and_its_node_reachable() {
    let lab = Lab::up("kill", &cluster("e2e")).with_servers(&[
        ("t/server", "server"),
        ("t/guarded", "guarded"),
        ("t/remote", "remote"),
        ("node/node-a", "node"),
    ]);
    let status = lab.status();
    let host_end = |pod: &str| {
        let port = status["ports"].as_array().unwrap().iter().find(|port| port["pod"] == pod).unwrap();
        mac_of(&lab, port["name"].as_str().unwrap())
    };
    let (client_end, guarded_end, uplink) = (host_end("t/client"), host_end("t/guarded"), mac_of(&lab, "eth1"));
    let from_pod = |from: &str, sources: [&str; 2], targets: [&str; 2]| {
        // Its own host end, the gateway, everybody, and the far interfaces.
        let macs = [&client_end, GATEWAY, "ff:ff:ff:ff:ff:ff", &guarded_end, &uplink].join(",");
        for (source, target) in sources.into_iter().zip(targets) {
            exec_ok_without_daemon(&lab, from, &["python3", &script(), "send", "eth0", &macs, source, target]);
        }
    };
    let client = ["10.244.1.10", "fd00:244:1::10"];
    assert_eq!(fetch(&lab, "t/client", "http://10.244.1.30:8080", "5").as_deref(), Ok("guarded"));
    let seen = frames_at(&lab, "t/server", || from_pod("t/client", client, ["10.244.1.20", "fd00:244:1::20"]));
    assert!(seen >= 6, "frames made by hand do not arrive where they may: {seen}");

    lab.end_daemon("KILL");
    // Forwarding that somebody switches on sets every interface's own knob, those of the pods included.
    for value in ["0", "1"] {
        let knobs = [format!("net.ipv4.ip_forward={value}"), format!("net.ipv6.conf.all.forwarding={value}")];
        exec_ok_without_daemon(&lab, "node/node-a", &["sysctl", "-qw", &knobs[0], &knobs[1]]);
    }
    for from in ["t/client", "t/server", "t/remote", "node/node-b", "outside"] {
        for host in ["10.244.1.30", "[fd00:244:1::30]"] {
            assert!(fetch(&lab, from, &format!("http://{host}:8080"), "1").is_err(), "{from} reaches {host}");
        }
    }
    let guarded = ["10.244.1.30", "fd00:244:1::30"];
    let seen = frames_at(&lab, "t/guarded", || {
        from_pod("t/client", client, guarded);
        // From another node: natively, to the node's own MAC.
        for (source, target) in ["10.244.2.20", "fd00:244:2::20"].into_iter().zip(guarded) {
            exec_ok_without_daemon(&lab, "node/node-b", &["python3", &script(), "send", "eth1", &uplink, source, target]);
        }
    });
    assert_eq!(seen, 0, "frames made by hand reach a guarded pod");

    for address in ["10.0.0.10", "fd00:10::10"] {
        exec_ok_without_daemon(&lab, "outside", &["ping", "-c", "1", "-W", "2", address]);
    }
    assert_eq!(fetch(&lab, "outside", "http://10.0.0.10:8080", "5").as_deref(), Ok("node"));

    lab.apply(&cluster("e2e"));
    assert_eq!(fetch(&lab, "t/client", "http://10.244.1.30:8080", "5").as_deref(), Ok("guarded"));
    assert_eq!(fetch(&lab, "t/remote", "http://10.244.1.20:8080", "5").as_deref(), Ok("server"));
    assert!(fetch(&lab, "t/server", "http://10.244.1.30:8080", "1").is_err());
    lab.assert_sums_meet();
}

fn exec_ok_without_daemon(lab: &Lab, place: &str, argv: &[&str]) {
    lab.exec(place, argv).unwrap_or_else(|said| panic!("{place}: {}: {said}", argv.join(" ")));
}

/// A daemon that a test has started itself; gone with the test, however that ends.
struct ByHand(Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the daemon by hand with the configuration of the lab, and waits until it says that it is ready.
fn start_daemon(lab: &Lab, arguments: &[&str]) -> ByHand {
    let notify = lab.folder().join("notify");
    let _ = std::fs::remove_file(&notify);
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (daemon, config) = (Lab::daemon_binary(), lab.run_dir().join("node.yaml"));
    let mut command = lab.command("node/node-a", &[daemon.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    command.args(arguments).env("NOTIFY_SOCKET", &notify).env("RUST_LOG", "debug");
    let log = std::fs::File::create(lab.folder().join("log")).unwrap();
    let child = ByHand(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let mut message = [0; 256];
    let len = manager.recv(&mut message).expect("the daemon says that it is ready");
    assert!(message[..len].starts_with(b"READY=1"), "{}", String::from_utf8_lossy(&message[..len]));
    child
}

/// Ends a daemon that was started by hand; gives how long it took.
fn end(mut daemon: ByHand) -> Duration {
    let start = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.0.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = daemon.0.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
    start.elapsed()
}

/// Interfaces with their flags, and all routes of both families.
fn network(lab: &Lab) -> (Vec<String>, String) {
    let links = ip(lab, &["link", "show"]);
    let links = links.as_array().unwrap().iter().map(|link| format!("{} {} {}", link["ifname"], link["flags"], link["xdp"])).collect();
    let routes = |family| lab.exec("node/node-a", &["ip", family, "route", "show", "table", "all"]).unwrap();
    (links, routes("-4") + &routes("-6"))
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_nothing_behind() {
    let lab = Lab::up("term", &cluster("e2e"));
    let more = lab.folder().join("more.yaml");
    let pod = |n: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: t, name: more-{n}}}\nspec: {{nodeName: node-a, containers: [{{name: m, \
             image: x}}]}}\nstatus: {{phase: Running, podIP: 10.244.1.{0}, podIPs: [{{ip: 10.244.1.{0}}}]}}\n",
            100 + n
        )
    };
    let base = std::fs::read_to_string(cluster("e2e").join("cluster.yaml")).unwrap();
    std::fs::write(&more, base + "---\n" + &(0..17).map(pod).collect::<Vec<_>>().join("---\n")).unwrap();
    lab.apply(&more);
    assert_eq!(lab.status()["ports"].as_array().unwrap().len(), 22, "20 pods, the uplink and the host port");
    let took = lab.end_daemon("TERM");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    let (links, routes) = network(&lab);
    assert!(!links.iter().any(|link| link.contains("weir0") || link.contains("prog")), "{links:?}");
    assert!(!routes.contains("weir0") && !routes.contains("10.244."), "{routes}");
    assert!(!lab.socket().exists());

    let child = start_daemon(&lab, &["--log-format", "json"]);
    assert_eq!(status_at(&lab.socket())["ports"].as_array().unwrap().len(), 22);
    let uplink = ip(&lab, &["link", "show", "dev", "eth1"]);
    let program = uplink[0]["xdp"]["prog"]["id"].as_u64().expect("a program on the uplink").to_string();
    let bpftool = |arguments: &[&str]| std::process::Command::new("bpftool").arg("-j").args(arguments).output().unwrap();
    let shown: Value = serde_json::from_slice(&bpftool(&["prog", "show", "id", &program]).stdout).unwrap();
    let maps: Vec<String> = shown["map_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert!(maps.len() >= 6, "{shown}");
    assert_ne!(network(&lab).0, links);

    let took = end(child);
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!(network(&lab), (links, routes));
    assert!(!lab.socket().exists());
    let listening = lab.exec("node/node-a", &["ss", "-xlH"]).unwrap();
    assert!(!listening.contains(lab.socket().to_str().unwrap()), "{listening}");
    // The kernel frees a program a grace period after its last user went.
    let deadline = Instant::now() + Duration::from_secs(5);
    let there = || {
        bpftool(&["prog", "show", "id", &program]).status.success()
            || maps.iter().any(|map| bpftool(&["map", "show", "id", map]).status.success())
    };
    while there() {
        assert!(Instant::now() < deadline, "program {program} or one of the maps {maps:?} is still there");
        std::thread::sleep(Duration::from_millis(50));
    }

    let log = std::fs::read_to_string(lab.folder().join("log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    let has = |level: &str| lines.iter().any(|line| line["level"] == level);
    assert!(has("INFO") && has("DEBUG") && !has("ERROR") && !has("WARN"), "{log}");
}

#[test]
fn a_daemon_takes_over_from_another_only_when_told_to() {
    let lab = Lab::up("over", &cluster("e2e")).with_servers(&[("t/server", "server")]);
    let (daemon, config) = (Lab::daemon_binary(), lab.run_dir().join("node.yaml"));
    let said = lab.exec("node/node-a", &[daemon.to_str().unwrap(), "--config", config.to_str().unwrap()]).unwrap_err();
    assert!(said.contains("another weir-dataplane") && said.contains("--takeover"), "{said}");
    exec_ok(&lab, "t/client", &["ping", "-c", "1", "-W", "2", "10.244.1.20"]);

    let child = start_daemon(&lab, &["--takeover"]);
    assert_eq!(status_at(&lab.socket())["generation"], 0, "another daemon answers now, and nobody gave it a snapshot yet");
    let state = std::fs::read_to_string(format!("/proc/{}/status", lab.daemon_pid())).unwrap_or_default();
    assert!(state.is_empty() || state.contains("State:\tZ"), "the former daemon still runs:\n{state}");
    let applied = lab.weir_apply(&[&cluster("e2e")]);
    assert!(applied.status.success(), "{}", lab_support::text(&applied));
    assert_eq!(fetch(&lab, "t/client", "http://10.96.0.20", "5").as_deref(), Ok("server"));
    end(child);
}

#[test]
fn a_watched_snapshot_is_in_force_again_on_every_daemon_that_is_started_anew() {
    let lab = Lab::up("anew", &cluster("e2e")).with_servers(&[("t/server", "server")]);
    let deny = lab.folder().join("deny.yaml");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: t, name: deny}\nspec: {podSelector: {}}\n";
    std::fs::write(&deny, policy).unwrap();
    let mut watch = lab.weir_apply_command(&[&cluster("e2e"), &deny]);
    let mut watch = ByHand(watch.arg("--watch").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let said = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let is_in_force = || {
        let line = lines.recv_timeout(Duration::from_secs(20));
        assert!(line.as_ref().is_ok_and(|line| line.ends_with("in force on 1 workers")), "{line:?}");
        assert!(fetch(&lab, "t/client", "http://10.244.1.20:8080", "1").is_err(), "the policy is not in force");
    };
    is_in_force();

    // Before the watch can ask, the new daemon has a state from somebody else.
    let watching = nix::unistd::Pid::from_raw(watch.0.id() as i32);
    nix::sys::signal::kill(watching, nix::sys::signal::Signal::SIGSTOP).unwrap();
    lab.end_daemon("KILL");
    lab.apply(&cluster("e2e"));
    assert_eq!(fetch(&lab, "t/client", "http://10.244.1.20:8080", "5").as_deref(), Ok("server"));
    nix::sys::signal::kill(watching, nix::sys::signal::Signal::SIGCONT).unwrap();
    is_in_force();

    // Nobody but the watch gives this one a state.
    lab.end_daemon("KILL");
    let daemon = start_daemon(&lab, &[]);
    is_in_force();
    end(daemon);
}
