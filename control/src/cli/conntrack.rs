//! `weir conntrack`: the connections that the daemon tracks, in the form of conntrack-tools.

use std::io::{self, BufWriter, Write};
use std::net::IpAddr;

use weir_dataplane::admin::protocol::{Connection, ConnectionSide};
use weir_dataplane::model::proto;

use super::Answer;
use super::common::{DaemonArgs, Output, print_data, protocol_name};

/// Arguments of `weir conntrack`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Only of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(short, long, value_name = "PROTO")]
    proto: Option<String>,
    /// Only where an end has this address, before or after translation
    #[arg(short, long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// Only where an end has this port, before or after translation
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Output form; wide adds packets and bytes
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut client = self.daemon.connect()?;
        let mut out = BufWriter::new(io::stdout().lock());
        let mut kept = Vec::new();
        let mut written = Ok(());
        client.connections(|connection| {
            if !self.wants(&connection) || written.is_err() {
                return;
            }
            match self.output {
                Output::Text | Output::Wide => written = writeln!(out, "{}", line(&connection, self.output == Output::Wide)),
                Output::Json | Output::Yaml => kept.push(connection),
            }
        })?;
        written?;
        out.flush()?;
        drop(out);
        if matches!(self.output, Output::Json | Output::Yaml) {
            print_data(self.output, &kept)?;
        }
        Ok(Answer::Yes)
    }

    fn wants(&self, connection: &Connection) -> bool {
        let sides = [&connection.original, &connection.reply];
        self.proto
            .as_ref()
            .is_none_or(|p| p.eq_ignore_ascii_case(&protocol_name(connection.protocol)) || *p == connection.protocol.to_string())
            && self.address.is_none_or(|a| sides.iter().any(|s| s.src == a || s.dst == a))
            && self.port.is_none_or(|p| sides.iter().any(|s| s.sport == p || s.dport == p))
    }
}

/// A line as `conntrack -L` prints it (conntrack-tools, `nfct_snprintf`).
fn line(connection: &Connection, wide: bool) -> String {
    let side = |side: &ConnectionSide| {
        let ports = match connection.protocol {
            proto::ICMP | proto::ICMPV6 => format!("id={}", side.sport),
            _ => format!("sport={} dport={}", side.sport, side.dport),
        };
        let counts = if wide { format!(" packets={} bytes={}", side.packets, side.bytes) } else { String::new() };
        format!("src={} dst={} {ports}{counts}", side.src, side.dst)
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
    use super::*;

    fn connection() -> Connection {
        let side = |src: &str, dst: &str, sport, dport| ConnectionSide {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            sport,
            dport,
            packets: 5,
            bytes: 420,
        };
        Connection {
            protocol: proto::TCP,
            state: Some("ESTABLISHED".into()),
            timeout_secs: 431_999,
            original: side("10.244.1.5", "10.96.0.10", 40000, 80),
            reply: side("10.244.2.7", "10.244.1.5", 8080, 40000),
            replied: true,
            assured: true,
        }
    }

    #[test]
    fn lines_are_those_that_people_grep() {
        let mut connection = connection();
        assert_eq!(
            line(&connection, false),
            "tcp      6 431999 ESTABLISHED src=10.244.1.5 dst=10.96.0.10 sport=40000 dport=80 \
             src=10.244.2.7 dst=10.244.1.5 sport=8080 dport=40000 [ASSURED] mark=0 use=1"
        );
        connection.protocol = proto::ICMP;
        (connection.state, connection.replied, connection.assured) = (None, false, false);
        assert!(line(&connection, true).contains("id=40000 packets=5 bytes=420 [UNREPLIED] src="));
    }

    #[test]
    fn filters_look_at_both_sides_of_a_translation() {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        for (arguments, wanted) in [
            (&["x"][..], true),
            (&["x", "-a", "10.96.0.10"], true),
            (&["x", "--port", "8080", "-p", "TCP"], true),
            (&["x", "-p", "6"], true),
            (&["x", "-p", "udp"], false),
            (&["x", "-a", "10.96.0.11"], false),
        ] {
            assert_eq!(Line::parse_from(arguments).args.wants(&connection()), wanted, "{arguments:?}");
        }
    }
}
