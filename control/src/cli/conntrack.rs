//! `weir conntrack`: the connections that the daemon tracks, in the form of conntrack-tools or as a table with names.

use std::io::{self, BufWriter, Write};

use weir_dataplane::admin::figures::{Connection, ConnectionSide};
use weir_dataplane::model::{NodeState, proto};

use super::Answer;
use super::common::{AskArgs, Listing, Output, age};
use super::connections::{ConnectionFilter, Names, end, sort, state};
use crate::sim::row::protocol as protocol_name;

/// Arguments of `weir conntrack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "text: the lines of `conntrack -L`, as they lie in the table. wide: a table with names, sorted.")]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    filter: ConnectionFilter,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut client = self.ask.daemon.connect()?;
        let named = self.ask.output == Output::Wide || self.filter.pod.is_some();
        let state = if named { client.state()?.1 } else { NodeState::default() };
        let names = Names::new(&state);
        // A large table is written while it is read, and never held.
        let mut out = BufWriter::new(io::stdout().lock());
        let (mut kept, mut written) = (Vec::new(), Ok(()));
        client.connections(None, |connection| {
            if written.is_err() || !self.filter.wants(&connection, &names) {
                return;
            }
            match self.ask.output {
                Output::Text => written = writeln!(out, "{}", line(&connection)),
                Output::Wide | Output::Json | Output::Yaml => kept.push(connection),
            }
        })?;
        written?;
        out.flush()?;
        drop(out);
        if self.ask.output == Output::Text {
            return Ok(Answer::Yes);
        }
        sort(&mut kept);
        LISTING.print(self.ask.output, &kept, |connection| cells(connection, &names))
    }
}

const LISTING: Listing = Listing {
    what: "connections",
    headers: &[
        "PROTO",
        "SOURCE",
        "DESTINATION",
        "REPLY-SOURCE",
        "REPLY-DESTINATION",
        "STATE",
        "AGE",
        "EXPIRES",
        "CLIENT",
        "SERVER",
        "SERVICE",
        "PACKETS",
        "BYTES",
    ],
    narrow: 8,
};

fn cells(connection: &Connection, names: &Names<'_>) -> Vec<String> {
    let Connection { protocol, original, reply, .. } = connection;
    let or_none = |name: Option<String>| name.unwrap_or_else(|| "<none>".into());
    vec![
        protocol_name(*protocol).into_owned(),
        end(*protocol, original.src, original.sport),
        end(*protocol, original.dst, original.dport),
        end(*protocol, reply.src, reply.sport),
        end(*protocol, reply.dst, reply.dport),
        state(connection),
        age(connection.age_secs),
        age(connection.timeout_secs),
        or_none(names.pod(original.src).cloned()),
        or_none(names.pod(reply.src).cloned()),
        or_none(names.service(*protocol, original).map(|service| service.to_string())),
        (original.packets + reply.packets).to_string(),
        (original.bytes + reply.bytes).to_string(),
    ]
}

/// A line as `conntrack -L` prints it (conntrack-tools, `nfct_snprintf`).
fn line(connection: &Connection) -> String {
    let side = |side: &ConnectionSide| {
        let ports = match connection.protocol {
            proto::ICMP | proto::ICMPV6 => format!("id={}", side.sport),
            _ => format!("sport={} dport={}", side.sport, side.dport),
        };
        format!("src={} dst={} {ports}", side.src, side.dst)
    };
    let state = connection.state.as_ref().map(|state| format!("{state} ")).unwrap_or_default();
    let unreplied = if connection.replied { "" } else { "[UNREPLIED] " };
    let assured = if connection.assured { "[ASSURED] " } else { "" };
    format!(
        "{:<8} {} {} {state}{} {unreplied}{} {assured}mark=0 use=1",
        protocol_name(connection.protocol),
        connection.protocol,
        connection.timeout_secs,
        side(&connection.original),
        side(&connection.reply),
    )
}

#[cfg(test)]
mod tests {
    use super::super::connections::through_a_service;
    use super::*;

    #[test]
    fn lines_are_those_that_people_grep() {
        let mut connection = through_a_service();
        assert_eq!(
            line(&connection),
            "tcp      6 431999 ESTABLISHED src=10.244.1.5 dst=10.96.0.10 sport=40000 dport=80 \
             src=10.244.2.7 dst=10.244.1.5 sport=8080 dport=40000 [ASSURED] mark=0 use=1"
        );
        connection.protocol = proto::ICMP;
        (connection.state, connection.replied, connection.assured) = (None, false, false);
        assert!(line(&connection).contains("id=40000 [UNREPLIED] src="));
    }

    #[test]
    fn every_column_has_its_cell() {
        let cells = cells(&through_a_service(), &Names::default());
        assert_eq!(cells.len(), LISTING.headers.len());
        assert_eq!(cells[3..7], ["10.244.2.7:8080", "10.244.1.5:40000", "ESTABLISHED", "61s"]);
    }
}
