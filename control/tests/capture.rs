//! Live captures of the running daemon, on real traffic: read back by tcpdump, and by our own reader for what tcpdump does not show.
//!
//! One lab for all tests of this file; its name carries the process number, so that it can run beside others. Needs root.

mod lab_support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use lab_support::Lab;

fn lab() -> &'static Lab {
    Lab::shared("e2e")
}

/// A capture under way.
struct Capture(Child);

impl Capture {
    /// Starts `weir capture` and waits until it listens.
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--preserve-status", "-s", "KILL", "30", env!("CARGO_BIN_EXE_weir"), "capture"]).args(arguments);
        command.env("WEIR_SOCKET", lab().socket()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line}{}", std::io::read_to_string(stderr).unwrap());
        // What follows is read at the end.
        child.stderr = Some(stderr.into_inner());
        Self(child)
    }

    /// Ends it as Ctrl-C does. Gives what it wrote to stdout and its last line.
    fn end(self) -> (Vec<u8>, String) {
        // `timeout` hands the signal on.
        assert!(Command::new("kill").args(["-s", "INT", &self.0.id().to_string()]).status().unwrap().success());
        self.wait()
    }

    fn wait(self) -> (Vec<u8>, String) {
        let Output { stdout, stderr, status } = self.0.wait_with_output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{status}: {said}");
        (stdout, said.lines().last().unwrap_or_default().to_owned())
    }
}

fn fetch(from: &str, url: &str) -> Result<String, String> {
    lab().exec(from, &["curl", "-sS", "--globoff", "--max-time", "2", &format!("{url}/name")])
}

/// The lines of `tcpdump -r`.
fn tcpdump(file: &Path, filter: &str) -> Vec<String> {
    let output = Command::new("tcpdump").args(["-nn", "-r"]).arg(file).arg(filter).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_pods_capture_has_both_directions_and_the_filter_is_tcpdumps() {
    let file = lab().folder().join("client.pcapng");
    let capture = Capture::start(&["t/client", "-w", file.to_str().unwrap(), "tcp", "port", "80"]);
    assert_eq!(fetch("t/client", "http://10.96.0.21").as_deref(), Ok("remote"));
    // Not what was asked for.
    assert_eq!(fetch("t/client", "http://10.244.1.20:8080").as_deref(), Ok("server"));
    let (_, sums) = capture.end();
    // As the pod has them: to the Service, and from the Service.
    let there = tcpdump(&file, "dst host 10.96.0.21 and dst port 80");
    let back = tcpdump(&file, "src host 10.96.0.21 and src port 80");
    assert!(there.len() >= 4 && back.len() >= 3, "{there:?} {back:?}");
    assert!(there[0].contains("Flags [S]") && back[0].contains("Flags [S.]"), "{there:?} {back:?}");
    assert_eq!(tcpdump(&file, "").len(), there.len() + back.len());
    assert_eq!(sums, format!("{} frames captured, 0 frames dropped by the ring", there.len() + back.len()));
    let bytes = std::fs::read(&file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("t/client") && has("svc/t/far:http") && has("vxlan 10.0.0.11"), "a comment is missing");
}

#[test]
fn what_is_dropped_on_its_way_to_a_pod_is_seen_with_the_policy() {
    let capture = Capture::start(&["t/guarded", "-w", "-", "-c", "1", "src 10.244.1.20 and tcp port 8080"]);
    assert!(fetch("t/server", "http://10.244.1.30:8080").is_err());
    let (bytes, sums) = capture.wait();
    assert_eq!(sums, "1 frame captured, 0 frames dropped by the ring");
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("drop: POLICY_DENIED, ingress isolated by t/guard"), "{text}");
    // epb_verdict (option 7, 9 bytes) of type XDP: XDP_DROP.
    assert!(bytes.windows(8).any(|window| window == [7, 0, 9, 0, 2, 1, 0, 0]), "{bytes:?}");
    // epb_flags: received.
    assert!(bytes.windows(8).any(|window| window == [2, 0, 4, 0, 1, 0, 0, 0]), "{bytes:?}");
}

#[test]
fn without_a_file_a_line_tells_of_each_packet() {
    let capture = Capture::start(&["--pod", "t/guarded", "--duration", "1500ms", "icmp"]);
    lab().exec("t/client", &["ping", "-c", "1", "-W", "1", "10.244.1.30"]).unwrap_err();
    let (text, _) = capture.wait();
    let text = String::from_utf8(text).unwrap();
    assert!(text.lines().count() == 1 && text.contains("t/client") && text.contains("DROPPED"), "{text}");
}

#[test]
fn the_snap_length_cuts_frames_and_tells_their_true_length() {
    let file = lab().folder().join("cut.pcapng");
    let capture = Capture::start(&["-i", "uplink", "-i", "host", "-s", "60", "-w", file.to_str().unwrap(), "udp port 8472"]);
    lab().exec("t/client", &["ping", "-c", "2", "-i", "0.2", "-s", "400", "-W", "2", "10.244.2.20"]).unwrap();
    capture.end();
    // What tcpdump says of the cut inner packet has lines of its own.
    let lines: Vec<String> = tcpdump(&file, "").into_iter().filter(|line| line.contains(" IP ")).collect();
    assert!(lines.len() >= 4 && lines.iter().all(|line| line.contains(".8472: ")), "{lines:?}");
    let mut head = Vec::new();
    std::fs::File::open(&file).unwrap().read_to_end(&mut head).unwrap();
    // Captured 60 of 14 + 20 + 8 + 8 + 14 + 20 + 8 + 400 bytes.
    assert!(head.windows(8).any(|window| window == [60, 0, 0, 0, 0xec, 1, 0, 0]), "no frame of 492 bytes cut to 60");
}

#[test]
fn a_capture_that_cannot_begin_says_why() {
    for (arguments, said) in [(&["t/nobody"][..], "no port is called \"t/nobody\"; there are: "), (&["prot", "80"], "man pcap-filter")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let output = command.arg("capture").args(arguments).env("WEIR_SOCKET", lab().socket()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn two_captures_at_a_time_see_the_same_and_the_sums_meet() {
    let captures = [(); 2].map(|()| Capture::start(&["-w", "-", "-c", "2", "icmp and host 10.244.1.20"]));
    lab().exec("t/client", &["ping", "-c", "1", "-W", "2", "10.244.1.20"]).unwrap();
    for capture in captures {
        let (bytes, sums) = capture.wait();
        assert_eq!(sums, "2 frames captured, 0 frames dropped by the ring");
        assert!(bytes.len() > 200);
    }
    lab().assert_sums_meet();
}
