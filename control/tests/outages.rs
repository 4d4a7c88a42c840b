//! The famous outages: what `weir trace`, `why` and `lint` say of each is golden (`UPDATE=1` rewrites it), and where a policy is the
//! cause, the capture is replayed with the policy that `why` proposes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Each scenario, the connection that failed, and whether a policy is the cause.
const OUTAGES: [(&str, &[&str], bool); 8] = [
    ("outage-and-against-or", &["--from", "shop/frontend", "--to", "svc/shop/web"], true),
    ("outage-dns-not-allowed", &["--from", "shop/frontend", "--to", "svc/kube-system/kube-dns", "--proto", "udp"], true),
    ("outage-egress-not-allowed", &["--from", "shop/frontend", "--to", "svc/shop/web"], true),
    ("outage-forgotten-default-deny", &["--from", "shop/frontend", "--to", "svc/shop/web"], true),
    ("outage-mtu-black-hole", &["--from", "shop/frontend", "--to", "svc/shop/web"], false),
    ("outage-namespace-label-missing", &["--from", "monitoring/prober", "--to", "svc/shop/web"], true),
    ("outage-port-against-target-port", &["--from", "shop/frontend", "--to", "svc/shop/web"], true),
    ("outage-service-without-endpoints", &["--from", "shop/frontend", "--to", "svc/shop/web"], false),
];

/// Runs `weir` in a scenario's folder, so that no path of this machine is in what it says.
fn weir(folder: &Path, command: &str, more: &[&str]) -> Output {
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
    weir.current_dir(folder).args([command, "-f", "snapshot.yaml", "--config", "node.yaml"]).args(more);
    weir.env_remove("NODE_NAME").output().expect("weir can be run")
}

fn stdout(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn trace_why_and_lint_name_the_cause_of_every_outage() {
    let folders: Vec<_> = weir_fixtures::scenarios().into_iter().filter(|f| f.to_string_lossy().contains("/outage-")).collect();
    assert_eq!(folders.len(), OUTAGES.len());
    for (name, connection, _) in OUTAGES {
        let folder = weir_fixtures::root().join("scenarios").join(name);
        let capture: &[&str] = &["--pcap", "in.pcap"];
        for (command, more) in [("trace", connection), ("why", connection), ("lint", capture)] {
            let text = stdout(&weir(&folder, command, more));
            let golden = folder.join(format!("{command}.txt"));
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&golden, &text).unwrap();
            }
            assert_eq!(text, fs::read_to_string(&golden).unwrap_or_default(), "{name}: {command} {more:?}; UPDATE=1 rewrites the golden");
        }
    }
}

#[test]
fn a_replay_with_the_policy_that_why_proposes_lets_the_connection_pass() {
    for (name, connection, by_policy) in OUTAGES {
        let folder = weir_fixtures::root().join("scenarios").join(name);
        let patch = weir(&folder, "why", &[connection, &["-o", "patch"]].concat());
        assert_eq!(!patch.stdout.is_empty(), by_policy, "{name}");
        if !by_policy {
            continue;
        }
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("patch.yaml");
        fs::write(&file, &patch.stdout).unwrap();
        let first_verdict = |more: &[&str]| {
            let replayed = stdout(&weir(&folder, "replay", &[&["--pcap", "in.pcap", "-o", "json"], more].concat()));
            let row: serde_json::Value = serde_json::from_str(replayed.lines().next().unwrap()).unwrap();
            row["verdict"].as_str().unwrap().to_owned()
        };
        assert_eq!(first_verdict(&[]), "drop", "{name}");
        assert_eq!(first_verdict(&["-f", file.to_str().unwrap()]), "forward", "{name}: {}", String::from_utf8_lossy(&patch.stdout));
    }
}
