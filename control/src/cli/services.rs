//! `weir services`: what the daemon serves, by Service port and family.

use serde::Serialize;
use weir_dataplane::model::{FrontendKind, NodeState, Service};

use super::Answer;
use super::common::{DaemonArgs, Output, endpoint, print_data, print_table};

/// Arguments of `weir services`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// One Service port of one family, as JSON and YAML have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    port: String,
    protocol: weir_dataplane::model::Protocol,
    frontends: Vec<FrontendRow>,
    /// Usable under Cluster policy.
    backends: Vec<String>,
    /// Usable under Local policy.
    local_backends: Vec<String>,
    internal_traffic_policy: &'static str,
    external_traffic_policy: &'static str,
    affinity_timeout_secs: Option<u32>,
}

#[derive(Debug, Serialize)]
struct FrontendRow {
    kind: FrontendKind,
    address: String,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (_, state) = self.daemon.connect()?.state()?;
        let rows: Vec<Row> = rows(&state).filter(|row| self.namespace.as_ref().is_none_or(|n| *n == row.namespace)).collect();
        match self.output {
            Output::Text => print_table("services", &HEADERS[..6], rows.iter().map(|row| cells(row).into_iter().take(6).collect()))?,
            Output::Wide => print_table("services", HEADERS, rows.iter().map(cells))?,
            form => print_data(form, &rows)?,
        }
        Ok(Answer::Yes)
    }
}

const HEADERS: &[&str] = &["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS", "LOCAL", "INTERNAL", "EXTERNAL", "AFFINITY"];

fn cells(row: &Row) -> Vec<String> {
    let or_none = |list: &[String]| if list.is_empty() { "<none>".into() } else { list.join(",") };
    let frontends: Vec<String> = row.frontends.iter().map(|f| f.address.clone()).collect();
    vec![
        row.namespace.clone(),
        row.name.clone(),
        if row.port.is_empty() { "<unnamed>".into() } else { row.port.clone() },
        format!("{:?}", row.protocol).to_uppercase(),
        or_none(&frontends),
        or_none(&row.backends),
        or_none(&row.local_backends),
        row.internal_traffic_policy.into(),
        row.external_traffic_policy.into(),
        row.affinity_timeout_secs.map_or("None".into(), |secs| format!("ClientIP {secs}s")),
    ]
}

fn rows(state: &NodeState) -> impl Iterator<Item = Row> {
    let policy = |local| if local { "Local" } else { "Cluster" };
    state.services.iter().map(move |service| Row {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        port: service.port_name.clone(),
        protocol: service.protocol,
        frontends: service.frontends.iter().map(|f| FrontendRow { kind: f.kind, address: endpoint(f.address, f.port) }).collect(),
        backends: backends(service, &service.cluster),
        local_backends: backends(service, &service.local),
        internal_traffic_policy: policy(service.internal_local),
        external_traffic_policy: policy(service.external_local),
        affinity_timeout_secs: service.affinity_timeout_secs,
    })
}

fn backends(service: &Service, indices: &[u32]) -> Vec<String> {
    indices.iter().filter_map(|i| service.backends.get(*i as usize)).map(|b| endpoint(b.address, b.port)).collect()
}
