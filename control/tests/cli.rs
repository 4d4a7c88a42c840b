//! The built `weir`: exit statuses and messages for bad input, and every shared capture through `weir replay`.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use weir_dataplane::capture::{Direction, PacketNote, PcapngWriter};
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::model::proto;
use weir_dataplane::wire::tcp;

/// The scenario whose files the tests misuse.
fn scenario() -> PathBuf {
    weir_fixtures::root().join("scenarios/clusterip-over-vxlan")
}

fn weir(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(arguments).env_remove("NODE_NAME").env_remove("WEIR_SOCKET");
    command.output().expect("weir can be run")
}

/// `weir replay` of `capture` on node-a of the scenario.
fn replay(capture: &Path, more: &[&str]) -> Output {
    let snapshot = scenario().join("snapshot.yaml");
    let mut arguments = vec!["replay", "-f", snapshot.to_str().unwrap(), "--node", "node-a", "--pcap", capture.to_str().unwrap()];
    arguments.extend(more);
    weir(&arguments)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks the exit status and that one message says `words`.
#[track_caller]
fn refused(output: &Output, status: i32, words: &str) {
    assert_eq!(output.status.code(), Some(status), "{}", stderr(output));
    let messages = stderr(output);
    assert_eq!(messages.matches("error:").count(), 1, "{messages}");
    assert!(messages.contains(words), "{messages:?} does not say {words:?}");
    assert!(!messages.contains('\u{1b}'), "colour in a pipe: {messages:?}");
}

#[test]
fn wrong_usage_is_2_and_says_what_is_missing() {
    assert_eq!(weir(&[]).status.code(), Some(2));
    refused(&weir(&["replay"]), 2, "--pcap");
    refused(&weir(&["trace", "-f", "-", "--from", "nobody", "--to", "a/b"]), 2, "a place is namespace/pod");
    // Our tables would take it for the IPv4 address.
    refused(&weir(&["trace", "-f", "-", "--from", "::ffff:10.0.0.1", "--to", "a/b"]), 2, "an IPv4 address in IPv6 form");
    refused(&weir(&["frobnicate"]), 2, "frobnicate");
    refused(&weir(&["conntrack", "--proto", "tpc"]), 2, "no protocol");
    refused(&weir(&["drops", "--reason", "POLICY"]), 2, "no drop reason");
    assert_eq!(weir(&["--help"]).status.code(), Some(0));
    assert_eq!(weir(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_matrix_says_the_same_as_json_and_as_csv_and_whoever_reads_may_go_early() {
    let shop = weir_fixtures::root().join("clusters/shop");
    let ask = |form: &str| weir(&["matrix", "-f", shop.to_str().unwrap(), "-o", form]);
    let matrix: serde_json::Value = serde_json::from_slice(&ask("json").stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
    let members = |class: &serde_json::Value| list(&matrix["classes"][class.as_u64().unwrap() as usize]["members"]);
    let mut expected = vec!["from,to,family,protocol,first_port,last_port,verdict,passes,why".to_owned()];
    for cell in list(&matrix["cells"]) {
        let ends = [&cell["from"], &cell["to"]].map(|class| members(class).iter().map(text).collect::<Vec<_>>().join(" "));
        let family = &matrix["classes"][cell["from"].as_u64().unwrap() as usize]["family"];
        for traffic in list(&cell["traffic"]) {
            for ports in list(&traffic["ports"]) {
                let [from, to] = &ends;
                let (family, protocol, verdict) = (text(family), text(&ports["proto"]), text(&traffic["verdict"]));
                let (first, last, passes, why) = (&ports["first"], &ports["last"], &traffic["passes"], text(&traffic["why"]));
                expected.push(format!("\"{from}\",\"{to}\",{family},{protocol},{first},{last},{verdict},{passes},\"{why}\""));
            }
        }
    }
    assert!(expected.len() > 100, "{}", expected.len());
    assert_eq!(stdout(&ask("csv")).split_terminator("\r\n").collect::<Vec<_>>(), expected);

    for form in ["json", "csv"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let mut child = command.args(["matrix", "-f", shop.to_str().unwrap(), "-o", form]).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{form}");
    }
}

#[test]
fn a_capture_that_is_missing_empty_foreign_or_no_capture_is_told_in_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.pcap");
    refused(&replay(&path, &[]), 2, "No such file");
    refused(&replay(folder.path(), &[]), 2, "folder");

    fs::write(&path, b"").unwrap();
    refused(&replay(&path, &[]), 1, "the file is empty");

    fs::write(&path, b"apiVersion: v1").unwrap();
    refused(&replay(&path, &[]), 1, "not a capture");

    let good = fs::read(scenario().join("in.pcap")).unwrap();
    fs::write(&path, &good[..24]).unwrap();
    let output = replay(&path, &["-o", "json"]);
    refused(&output, 1, "holds no packets");
    assert!(stdout(&output).contains(r#""packets":0"#));

    let mut foreign = good;
    foreign[20] = 105;
    fs::write(&path, &foreign).unwrap();
    refused(&replay(&path, &[]), 1, "link type 105 (IEEE802_11) cannot be read");
}

#[test]
fn what_can_be_read_of_a_damaged_capture_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.pcap");
    let good = fs::read(scenario().join("in.pcap")).unwrap();

    fs::write(&path, &good[..good.len() - 5]).unwrap();
    let output = replay(&path, &["-o", "json"]);
    refused(&output, 1, "ends inside record 9, 5 bytes early");
    assert!(stdout(&output).ends_with("\"rejects\":{}}}\n") && stdout(&output).contains(r#""packets":8"#), "{}", stdout(&output));

    let mut lying = good;
    lying[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&path, &lying).unwrap();
    refused(&replay(&path, &[]), 1, "corrupt at record 1 (byte 24)");

    // A gzip stream that ends early, told once.
    fs::write(&path, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]).unwrap();
    let snapshot = scenario().join("snapshot.yaml");
    let lint = weir(&["lint", "-f", snapshot.to_str().unwrap(), "--node", "node-a", "--pcap", path.to_str().unwrap()]);
    refused(&lint, 2, "the gzip stream is cut short");
    assert_eq!(stderr(&lint).matches("cut short").count(), 1, "{}", stderr(&lint));
}

#[test]
fn a_snapshot_that_is_missing_wrong_or_without_the_node_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.yaml");
    let name = path.to_str().unwrap();
    refused(&weir(&["validate", "-f", name]), 2, "No such file");

    fs::write(&path, "kind: [").unwrap();
    refused(&weir(&["validate", "-f", name]), 1, "snapshot.yaml:");

    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingres: []}\n";
    fs::write(&path, policy).unwrap();
    refused(&weir(&["validate", "-f", name]), 1, "ingres");

    // One line for each of the two nodes whose address and nodePort a Service takes.
    let node = |n| {
        format!(
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: n{n}}}, status: {{addresses: [{{type: InternalIP, address: 10.0.0.{n}}}]}}}}\n"
        )
    };
    let service = |name, n, rest| {
        format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.{n}, {rest}}}}}\n")
    };
    let taken = node(1)
        + &node(2)
        + &service("a", 1, "type: NodePort, ports: [{port: 80, nodePort: 30080}]")
        + &service("b", 2, "externalIPs: [10.0.0.1, 10.0.0.2], ports: [{port: 30080}]");
    fs::write(&path, taken).unwrap();
    let output = weir(&["validate", "-f", name]);
    refused(&output, 1, "the snapshot is not valid (2 faults):");
    for n in [1, 2] {
        let line = format!(
            "snapshot.yaml:8:1: Service default/b: spec.externalIPs: 10.0.0.{n} is an address of Node n{n}, where TCP 30080 is the nodePort of"
        );
        assert_eq!(stderr(&output).matches(&line).count(), 1, "{}", stderr(&output));
    }

    let snapshot = scenario().join("snapshot.yaml");
    let snapshot = snapshot.to_str().unwrap();
    let input = scenario().join("in.pcap");
    let input = input.to_str().unwrap();
    refused(&weir(&["replay", "-f", snapshot, "--node", "node-z", "--pcap", input]), 2, "it has: node-a, node-b");
    refused(&weir(&["replay", "-f", snapshot, "--node", "node-a", "--pcap", input, "--port-of", "eth0=shop/nobody"]), 2, "shop/frontend");
    refused(&weir(&["trace", "-f", snapshot, "--from", "shop/nobody", "--to", "svc/shop/web"]), 2, "no live pod shop/nobody");
}

