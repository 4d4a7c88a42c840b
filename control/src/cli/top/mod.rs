//! `weir top`: what the running daemon does right now, on a terminal.

mod panes;
mod view;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use weir_dataplane::admin::client::Client;
use weir_dataplane::model::NodeState;

use self::panes::{Reading, head, panes};
use self::view::{Choice, draw};
use super::Answer;
use super::common::{DaemonArgs, parse_duration};
use super::connections::Names;

/// A connection without a packet in so many intervals is not looked at. More than one, so that the figures of one that is now
/// and then silent are known from before.
const ACTIVE_INTERVALS: u32 = 4;

/// Arguments of `weir top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: q quit, tab or 1 to 4 pane, s sort by the next column, r reverse, / filter, p pause, up and down scroll.")]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Time between two readings; rates are those of it
    #[arg(short, long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    interval: Duration,
    /// Print all panes once as text, after one interval
    #[arg(long)]
    once: bool,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let on_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
        if !self.once && !on_terminal {
            bail!("weir top draws on a terminal, and this is none\n  try: weir top --once");
        }
        let mut source = Source {
            client: self.daemon.connect()?,
            started: Instant::now(),
            state: NodeState::default(),
            generation: None,
            active: self.interval * ACTIVE_INTERVALS,
        };
        let first = source.read()?;
        if self.once {
            std::thread::sleep(self.interval);
            return print(&source.read()?, &first, &source.state);
        }
        // Shows the first reading as it is: rates follow with the next one.
        let mut terminal = ratatui::try_init()?;
        let end = self.show(&mut terminal, &mut source, first);
        ratatui::restore();
        end.map(|()| Answer::Yes)
    }

    fn show(&self, terminal: &mut ratatui::DefaultTerminal, source: &mut Source, first: Reading) -> anyhow::Result<()> {
        let mut shown = panes(&first, &first, &Names::default());
        let mut sums = head(&first, &first);
        let mut choice = Choice::new(&shown);
        let mut last = first;
        let mut due = Instant::now() + self.interval;
        loop {
            terminal.draw(|frame| draw(frame, &sums, &shown, &mut choice))?;
            if event::poll(due.saturating_duration_since(Instant::now()))? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press && !choice.key(key, &shown) => return Ok(()),
                    _ => continue,
                }
            }
            due = Instant::now() + self.interval;
            let now = source.read()?;
            if !choice.paused {
                (shown, sums) = (panes(&now, &last, &Names::new(&source.state)), head(&now, &last));
            }
            last = now;
        }
    }
}

/// Where readings come from.
struct Source {
    client: Client,
    started: Instant,
    /// What names come from, of this generation.
    state: NodeState,
    generation: Option<u32>,
    /// Connections without a packet in this time are not asked for.
    active: Duration,
}

impl Source {
    fn read(&mut self) -> anyhow::Result<Reading> {
        let status = self.client.status()?;
        if self.generation != Some(status.generation) {
            let (generation, state) = self.client.state()?;
            (self.state, self.generation) = (state, Some(generation));
        }
        let mut connections = Vec::new();
        self.client.connections(Some(self.active), |connection| connections.push(connection))?;
        Ok(Reading { at: self.started.elapsed(), status, runtime: self.client.runtime(false)?, connections })
    }
}

fn print(now: &Reading, before: &Reading, state: &NodeState) -> anyhow::Result<Answer> {
    let mut text = head(now, before).join("\n") + "\n";
    for mut pane in panes(now, before, &Names::new(state)) {
        pane.sort(pane.sort, false);
        if !pane.rows.is_empty() {
            text.push('\n');
            text.push_str(&pane.text());
        }
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(Answer::Yes)
}
