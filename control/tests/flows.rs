//! Flow events and the ledger of drops of a running daemon: real packets, real followers, one who never reads. Needs root.

mod lab_support;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, digest_of, exec_ok, text};
use serde_json::Value;
use weir_dataplane::admin::protocol::{Request, Response, receive, send};
use weir_dataplane::flows::Query;

/// Packets that the policy `guard` denies, each one an event and a count.
const DENIED: u64 = 7;

fn weir(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(arguments).arg("--socket").arg(lab.socket());
    command
}

fn json_lines(lab: &Lab, arguments: &[&str]) -> Vec<Value> {
    let output = weir(lab, arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn drops(lab: &Lab) -> Value {
    let output = weir(lab, &["drops", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A `weir flows --follow` whose lines come as they are written; it ends with this value.
struct Follower(Child, Receiver<Value>);

impl Follower {
    fn start(lab: &Lab, filter: &[&str]) -> Self {
        let mut child =
            weir(lab, &["flows", "--follow", "--last", "0", "-o", "jsonpb"]).args(filter).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, told) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(serde_json::from_str(&line).unwrap()))
        });
        // Subscribed as soon as it is connected; there is nothing else to wait for.
        std::thread::sleep(Duration::from_millis(500));
        Self(child, told)
    }

    fn next(&self) -> Value {
        self.1.recv_timeout(Duration::from_secs(5)).expect("an event within 5 s")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sums of the ledger's rows that were dropped, and those for which `wanted` holds.
fn sums(ledger: &Value, wanted: impl Fn(&Value) -> bool) -> (u64, u64) {
    let rows = ledger["rows"].as_array().unwrap();
    let packets = |row: &&Value| row["packets"].as_u64().unwrap();
    let all = rows.iter().filter(|row| row["how"] == "drop").map(|row| packets(&row)).sum();
    (all, rows.iter().filter(|row| wanted(row)).map(|row| packets(&row)).sum())
}

fn is_denial(row: &Value) -> bool {
    (&row["reason"], &row["reason_code"], &row["pod"], &row["direction"])
        == (&"POLICY_DENIED".into(), &133.into(), &"t/guarded".into(), &"ingress".into())
        && row["policies"][0]["name"] == "guard"
        && row["policies"][0]["namespace"] == "t"
}

#[test]
fn denials_are_told_counted_and_named_and_a_follower_who_never_reads_costs_nobody_else() {
    let snapshot = cluster("e2e");
    let lab = &Lab::up("flows", &snapshot).with_servers(&[("t/server", "server")]);
    let follower = Follower::start(lab, &["--verdict", "DROPPED", "--to-pod", "t/guarded"]);
    let mut stalled = UnixStream::connect(lab.socket()).unwrap();
    send(&mut stalled, &Request::Flows { query: Box::new(Query { follow: true, last: Some(0), ..Query::default() }) }).unwrap();

    let said = lab.exec("t/server", &["ping", "-c", &DENIED.to_string(), "-i", "0.1", "-W", "1", "10.244.1.30"]).unwrap_err();
    assert!(said.contains("100% packet loss"), "{said}");

    // Live, as it happens.
    for _ in 0..DENIED {
        let event = follower.next();
        assert_eq!(event["flow"]["destination"]["pod_name"], "guarded", "{event}");
    }
    // Afterwards, without anybody having followed.
    let past = json_lines(lab, &["flows", "--verdict", "DROPPED", "--to-pod", "t/guarded", "-o", "jsonpb", "--all"]);
    assert_eq!(past.len() as u64, DENIED);
    let flow = &past[0]["flow"];
    assert_eq!((&flow["drop_reason"], &flow["drop_reason_desc"]), (&133.into(), &"POLICY_DENIED".into()), "{flow}");
    assert_eq!((&flow["source"]["namespace"], &flow["source"]["pod_name"]), (&"t".into(), &"server".into()), "{flow}");
    assert_eq!(flow["ingress_denied_by"][0]["name"], "guard", "{flow}");
    assert_eq!(
        json_lines(lab, &["flows", "--from-pod", "t/guarded", "--verdict", "DROPPED", "--protocol", "icmp", "-o", "jsonpb"]).len(),
        0
    );

    // Counted, and put down to the policy; all sums meet.
    let ledger = drops(lab);
    let (all, denied) = sums(&ledger, is_denial);
    assert_eq!(denied, DENIED, "{ledger}");
    assert_eq!(ledger["packets"]["drop"], all, "{ledger}");
    assert_eq!(lab.drops("POLICY_DENIED"), DENIED);
    assert!(lab.status()["packets"]["drop"].as_u64().unwrap() >= all);

    // Somebody who never reads: traffic goes on, and what is lost to him is counted.
    let expected = lab.big_file_digest();
    let start = Instant::now();
    assert_eq!(digest_of(lab, "t/client", "http://10.244.1.20:8080/big"), expected);
    // More packets than the socket and the queue hold, whatever the size of those before.
    exec_ok(lab, "t/client", &["ping", "-q", "-f", "-c", "15000", "10.244.1.20"]);
    println!("10 MiB and 30,000 packets past a stalled follower in {:?}", start.elapsed());
    stalled.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut got, mut lost) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while lost == 0 {
        assert!(Instant::now() < deadline, "{got} events read and none lost");
        match receive::<Response>(&mut stalled).unwrap() {
            Some(Response::Flows { flows, lost: more, .. }) => (got, lost) = (got + flows.len(), lost + more),
            other => panic!("{other:?}"),
        }
    }
    println!("{got} events read, {lost} lost");
    drop(stalled);

    // With the next state the names of what the old one denied stay, and new denials are told apart.
    let output = lab.weir_apply(&[&snapshot]);
    assert!(output.status.success(), "{}", text(&output));
    lab.exec("t/server", &["ping", "-c", "2", "-i", "0.1", "-W", "1", "10.244.1.30"]).unwrap_err();
    let ledger = drops(lab);
    let (all, denied) = sums(&ledger, is_denial);
    assert_eq!((denied, &ledger["packets"]["drop"]), (DENIED + 2, &all.into()), "{ledger}");
    let generations: std::collections::BTreeSet<_> =
        ledger["rows"].as_array().unwrap().iter().filter(|row| is_denial(row)).map(|row| row["generation"].as_u64()).collect();
    assert_eq!(generations.len(), 2, "{ledger}");
    lab.assert_sums_meet();
}
