//! `weir trace`: what happens to the first packet of one connection, and why.

use std::io::{self, Write};

use clap::ValueEnum;
use weir_dataplane::model::{Family, proto};

use super::Answer;
use super::common::{ClusterArgs, Output, print_data};
use crate::sim::place::Place;
use crate::sim::trace::{Question, trace};

/// Arguments of `weir trace`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connection: Connection,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Which connection.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// Who opens the connection: namespace/pod, node/name or an address
    #[arg(long, short = 'S', value_name = "PLACE")]
    from: Place,
    /// To whom: namespace/pod, svc/namespace/name, node/name or an address
    #[arg(long, short = 'D', value_name = "PLACE")]
    to: Place,
    /// Protocol
    #[arg(long, value_enum, default_value = "tcp")]
    proto: Proto,
    /// Destination port [default: the Service's first one, else 80]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Source port
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    sport: u16,
    /// Only this family [default: that of the destination's first address that the source has too]
    #[arg(long, value_enum)]
    family: Option<FamilyArg>,
    /// Seed of what is left to chance
    #[arg(long, value_name = "N", default_value_t = crate::sim::scenario::SEED)]
    seed: u64,
}

/// Protocols that a person may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FamilyArg {
    Ipv4,
    Ipv6,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (snapshot, config) = self.cluster.load_or_first()?;
        let answer = trace(&snapshot, &config, &self.connection.question()).map_err(anyhow::Error::msg)?;
        match self.output {
            Output::Text | Output::Wide => io::stdout().write_all(answer.text().as_bytes())?,
            form => print_data(form, &answer)?,
        }
        Ok(Answer::Yes)
    }
}

impl Connection {
    /// What is asked.
    pub(super) fn question(&self) -> Question {
        Question {
            from: self.from.clone(),
            to: self.to.clone(),
            proto: match self.proto {
                Proto::Tcp => proto::TCP,
                Proto::Udp => proto::UDP,
                Proto::Sctp => proto::SCTP,
                Proto::Icmp => proto::ICMP,
                Proto::Icmpv6 => proto::ICMPV6,
            },
            port: self.port,
            sport: self.sport,
            family: self.family.map(|family| match family {
                FamilyArg::Ipv4 => Family::V4,
                FamilyArg::Ipv6 => Family::V6,
            }),
            seed: self.seed,
        }
    }
}
