//! `weir man --dir DIR`: man pages for packagers, one a subcommand. Not shown in the help.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Answer;

/// Arguments of `weir man`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to write to; made if it is not there
    #[arg(long)]
    dir: PathBuf,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let written = std::fs::create_dir_all(&self.dir).and_then(|()| clap_mangen::generate_to(super::command(), &self.dir));
        written.with_context(|| format!("cannot write man pages to {}", self.dir.display()))?;
        Ok(Answer::Yes)
    }
}