#[test]
fn a_daemon_that_is_not_there_is_told_in_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("dataplane.sock");
    let socket = socket.to_str().unwrap();
    for command in ["status", "conntrack", "services", "policies"] {
        refused(&weir(&[command, "--socket", socket]), 2, "there is no such socket");
    }
}

#[test]
fn a_trace_opens_a_connection_of_each_protocol() {
    let shop = weir_fixtures::root().join("clusters/shop");
    for protocol in ["tcp", "udp", "sctp", "icmp"] {
        let more = ["--from", "shop/web-0", "--to", "shop/frontend", "--proto", protocol];
        let output = weir(&[&["trace", "-f", shop.to_str().unwrap()], &more[..]].concat());
        assert!(stdout(&output).contains(" conntrack new\n") && stdout(&output).ends_with("Verdict: forward\n"), "{}", stdout(&output));
    }
}

#[test]
fn a_trace_has_the_fields_of_the_contract() {
    let snapshot = scenario().join("snapshot.yaml");
    let output =
        weir(&["trace", "-f", snapshot.to_str().unwrap(), "--from", "shop/frontend", "--to", "svc/shop/web", "--port", "80", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "verdict": "forward", "reason": null, "reason_code": null, "family": "ipv4",
        "service": {"namespace": "shop", "name": "web", "port": "http"},
        "backends": ["10.244.2.20:8080"], "backend": "10.244.2.20:8080",
        "snat": null, "encap": {"vni": 1, "vtep": "10.0.0.11"},
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&answer[field], value, "{field}");
    }
    for side in ["egress", "ingress"] {
        assert_eq!(answer[side]["isolated"], false, "{side}");
        assert_eq!(answer[side]["allowed"], true, "{side}");
        assert!(answer[side]["by"].is_array() && answer[side]["isolated_by"].is_array() && answer[side]["nearest"].is_null());
    }
    let nodes: Vec<&str> = answer["steps"].as_array().unwrap().iter().filter_map(|step| step["node"].as_str()).collect();
    assert!(nodes.contains(&"node-a") && nodes.contains(&"node-b"), "{nodes:?}");
}

