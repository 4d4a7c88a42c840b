//! `weir flows`: what the daemon decided about packets, as `hubble observe` shows it.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use weir_dataplane::flows::{Flow, Query};

use super::Answer;
use super::common::{DaemonArgs, parse_duration};
use super::flow_filter::FilterArgs;
use crate::observe::text::{Columns, HEADERS, Style};
use crate::sim::hubble;

/// Arguments of `weir flows`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Only so many of the latest [default: 20, or none with --follow]
    #[arg(long, value_name = "N", group = "range")]
    last: Option<usize>,
    /// Only so many of the oldest that are kept
    #[arg(long, value_name = "N", group = "range")]
    first: Option<usize>,
    /// Everything that is kept
    #[arg(long, group = "range")]
    all: bool,
    /// Not older: a duration ago (3m), or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    since: Option<u64>,
    /// Not newer, likewise
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    until: Option<u64>,
    /// And every packet that comes from now on, those of known flows included
    #[arg(short, long)]
    follow: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "compact")]
    output: Form,
    /// Addresses instead of pods' names
    #[arg(long)]
    numeric: bool,
    /// Name the node
    #[arg(long)]
    print_node_name: bool,
    /// Say what policies said
    #[arg(long)]
    print_policy_names: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A line each
    Compact,
    /// Columns
    Table,
    /// A field a line
    Dict,
    /// Hubble's GetFlowsResponse, one a line
    #[value(alias = "json")]
    Jsonpb,
}

/// Events that are shown where nothing else is asked for, as Hubble does.
const LAST: usize = 20;

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let ranged = self.all || self.first.is_some() || self.since.is_some();
        let last = self.last.or(match (ranged, self.follow) {
            (true, _) => None,
            (false, true) => Some(0),
            (false, false) => Some(LAST),
        });
        let query =
            Query { filter: self.filter.0.clone(), first: self.first, last, since: self.since, until: self.until, follow: self.follow };
        let mut client = self.daemon.connect()?;
        let mut printer = Printer {
            out: BufWriter::new(io::stdout().lock()),
            form: self.output,
            style: Style { zone: TimeZone::system(), numeric: self.numeric, node: self.print_node_name, policies: self.print_policy_names },
            messages: hubble::Messages::default(),
        };
        if self.output == Form::Table {
            printer.header()?;
        }
        let mut written = Ok(());
        client.flows(query, |flows, lost| {
            written = printer.print(&flows, lost);
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written?;
        Ok(Answer::Yes)
    }
}

struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    form: Form,
    style: Style,
    messages: hubble::Messages,
}

impl Printer {
    fn header(&mut self) -> io::Result<()> {
        let [time, source, destination, kind, verdict, summary] = HEADERS.map(str::to_owned);
        let node = self.style.node.then(|| "NODE".to_owned());
        let columns = Columns { time, node, source, destination, arrow: "", kind, verdict, summary };
        writeln!(self.out, "{}", columns.row())
    }

    fn print(&mut self, flows: &[Arc<Flow>], lost: u64) -> io::Result<()> {
        for flow in flows {
            match self.form {
                Form::Jsonpb => self.messages.write(&mut self.out, flow)?,
                Form::Compact => writeln!(self.out, "{}", Columns::new(flow, &self.style).compact())?,
                Form::Table => writeln!(self.out, "{}", Columns::new(flow, &self.style).row())?,
                Form::Dict => writeln!(self.out, "{}\n------------", Columns::new(flow, &self.style).dict())?,
            }
        }
        if lost > 0 {
            match self.form {
                Form::Jsonpb => writeln!(self.out, "{}", hubble::lost_line(lost))?,
                _ => eprintln!("EVENTS LOST: {lost}: this reader is too slow; the packets themselves went on"),
            }
        }
        self.out.flush()
    }
}

/// A duration before now, or a point in time; nanoseconds since 1970.
fn parse_when(text: &str) -> Result<u64, String> {
    let time = match parse_duration(text) {
        Ok(ago) => Timestamp::now().as_nanosecond() - i128::from(Duration::as_nanos(&ago) as u64),
        Err(_) => text.parse::<Timestamp>().map_err(|_| "neither a duration (3m) nor a time (RFC 3339)")?.as_nanosecond(),
    };
    u64::try_from(time).map_err(|_| "before 1970".into())
}
