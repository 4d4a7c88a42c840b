//! `weir test`: cases and what they expect, judged by the compiled tables.

use std::io::Write as _;
use std::path::PathBuf;

use super::Answer;
use crate::conformance::{Format, run};

/// Runs case files and scenario folders, and says which expectations do not hold
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, or folders with everything below them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Only cases whose id or file name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Seed of every random choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let report = run(&self.paths, self.filter.as_deref(), self.seed)?;
        std::io::stdout().lock().write_all(report.print(self.output).as_bytes())?;
        Ok(if report.holds() { Answer::Yes } else { Answer::No })
    }
}