#[test]
fn both_sides_are_judged_where_the_first_denies_already() {
    let folder = tempfile::tempdir().unwrap();
    let policies = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: deny}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n";
    fs::write(folder.path().join("deny.yaml"), policies).unwrap();
    let snapshot = scenario().join("snapshot.yaml");
    let more = folder.path().join("deny.yaml");
    let output = weir(&[
        "trace",
        "-f",
        snapshot.to_str().unwrap(),
        "-f",
        more.to_str().unwrap(),
        "--from",
        "shop/frontend",
        "--to",
        "svc/shop/web",
        "-o",
        "json",
    ]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["verdict"], &answer["reason"]), (&"drop".into(), &"POLICY_DENIED".into()));
    for side in ["egress", "ingress"] {
        assert_eq!(answer[side]["allowed"], false, "{side}");
        assert_eq!(answer[side]["isolated_by"][0]["name"], "deny", "{side}");
        assert_eq!(answer[side]["nearest"]["fails"], "direction", "{side}: {}", answer[side]["nearest"]);
    }
}

#[test]
fn what_replay_writes_is_replayed_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.pcapng");
    let output = replay(&scenario().join("in.pcap"), &["-o", "json", "--write", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let again = replay(&path, &["-o", "json"]);
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert!(stderr(&again).contains("9 packets are there as they left too"), "{}", stderr(&again));
    // All but the number in the file.
    let lines =
        |output: &Output| stdout(output).lines().map(|line| line.split_once(',').map(|(_, rest)| rest.to_owned())).collect::<Vec<_>>();
    assert_eq!(lines(&again), lines(&output));
}

#[test]
fn what_left_by_a_port_came_in_by_that_of_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.pcapng");
    let mut writer = PcapngWriter::new(fs::File::create(&path).unwrap(), "test").unwrap();
    writer.interface("shop/web-0", "").unwrap();
    let [client, server] = [10, 20].map(|last| Ipv4Addr::new(10, 244, 1, last).into());
    let tuple = Tuple { src: client, dst: server, sport: 4000, dport: 8080, proto: proto::TCP };
    let request = Craft::new(tuple).frame();
    let mut answer = Craft::new(tuple.inverse());
    answer.tcp_flags |= tcp::ACK;
    for (id, direction, bytes) in [(1, Direction::Out, request), (2, Direction::In, answer.frame())] {
        let note = PacketNote { id, direction, wire_len: bytes.len() as u32, xdp_action: None, comment: b"" };
        writer.packet(0, id, &bytes, &note).unwrap();
    }
    writer.finish().unwrap();
    let shop = weir_fixtures::root().join("clusters/shop");
    let files = ["-f", shop.to_str().unwrap(), "--node", "node-a", "--pcap", path.to_str().unwrap()];
    let output = weir(&[&["replay", "-o", "json"], &files[..]].concat());
    for (line, (from, to)) in stdout(&output).lines().zip([("shop/frontend", "shop/web-0"), ("shop/web-0", "shop/frontend")]) {
        assert!(line.contains(&format!(r#""in":"{from}","verdict":"forward","reason":null,"out":"{to}""#)), "{line}");
    }
    assert!(stdout(&output).contains(r#""packets":2"#), "{}", stdout(&output));
}

/// The summary of a replay, checked for its sum, and all that stdout said.
fn replay_summary(capture: &Path, more: &[&str]) -> (u64, Vec<u8>) {
    let shop = weir_fixtures::root().join("clusters/shop");
    let mut arguments = vec!["replay", "-f", shop.to_str().unwrap(), "--node", "node-a", "-o", "json", "--pcap", capture.to_str().unwrap()];
    arguments.extend(more);
    let output = weir(&arguments);
    let name = capture.display();
    assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    let last = stdout(&output).lines().last().unwrap().to_owned();
    let summary = &serde_json::from_str::<serde_json::Value>(&last).unwrap()["summary"];
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!(count("packets"), ["forward", "host", "reply", "drop"].map(count).iter().sum::<u64>(), "{name}: {last}");
    let reasons: u64 = summary["reasons"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(count("drop"), reasons, "{name}: {last}");
    (count("packets"), output.stdout)
}

#[test]
fn every_shared_capture_is_replayed_to_a_verdict_for_each_packet_and_twice_alike() {
    let folder = weir_fixtures::shared_captures().expect("../shared/pcaps is missing: these captures are shared beside the project");
    let mut captures: Vec<PathBuf> = fs::read_dir(folder).unwrap().filter_map(Result::ok).map(|e| e.path()).collect();
    captures.retain(|path| path.to_string_lossy().contains(".pcap"));
    captures.sort();
    assert!(captures.len() >= 45, "only {} captures", captures.len());
    for capture in &captures {
        let (packets, first) = replay_summary(capture, &[]);
        let (_, second) = replay_summary(capture, &[]);
        assert!(first == second, "{}: two runs differ", capture.display());
        assert_eq!(first.iter().filter(|b| **b == b'\n').count() as u64, packets + 1, "{}: a line a packet and the sum", capture.display());
        let (counted, _) = replay_summary(capture, &["--per", "summary"]);
        assert_eq!(counted, packets, "{}", capture.display());
    }
}

#[test]
fn diff_exits_0_for_the_same_1_for_different_2_where_it_cannot_tell() {
    let folder = tempfile::tempdir().unwrap();
    let old = weir_fixtures::root().join("scenarios/denied-by-policy/snapshot.yaml");
    let new = folder.path().join("new.yaml");
    fs::write(&new, fs::read_to_string(&old).unwrap().replace("matchLabels: {app: gateway}", "matchLabels: {app: frontend}")).unwrap();
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let same = weir(&["diff", old, old]);
    assert_eq!((same.status.code(), stdout(&same).as_str()), (Some(0), ""));
    let different = weir(&["diff", old, new]);
    assert_eq!(different.status.code(), Some(1), "{}", stderr(&different));
    for line in ["shop/frontend -> shop/web-0: tcp 8080", "shop/gateway -> svc/shop/web: tcp 80", "  - drop POLICY_DENIED", "  + forward"] {
        assert!(stdout(&different).contains(line), "no {line:?} in\n{}", stdout(&different));
    }
    let json = weir(&["diff", old, new, "-o", "json"]);
    assert!(stdout(&json).starts_with("{\n  \"same\": false"), "{}", stdout(&json));
    let capture = weir_fixtures::root().join("scenarios/denied-by-policy/in.pcap");
    let replayed = weir(&["diff", old, new, "--node", "node-a", "--pcap", capture.to_str().unwrap()]);
    assert_eq!(replayed.status.code(), Some(1), "{}", stderr(&replayed));
    assert!(stdout(&replayed).contains("packets would end otherwise"), "{}", stdout(&replayed));
    assert_eq!(weir(&["diff", old, "/nowhere.yaml"]).status.code(), Some(2));
}

#[test]
fn diff_tells_what_connection_tracking_alone_keeps_alive_and_what_cut_and_drain_do_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = weir_fixtures::root().join("scenarios/denied-by-policy");
    let (old, capture) = (scenario.join("snapshot.yaml"), scenario.join("in.pcap"));
    let (new, config) = (folder.path().join("new.yaml"), folder.path().join("node.yaml"));
    fs::write(&new, fs::read_to_string(&old).unwrap().replace("matchLabels: {app: gateway}", "matchLabels: {app: frontend}")).unwrap();
    let [old, new, capture, config_path] = [&old, &new, &capture, &config].map(|path| path.to_str().unwrap());
    for (on_change, held, words) in [("keep", "lives_on", "live on"), ("cut", "cut", "are cut"), ("drain", "reset", "are reset")] {
        let text = format!("apiVersion: weir.dev/v1alpha1\nkind: NodeConfig\nnode: node-a\npolicy: {{onChange: {on_change}}}\n");
        fs::write(&config, text).unwrap();
        let json = |more: &[&str]| {
            let output = weir(&[&["diff", old, new, "--config", config_path, "-o", "json"], more].concat());
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
        };
        // What was allowed and is not: the gateway's connections, of both families, to the pod and by its Service.
        let classes = json(&[]);
        let changes = classes["changes"].as_array().unwrap();
        let open: Vec<_> = changes.iter().filter(|change| !change["open"].as_array().unwrap().is_empty()).collect();
        assert_eq!((changes.len(), open.len()), (8, 4), "{classes}");
        for change in open {
            assert_eq!((&change["from"][0], &change["open"][0]["held"]), (&"shop/gateway".into(), &held.into()), "{change}");
        }
        let replayed = json(&["--pcap", capture]);
        assert_eq!(replayed["held"], serde_json::json!({ held: 1 }), "{replayed}");
        let flow = &replayed["open"][0];
        assert_eq!((&flow["old"]["n"], &flow["old"]["verdict"], &flow["new"]["verdict"]), (&4.into(), &"forward".into(), &"drop".into()));
        for more in [&[][..], &["--pcap", capture]] {
            let output = weir(&[&["diff", old, new, "--config", config_path], more].concat());
            assert!(stdout(&output).contains(words), "no {words:?} in\n{}", stdout(&output));
        }
    }
}

#[test]
fn time_may_run_backwards_frames_may_be_huge_and_addresses_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.pcap");
    let frame = |src: [u8; 4], len: usize| {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
        frame.extend([&src[..], &[192, 0, 2, 99], &[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat());
        frame.resize(len, 0);
        frame[16..18].copy_from_slice(&u16::try_from(len - 14).unwrap_or(u16::MAX).to_be_bytes());
        frame
    };
    let mut capture = weir_dataplane::capture::PcapWriter::new(Vec::new()).unwrap();
    let hour = 3_600_000_000_000;
    for (time, frame) in [
        (2 * hour, frame([198, 51, 100, 7], 60)),
        (hour, frame([198, 51, 100, 8], 60)),
        (0, frame([198, 51, 100, 9], 65_535)),
        (2 * hour, frame([198, 51, 100, 9], 65_549)),
    ] {
        capture.packet(time, &frame).unwrap();
    }
    fs::write(&path, capture.finish().unwrap()).unwrap();
    let output = replay(&path, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines: Vec<serde_json::Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(lines[4]["summary"]["packets"], 4);
    let times: Vec<&str> = lines[..4].iter().map(|line| line["time"].as_str().unwrap()).collect();
    assert_eq!(
        times,
        ["1970-01-01T02:00:00Z", "1970-01-01T01:00:00Z", "1970-01-01T00:00:00Z", "1970-01-01T02:00:00Z"],
        "as the capture says"
    );
    for line in &lines[..4] {
        assert_eq!((line["in"].as_str(), line["verdict"].as_str()), (Some("uplink"), Some("drop")), "nobody has these addresses: {line}");
        assert!(line["reason"].is_string(), "{line}");
    }
}

#[test]
fn node_ports_are_served_on_the_addresses_that_the_operator_names_and_nowhere_else_e2_30() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, config) = (folder.path().join("cluster.yaml"), folder.path().join("node.yaml"));
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDRs: [10.244.1.0/24]}\nstatus: {addresses: [{type: InternalIP, \
         address: 10.0.0.10}, {type: ExternalIP, address: 192.0.2.10}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: \
         web, labels: {app: web}}\nspec: {nodeName: a, containers: [{name: c}]}\nstatus: {podIP: 10.244.1.5}\n---\napiVersion: v1\nkind: \
         Service\nmetadata: {namespace: shop, name: web}\nspec: {type: NodePort, clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: \
         80, targetPort: 8080, nodePort: 30080}]}\n";
    fs::write(&snapshot, text).unwrap();
    // Which packet meets the service: the real pipeline says, the node's own stack gets the others.
    let to = |address: &str, cidrs: &str| {
        fs::write(&config, format!("apiVersion: weir.dev/v1alpha1\nkind: NodeConfig\nnode: a\nservices: {{nodePortCIDRs: [{cidrs}]}}\n"))
            .unwrap();
        let (snapshot, config) = (snapshot.to_str().unwrap(), config.to_str().unwrap());
        let from = ["--from", "198.51.100.7", "--to", address, "--port", "30080"];
        let output = weir(&[&["trace", "-o", "json", "-f", snapshot, "--config", config], &from[..]].concat());
        let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        (answer["verdict"].as_str().unwrap().to_owned(), answer["backend"].as_str().map(str::to_owned))
    };
    let (served, not_served) = (("forward".to_owned(), Some("10.244.1.5:8080".to_owned())), ("host".to_owned(), None));
    for (cidrs, internal, external) in [
        ("", &served, &not_served),
        ("192.0.2.0/24", &not_served, &served),
        ("10.0.0.10/32, 192.0.2.0/24", &served, &served),
        ("203.0.113.0/24", &not_served, &not_served),
    ] {
        assert_eq!((&to("10.0.0.10", cidrs), &to("192.0.2.10", cidrs)), (internal, external), "{cidrs}");
    }
}
