//! The `weir` command: one file a subcommand.
//!
//! A subcommand is a `clap` argument struct with `run(&self) -> anyhow::Result<Answer>`. What was asked for goes to stdout,
//! messages go to stderr. Exit status: 0 fine, 1 the answer is no ([`Answer::No`], [`Refused`]), 2 wrong usage or cannot
//! run (every other error).

mod apply;
mod capture;
mod common;
mod complete;
mod connections;
mod conntrack;
mod diff;
mod drops;
mod flow_filter;
mod flows;
mod lab;
mod lint;
mod man;
mod matrix;
mod nat;
mod policies;
mod replay;
mod runtime;
mod services;
mod status;
mod style;
mod test;
mod top;
mod trace;
mod validate;
mod watch;
mod why;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// How a question was answered; an error means that it could not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit status 0.
    Yes,
    /// Exit status 1: failed cases, differences.
    No,
}

/// Input that was read and is wrong: exit status 1 where other errors give 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// A userspace node dataplane for Kubernetes: services, network policies and the overlay, offline and live.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks a snapshot and prints everything that is wrong with it
    Validate(validate::Args),
    /// Follows the first packet of a connection across the cluster, and says why it ends as it does
    Trace(trace::Args),
    /// Sends a capture through the pipeline of one node and says what becomes of every packet
    Replay(replay::Args),
    /// Puts a snapshot in force
    Apply(apply::Args),
    /// Runs case files and scenario folders, and says which expectations do not hold
    Test(test::Args),
    /// Says which flows would end otherwise with another snapshot
    Diff(diff::Args),
    /// Says who can reach whom, for every class of traffic
    Matrix(matrix::Args),
    /// Says why a connection fails, and the least that lets it pass
    Why(why::Args),
    /// Says what in a snapshot is legal and surely not meant
    Lint(lint::Args),
    /// Shows how the daemon does
    Status(status::Args),
    /// Shows what was decided about packets: new flows and drops that are past, and every packet as it comes
    Flows(flows::Args),
    /// Counts what was discarded and refused, by reason, policy and pod
    Drops(drops::Args),
    /// Shows ports, workers, flows and drops as they go, on a terminal
    Top(top::Args),
    /// Shows where the workers' time goes, stage by stage
    Runtime(runtime::Args),
    /// Shows or writes frames of chosen pods and ports, with what became of them
    Capture(capture::Args),
    /// Lists tracked connections
    Conntrack(conntrack::Args),
    /// Lists the Services in force and their backends
    Services(services::Args),
    /// Lists the policies in force on this node's pods
    Policies(policies::Args),
    /// Lists the translations in force: what Services and masquerading rewrite
    Nat(nat::Args),
    /// Clusters on this machine, for trying and testing
    Lab(lab::Args),
    /// Prints a completion script for a shell
    Completion(complete::Args),
    /// Writes man pages
    #[command(hide = true)]
    Man(man::Args),
}

impl Command {
    fn run(&self) -> anyhow::Result<Answer> {
        match self {
            Self::Validate(args) => args.run(),
            Self::Trace(args) => args.run(),
            Self::Replay(args) => args.run(),
            Self::Apply(args) => args.run(),
            Self::Test(args) => args.run(),
            Self::Diff(args) => args.run(),
            Self::Matrix(args) => args.run(),
            Self::Why(args) => args.run(),
            Self::Lint(args) => args.run(),
            Self::Status(args) => args.run(),
            Self::Flows(args) => args.run(),
            Self::Drops(args) => args.run(),
            Self::Top(args) => args.run(),
            Self::Runtime(args) => args.run(),
            Self::Capture(args) => args.run(),
            Self::Conntrack(args) => args.run(),
            Self::Services(args) => args.run(),
            Self::Policies(args) => args.run(),
            Self::Nat(args) => args.run(),
            Self::Lab(args) => args.run(),
            Self::Completion(args) => args.run(),
            Self::Man(args) => args.run(),
        }
    }
}

/// The groups of `weir --help`: what they need, and the subcommands in them. Names that do not exist are passed over.
const GROUPS: &[(&str, &[&str])] = &[
    ("Offline (no root, no daemon)", &["validate", "trace", "replay", "test", "diff", "matrix", "why", "lint"]),
    (
        "Node (asks the daemon)",
        &["apply", "status", "flows", "drops", "top", "runtime", "capture", "conntrack", "services", "policies", "nat"],
    ),
    ("Lab (root)", &["lab"]),
    ("Shell", &["completion"]),
];

/// The command line's definition, with its subcommands in groups.
fn command() -> clap::Command {
    let plain = Cli::command();
    let mut help = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (title, names) in GROUPS {
        let found = names.iter().filter_map(|name| plain.find_subcommand(name));
        let lines: Vec<String> =
            found.map(|sub| format!("  {:<11} {}", sub.get_name(), sub.get_about().map(ToString::to_string).unwrap_or_default())).collect();
        if !lines.is_empty() {
            help.push_str(&format!("\n{title}:\n{}\n", lines.join("\n")));
        }
    }
    help.push_str("\nOptions:\n{options}\n\nExit status: 0 fine, 1 the answer is no, 2 wrong usage or cannot run.");
    plain.help_template(help)
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { 2 } else { 0 };
            // Why ignore: there is nowhere left to report to.
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    match cli.command.run() {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", style::error_prefix());
            ExitCode::from(if error.downcast_ref::<Refused>().is_some() { 1 } else { 2 })
        }
    }
}

/// Tells whether whoever read our output has gone (`weir … | head`), which is no fault.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_is_in_a_group() {
        let command = command();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(GROUPS.iter().any(|(_, names)| names.contains(&sub.get_name())), "{} is in no group", sub.get_name());
        }
    }
}
