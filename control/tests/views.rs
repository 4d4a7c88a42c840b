//! What the running daemon shows of itself, on real traffic: translations, connections, where its time goes, the live view.
//!
//! One lab for all tests of this file; its name carries the process number, so that it can run beside others. Needs root.

mod lab_support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab_support::{Lab, exec_ok};
use serde_json::Value;
use weir_dataplane::admin::client::Client;

fn lab() -> &'static Lab {
    Lab::shared("e2e")
}

/// What `weir` answers about the lab's daemon.
fn weir(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).env("WEIR_SOCKET", lab().socket()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&weir(&[arguments, &["-o", "json"]].concat())).unwrap()
}

/// One request by HTTP.
fn fetch(from: &str, url: &str) -> String {
    lab().exec(from, &["curl", "-sS", "--globoff", "--max-time", "5", &format!("{url}/name")]).unwrap()
}

#[test]
fn translations_name_the_service_the_pods_and_the_masquerade() {
    assert_eq!(fetch("t/client", "http://10.96.0.21"), "remote");
    assert_eq!(fetch("t/client", "http://10.0.0.254:8080"), "outside");
    assert_eq!(fetch("t/client", "http://10.244.1.20:8080"), "server");

    let rows = json(&["nat", "--pod", "t/client", "--dst", "10.96.0.21"]);
    let row = &rows[0];
    assert_eq!(row["service"]["name"], "far", "{rows}");
    assert_eq!((&row["client"], &row["backend"]), (&Value::from("t/client"), &Value::from("t/remote")), "{row}");
    assert_eq!((&row["original"]["dst"], &row["translated"]["dst"]), (&"10.96.0.21:80".into(), &"10.244.2.20:8080".into()), "{row}");
    assert_eq!(row["masquerade"], false, "{row}");
    assert!(row["packets"].as_u64().unwrap() >= 8 && row["timeoutSecs"].as_u64().unwrap() > 0, "{row}");

    let rows = json(&["nat", "--dst", "10.0.0.254"]);
    assert_eq!(rows[0]["masquerade"], true, "{rows}");
    assert!(rows[0]["translated"]["src"].as_str().unwrap().starts_with("10.0.0.10:"), "{rows}");
    // A connection between pods is tracked and not translated.
    assert_eq!(json(&["nat", "--dst", "10.244.1.20"]), Value::Array(Vec::new()));
    assert!(!json(&["conntrack", "--dst", "10.244.1.20"]).as_array().unwrap().is_empty());

    let table = weir(&["nat", "--dst", "10.96.0.21"]);
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("PROTO   SOURCE "), "{table}");
    assert!(lines.next().unwrap().contains(" t/far:http "), "{table}");
}

#[test]
fn lists_are_filtered_and_sorted() {
    for _ in 0..3 {
        fetch("t/client", "http://10.96.0.20");
    }
    let wide = weir(&["conntrack", "-o", "wide", "--pod", "t/server", "-p", "tcp", "--dport", "80"]);
    let sources: Vec<&str> = wide.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert!(sources.len() >= 3 && sources.is_sorted(), "{wide}");
    assert!(weir(&["conntrack", "-s", "10.244.1.10", "--dport", "80"]).lines().all(|line| line.contains("src=10.244.1.10 ")));
    let services = weir(&["services", "-n", "t", "near", "far"]);
    let names: Vec<&str> = services.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(names[0], "NAME");
    assert!(names[1..].iter().all(|name| ["near", "far"].contains(name)) && names[1..].is_sorted(), "{services}");
    assert_eq!(json(&["policies", "--pod", "t/guarded"])[0]["name"], "guard");
    assert_eq!(json(&["policies", "--pod", "t/client"]), Value::Array(Vec::new()));
}

#[test]
fn connections_can_be_asked_for_by_their_last_packet() {
    fetch("t/client", "http://10.96.0.20");
    std::thread::sleep(Duration::from_millis(500));
    // Others run meanwhile: those that ended stay silent.
    let ended = |active_within: Option<Duration>| {
        let mut client = Client::connect(&lab().socket(), Duration::from_secs(5)).unwrap();
        let mut count = 0;
        client
            .connections(active_within, |c| count += u32::from(c.original.dport == 80 && c.state.as_deref() == Some("TIME_WAIT")))
            .unwrap();
        count
    };
    assert!(ended(None) > 0);
    assert!(ended(Some(Duration::from_millis(100))) < ended(None));
}

#[test]
fn the_stages_of_a_worker_add_up_and_can_be_cleared() {
    exec_ok(lab(), "t/client", &["ping", "-c", "20", "-i", "0.01", "-W", "2", "10.244.2.20"]);
    let runtime = json(&["runtime"]);
    let worker = &runtime["workers"][0];
    let stages = worker["stages"].as_array().unwrap();
    let of = |name: &str, field: &str| {
        let stage = stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no stage {name} in {worker}"));
        stage[field].as_f64().unwrap()
    };
    for name in ["receive", "parse", "lookup", "apply", "expire", "transmit"] {
        assert!(of(name, "vectors") >= 40.0 && of(name, "clocks") > 0.0, "{worker}");
        assert!(of(name, "calls") <= of(name, "vectors"), "{worker}");
    }
    let shares: f64 = stages.iter().map(|stage| stage["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-6, "{worker}");
    assert!((worker["busy"].as_f64().unwrap() + of("idle", "share") - 1.0).abs() < 1e-6, "{worker}");

    let before = json(&["runtime", "--clear"])["secs"].as_f64().unwrap();
    let after = json(&["runtime"]);
    assert!(after["secs"].as_f64().unwrap() < before, "{after}");
    assert!(weir(&["runtime"]).contains("STAGE "));
}

#[test]
fn top_prints_one_frame_as_text() {
    let pinged = std::thread::spawn(|| exec_ok(lab(), "t/client", &["ping", "-c", "60", "-i", "0.02", "-W", "2", "10.244.1.20"]));
    std::thread::sleep(Duration::from_millis(100));
    let frame = weir(&["top", "--once", "--interval", "500ms"]);
    pinged.join().unwrap();
    assert!(frame.starts_with("node node-a, generation "), "{frame}");
    for part in ["\nPORT ", "\nWORKER ", "\nPROTO ", "t/client", "t/server"] {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
}

#[test]
fn top_draws_on_a_terminal_takes_keys_and_leaves_the_terminal_as_it_was() {
    let socket = lab().socket();
    let command = format!(
        "stty rows 30 cols 120; before=$(stty -g); {} top --interval 200ms --socket {}; echo ended with $?; [ \"$before\" = \"$(stty -g)\" ] && echo restored",
        env!("CARGO_BIN_EXE_weir"),
        socket.display()
    );
    let mut script = Command::new("timeout")
        .args(["20", "script", "-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = script.stdin.take().unwrap();
    for key in ["4", "1", "/", "uplink", "\r", "q"] {
        std::thread::sleep(Duration::from_millis(400));
        keys.write_all(key.as_bytes()).unwrap();
    }
    let output = script.wait_with_output().unwrap();
    drop(keys);
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["weir top", "REASON", "RX", "ended with 0", "restored"] {
        assert!(screen.contains(part), "no {part:?} in {screen:?}");
    }
}

#[test]
fn top_without_a_terminal_says_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("top").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--once"));
}
