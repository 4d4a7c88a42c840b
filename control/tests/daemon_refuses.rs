//! What the daemon is given wrong: one message that says what, where and what to do, exit status 1 (2 for wrong usage), and
//! what was running stays as it was. Needs root.

mod lab_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

use lab_support::{Lab, exec_ok, text};

/// One lab for all tests: none of them changes it.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up("refuse", &lab_support::cluster("e2e")).with_servers(&[("t/server", "server")]))
}

/// Held while a daemon tries and what it left is looked at.
static ONE: Mutex<()> = Mutex::new(());

/// A configuration whose every field is fine, but for what `more` says.
fn config(name: &str, uplink: &str, more: &str) -> PathBuf {
    let path = lab().folder().join(format!("{name}.yaml"));
    let socket = lab().folder().join(format!("{name}.sock"));
    let text = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: NodeConfig\nnode: node-a\nsocket: {}\nuplink: {{interface: {uplink}}}\n{more}\n",
        socket.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Another name for the host pair than the live one's.
const HOST: &str = "host: {interface: other0}";

/// Runs a daemon in the node's namespace that must refuse with exactly one message; gives the message.
fn refused(config: &Path) -> String {
    let _one_at_a_time = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = lab().status();
    let daemon = Lab::daemon_binary();
    let output = lab()
        .command("node/node-a", &["timeout", "10", daemon.to_str().unwrap(), "--config", config.to_str().unwrap()])
        .env("RUST_LOG", "error")
        .output()
        .unwrap();
    said(&output, &before)
}

fn said(output: &Output, before: &serde_json::Value) -> String {
    let text = text(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("error: ") && text.matches("error: ").count() == 1, "{text}");
    let after = lab().status();
    let ports = |status: &serde_json::Value| {
        let named = |port: &serde_json::Value| ["name", "kind", "mode", "pod"].map(|field| port[field].clone());
        status["ports"].as_array().map(|ports| ports.iter().map(named).collect::<Vec<_>>())
    };
    assert_eq!((&after["generation"], ports(&after)), (&before["generation"], ports(before)));
    assert!(lab().exec("node/node-a", &["ip", "link", "show", "other0"]).is_err(), "what it made is gone");
    exec_ok(lab(), "t/client", &["curl", "-sS", "--max-time", "5", "http://10.96.0.20/name"]);
    text
}

#[test]
fn an_uplink_that_is_not_there() {
    let said = refused(&config("missing", "nope0", HOST));
    assert!(said.contains("uplink.interface") && said.contains("nope0") && said.contains("try: ip link"), "{said}");
}

#[test]
fn an_uplink_with_a_foreign_program_keeps_it() {
    let source = lab().folder().join("pass.c");
    let object = source.with_extension("o");
    std::fs::write(&source, "__attribute__((section(\"xdp\"), used)) int pass(void *ctx) { return 2; }\n").unwrap();
    let built = Command::new("clang").args(["-O2", "-target", "bpf", "-c", "-o"]).arg(&object).arg(&source).status().unwrap();
    assert!(built.success());
    let ip = |arguments: &[&str]| lab().exec("node/node-a", &[&["ip"], arguments].concat()).unwrap();
    ip(&["link", "add", "taken0", "type", "veth", "peer", "name", "taken1"]);
    ip(&["link", "set", "dev", "taken0", "xdp", "obj", object.to_str().unwrap(), "sec", "xdp"]);
    let program = |shown: &str| shown.split_whitespace().skip_while(|word| *word != "prog/xdp").nth(2).map(str::to_owned);
    let before = program(&ip(&["link", "show", "taken0"]));
    assert!(before.is_some(), "{}", ip(&["link", "show", "taken0"]));
    let said = refused(&config("foreign", "taken0", HOST));
    assert!(said.contains("taken0") && said.contains("already carries XDP program") && said.contains("bpftool"), "{said}");
    assert_eq!(program(&ip(&["link", "show", "taken0"])), before);
}

#[test]
fn an_uplink_with_more_queues_than_workers() {
    lab()
        .exec(
            "node/node-a",
            &["ip", "link", "add", "wide0", "numrxqueues", "4", "numtxqueues", "4", "type", "veth", "peer", "name", "wide1"],
        )
        .unwrap();
    lab().exec("node/node-a", &["ethtool", "-L", "wide0", "rx", "4"]).unwrap();
    let said = refused(&config("wide", "wide0", HOST));
    assert!(said.contains("4 receive queues") && said.contains("ethtool -L wide0") && said.contains("workers: 4"), "{said}");
}

#[test]
fn no_permission() {
    // Where everybody may read and write, so that only the kernel's rights are missing.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let daemon = folder.path().join("daemon");
    std::fs::copy(Lab::daemon_binary(), &daemon).unwrap();
    let as_nobody = |config: &Path| {
        let _one_at_a_time = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = lab().status();
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let output = lab()
            .command("node/node-a", &[&nobody[..], &[daemon.to_str().unwrap(), "--config", config.to_str().unwrap()]].concat())
            .output()
            .unwrap();
        said(&output, &before)
    };
    let open = folder.path().join("node.yaml");
    let yaml = std::fs::read_to_string(config("nobody", "eth1", HOST)).unwrap();
    std::fs::write(&open, yaml.replace(lab().folder().to_str().unwrap(), folder.path().to_str().unwrap())).unwrap();
    let text = as_nobody(&open);
    assert!(text.contains("CAP_") && text.contains("root"), "{text}");
    // And where not even the socket's folder is ours.
    std::fs::write(&open, yaml.replace(lab().folder().to_str().unwrap(), "/proc/weir")).unwrap();
    let text = as_nobody(&open);
    assert!(text.contains("cannot listen at /proc/weir") && text.contains("root"), "{text}");
}

#[test]
fn a_socket_that_is_in_use() {
    let said = refused(&lab().run_dir().join("node.yaml"));
    assert!(said.contains("another weir-dataplane") && said.contains("dataplane.sock") && said.contains("--takeover"), "{said}");
    // A file that is no socket is somebody's.
    let path = config("file", "eth1", HOST);
    std::fs::write(path.with_extension("sock"), "precious").unwrap();
    let said = refused(&path);
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(std::fs::read_to_string(path.with_extension("sock")).unwrap(), "precious");
}

#[test]
fn a_second_daemon_with_another_socket() {
    let said = refused(&config("second", "eth1", "host: {interface: weir0}"));
    assert!(said.contains("weir0") && said.contains("another weir-dataplane"), "{said}");
    let said = refused(&config("third", "eth1", HOST));
    assert!(said.contains("eth1"), "{said}");
}

#[test]
fn a_configuration_that_cannot_be_read_or_says_what_nobody_knows() {
    for (name, more, expected) in [
        ("broken", "host: {interface: [", &["broken.yaml:"][..]),
        ("unknown", "mtu: 9000", &["unknown.yaml:6", "mtu"]),
        ("core", "workers: {count: 1, cores: [4095]}", &["workers", "4095", "try: "]),
    ] {
        let said = refused(&config(name, "eth1", more));
        assert!(expected.iter().all(|part| said.contains(part)), "{name}: {said}");
    }
    let said = refused(&lab().folder().join("nowhere.yaml"));
    assert!(said.contains("cannot read") && said.contains("nowhere.yaml"), "{said}");
    let usage = Command::new(Lab::daemon_binary()).output().unwrap();
    assert_eq!(usage.status.code(), Some(2), "{}", text(&usage));
}

#[test]
fn snapshots_that_are_wrong_change_nothing() {
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: t, name: {name}}}\nspec: {{nodeName: node-a, containers: [{{name: m, image: \
             x}}]}}\nstatus: {{phase: Running, podIP: 10.244.1.77, podIPs: [{{ip: 10.244.1.77}}]}}\n"
        )
    };
    let cases = [
        (
            "port.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: t, name: s}\nspec: {clusterIP: 10.96.0.99, ports: [{port: 70000}]}\n"
                .to_owned(),
            "70000",
        ),
        (
            "field.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: t, name: p}\nspec: {podSelector: {}, ingres: \
             []}\n"
                .to_owned(),
            "ingres",
        ),
        ("twice.yaml", pod("one") + "---\n" + &pod("two"), "10.244.1.77"),
        ("broken.yaml", "kind: [".to_owned(), "broken.yaml"),
    ];
    for (name, yaml, expected) in cases {
        let _one_at_a_time = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = lab().status();
        let path = lab().folder().join(name);
        std::fs::write(&path, yaml).unwrap();
        let output = lab().weir_apply(&[&lab_support::cluster("e2e"), &path]);
        let text = said(&output, &before);
        assert!(text.contains(expected) && text.contains(name), "{name}: {text}");
    }
}
