//! `weir matrix`: who can reach whom?

use std::io::{self, Write};

use clap::ValueEnum;

use super::common::{NodeArgs, SnapshotArgs, table};
use super::{Answer, Refused};
use crate::matrix::{matrix, page};
use crate::sim::reach::World;

/// Arguments of `weir matrix`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    snapshot: SnapshotArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A grid of marks
    Text,
    /// A line for each pair of classes and kind of traffic, with the reason
    Wide,
    /// JSON
    Json,
    /// Comma-separated values, a line for each range of ports
    Csv,
    /// One page for a browser, that needs nothing else
    Html,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let snapshot = self.snapshot.load()?;
        let config = self.node.resolve_or_first(&snapshot)?;
        let world = World::new(&snapshot, &config).map_err(Refused)?;
        let matrix = matrix(&world);
        let text = match self.output {
            Form::Text => matrix.text(),
            Form::Wide => table(&["FROM", "TO", "TRAFFIC", "VERDICT", "WHY"], matrix.rows()),
            Form::Json => serde_json::to_string_pretty(&matrix)? + "\n",
            Form::Csv => matrix.csv(),
            Form::Html => page(&matrix)?,
        };
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(Answer::Yes)
    }
}
