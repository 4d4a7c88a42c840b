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

/// How what a scenario did compares with its goldens: one check for each packet, one for the sums, one for `out.pcap`.
#[derive(Debug, Default)]
pub struct Compared {
    /// Checks that hold.
    pub passed: usize,
    /// Those that do not.
    pub differences: Vec<Difference>,
}

/// A check that does not hold.
#[derive(Debug)]
pub struct Difference {
    /// Which: `packet 3`, `summary`, `out.pcap`.
    pub at: String,
    /// The fields in which the golden differs, or a frame's bytes.
    pub expected: String,
    /// The same fields as they are.
    pub got: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: expected {}, got {}", self.at, self.expected, self.got)
    }
}

/// What a scenario gives.
struct Given {
    out: Vec<u8>,
    expect: Value,
}

/// Runs the scenario in `folder` and compares. With `update`, the goldens are written instead, from what it did.
///
/// # Errors
/// Where it cannot be run: a file is missing or wrong.
pub fn run(folder: &Path, update: bool) -> Result<Compared, String> {
    let given = give(folder)?;
    let (out, expect) = (folder.join("out.pcap"), folder.join("expect.json"));
    if update {
        let text = serde_json::to_string_pretty(&given.expect).map_err(|error| error.to_string())? + "\n";
        fs::write(&out, &given.out).and_then(|()| fs::write(&expect, text)).map_err(|error| format!("{}: {error}", folder.display()))?;
        return Ok(Compared::default());
    }
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}; UPDATE=1 writes it", path.display()));
    let wanted: Value = serde_json::from_slice(&read(&expect)?).map_err(|error| format!("{}: {error}", expect.display()))?;
    let mut compared = Compared::default();
    compared.check("summary".into(), &wanted["summary"], &given.expect["summary"]);
    let packets = |value: &Value| value["packets"].as_array().cloned().unwrap_or_default();
    let (wanted, got) = (packets(&wanted), packets(&given.expect));
    for n in 0..wanted.len().max(got.len()) {
        let null = &Value::Null;
        compared.check(format!("packet {}", n + 1), wanted.get(n).unwrap_or(null), got.get(n).unwrap_or(null));
    }
    let wanted = read(&out)?;
    match first_difference(&wanted, &given.out) {
        _ if wanted == given.out => compared.passed += 1,
        difference => compared.differences.push(difference),
    }
    Ok(compared)
}

impl Compared {
    /// Compares two objects field by field; both are one check.
    fn check(&mut self, at: String, wanted: &Value, got: &Value) {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        match (wanted.as_object(), got.as_object()) {
            (Some(w), Some(g)) => {
                for key in w.keys().chain(g.keys().filter(|key| !w.contains_key(*key))) {
                    let (w, g) = (w.get(key).unwrap_or(&Value::Null), g.get(key).unwrap_or(&Value::Null));
                    if w != g {
                        expected.push(format!("{key} {w}"));
                        found.push(format!("{key} {g}"));
                    }
                }
            }
            _ if wanted != got => {
                expected.push(wanted.to_string());
                found.push(got.to_string());
            }
            _ => {}
        }
        if expected.is_empty() {
            self.passed += 1;
        } else {
            self.differences.push(Difference { at, expected: expected.join(", "), got: found.join(", ") });
        }
    }
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
    let mut namer = Namer::new(node.tables().clone());
    let input = path("in.pcap");
    let capture = Capture::open(&input).map_err(|error| format!("{}: {error}", input.display()))?;
    let port_of = replay::port_of(&node, &[])?;
    let mut out = PcapWriter::new(Vec::new()).map_err(|error| error.to_string())?;
    let mut packets = Vec::new();
    let mut watcher = |taken: &Taken<'_>| -> io::Result<()> {
        packets.push(Row::new(taken.note.number, &namer.flow(taken.note.time, taken.fate)));
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

/// Says in which packet two captures differ first.
fn first_difference(wanted: &[u8], got: &[u8]) -> Difference {
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
    let differ = |n: usize, expected: String, got: String| Difference { at: format!("out.pcap, packet {n}"), expected, got };
    for (n, (w, g)) in (1..).zip(wanted.iter().zip(&got)) {
        if w.0 != g.0 {
            return differ(n, format!("at {}", w.0), format!("at {}", g.0));
        }
        if w.1 != g.1 {
            return differ(n, hex(&w.1), hex(&g.1));
        }
    }
    Difference { at: "out.pcap".into(), expected: format!("{} packets", wanted.len()), got: format!("{} packets", got.len()) }
}
