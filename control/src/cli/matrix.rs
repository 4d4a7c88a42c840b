//! `weir matrix`: who can reach whom?

use std::io::{self, BufWriter, Write};

use clap::ValueEnum;

use super::common::{ClusterArgs, table};
use super::{Answer, Refused};
use crate::matrix::{matrix, page};
use crate::sim::reach::World;

/// Arguments of `weir matrix`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
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
        let (snapshot, config) = self.cluster.load_or_first()?;
        let world = World::new(&snapshot, &config).map_err(Refused)?;
        let matrix = matrix(&world);
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        match self.output {
            Form::Text => out.write_all(matrix.text().as_bytes())?,
            Form::Wide => out.write_all(table(&["FROM", "TO", "TRAFFIC", "VERDICT", "WHY"], matrix.rows()).as_bytes())?,
            // Of a large cluster these two are gigabytes: cell by cell.
            Form::Json => {
                serde_json::to_writer_pretty(&mut out, &matrix).map_err(io::Error::from)?;
                writeln!(out)?;
            }
            Form::Csv => matrix.csv(&mut out)?,
            Form::Html => out.write_all(page(&matrix)?.as_bytes())?,
        }
        out.flush()?;
        Ok(Answer::Yes)
    }
}
