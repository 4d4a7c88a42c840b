//! `weir apply`: compile a snapshot for this node and put it in force; with `--watch` also every change of it.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::bail;
use weir_dataplane::admin::protocol::{Request, Response};
use weir_dataplane::model::NodeState;

use super::common::{ClusterArgs, DaemonArgs};
use super::watch::Watch;
use super::{Answer, Refused, style};
use crate::compile::{CompileError, Compiler};

/// How often a daemon that could not be asked is asked again, and one that could whether it was started anew.
const RETRY: Duration = Duration::from_secs(2);

/// Arguments of `weir apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Return only when every worker has it in force
    #[arg(long)]
    wait: bool,
    /// Go on and put every change of the files in force; bad input is reported and changes nothing
    #[arg(short, long)]
    watch: bool,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        // Before anything is read, so that no change is missed.
        let watch = self.watch.then(|| Watch::new(&self.cluster.snapshot.paths)).transpose()?;
        let (snapshot, config) = self.cluster.load()?;
        let mut compiler = Compiler::new(snapshot, &config.node.clone(), config).map_err(refused)?;
        let daemon = self.send(compiler.state())?;
        match watch {
            Some(watch) => self.follow(&watch, &mut compiler, daemon),
            None => Ok(Answer::Yes),
        }
    }

    /// Sends every change of the files, and the whole again to any other daemon than `daemon`, which has it: one that was started
    /// anew. Ends only where nobody listens.
    fn follow(&self, watch: &Watch, compiler: &mut Compiler, mut daemon: String) -> anyhow::Result<Answer> {
        // The daemon does not have what the compiler has.
        let mut owed = false;
        let mut said = String::new();
        loop {
            let outcome = match watch.changed(RETRY) {
                true => self.cluster.snapshot.load().and_then(|snapshot| compiler.replace(snapshot).map_err(refused)),
                false => Ok(!owed && self.is_another_daemon(&daemon)),
            };
            let outcome = outcome.and_then(|changed| {
                owed |= changed;
                if owed { self.send(compiler.state()).map(Some) } else { Ok(None) }
            });
            match outcome {
                Ok(sent_to) => {
                    daemon = sent_to.unwrap_or(daemon);
                    owed = false;
                    said.clear();
                }
                // Nobody reads what is said here any more; a file that cannot be read now may be there again soon.
                Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
                    return Err(error);
                }
                Err(error) => {
                    let message = format!("{error:#}");
                    if message != said {
                        eprintln!("{} {message}\nwhat is in force stays", style::error_prefix());
                        said = message;
                    }
                }
            }
        }
    }

    /// Tells whether a daemon is there and is not this one.
    fn is_another_daemon(&self, daemon: &str) -> bool {
        self.daemon.connect().and_then(|mut client| client.status()).is_ok_and(|status| status.instance != daemon)
    }

    /// Sends a state; gives the daemon that has it.
    fn send(&self, state: &NodeState) -> anyhow::Result<String> {
        let state = Box::new(state.clone());
        let timeout_ms = u64::try_from(self.daemon.timeout.as_millis()).unwrap_or(u64::MAX);
        let mut client = self.daemon.connect_patiently()?;
        match client.call(&Request::Apply { state, wait: self.wait, timeout_ms })? {
            Response::Applied { generation, workers, in_force: true } => {
                writeln!(io::stdout(), "generation {generation} in force on {workers} workers")?;
            }
            Response::Applied { generation, .. } if !self.wait => {
                writeln!(io::stdout(), "generation {generation} accepted")?;
            }
            Response::Applied { generation, workers, .. } => {
                bail!("generation {generation} was accepted, but after {:?} only {workers} workers had it", self.daemon.timeout)
            }
            Response::Refused { faults } => {
                return Err(Refused(format!("the daemon refuses this snapshot:\n{}", faults.join("\n"))).into());
            }
            _ => bail!("the daemon answered something else than was asked; are `weir` and `weir-dataplane` of one version?"),
        }
        // By the same connection, so that it is the same daemon.
        Ok(client.status()?.instance)
    }
}

fn refused(error: CompileError) -> anyhow::Error {
    Refused(error.to_string()).into()
}
