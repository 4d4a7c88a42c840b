//! Load for the side-by-side runs (`bench/peers`): a sender of frames, a receiver that counts and checks, round trips.
//!
//! `flood send` and `flood sink` are the two ends of a rate, `flood echo` and `flood trips` those of a latency. Each prints one
//! JSON object; what makes a figure worthless (a wrong byte, nothing that arrived) is an error instead.

#![forbid(unsafe_code)]

mod frames;
mod send;
mod sink;
mod trips;

use clap::Parser;

#[derive(Debug, Parser)]
enum Command {
    /// Sends UDP frames as fast as it can
    Send(send::Args),
    /// Counts datagrams and checks a sample, for a while after the first one
    Sink(sink::Args),
    /// Measures round trips, one at a time
    Trips(trips::Args),
    /// Answers round trips until it is ended
    Echo(trips::EchoArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Send(args) => send::run(&args),
        Command::Sink(args) => sink::run(&args),
        Command::Trips(args) => trips::run(&args),
        Command::Echo(args) => trips::echo(&args),
    }
}
