//! `weir lint`: what in this snapshot is legal and surely not meant?

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::anyhow;

use super::common::{ClusterArgs, ReplayArgs, Report, compile_for};
use super::{Answer, Refused};
use crate::lint::{lint, packets};
use crate::sim::node::SimNode;
use crate::sim::reach::World;

/// Arguments of `weir lint`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Also replay this capture on the node: which rules does no packet hit, which packets are too large?
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Report,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (snapshot, config) = self.cluster.load_or_first()?;
        let mut findings = lint(&snapshot, &World::new(&snapshot, &config).map_err(Refused)?);
        if let Some(pcap) = &self.pcap {
            let config = self.cluster.node.resolve(&snapshot)?;
            let state = compile_for(&snapshot, &config)?;
            let mut node = SimNode::new(&state, config, self.replay.seed)?;
            findings.extend(
                packets::lint(&snapshot, &mut node, pcap, &self.replay.port_of).map_err(|error| anyhow!("{}: {error}", pcap.display()))?,
            );
        }
        let mut out = io::stdout().lock();
        match self.output {
            Report::Text => findings.iter().try_for_each(|finding| out.write_all(finding.text().as_bytes()))?,
            Report::Json => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
        }
        Ok(if findings.is_empty() { Answer::Yes } else { Answer::No })
    }
}
