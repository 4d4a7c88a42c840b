//! `weir diff`: what would another snapshot change?

use std::io::{self, Write};
use std::path::PathBuf;

use weir_dataplane::model::Family;

use super::common::{NodeArgs, ReplayArgs, Report, load_paths, table};
use super::{Answer, Refused};
use crate::diff::{Case, Change, Diff, FlowChange, PacketChange, ReplayError, Replayed, compare, replayed};
use crate::sim::reach::{Held, Nodes, World};

/// Arguments of `weir diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Snapshot as it is: a file, a folder or - (stdin)
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// Snapshot as it would be
    #[arg(value_name = "NEW")]
    new: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
    /// Compare over this capture instead of over all classes of traffic: pcap or pcapng, also gzipped
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Report,
}

/// Packets that are shown one by one; all are counted.
const PACKETS_SHOWN: usize = 1000;

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (old, new) = (load_paths(std::slice::from_ref(&self.old))?, load_paths(std::slice::from_ref(&self.new))?);
        let (text, json, same) = match &self.pcap {
            None => {
                let config = self.node.resolve_or_first(&old)?;
                let world = |snapshot| World::new(snapshot, &config).map_err(Refused);
                let diff = compare(&world(&old)?, &world(&new)?);
                (text(&diff), serde_json::to_string_pretty(&diff)?, diff.same)
            }
            Some(pcap) => {
                let (old_config, new_config) = (self.node.resolve(&old)?, self.node.resolve(&new)?);
                let (old, new) = (Case { snapshot: &old, config: &old_config }, Case { snapshot: &new, config: &new_config });
                let diff =
                    replayed(&old, &new, pcap, &self.replay.port_of, self.replay.seed, PACKETS_SHOWN).map_err(|error| match error {
                        ReplayError::Capture(error) => anyhow::anyhow!("{}: {error}", pcap.display()),
                        ReplayError::Other(error) => anyhow::anyhow!(error),
                    })?;
                (replayed_text(&diff), serde_json::to_string_pretty(&diff)?, diff.same)
            }
        };
        let mut out = io::stdout().lock();
        match self.output {
            Report::Text => out.write_all(text.as_bytes())?,
            Report::Json => writeln!(out, "{json}")?,
        }
        Ok(if same { Answer::Yes } else { Answer::No })
    }
}

/// Names, at most a few.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

pub(super) fn text(diff: &Diff) -> String {
    let mut out = String::new();
    for (sign, names) in [("-", &diff.removed), ("+", &diff.added)] {
        names.iter().for_each(|name| out.push_str(&format!("{sign} {name}\n")));
    }
    for change in &diff.changes {
        let family = if change.family == Family::V6 { " (ipv6)" } else { "" };
        let (from, to, nodes) = (some(&change.from), some(&change.to), Nodes::words(change.nodes));
        out.push_str(&format!("{from} -> {to}: {}{family}{nodes}\n", change.traffic));
        for (sign, side) in [("-", &change.old), ("+", &change.new)] {
            out.push_str(&format!("  {sign} {} ({})\n", side.outcome.words(), side.why));
        }
        for open in &change.open {
            let to = open.backend.map(|backend| format!(" to {backend}")).unwrap_or_default();
            out.push_str(&format!("  ~ open connections{to} {}\n", open.held.words()));
        }
    }
    let lives = |change: &&Change| change.open.iter().any(|open| open.held == Held::LivesOn);
    match diff.changes.iter().filter(lives).count() {
        0 => out,
        count => out + &format!("\n{count} of {} changes leave connections open that nobody could open anew\n", diff.changes.len()),
    }
}

fn replayed_text(diff: &Replayed) -> String {
    let mut rows = Vec::new();
    for packet in &diff.packets {
        for (sign, row) in [("-", &packet.old), ("+", &packet.new)] {
            let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
            let number = if sign == "-" { row.n.to_string() } else { String::new() };
            rows.push(vec![number, text(&row.src), text(&row.dst), text(&row.proto), format!("{sign} {}", row.verdict), row.why.clone()]);
        }
    }
    let mut out = table(&["N", "SOURCE", "DESTINATION", "PROTO", "VERDICT", "WHY"], rows);
    if !diff.same {
        out.push_str(&format!("\n{} of {} packets would end otherwise\n", diff.changed, diff.new.packets));
    }
    if !diff.open.is_empty() {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let rows = diff.open.iter().map(|FlowChange { opened: PacketChange { old, new }, held }| {
            vec![old.n.to_string(), text(&old.src), text(&old.dst), text(&old.proto), held.word().into(), new.why.clone()]
        });
        out.push_str("\nFlows that could not be opened any more, and what becomes of those that are open:\n\n");
        out.push_str(&table(&["N", "SOURCE", "DESTINATION", "PROTO", "IF OPEN", "NEW ONES"], rows));
        out.push('\n');
        diff.held.iter().for_each(|(held, count)| out.push_str(&format!("{count} {}\n", held.words())));
    }
    out
}
