//! `weir replay`: a capture through the real pipeline, against a snapshot, on a chosen node.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use weir_dataplane::capture::{Capture, CaptureError, Direction};
use weir_dataplane::flows::{Flow, Namer};
use weir_dataplane::io::PortId;
use weir_dataplane::runtime::Runtime;

use super::common::{ClusterArgs, ReplayArgs, compile_for};
use super::{Answer, Refused};
use crate::observe::record::{Recorder, Seen};
use crate::sim::flows::{FlowRow, Flows};
use crate::sim::hubble::Messages;
use crate::sim::lines::Lines;
use crate::sim::node::SimNode;
use crate::sim::replay::{self, Ended, Summary, Taken};
use crate::sim::table::Table;

/// Arguments of `weir replay`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The capture: pcap or pcapng, also gzipped; - is stdin
    #[arg(long, value_name = "FILE")]
    pcap: PathBuf,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Also write what went in and what came out, with verdicts and comments, as pcapng
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
    /// A line per what; summary prints the sums alone, at full speed
    #[arg(long, value_enum, default_value = "packet")]
    per: Per,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// A JSON object a line
    Json,
    /// Hubble's GetFlowsResponse, one a line, for `hubble observe --input-file`
    Hubble,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Per {
    Packet,
    Flow,
    Summary,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (snapshot, config) = self.cluster.load()?;
        let state = compile_for(&snapshot, &config)?;
        let mut node = SimNode::new(&state, config, self.replay.seed).context("cannot make the node's tables")?;
        let port_of = replay::port_of(&node, &self.replay.port_of).map_err(anyhow::Error::msg)?;
        let capture = Capture::open(&self.pcap).map_err(|error| fault(&self.pcap, error))?;
        let runtime = node.runtime().clone();
        let mut namer = Namer::new(node.tables().clone());
        let mut recorder = match &self.write {
            Some(path) => Some(create(path, &runtime)?),
            None => None,
        };

        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut flows = Flows::default();
        let (mut table, mut lines, mut messages) = (Table::default(), Lines::default(), Messages::default());
        match (self.output, self.per) {
            (Form::Table, Per::Packet) => table.header(&mut out)?,
            (Form::Table, Per::Flow) => writeln!(out, "{}", flow_header())?,
            _ => {}
        }
        let progress = Progress::new(self.per == Per::Packet);
        let mut watcher = |taken: &Taken<'_>| -> io::Result<()> {
            let (note, fate) = (taken.note, taken.fate);
            if self.per == Per::Flow {
                flows.add(note.number, note.time, note.wire_len.into(), fate);
            }
            if self.per != Per::Packet && recorder.is_none() {
                return Ok(());
            }
            let flow = namer.flow(note.time, fate);
            if let Some(recorder) = &mut recorder {
                record(recorder, taken, &flow)?;
            }
            match self.output {
                _ if self.per != Per::Packet => Ok(()),
                Form::Table => table.write(&mut out, note.number, &flow),
                Form::Json => lines.write(&mut out, note.number, &flow),
                Form::Hubble => messages.write(&mut out, &flow),
            }
        };
        let watched = self.per != Per::Summary || self.write.is_some();
        let watcher: Option<&mut replay::Watcher<'_>> = if watched { Some(&mut watcher) } else { None };
        let ended = replay::run(&mut node, capture, port_of, watcher, |read, whole| progress.at(read, whole))?;
        progress.finish();

        match self.output {
            _ if self.per != Per::Flow => {}
            Form::Table => flows.rows(&mut namer).try_for_each(|row| writeln!(out, "{}", flow_line(&row)))?,
            Form::Json => {
                for row in flows.rows(&mut namer) {
                    writeln!(out, "{}", serde_json::to_string(&row)?)?;
                }
            }
            Form::Hubble => {
                for flow in flows.firsts(&mut namer) {
                    messages.write(&mut out, &flow)?;
                }
            }
        }
        self.write_summary(&mut out, &ended.summary)?;
        out.flush()?;
        drop(out);
        if let (Some(mut recorder), Some(path)) = (recorder, &self.write) {
            recorder.flush().with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.verdict(ended)
    }

    fn write_summary(&self, out: &mut impl Write, summary: &Summary) -> anyhow::Result<()> {
        match self.output {
            Form::Table => write!(out, "{}", foot(summary, self.per != Per::Summary))?,
            Form::Json => writeln!(out, "{}", serde_json::json!({ "summary": summary }))?,
            // Every line of this form is a flow; the sums are a message.
            Form::Hubble => eprint!("{}", foot(summary, false)),
        }
        Ok(())
    }

    /// What the capture's state means for the exit status: all that could be read was shown.
    fn verdict(&self, ended: Ended) -> anyhow::Result<Answer> {
        for (link, count) in &ended.foreign {
            eprintln!("warning: {}: {count} packets of link type {link} were passed over", self.pcap.display());
        }
        if ended.copies > 0 {
            eprintln!("note: {}: {} packets are there as they left too, and were replayed once", self.pcap.display(), ended.copies);
        }
        match ended.fault {
            Some(error) => Err(fault(&self.pcap, error)),
            None if ended.summary.packets == 0 => Err(Refused(format!("{}: the capture holds no packets", self.pcap.display())).into()),
            None => Ok(Answer::Yes),
        }
    }
}

