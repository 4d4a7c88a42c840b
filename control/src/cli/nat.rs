//! `weir nat`: the translations in force, one a connection whose addresses or ports are rewritten.

use serde::Serialize;
use weir_dataplane::admin::figures::Connection;

use super::Answer;
use super::common::{AskArgs, Listing, age};
use super::connections::{ConnectionFilter, Names, ServiceName, end, sort, state};
use crate::sim::row::protocol as protocol_name;

/// Arguments of `weir nat`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    filter: ConnectionFilter,
}

/// One translation, as JSON and YAML have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    protocol: String,
    /// What the opener sent.
    original: Ends,
    /// What it became.
    translated: Ends,
    /// The Service that was asked for, where it still exists.
    service: Option<ServiceName>,
    /// The pod that opened it, `namespace/name`.
    client: Option<String>,
    /// The pod that it was led to, likewise.
    backend: Option<String>,
    /// The source became the node.
    masquerade: bool,
    state: String,
    age_secs: u64,
    timeout_secs: u64,
    /// Packets and bytes, both directions.
    packets: u64,
    bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Ends {
    src: String,
    dst: String,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut client = self.ask.daemon.connect()?;
        let (_, state) = client.state()?;
        let names = Names::new(&state);
        let mut kept = Vec::new();
        client.connections(None, |connection| {
            if is_translated(&connection) && self.filter.wants(&connection, &names) {
                kept.push(connection);
            }
        })?;
        sort(&mut kept);
        let rows: Vec<Row> = kept.iter().map(|connection| row(connection, &names)).collect();
        LISTING.print(self.ask.output, &rows, cells)
    }
}

const LISTING: Listing = Listing {
    what: "translations",
    headers: &[
        "PROTO",
        "SOURCE",
        "DESTINATION",
        "TO-SOURCE",
        "TO-DESTINATION",
        "SERVICE",
        "BACKEND",
        "MASQUERADE",
        "STATE",
        "AGE",
        "EXPIRES",
        "CLIENT",
        "PACKETS",
        "BYTES",
    ],
    narrow: 11,
};

fn cells(row: &Row) -> Vec<String> {
    let changed = |old: &str, new: &str| if old == new { "-".to_owned() } else { new.to_owned() };
    let or_none = |name: Option<String>| name.unwrap_or_else(|| "<none>".into());
    vec![
        row.protocol.clone(),
        row.original.src.clone(),
        row.original.dst.clone(),
        changed(&row.original.src, &row.translated.src),
        changed(&row.original.dst, &row.translated.dst),
        or_none(row.service.as_ref().map(ToString::to_string)),
        or_none(row.backend.clone()),
        if row.masquerade { "yes" } else { "no" }.into(),
        row.state.clone(),
        age(row.age_secs),
        age(row.timeout_secs),
        or_none(row.client.clone()),
        row.packets.to_string(),
        row.bytes.to_string(),
    ]
}

/// Tells whether the answer goes elsewhere than to where the opener spoke from and to.
fn is_translated(connection: &Connection) -> bool {
    let Connection { original, reply, .. } = connection;
    (original.src, original.sport, original.dst, original.dport) != (reply.dst, reply.dport, reply.src, reply.sport)
}

fn row(connection: &Connection, names: &Names<'_>) -> Row {
    let Connection { protocol, original, reply, .. } = connection;
    let ends = |src, sport, dst, dport| Ends { src: end(*protocol, src, sport), dst: end(*protocol, dst, dport) };
    Row {
        protocol: protocol_name(*protocol).into_owned(),
        original: ends(original.src, original.sport, original.dst, original.dport),
        translated: ends(reply.dst, reply.dport, reply.src, reply.sport),
        service: names.service(*protocol, original),
        client: names.pod(original.src).cloned(),
        backend: names.pod(reply.src).cloned(),
        masquerade: original.src != reply.dst,
        state: state(connection),
        age_secs: connection.age_secs,
        timeout_secs: connection.timeout_secs,
        packets: original.packets + reply.packets,
        bytes: original.bytes + reply.bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_dataplane::model::{Endpoint, Frontend, FrontendKind, NodeState, Service};

    use super::super::connections::through_a_service;
    use super::*;

    fn cluster() -> NodeState {
        let pod = |name: &str, address: &str| Endpoint {
            namespace: "shop".into(),
            name: name.into(),
            node: 0,
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            identity: 0,
        };
        let service = Service {
            namespace: "shop".into(),
            name: "web".into(),
            port_name: "http".into(),
            frontends: vec![Frontend { address: "10.96.0.10".parse().unwrap(), port: 80, kind: FrontendKind::ClusterIp }],
            any_usable: true,
            ..Service::default()
        };
        let endpoints = vec![pod("client", "10.244.1.5"), pod("web-0", "10.244.2.7")];
        NodeState { endpoints: endpoints.into(), services: vec![Arc::new(service)], ..NodeState::default() }
    }

    #[test]
    fn a_row_names_the_service_and_both_pods() {
        let state = cluster();
        let row = row(&through_a_service(), &Names::new(&state));
        assert_eq!(row.original, Ends { src: "10.244.1.5:40000".into(), dst: "10.96.0.10:80".into() });
        assert_eq!(row.translated, Ends { src: "10.244.1.5:40000".into(), dst: "10.244.2.7:8080".into() });
        assert_eq!(
            cells(&row)[2..],
            [
                "10.96.0.10:80",
                "-",
                "10.244.2.7:8080",
                "shop/web:http",
                "shop/web-0",
                "no",
                "ESTABLISHED",
                "61s",
                "4d23h",
                "shop/client",
                "10",
                "840"
            ]
        );
        assert_eq!(cells(&row).len(), LISTING.headers.len());
    }

    #[test]
    fn a_masqueraded_flow_is_a_translation_and_an_untouched_one_is_not() {
        let mut connection = through_a_service();
        (connection.reply.src, connection.reply.sport) = (connection.original.dst, connection.original.dport);
        assert!(!is_translated(&connection));
        (connection.reply.dst, connection.reply.dport) = ("10.0.0.10".parse().unwrap(), 61_000);
        assert!(is_translated(&connection));
        let row = row(&connection, &Names::default());
        assert_eq!(cells(&row)[3..8], ["10.0.0.10:61000", "-", "<none>", "<none>", "yes"]);
    }
}
