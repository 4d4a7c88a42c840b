//! `weir capture`: frames of the running daemon's ports with what became of them, as tcpdump would show or write them.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use nix::sys::signal::{SigSet, Signal};
use pcap::{BpfProgram, Linktype};
use weir_dataplane::admin::protocol::{CapturedPacket, Request, Response};
use weir_dataplane::capture::Direction;

use super::Answer;
use super::common::{DaemonArgs, parse_duration};
use crate::observe::record::{Recorder, Seen};
use crate::observe::text::{Columns, Style};

/// Arguments of `weir capture`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A packet is shown where it comes in or leaves by a chosen port, and where it is dropped on its way to a chosen pod.\n\
                  Examples:\n  weir capture shop/web-0 tcp port 80\n  weir capture shop/web-0 -w - | wireshark -k -i -\n  weir capture -i uplink -c 100 -w out.pcapng 'udp port 4789'"
)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Pods (namespace/name), then a filter in the language of tcpdump (pcap-filter(7))
    #[arg(value_name = "POD... FILTER")]
    words: Vec<String>,
    /// Capture at this pod's port; may be given several times
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Vec<String>,
    /// Capture at this port: uplink, host, an interface or namespace/pod [default: all]
    #[arg(short, long, value_name = "PORT")]
    interface: Vec<String>,
    /// Write pcapng with verdicts and comments; - is stdout
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many frames
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Bytes kept of a frame
    #[arg(short, long, value_name = "BYTES", default_value = "4096")]
    snaplen: u32,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (pods, filter) = split(&self.words);
        let filter = compile(&filter)?;
        let mut sink = self.sink()?;
        let stopped = stop_on_signals()?;
        let mut client = self.daemon.connect()?;
        let ports: Vec<String> = pods.iter().chain(&self.pod).chain(&self.interface).cloned().collect();
        let end = self.duration.map(|duration| Instant::now() + duration);
        let mut sums = Sums::default();
        let mut failed = None;
        client.stream(&Request::Capture { ports, snaplen: self.snaplen }, |response| {
            let Response::Captured { interfaces, packets, lost } = response else { return None };
            sums.lost += lost;
            let mut take = || -> anyhow::Result<bool> {
                for interface in &interfaces {
                    sink.interface(interface.port, &interface.name)?;
                }
                if !sums.listening {
                    let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
                    eprintln!("listening on {}", names.join(", "));
                    sums.listening = true;
                }
                for packet in &packets {
                    if self.count.is_some_and(|count| sums.captured >= count) {
                        break;
                    }
                    let bytes = STANDARD.decode(&packet.bytes).context("the daemon sent what is no frame")?;
                    if filter.as_ref().is_none_or(|filter| filter.filter(&bytes)) {
                        sums.captured += 1;
                        sink.packet(packet, &bytes)?;
                    }
                }
                sink.flush()?;
                let enough = self.count.is_some_and(|count| sums.captured >= count);
                Ok(!enough && !stopped.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end))
            };
            Some(match take() {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })
        })?;
        eprintln!("{} captured, {} dropped by the ring", frames(sums.captured), frames(sums.lost));
        failed.map_or(Ok(Answer::Yes), Err)
    }

    fn sink(&self) -> anyhow::Result<Sink> {
        let cannot = |path: &Path| format!("cannot write {}", path.display());
        Ok(match &self.write {
            None => Sink::Text(Style { zone: TimeZone::system(), numeric: false, node: false, policies: true }),
            Some(path) if path.as_os_str() == "-" => {
                if io::stdout().is_terminal() {
                    bail!("a capture is nothing to look at on a terminal\n  try: weir capture -w - | tcpdump -n -r -    or: without -w");
                }
                Sink::Pcapng(Recorder::new(BufWriter::new(Box::new(io::stdout()) as Box<dyn Write>))?)
            }
            Some(path) => {
                let file = File::create(path).with_context(|| cannot(path))?;
                Sink::Pcapng(Recorder::new(BufWriter::new(Box::new(file) as Box<dyn Write>)).with_context(|| cannot(path))?)
            }
        })
    }
}

