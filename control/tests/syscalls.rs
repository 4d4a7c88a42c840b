//! What a worker asks of the kernel: nothing while it sleeps but to go on sleeping, and one call per batch while it works.
//! Counted by strace, from outside, which must find what the worker says of itself.

mod lab_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster};
use serde_json::Value;

/// The thread of the lab's only worker.
fn worker(lab: &Lab) -> String {
    let tasks = PathBuf::from(format!("/proc/{}/task", lab.daemon_pid()));
    let is_worker = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("worker-"));
    let task = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path()).find(is_worker).expect("a worker");
    task.file_name().unwrap().to_str().unwrap().to_owned()
}

/// What the worker says that it asked of the kernel, in strace's names of the calls.
const CALLS: [(&str, &[&str]); 5] = [
    ("send", &["sendto"]),
    ("fill", &["poll"]),
    ("wait", &["epoll_wait", "epoll_pwait", "epoll_pwait2"]),
    ("watch", &["epoll_ctl"]),
    ("wake", &["read"]),
];

/// Counts the system calls of a thread by name, for about `time`; gives them with the seconds and batches that they took.
/// The worker's own counts are read just outside and just inside of what strace sees: its counts must lie between.
fn count(lab: &Lab, time: Duration) -> (BTreeMap<String, u64>, f64, u64) {
    let told = || lab.status()["workers"][0].clone();
    let file = lab.folder().join("calls");
    let thread = worker(lab);
    let outer = told();
    let before = outer["batches"].as_u64().unwrap();
    let mut strace = Command::new("strace").args(["-c", "-p", &thread, "-o"]).arg(&file).stderr(Stdio::null()).spawn().expect("strace");
    let traced = || {
        fs::read_to_string(format!("/proc/{thread}/status")).unwrap().lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !traced() {
        assert!(Instant::now() < deadline, "strace does not attach");
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    let inner = told();
    std::thread::sleep(time);
    let inner = (inner, told());
    let secs = start.elapsed().as_secs_f64();
    assert!(Command::new("kill").args(["-s", "INT", &strace.id().to_string()]).status().unwrap().success());
    strace.wait().unwrap();
    let outer = (outer, told());
    let batches = outer.1["batches"].as_u64().unwrap() - before;
    // % time, seconds, usecs/call, calls, errors where there were some, syscall.
    let rows = fs::read_to_string(&file).unwrap();
    let calls = rows.lines().filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        fields.first()?.parse::<f64>().ok()?;
        let name = fields.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), fields.get(3)?.parse().ok()?))
    });
    let calls: BTreeMap<String, u64> = calls.collect();
    for (what, names) in CALLS {
        let between = |(from, to): &(Value, Value)| {
            let of = |status: &Value| status["system_calls"][what].as_u64().unwrap();
            of(to) - of(from)
        };
        let seen: u64 = names.iter().filter_map(|name| calls.get(*name)).sum();
        let bounds = between(&inner)..=between(&outer);
        assert!(bounds.contains(&seen), "strace saw {seen} calls to {what}, the worker {bounds:?}: {calls:?}");
    }
    (calls, secs, batches)
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_idle_worker_sleeps_and_a_loaded_one_makes_one_call_a_batch() {
    let lab = Lab::up("calls", &cluster("e2e"));
    let (calls, secs, _) = count(&lab, Duration::from_secs(2));
    let all: u64 = calls.values().sum();
    // It wakes ten times a second, for the connection table's sake; what the kernel says by itself (router solicitations and
    // their like) and the two requests for a status wake it now and then.
    assert!((all as f64) < 30.0 * secs, "{all} calls in {secs:.1} s: {calls:?}");
    assert!(all > 0, "strace saw nothing");

    // One way only: nobody answers, so each batch has one port to send by.
    let python = |place, script: &str| {
        let script = format!("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n{script}");
        let command = &mut lab.command(place, &["python3", "-c", &script]);
        Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let _receiver = python("t/server", "s.bind(('', 9))\nwhile True: s.recv(99)");
    std::thread::sleep(Duration::from_millis(300));
    let sender = python("t/client", "while True: s.sendto(b'x' * 64, ('10.244.1.20', 9))");
    std::thread::sleep(Duration::from_millis(500));
    let (calls, secs, batches) = count(&lab, Duration::from_secs(2));
    drop(sender);
    let sends = calls.get("sendto").copied().unwrap_or(0);
    let sleeps = calls.iter().filter(|(name, _)| name.starts_with("epoll")).map(|(_, calls)| calls).sum::<u64>();
    let others = calls.values().sum::<u64>() - sends - sleeps;
    assert!(batches > 1000, "{batches} batches only");
    // `batches` was read before and after, so it is a little more than what was traced.
    assert!(sends > batches / 4, "{sends} sends for {batches} batches: was there a load? {calls:?}");
    assert!(sends <= batches, "{sends} sends for {batches} batches: {calls:?}");
    // Going to sleep is watching, waiting and, after the first packet, no longer watching.
    assert!(sleeps <= 3 * batches, "{sleeps} calls to sleep for {batches} batches: {calls:?}");
    assert!((others as f64) < 30.0 * secs, "{others} other calls in {secs:.1} s: {calls:?}");
    lab.assert_sums_meet();
}
