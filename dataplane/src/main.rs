//! `weir-dataplane`: the daemon. Arguments, configuration, daemon, signals; nothing clever.

#![deny(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use crossbeam::channel::Sender;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;
use weir_dataplane::config;
use weir_dataplane::daemon::{Daemon, End, Server, take_over};

/// Moves a Kubernetes node's packets in user space.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What this node is (kind: NodeConfig)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// End the daemon that listens at the configured socket first. Its connections are not taken along
    #[arg(long)]
    takeover: bool,
    /// Form of the log on stderr; its level is set by RUST_LOG
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    start_log(args.log_format);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    // Before the first thread, so that all of them inherit it and the signals come to this one alone.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    // The socket and its folder are ours alone from the first moment.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));

    let (ends, ended) = crossbeam::channel::unbounded();
    end_on_panic(ends.clone());
    let its_ends = ends.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || match signals.wait() {
        Ok(signal) => drop(its_ends.send(End::Signal(signal))),
        Err(error) => drop(its_ends.send(End::Failed(format!("cannot wait for signals: {error}")))),
    })?;

    if args.takeover {
        take_over(&config.socket)?;
    }
    // The socket first: a second daemon of this node finds the first one there and touches nothing.
    let server = Arc::new(Server::bind(&config.socket)?);
    let daemon = Arc::new(Daemon::start(config, ends.clone())?);
    daemon.serve_metrics();
    let follower = std::thread::Builder::new().name("follow".into()).spawn({
        let daemon = daemon.clone();
        move || {
            if let Err(error) = daemon.follow() {
                let _ = ends.send(End::Failed(format!("cannot follow the node's network: {error:#}")));
            }
        }
    })?;
    std::thread::Builder::new().name("server".into()).spawn({
        let (server, daemon) = (server.clone(), Arc::downgrade(&daemon));
        move || server.serve(&daemon)
    })?;
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("ready");

    let end = ended.recv()?;
    tracing::info!(?end, "ending");
    notify(&[sd_notify::NotifyState::Stopping]);
    daemon.stop();
    // If it panicked, that is why we are here.
    let _ = follower.join();
    // Conversations hold the daemon only while they work for an answer.
    let mut daemon = daemon;
    loop {
        match Arc::try_unwrap(daemon) {
            Ok(owned) => break owned.shut_down(),
            Err(shared) => {
                daemon = shared;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    // Last: whoever finds no socket finds nothing else of this daemon either.
    server.remove();
    match end {
        End::Signal(_) | End::Asked => Ok(()),
        End::Failed(why) => anyhow::bail!("{why}\n  pods are cut off until the daemon is started again"),
    }
}

/// Has a panic of any thread end the daemon. With a thread less it would only seem to live; without it pods are cut off, which
/// is safe and seen.
fn end_on_panic(ends: Sender<End>) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        let _ = ends.send(End::Failed(format!("a thread panicked: {panic}")));
    }));
}

/// Tells systemd, where it is there.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_any_thread_ends_the_daemon() {
        let (ends, ended) = crossbeam::channel::unbounded();
        end_on_panic(ends);
        let worker = std::thread::Builder::new().name("worker-7".into()).spawn(|| panic!("no such port"));
        assert!(worker.unwrap().join().is_err());
        let end = ended.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(matches!(&end, End::Failed(why) if why.contains("no such port")), "{end:?}");
    }
}
