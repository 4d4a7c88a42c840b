//! `weir validate`: is this snapshot valid, as objects, between objects, and for every node?

use std::io::{self, Write};

use super::Answer;
use super::common::{SnapshotArgs, refused};
use crate::compile;
use crate::source::objects::Snapshot;

/// Arguments of `weir validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    snapshot: SnapshotArgs,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let snapshot = self.snapshot.load()?;
        let faults = compile::check(&snapshot);
        if !faults.is_empty() {
            return Err(refused(faults.into()).into());
        }
        writeln!(io::stdout(), "{}", text(&snapshot))?;
        Ok(Answer::Yes)
    }
}

/// `valid: 2 nodes, 1 service; left out: 3 objects of other kinds (apps/v1 Deployment: 3)`
fn text(snapshot: &Snapshot) -> String {
    let counts = [
        (snapshot.nodes.len(), "node", "nodes"),
        (snapshot.namespaces.len(), "namespace", "namespaces"),
        (snapshot.pods.len(), "pod", "pods"),
        (snapshot.services.len(), "service", "services"),
        (snapshot.slices.len(), "endpoint slice", "endpoint slices"),
        (snapshot.network_policies.len(), "network policy", "network policies"),
        (snapshot.cluster_policies.len(), "cluster policy", "cluster policies"),
    ];
    let parts: Vec<String> =
        counts.iter().filter(|(n, ..)| *n > 0).map(|(n, one, many)| format!("{n} {}", if *n == 1 { one } else { many })).collect();
    let mut text = format!("valid: {}", if parts.is_empty() { "no objects".into() } else { parts.join(", ") });
    if !snapshot.foreign.is_empty() {
        let total: usize = snapshot.foreign.values().sum();
        let kinds: Vec<String> = snapshot.foreign.iter().map(|(kind, n)| format!("{kind}: {n}")).collect();
        text.push_str(&format!("; left out: {total} of other kinds ({})", kinds.join(", ")));
    }
    text
}
