//! The daemon of a lab: started inside the node's namespace, found again by process number and start time.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_dataplane::admin::client::Client;
use weir_dataplane::admin::protocol::{Request, Response};
use weir_dataplane::model::NodeState;
use weir_host::Netns;

/// How long a daemon may take until its socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to end when asked, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Where a lab's daemon keeps its things.
pub(super) struct Daemon {
    dir: PathBuf,
}

impl Daemon {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("node.yaml")
    }
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("dataplane.sock")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("dataplane.log")
    }
    fn pid_file(&self) -> PathBuf {
        self.dir.join("dataplane.pid")
    }

    /// The daemon's process number, if it runs: the process with the recorded number that also started when recorded.
    pub(super) fn running(&self) -> Option<i32> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid: i32 = pid.parse().ok()?;
        (start_time(pid)? == started.parse::<u64>().ok()?).then_some(pid)
    }

    /// Starts `binary` in `netns` and waits until it answers.
    pub(super) fn start(&self, binary: &Path, netns: &Netns) -> anyhow::Result<()> {
        let log = File::create(self.log()).with_context(|| format!("cannot write {}", self.log().display()))?;
        let errors = log.try_clone().context("cannot share the daemon's log")?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(log).stderr(errors);
        // A group of its own: the Ctrl-C that ends `weir` is not for the daemon.
        command.process_group(0);
        let mut child = netns.run(move || command.spawn())?.with_context(|| format!("cannot start {}", binary.display()))?;
        let pid = i32::try_from(child.id()).context("a process number out of range")?;
        let started = start_time(pid).unwrap_or_default();
        fs::write(self.pid_file(), format!("{pid} {started}\n")).context("cannot record the daemon's process number")?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().context("cannot look after the daemon")? {
                bail!("{} ended at once: {status}\n{}", binary.display(), self.log_tail());
            }
            if self.responsive().is_some() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.stop()?;
                bail!("{} did not answer within {START_TIMEOUT:?}\n{}", binary.display(), self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the daemon if it runs. Nothing but the recorded process is ever signalled.
    pub(super) fn stop(&self) -> anyhow::Result<()> {
        for (signal, timeout) in [(Signal::SIGTERM, STOP_TIMEOUT), (Signal::SIGKILL, STOP_TIMEOUT)] {
            let deadline = Instant::now() + timeout;
            let Some(pid) = self.running() else { break };
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => return Err(io::Error::from(e)).with_context(|| format!("cannot end the daemon, process {pid}")),
            }
            while self.running().is_some() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
        }
        if let Some(pid) = self.running() {
            bail!("the daemon, process {pid}, does not end");
        }
        match fs::remove_file(self.pid_file()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("cannot remove the daemon's process number"),
            _ => Ok(()),
        }
    }

    /// A connection to the daemon, if it runs and answers. One that was killed may take a second to close its sockets.
    pub(super) fn responsive(&self) -> Option<Client> {
        self.running()?;
        let mut client = self.connect().ok()?;
        client.status().ok()?;
        Some(client)
    }

    fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket(), ANSWER_TIMEOUT)?)
    }

    /// Puts a state in force and says so in the words of `weir apply`.
    pub(super) fn apply(&self, state: NodeState) -> anyhow::Result<String> {
        let timeout_ms = ANSWER_TIMEOUT.as_millis() as u64;
        match self.connect()?.call(&Request::Apply { state: Box::new(state), wait: true, timeout_ms })? {
            Response::Applied { generation, workers, in_force: true } => {
                Ok(format!("generation {generation} in force on {workers} workers"))
            }
            Response::Applied { generation, .. } => {
                bail!("generation {generation} is not in force on every worker within {ANSWER_TIMEOUT:?}")
            }
            Response::Refused { faults } => bail!("the daemon refused the snapshot:\n  {}", faults.join("\n  ")),
            other => bail!("the daemon answered something else than was asked: {other:?}"),
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// When a process started, in clock ticks since boot (`proc_pid_stat(5)`, field 22); `None` if there is none, or only its
/// remains that nobody has waited for. The first thread of a process that was killed looks like remains while others still
/// close its files.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if matches!(state, "Z" | "X") && threads() <= 1 { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_recorded_process_counts_as_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(dir.path().into());
        assert_eq!(daemon.running(), None);
        daemon.stop().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let started = start_time(pid).unwrap();
        fs::write(daemon.pid_file(), format!("{pid} {}\n", started + 1)).unwrap();
        assert_eq!(daemon.running(), None, "another process has the number now");
        daemon.stop().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it was not signalled");
        fs::write(daemon.pid_file(), format!("{pid} {started}\n")).unwrap();
        assert_eq!(daemon.running(), Some(pid));
        daemon.stop().unwrap();
        assert!(child.wait().unwrap().code().is_none(), "it was ended by a signal");
        assert!(!daemon.pid_file().exists());
    }
}
