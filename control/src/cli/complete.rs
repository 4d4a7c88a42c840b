//! `weir completion SHELL`: a completion script on stdout.

use std::io::{self, Write};

use super::Answer;

/// Arguments of `weir completion`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "weir", &mut script);
        io::stdout().write_all(&script)?;
        Ok(Answer::Yes)
    }
}
