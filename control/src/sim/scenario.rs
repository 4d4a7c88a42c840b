//! A scenario folder: snapshot and `in.pcap` through the pipeline, compared with `out.pcap` and `expect.json`.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use weir_dataplane::capture::{Capture, PcapWriter};
use weir_dataplane::config;
use weir_dataplane::model::NodeConfig;

use super::node::SimNode;
use super::replay::{self, Summary, Taken};
use super::row::{Namer, Row};
use crate::compile::compile;
use crate::source;

/// The seed of every scenario.
pub const SEED: u64 = 1;

/// `expect.json`: how the packets ended, all together and one by one.
#[derive(Debug, Serialize)]
struct Expect {
    summary: Summary,
    packets: Vec<Row>,
}

/// What a scenario did that it was not expected to do; empty = it passed.
pub type Differences = Vec<String>;

/// What a scenario gives.
struct Given {
    out: Vec<u8>,
    expect: Value,
}

/// Runs the scenario in `folder` and compares. With `update`, the goldens are written instead, from what it did.
///
/// # Errors
/// Where it cannot be run: a file is missing or wrong.
pub fn run(folder: &Path, update: bool) -> Result<Differences, String> {
    let given = give(folder)?;
    let (out, expect) = (folder.join("out.pcap"), folder.join("expect.json"));
    if update {
        let text = serde_json::to_string_pretty(&given.expect).map_err(|error| error.to_string())? + "\n";
        fs::write(&out, &given.out).and_then(|()| fs::write(&expect, text)).map_err(|error| format!("{}: {error}", folder.display()))?;
        return Ok(Vec::new());
    }
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}; UPDATE=1 writes it", path.display()));
    let wanted: Value = serde_json::from_slice(&read(&expect)?).map_err(|error| format!("{}: {error}", expect.display()))?;
    let mut differences = Vec::new();
    compare("", &wanted, &given.expect, &mut differences);
    let wanted = read(&out)?;
    if wanted != given.out {
        differences.push(first_difference(&wanted, &given.out));
    }
    Ok(differences)
}

/// Tells whether a folder is a scenario.
pub fn is_scenario(folder: &Path) -> bool {
    folder.join("snapshot.yaml").is_file() && folder.join("in.pcap").is_file()
}

fn give(folder: &Path) -> Result<Given, String> {
    let path = |name: &str| folder.join(name);
    let snapshot = source::load(&[path("snapshot.yaml")]).map_err(|faults| faults.to_string())?;
    let config = match path("node.yaml") {
        file if file.is_file() => config::load(&file).map_err(|error| error.to_string())?,
        _ => match &snapshot.nodes[..] {
            [only] => NodeConfig::offline(&only.meta.name),
            nodes => return Err(format!("{}: {} Nodes and no node.yaml that says which", folder.display(), nodes.len())),
        },
    };
    let state = compile(&snapshot, &config.node, &config).map_err(|error| error.to_string())?;
    let mut node = SimNode::new(&state, config, SEED).map_err(|error| error.to_string())?;
    // A second one of the same kind, for names while the first is at work.
    let runtime = node.runtime().clone();
    let mut namer = Namer::new(&state, &runtime);
    let input = path("in.pcap");
    let capture = Capture::open(&input).map_err(|error| format!("{}: {error}", input.display()))?;
    let port_of = replay::port_of(&node, &[])?;
    let mut out = PcapWriter::new(Vec::new()).map_err(|error| error.to_string())?;
    let mut packets = Vec::new();
    let mut watcher = |taken: &Taken<'_>| -> io::Result<()> {
        packets.push(namer.row(taken.note.number, taken.note.time, taken.fate));
        taken.after.map_or(Ok(()), |bytes| out.packet(taken.note.time, bytes))
    };
    let ended = replay::run(&mut node, capture, port_of, Some(&mut watcher), |_, _| {}).map_err(|error| error.to_string())?;
    if let Some(fault) = ended.fault {
        return Err(format!("{}: {fault}", input.display()));
    }
    let expect = Expect { summary: ended.summary, packets };
    let expect = serde_json::to_value(&expect).map_err(|error| error.to_string())?;
    Ok(Given { out: out.finish().map_err(|error| error.to_string())?, expect })
}

/// Notes where two JSON values differ, by path.
fn compare(path: &str, wanted: &Value, got: &Value, differences: &mut Differences) {
    match (wanted, got) {
        (Value::Object(w), Value::Object(g)) => {
            for key in w.keys().chain(g.keys().filter(|key| !w.contains_key(*key))) {
                let null = &Value::Null;
                compare(&format!("{path}.{key}"), w.get(key).unwrap_or(null), g.get(key).unwrap_or(null), differences);
            }
        }
        (Value::Array(w), Value::Array(g)) => {
            if w.len() != g.len() {
                differences.push(format!("{path}: expected {} items, got {}", w.len(), g.len()));
            }
            for (n, (w, g)) in w.iter().zip(g).enumerate() {
                compare(&format!("{path}[{n}]"), w, g, differences);
            }
        }
        _ if wanted == got => {}
        _ => differences.push(format!("{}: expected {wanted}, got {got}", path.trim_start_matches('.'))),
    }
}

/// Says in which packet two captures differ first.
fn first_difference(wanted: &[u8], got: &[u8]) -> String {
    let frames = |bytes: &[u8]| {
        let mut frames = Vec::new();
        let Ok(mut capture) = Capture::new(Box::new(io::Cursor::new(bytes.to_vec()))) else { return frames };
        while let Some(Ok(record)) = capture.next() {
            let mut frame = vec![0; record.len()];
            record.copy_to(&mut frame);
            frames.push((record.time, frame));
        }
        frames
    };
    let (wanted, got) = (frames(wanted), frames(got));
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for (n, (w, g)) in wanted.iter().zip(&got).enumerate() {
        if w.0 != g.0 {
            return format!("out.pcap: packet {} leaves at {} instead of {}", n + 1, g.0, w.0);
        }
        if w.1 != g.1 {
            let at = w.1.iter().zip(&g.1).position(|(a, b)| a != b).unwrap_or_else(|| w.1.len().min(g.1.len()));
            return format!("out.pcap: packet {} differs from byte {at} on:\n  expected {}\n  got      {}", n + 1, hex(&w.1), hex(&g.1));
        }
    }
    format!("out.pcap: expected {} packets, got {}", wanted.len(), got.len())
}
