//! Snapshots and pods that change while packets flow. Each test has a lab of its own. Needs root.

mod lab_support;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, digest_of, exec_ok, text};

const SERVERS: [(&str, &str); 2] = [("t/server", "server"), ("t/remote", "remote")];

fn fetch(lab: &Lab, from: &str, url: &str) -> Result<String, String> {
    lab.exec(from, &["curl", "-sS", "--globoff", "--max-time", "1", &format!("{url}/name")])
}

/// A transfer of 10 MiB that takes some seconds; its output is the digest.
fn transfer(lab: &Lab, url: &str) -> Child {
    let script = format!("curl -sS --globoff --limit-rate 3M --max-time 60 '{url}/big' | sha256sum");
    lab.command("t/client", &["sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn digest(transfer: Child) -> String {
    let output = transfer.wait_with_output().unwrap();
    text(&output).split_whitespace().next().unwrap().to_owned()
}

/// Resets that a pod's TCP has sent and seen (RFC 4022: tcpOutRsts, tcpEstabResets).
fn resets(lab: &Lab, pod: &str) -> Vec<String> {
    let snmp = lab.exec(pod, &["cat", "/proc/net/snmp"]).unwrap();
    let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    names.iter().zip(values).filter(|(name, _)| matches!(**name, "OutRsts" | "EstabResets")).map(|(_, n)| n.to_owned()).collect()
}

/// Writes a part of a snapshot into the lab's folder.
fn part(lab: &Lab, name: &str, yaml: &str) -> PathBuf {
    let path = lab.folder().join(name);
    std::fs::write(&path, yaml).unwrap();
    path
}

fn apply(lab: &Lab, parts: &[&Path]) {
    let output = lab.weir_apply(parts);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_transfer_survives_changes_of_the_snapshot() {
    let lab = Lab::up("change", &cluster("e2e")).with_servers(&SERVERS);
    let base = cluster("e2e");
    let services: Vec<String> = (0..200)
        .map(|n| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{namespace: t, name: more-{n}}}\nspec:\n  clusterIP: 10.97.0.{n}\n  \
                 clusterIPs: [10.97.0.{n}]\n  selector: {{app: server}}\n  ports: [{{port: 80, targetPort: 8080}}]\n"
            )
        })
        .collect();
    let services = part(&lab, "services.yaml", &services.join("---\n"));
    let policy = part(
        &lab,
        "elsewhere.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: t, name: elsewhere}\nspec:\n  podSelector: \
         {matchLabels: {app: guarded}}\n  policyTypes: [Egress]\n",
    );
    let before = (resets(&lab, "t/client"), resets(&lab, "t/server"), resets(&lab, "t/remote"));
    let expected = lab.big_file_digest();
    let transfers = ["http://10.96.0.20", "http://10.96.0.21", "http://[fd00:96::21]"].map(|url| transfer(&lab, url));
    let (start, mut changes) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        for parts in [&[base.as_path(), &services][..], &[&base, &policy], &[&base, &services, &policy], &[&base]] {
            apply(&lab, parts);
            changes += 1;
        }
    }
    for transfer in transfers {
        assert_eq!(digest(transfer), expected, "after {changes} changes");
    }
    assert!(changes >= 4);
    assert_eq!((resets(&lab, "t/client"), resets(&lab, "t/server"), resets(&lab, "t/remote")), before);
    lab.assert_sums_meet();
}

#[test]
fn a_policy_that_denies_anew_keeps_open_flows_and_refuses_new_ones() {
    let lab = Lab::up("deny", &cluster("e2e")).with_servers(&SERVERS);
    let base = cluster("e2e");
    let deny = part(
        &lab,
        "deny.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: t, name: deny}\nspec:\n  podSelector: \
         {matchLabels: {app: server}}\n  policyTypes: [Ingress]\n",
    );
    let open = transfer(&lab, "http://10.96.0.20");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fetch(&lab, "t/client", "http://10.96.0.20").as_deref(), Ok("server"));
    apply(&lab, &[&base, &deny]);
    for url in ["http://10.96.0.20", "http://10.244.1.20:8080", "http://[fd00:96::20]"] {
        assert!(fetch(&lab, "t/client", url).is_err(), "{url} is not denied");
    }
    assert!(lab.drops("POLICY_DENIED") >= 3);
    assert_eq!(digest(open), lab.big_file_digest());
    apply(&lab, &[&base]);
    assert_eq!(fetch(&lab, "t/client", "http://10.96.0.20").as_deref(), Ok("server"));
    lab.assert_sums_meet();
}

