//! A lab for tests: brought up once per test program, with an HTTP server in every pod, and taken down when the program
//! ends, however it ends.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// What every pod serves: `name` (the pod's) and `big` (10 MiB of noise).
const BIG_BYTES: usize = 10 << 20;

/// A lab that is up.
pub(crate) struct Lab {
    name: String,
    folder: tempfile::TempDir,
    /// Server processes; their stdin ends with this process, and so do they.
    servers: Vec<Child>,
    /// Takes the lab down when its stdin ends.
    _janitor: Child,
}

fn weir() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weir"))
}

/// The folder of a cluster among the fixtures.
pub(crate) fn cluster(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/clusters").join(name)
}

impl Lab {
    /// The one lab of this program, on the cluster `cluster`.
    pub(crate) fn shared(of: &str) -> &'static Self {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| {
            let lab = Self::up(of, &cluster(of));
            lab.with_servers(&[("t/server", "server"), ("t/guarded", "guarded"), ("t/remote", "remote"), ("outside", "outside")])
        })
    }

    /// Brings a lab up on the snapshot at `snapshot`. Its name is `prefix` and the process number.
    pub(crate) fn up(prefix: &str, snapshot: &Path) -> Self {
        // Built by cargo for the package's own tests only: the daemon belongs to another one.
        let daemon = Path::new(env!("CARGO_BIN_EXE_weir")).with_file_name("weir-dataplane");
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "weir-dataplane", "--bin", "weir-dataplane"]).status();
        assert!(built.expect("cargo").success() && daemon.exists(), "cannot build {}", daemon.display());

        let name = format!("{prefix}{}", std::process::id());
        let janitor = Command::new("sh")
            .args(["-c", "cat >/dev/null; exec \"$0\" lab down --name \"$1\""])
            .args([env!("CARGO_BIN_EXE_weir"), &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let lab = Self { name, folder: tempfile::tempdir().unwrap(), servers: Vec::new(), _janitor: janitor };
        lab.apply(snapshot);
        lab
    }

    /// Brings the lab to another snapshot.
    pub(crate) fn apply(&self, snapshot: &Path) {
        let output = weir().args(["lab", "up", "--node", "node-a", "--name", &self.name, "-f"]).arg(snapshot).output().unwrap();
        assert!(output.status.success(), "lab up: {}", text(&output));
    }

    /// Starts HTTP servers: place, and the name that its files and its log get.
    pub(crate) fn with_servers(mut self, places: &[(&str, &str)]) -> Self {
        let mut big = vec![0; BIG_BYTES];
        fastrand::Rng::with_seed(1).fill(&mut big);
        for (place, name) in places {
            let folder = self.folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("name"), name).unwrap();
            fs::write(folder.join("big"), &big).unwrap();
            self.serve(place, name);
        }
        for (place, _) in places {
            self.await_server(place);
        }
        self
    }

    /// Starts an HTTP server on port 8080 of a place; its log is [`server_log`](Self::server_log).
    fn serve(&mut self, place: &str, name: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab_support/server.py");
        let log = fs::File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let server = self
            .command(place, &["python3", script.to_str().unwrap(), self.folder.path().join(name).to_str().unwrap(), "8080"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.servers.push(server);
    }

    fn await_server(&self, place: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.exec(place, &["curl", "-s", "--max-time", "1", "http://127.0.0.1:8080/name"]).is_err() {
            assert!(Instant::now() < deadline, "the server in {place} does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A command to be run in a pod, on a node or outside.
    pub(crate) fn command(&self, place: &str, argv: &[&str]) -> Command {
        let mut command = weir();
        command.args(["lab", "exec", "--name", &self.name, place, "--"]).args(argv);
        command
    }

    /// Runs a command to its end; stdout, or both outputs if it fails.
    pub(crate) fn exec(&self, place: &str, argv: &[&str]) -> Result<String, String> {
        let output = self.command(place, argv).stdin(Stdio::null()).output().unwrap();
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(text(&output)) }
    }

    /// What the server of a place has logged so far.
    pub(crate) fn server_log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap()
    }

    /// SHA-256 of the big file.
    pub(crate) fn big_file_digest(&self) -> String {
        let output = Command::new("sha256sum").arg(self.folder.path().join("server/big")).output().unwrap();
        text(&output).split_whitespace().next().unwrap().to_owned()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace of a part that is neither a node nor a pod.
    pub(crate) fn netns(&self, part: &str) -> String {
        format!("weir-{}-{part}", self.name)
    }

    /// The daemon's files.
    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new("/run/weir").join(&self.name)
    }

    /// A folder for what a test needs; removed with the lab.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's binary.
    pub(crate) fn daemon_binary() -> PathBuf {
        Path::new(env!("CARGO_BIN_EXE_weir")).with_file_name("weir-dataplane")
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("dataplane.sock")
    }

    /// The daemon's process number, as the lab has recorded it.
    pub(crate) fn daemon_pid(&self) -> String {
        let record = fs::read_to_string(self.run_dir().join("dataplane.pid")).unwrap();
        record.split_whitespace().next().unwrap().to_owned()
    }

    /// Sends the lab's daemon a signal (as `kill` names it) and waits until it is wholly gone. Gives how long that took.
    pub(crate) fn end_daemon(&self, signal: &str) -> Duration {
        let pid = self.daemon_pid();
        let start = Instant::now();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        // Its first thread looks dead while others still close sockets.
        let gone = || {
            let state = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            threads <= 1 && !state.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
        };
        while !gone() {
            assert!(start.elapsed() < Duration::from_secs(10), "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    /// `weir status -o json`.
    pub(crate) fn status(&self) -> Value {
        status_at(&self.socket())
    }

    /// `weir apply --wait` of these files.
    pub(crate) fn weir_apply(&self, snapshot: &[&Path]) -> Output {
        self.weir_apply_command(snapshot).output().unwrap()
    }

    /// `weir apply --wait`, ready to run.
    pub(crate) fn weir_apply_command(&self, snapshot: &[&Path]) -> Command {
        let mut command = weir();
        command.args(["apply", "--wait", "--node", "node-a", "--socket"]).arg(self.socket());
        for path in snapshot {
            command.arg("-f").arg(path);
        }
        command
    }

    /// Asserts that every packet and every frame is accounted for, and that no error was logged. Gives the status.
    pub(crate) fn assert_sums_meet(&self) -> Value {
        let status = self.status();
        assert_sums(&status);
        let log = fs::read_to_string(self.run_dir().join("dataplane.log")).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
        status
    }

    /// Packets dropped for a reason so far.
    pub(crate) fn drops(&self, reason: &str) -> u64 {
        self.status()["drops"][reason].as_u64().unwrap_or(0)
    }
}

/// `weir status -o json` of the daemon at a socket.
pub(crate) fn status_at(socket: &Path) -> Value {
    let output = weir().args(["status", "-o", "json", "--socket"]).arg(socket).output().unwrap();
    assert!(output.status.success(), "status: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts the sums of a status.
pub(crate) fn assert_sums(status: &Value) {
    let sum = |part: &str, names: &[&str]| names.iter().map(|name| status[part][name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("packets", &["received"]), sum("packets", &["forward", "host", "reply", "drop"]), "{status}");
    assert_eq!(sum("frames", &["total"]), sum("frames", &["free", "fill", "rx", "tx", "completion"]), "{status}");
    assert_eq!(sum("frames", &["lost"]) + sum("kernel", &["invalid_descriptors"]), 0, "{status}");
}

/// Runs a command that must succeed.
pub(crate) fn exec_ok(lab: &Lab, place: &str, argv: &[&str]) {
    if let Err(said) = lab.exec(place, argv) {
        panic!("{place}: {}: {said}\nstatus: {}", argv.join(" "), lab.status());
    }
}

/// Fetches a URL and gives the SHA-256 of the body.
pub(crate) fn digest_of(lab: &Lab, from: &str, url: &str) -> String {
    let script = format!("curl -sS --globoff --max-time 60 '{url}' | sha256sum");
    lab.exec(from, &["sh", "-c", &script]).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Both outputs of a command.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
