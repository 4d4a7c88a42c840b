//! `weir status`: how the daemon does.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use weir_dataplane::admin::figures::Status;

use super::Answer;
use super::common::{AskArgs, Output, print_data, table};

/// Arguments of `weir status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let status = self.ask.daemon.connect()?.status()?;
        match self.ask.output {
            Output::Text | Output::Wide => io::stdout().write_all(text(&status, self.ask.output == Output::Wide).as_bytes())?,
            form => print_data(form, &status)?,
        }
        Ok(Answer::Yes)
    }
}

fn text(status: &Status, wide: bool) -> String {
    let mut out = String::new();
    let uptime = jiff::SignedDuration::from_secs(i64::try_from(status.uptime_secs).unwrap_or(i64::MAX));
    let packets = &status.packets;
    let lines = [
        ("Node", status.node.clone()),
        ("Version", format!("{}, up {uptime:#}", status.version)),
        ("Snapshot", if status.generation == 0 { "none yet".into() } else { format!("generation {}", status.generation) }),
        ("Connections", format!("{} of {}", status.connections.used, status.connections.max)),
        ("Frames", format!("{} of {} free, {} lost", status.frames.free, status.frames.total, status.frames.lost)),
        (
            "Packets",
            format!(
                "{} received: {} forward, {} host, {} reply, {} drop",
                packets.received, packets.forward, packets.host, packets.reply, packets.drop
            ),
        ),
    ];
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    }
    let workers = status.workers.iter().map(|w| {
        let mut row = vec![w.core.to_string(), w.rx.to_string(), w.tx.to_string(), w.batches.to_string()];
        if wide {
            row.push(w.generation.to_string());
        }
        row
    });
    let mut headers = vec!["WORKER CORE", "RX", "TX", "BATCHES"];
    if wide {
        headers.push("GENERATION");
    }
    let ports = status.ports.iter().map(|p| vec![p.name.clone(), p.kind.clone(), p.mode.clone(), p.pod.clone().unwrap_or_default()]);
    let reasons = |counts: &std::collections::BTreeMap<String, u64>, how: &str| {
        counts.iter().map(|(reason, count)| vec![reason.clone(), how.into(), count.to_string()]).collect::<Vec<_>>()
    };
    let reasons = reasons(&status.drops, "drop").into_iter().chain(reasons(&status.rejects, "reject"));
    for part in [table(&headers, workers), table(&["PORT", "KIND", "MODE", "POD"], ports), table(&["REASON", "HOW", "PACKETS"], reasons)] {
        if !part.is_empty() {
            out.push('\n');
            out.push_str(&part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_fields_of_the_contract() {
        let json = serde_json::to_value(Status { workers: vec![Default::default()], ports: vec![Default::default()], ..Status::default() })
            .unwrap();
        for field in ["node", "version", "generation", "workers", "ports", "packets", "drops", "connections", "frames"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for (path, fields) in [
            ("/workers/0", &["core", "rx", "tx", "batches"][..]),
            ("/ports/0", &["name", "kind", "mode"]),
            ("/packets", &["received", "forward", "host", "reply", "drop"]),
            ("/connections", &["used", "max"]),
            ("/frames", &["total", "free", "lost"]),
        ] {
            let part = json.pointer(path).unwrap();
            assert!(fields.iter().all(|field| part.get(field).is_some()), "{path}: {part}");
        }
    }

    #[test]
    fn the_text_names_reasons_and_leaves_out_empty_parts() {
        let mut status = Status { node: "node-a".into(), generation: 3, ..Status::default() };
        status.drops.insert("POLICY_DENIED".into(), 7);
        let text = text(&status, false);
        assert!(text.contains("POLICY_DENIED   drop   7\n") && text.contains("generation 3"), "{text}");
        assert!(!text.contains("WORKER"), "{text}");
    }
}
