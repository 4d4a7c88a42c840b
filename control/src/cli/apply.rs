//! `weir apply`: compile a snapshot for this node and put it in force.

use std::io::{self, Write};

use anyhow::bail;
use weir_dataplane::admin::protocol::{Request, Response};

use super::common::{DaemonArgs, NodeArgs, SnapshotArgs, compile_for};
use super::{Answer, Refused};

/// Arguments of `weir apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    snapshot: SnapshotArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Return only when every worker has it in force
    #[arg(long)]
    wait: bool,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let snapshot = self.snapshot.load()?;
        let config = self.node.resolve(&snapshot)?;
        let state = Box::new(compile_for(&snapshot, &config)?);
        let timeout_ms = u64::try_from(self.daemon.timeout.as_millis()).unwrap_or(u64::MAX);
        match self.daemon.connect_patiently()?.call(&Request::Apply { state, wait: self.wait, timeout_ms })? {
            Response::Applied { generation, workers, in_force: true } => {
                writeln!(io::stdout(), "generation {generation} in force on {workers} workers")?;
                Ok(Answer::Yes)
            }
            Response::Applied { generation, .. } if !self.wait => {
                writeln!(io::stdout(), "generation {generation} accepted")?;
                Ok(Answer::Yes)
            }
            Response::Applied { generation, workers, .. } => {
                bail!("generation {generation} was accepted, but after {:?} only {workers} workers had it", self.daemon.timeout)
            }
            Response::Refused { faults } => Err(Refused(format!("the daemon refuses this snapshot:\n{}", faults.join("\n"))).into()),
            _ => bail!("the daemon answered something else than was asked; are `weir` and `weir-dataplane` of one version?"),
        }
    }
}