/// A file that is not there cannot be read at all; one that says nonsense was refused.
fn fault(path: &Path, error: CaptureError) -> anyhow::Error {
    match error {
        CaptureError::Open(_) => anyhow!("{}: {error}", path.display()),
        _ => Refused(format!("{}: {error}", path.display())).into(),
    }
}

fn flow_header() -> String {
    format!(
        "{:>6} {:>8} {:>10} {:<20} {:<24} {:<24} {:<6} {:<20} {}",
        "N", "PACKETS", "BYTES", "IN", "SOURCE", "DESTINATION", "PROTO", "VERDICTS", "WHY"
    )
}

fn flow_line(row: &FlowRow) -> String {
    let verdicts: Vec<String> = row.verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
    let first = &row.first;
    let line = format!(
        "{:>6} {:>8} {:>10} {:<20} {:<24} {:<24} {:<6} {:<20} {}",
        first.n,
        row.packets,
        row.bytes,
        first.in_port,
        first.src.as_deref().unwrap_or("-"),
        first.dst.as_deref().unwrap_or("-"),
        first.proto.as_deref().unwrap_or("-"),
        verdicts.join(", "),
        first.why
    );
    line.trim_end().to_owned()
}

fn foot(summary: &Summary, separated: bool) -> String {
    let mut text = format!(
        "{}{} packets: {} forward, {} host, {} reply, {} drop\n",
        if separated { "\n" } else { "" },
        summary.packets,
        summary.forward,
        summary.host,
        summary.reply,
        summary.drop
    );
    for (how, counts) in [("dropped", &summary.reasons), ("refused", &summary.rejects)] {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), **name));
        for (name, count) in counts {
            text.push_str(&format!("{count:>8} {how} {name}\n"));
        }
    }
    text
}

/// Begins the file that what goes in and what comes out is written to. Interfaces are the node's ports.
fn create(path: &Path, runtime: &Runtime) -> anyhow::Result<Recorder<BufWriter<File>>> {
    let made = File::create(path).and_then(|file| {
        let mut recorder = Recorder::new(BufWriter::with_capacity(1 << 16, file))?;
        runtime.ports.iter().enumerate().try_for_each(|(port, p)| recorder.interface(port as u16, &p.name))?;
        Ok(recorder)
    });
    made.with_context(|| format!("cannot write {}", path.display()))
}

fn record<W: Write>(recorder: &mut Recorder<W>, taken: &Taken<'_>, flow: &Flow) -> io::Result<()> {
    let (id, time) = (taken.note.number, taken.note.time);
    let (port, bytes) = (taken.fate.in_port.0, taken.before);
    recorder.packet(&Seen { id, time, port, direction: Direction::In, bytes, wire_len: bytes.len() as u32 }, Some(flow))?;
    match (taken.fate.out_port(), taken.after) {
        (Some(PortId(port)), Some(bytes)) => {
            recorder.packet(&Seen { id, time, port, direction: Direction::Out, bytes, wire_len: bytes.len() as u32 }, None)
        }
        _ => Ok(()),
    }
}

/// A bar on stderr while it takes long, where a person looks.
struct Progress(Option<ProgressBar>);

impl Progress {
    /// `lines` tells that stdout is written to all the while: then a bar would tear through it.
    fn new(lines: bool) -> Self {
        let wanted = io::stderr().is_terminal() && !(lines && io::stdout().is_terminal());
        Self(wanted.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
            let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        }))
    }

    fn at(&self, read: u64, whole: Option<u64>) {
        if let Some(bar) = &self.0 {
            bar.set_length(whole.unwrap_or(read));
            bar.set_position(read);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
