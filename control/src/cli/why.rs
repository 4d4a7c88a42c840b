//! `weir why`: why does this connection fail, and what is the least that lets it pass?

use std::io::{self, Write};

use clap::ValueEnum;

use super::Answer;
use super::common::ClusterArgs;
use super::trace::Connection;
use crate::why::why;

/// Arguments of `weir why`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connection: Connection,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// JSON
    Json,
    /// The policies to add and nothing else, for kubectl apply -f -
    Patch,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (snapshot, config) = self.cluster.load_or_first()?;
        let answer = why(&snapshot, &config, &self.connection.question()).map_err(anyhow::Error::msg)?;
        let mut out = io::stdout().lock();
        match self.output {
            Form::Text => out.write_all(answer.text().as_bytes())?,
            Form::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
            Form::Patch => match &answer.add {
                Some(addition) => out.write_all(addition.patch.as_bytes())?,
                None if answer.passes => eprintln!("the connection passes; nothing is to be added"),
                None => eprintln!("no NetworkPolicy that is added lets it pass: {}", answer.why),
            },
        }
        // No: it fails, and not for want of a rule.
        Ok(if answer.passes || answer.add.is_some() || answer.remove.is_some() { Answer::Yes } else { Answer::No })
    }
}
