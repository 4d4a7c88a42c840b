//! `weir lab`: a cluster on this machine, out of network namespaces.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::Answer;
use super::common::{ClusterArgs, Output, compile_for, print_data, table};
use crate::lab::{self, LabName, Outcome, Status, Up};

/// Arguments of `weir lab`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Brings a lab up, or changes it into what the snapshot is now
    Up(UpArgs),
    /// Takes a lab down: the daemon, its namespaces, its files
    Down(NameArgs),
    /// Runs a command in a place of the lab and ends as it does
    #[command(after_help = "Places: NAMESPACE/POD, node/NAME, outside (a host in the nodes' network that is in no cluster; \
                            it is also 192.0.2.1 and 2001:db8::1, which stand for the internet). \
                            Only the network is the place's; files are this machine's.")]
    Exec(ExecArgs),
    /// Shows what is up
    Status(StatusArgs),
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// Which lab; several may be up
    #[arg(long, value_name = "LAB", default_value = "lab")]
    name: LabName,
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    name: NameArgs,
    /// The daemon's binary [default: weir-dataplane beside this one, else on the PATH]
    #[arg(long, value_name = "FILE", conflicts_with = "no_daemon")]
    dataplane: Option<PathBuf>,
    /// Make the network only, without the daemon
    #[arg(long)]
    no_daemon: bool,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Where: NAMESPACE/POD, node/NAME or outside
    place: String,
    /// What
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        match &self.command {
            Command::Up(args) => args.run(),
            Command::Down(args) => down(&args.name),
            Command::Exec(args) => match lab::exec(&args.name.name, &args.place, &args.command)? {},
            Command::Status(args) => args.run(),
        }
    }
}

impl UpArgs {
    fn run(&self) -> anyhow::Result<Answer> {
        let (snapshot, config) = self.cluster.load()?;
        let state = compile_for(&snapshot, &config)?;
        let name = self.name.name.clone();
        let first_pod = state.endpoints.iter().find(|e| e.node == state.this_node && !e.host_network && !e.addresses.is_empty());
        let place = first_pod.map_or_else(|| format!("node/{}", config.node), |e| format!("{}/{}", e.namespace, e.name));
        let daemon = if self.no_daemon { None } else { Some(self.dataplane.clone().map_or_else(find_daemon, Ok)?) };
        let outcome = lab::up(Up { name: name.clone(), state, config, daemon })?;
        for what in &outcome.left_out {
            eprintln!("left out: {what}");
        }
        io::stdout().write_all(summary(&name, &outcome, &place).as_bytes())?;
        Ok(Answer::Yes)
    }
}

/// What came up, how to use it, how to undo it.
fn summary(name: &LabName, outcome: &Outcome, place: &str) -> String {
    let flag = if name.to_string() == "lab" { String::new() } else { format!(" --name {name}") };
    let Outcome { made, kept, removed, .. } = outcome;
    let applied = outcome.applied.as_ref().map(|text| format!("{text}\n")).unwrap_or_default();
    format!(
        "{applied}lab {name} is up: {made} namespaces made, {kept} kept, {removed} removed\n\
         use it:   weir lab exec{flag} {place} -- ip address\n\
         look:     weir lab status{flag}    and: weir status --socket {}\n\
         undo it:  weir lab down{flag}\n",
        name.run_dir().join("dataplane.sock").display(),
    )
}

/// The daemon's binary: beside this one, else on the PATH.
fn find_daemon() -> anyhow::Result<PathBuf> {
    const BINARY: &str = "weir-dataplane";
    let own = std::env::current_exe().context("cannot tell where this binary is")?;
    let mut folders: Vec<PathBuf> = own.parent().map(Into::into).into_iter().collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    match folders.into_iter().map(|folder| folder.join(BINARY)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no {BINARY} beside {} or on the PATH\n  try: --dataplane FILE    or: --no-daemon", own.display()),
    }
}

fn down(name: &LabName) -> anyhow::Result<Answer> {
    for (pid, command) in lab::down(name)? {
        eprintln!("still running where lab {name} was, and left alone: {command}, process {pid}");
    }
    writeln!(io::stdout(), "lab {name} is down")?;
    Ok(Answer::Yes)
}

impl StatusArgs {
    fn run(&self) -> anyhow::Result<Answer> {
        let status = lab::status(&self.name.name)?;
        match self.output {
            Output::Text | Output::Wide => io::stdout().write_all(status_text(&status).as_bytes())?,
            form => print_data(form, &status)?,
        }
        Ok(if status.node.is_some() { Answer::Yes } else { Answer::No })
    }
}

fn status_text(status: &Status) -> String {
    let Some(node) = &status.node else { return format!("lab {} is not up\n", status.name) };
    let daemon = match (status.daemon, status.generation) {
        (None, _) => "not running".into(),
        (Some(pid), None) => format!("process {pid}, does not answer"),
        (Some(pid), Some(generation)) => format!("process {pid}, generation {generation}"),
    };
    let rows = status.places.iter().map(|place| {
        let state = if place.present { "up" } else { "missing" };
        vec![place.place.clone(), place.node.clone().unwrap_or_default(), state.into(), place.netns.clone()]
    });
    format!("Lab     {}\nNode    {node}\nDaemon  {daemon}\n\n{}", status.name, table(&["PLACE", "NODE", "STATE", "NAMESPACE"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Place;

    #[test]
    fn a_lab_says_how_to_use_and_undo_it() {
        let outcome = Outcome { made: 9, applied: Some("generation 1 in force on 1 workers".into()), ..Outcome::default() };
        let text = summary(&"two".parse().unwrap(), &outcome, "shop/web-0");
        assert!(text.contains("weir lab exec --name two shop/web-0 -- ") && text.contains("weir lab down --name two\n"), "{text}");
        assert!(text.starts_with("generation 1 in force"), "{text}");
        assert!(!summary(&"lab".parse().unwrap(), &outcome, "shop/web-0").contains("--name"));
    }

    #[test]
    fn the_status_names_what_is_missing() {
        let place = |name: &str, present| Place { place: name.into(), node: Some("node-a".into()), netns: "weir-lab-x".into(), present };
        let mut status = Status {
            name: "lab".into(),
            node: None,
            daemon: None,
            generation: None,
            places: vec![place("shop/a", true), place("shop/b", false)],
        };
        assert_eq!(status_text(&status), "lab lab is not up\n");
        status.node = Some("node-a".into());
        let text = status_text(&status);
        assert!(text.contains("Daemon  not running") && text.contains("missing"), "{text}");
    }
}