#[derive(Default)]
struct Sums {
    captured: u64,
    lost: u64,
    /// Said that it began.
    listening: bool,
}

fn frames(count: u64) -> String {
    if count == 1 { "1 frame".into() } else { format!("{count} frames") }
}

/// Where frames go.
enum Sink {
    /// A line a packet, to stdout.
    Text(Style),
    Pcapng(Recorder<BufWriter<Box<dyn Write>>>),
}

impl Sink {
    fn interface(&mut self, port: u16, name: &str) -> io::Result<()> {
        match self {
            Self::Text(_) => Ok(()),
            Self::Pcapng(recorder) => recorder.interface(port, name),
        }
    }

    fn packet(&mut self, packet: &CapturedPacket, bytes: &[u8]) -> io::Result<()> {
        match self {
            // What a packet's first copy says is all there is to say of it.
            Self::Text(style) => match &packet.flow {
                Some(flow) => writeln!(io::stdout(), "{}", Columns::new(flow, style).compact()),
                None => Ok(()),
            },
            Self::Pcapng(recorder) => {
                let direction = if packet.out { Direction::Out } else { Direction::In };
                let CapturedPacket { id, time, port, wire_len, flow, .. } = packet;
                let seen = Seen { id: *id, time: *time, port: *port, direction, bytes, wire_len: *wire_len };
                recorder.packet(&seen, flow.as_deref())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Text(_) => io::stdout().flush(),
            Self::Pcapng(recorder) => recorder.flush(),
        }
    }
}

/// Splits what was given into pods and the filter behind them: no filter begins with a word that has a slash in it.
fn split(words: &[String]) -> (Vec<String>, String) {
    let pods = words.iter().take_while(|word| word.contains('/') && !word.contains(' ')).count();
    (words[..pods].to_vec(), words[pods..].join(" "))
}

/// Compiles a filter as tcpdump does.
fn compile(filter: &str) -> anyhow::Result<Option<BpfProgram>> {
    if filter.is_empty() {
        return Ok(None);
    }
    let dead = pcap::Capture::dead(Linktype::ETHERNET).context("cannot compile a filter")?;
    let program = dead.compile(filter, true).map_err(|error| {
        anyhow::anyhow!("the filter {filter:?} is not one: {error}\n  try: man pcap-filter    (a pod in front of it is namespace/name)")
    })?;
    Ok(Some(program))
}

/// Has SIGINT and SIGTERM end the capture in order, as tcpdump ends.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Before any thread, so that all inherit it.
    signals.thread_block()?;
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = stopped.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while signals.wait().is_ok() {
            // The second one will not wait for the daemon.
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(2);
            }
        }
    })?;
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_come_first_and_the_rest_is_the_filter() {
        let split = |words: &[&str]| split(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            split(&["shop/web-0", "shop/db-0", "tcp", "port", "80"]),
            (vec!["shop/web-0".into(), "shop/db-0".into()], "tcp port 80".into())
        );
        assert_eq!(split(&["net", "10.0.0.0/8"]), (vec![], "net 10.0.0.0/8".into()));
        assert_eq!(split(&["net 10.0.0.0/8 or icmp"]), (vec![], "net 10.0.0.0/8 or icmp".into()));
        assert_eq!(split(&[]), (vec![], String::new()));
    }

    #[test]
    fn filters_are_those_of_tcpdump() {
        // Ethernet, IPv4, UDP 10.0.0.1:5000 > 10.0.0.2:53.
        let mut frame = vec![0; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
        frame[26..38].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0x13, 0x88, 0, 53]);
        for (filter, passes) in [("udp port 53", true), ("src net 10.0.0.0/24 and not tcp", true), ("port 54", false), ("ip6", false)] {
            assert_eq!(compile(filter).unwrap().unwrap().filter(&frame), passes, "{filter}");
        }
        assert!(compile("").unwrap().is_none());
        let error = compile("prot 80").err().unwrap().to_string();
        assert!(error.contains("prot 80") && error.contains("pcap-filter"), "{error}");
    }
}