#[test]
fn a_watched_snapshot_is_in_force_whenever_it_changes_and_bad_input_changes_nothing() {
    let lab = Lab::up("watch", &cluster("e2e")).with_servers(&SERVERS);
    let folder = lab.folder().join("watched");
    std::fs::create_dir(&folder).unwrap();
    for file in ["cluster.yaml", "services.yaml"] {
        std::fs::copy(cluster("e2e").join(file), folder.join(file)).unwrap();
    }
    let said = lab.folder().join("watch.log");
    let log = std::fs::File::create(&said).unwrap();
    let named = lab.folder().join("named.yaml");
    let space = "apiVersion: v1\nkind: Namespace\nmetadata: {name: more}\n";
    std::fs::write(&named, space).unwrap();
    let mut watch = lab.weir_apply_command(&[&folder, &named]).arg("--watch").stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let says = |text: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&said).unwrap().contains(text) {
            assert!(Instant::now() < deadline, "{text}: {}", std::fs::read_to_string(&said).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let generation = || lab.status()["generation"].as_u64().unwrap();
    says("in force on");
    let first = generation();
    let deny = folder.join("deny.yaml");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: t, name: deny}\nspec: {podSelector: {}}\n";
    std::fs::write(&deny, policy).unwrap();
    says(&format!("generation {} in force", first + 1));
    assert!(fetch(&lab, "t/client", "http://10.96.0.20").is_err(), "not denied");
    std::fs::write(&deny, policy.replace("podSelector: {}", "podSelector: 7")).unwrap();
    says("deny.yaml:4:21: NetworkPolicy t/deny: spec.podSelector: must be a map");
    says("what is in force stays");
    assert!(fetch(&lab, "t/client", "http://10.96.0.20").is_err(), "the policy before holds");
    assert_eq!(generation(), first + 1);
    std::fs::remove_file(&deny).unwrap();
    says(&format!("generation {} in force", first + 2));
    assert_eq!(fetch(&lab, "t/client", "http://10.96.0.20").as_deref(), Ok("server"));
    // A file given by its name is gone for a moment, as while an editor writes it anew.
    std::fs::remove_file(&named).unwrap();
    says("named.yaml: No such file");
    std::fs::write(&named, space.replace("name: more", "name: most")).unwrap();
    says(&format!("generation {} in force", first + 3));
    watch.kill().unwrap();
    watch.wait().unwrap();
    lab.assert_sums_meet();
}

#[test]
fn pods_come_and_go_while_others_talk() {
    let lab = Lab::up("ports", &cluster("e2e")).with_servers(&SERVERS);
    let all = std::fs::read_to_string(cluster("e2e").join("cluster.yaml")).unwrap();
    let late = all.replace("name: guarded, labels: {app: guarded}", "name: late, labels: {app: late}");
    assert_ne!(all, late);
    let (all, late) = (part(&lab, "all.yaml", &all), part(&lab, "late.yaml", &late));
    let services = cluster("e2e").join("services.yaml");
    let up = |snapshot: &Path| {
        // One folder is one snapshot to `lab up`.
        let folder = lab.folder().join("snapshot");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(snapshot, folder.join("cluster.yaml")).unwrap();
        std::fs::copy(&services, folder.join("services.yaml")).unwrap();
        lab.apply(&folder);
    };
    let pods = || {
        let status = lab.status();
        let mut pods: Vec<String> =
            status["ports"].as_array().unwrap().iter().filter_map(|port| Some(port["pod"].as_str()?.to_owned())).collect();
        pods.sort();
        pods
    };
    let pid = lab.daemon_pid();
    let transfers = ["http://10.96.0.20", "http://10.244.2.20:8080"].map(|url| transfer(&lab, url));
    for _ in 0..2 {
        up(&late);
        assert_eq!(pods(), ["t/client", "t/late", "t/server"]);
        exec_ok(&lab, "t/late", &["ping", "-c", "1", "-W", "2", "10.244.2.20"]);
        up(&all);
        assert_eq!(pods(), ["t/client", "t/guarded", "t/server"]);
    }
    // The interface goes under the daemon's feet, with a flood on it.
    let mut flood = lab
        .command("t/guarded", &["ping", "-q", "-i", "0.002", "-w", "5", "10.244.1.20"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let interface = lab.status()["ports"].as_array().unwrap().iter().find(|port| port["pod"] == "t/guarded").unwrap()["name"].clone();
    exec_ok(&lab, "node/node-a", &["ip", "link", "delete", interface.as_str().unwrap()]);
    let deadline = Instant::now() + Duration::from_secs(3);
    while pods() != ["t/client", "t/server"] {
        assert!(Instant::now() < deadline, "the port is not given up: {:?}", pods());
        std::thread::sleep(Duration::from_millis(20));
    }
    flood.kill().unwrap();
    flood.wait().unwrap();
    for transfer in transfers {
        assert_eq!(digest(transfer), lab.big_file_digest());
    }
    assert_eq!(digest_of(&lab, "t/client", "http://10.96.0.21/big"), lab.big_file_digest());
    assert_eq!(lab.daemon_pid(), pid, "the daemon lives on");
    let status = lab.assert_sums_meet();
    let frames = &status["frames"];
    assert_eq!(frames["total"].as_u64(), Some(16384), "{frames}");
    // Ports that were busy have more frames waiting than at first; all together at most half.
    assert!(frames["free"].as_u64().unwrap() >= 16384 / 2 - 64, "{frames}");
}
