//! `weir services`: what the daemon serves, by Service port and family.

use serde::Serialize;
use weir_dataplane::model::{FrontendKind, NodeState, Service};

use super::Answer;
use super::common::{AskArgs, Listing, ObjectArgs, endpoint};

/// Arguments of `weir services`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    ask: AskArgs,
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
        let (_, state) = self.ask.daemon.connect()?.state()?;
        let rows: Vec<Row> = rows(&state).filter(|row| self.objects.wants(Some(&row.namespace), &row.name)).collect();
        LISTING.print(self.ask.output, &rows, cells)
    }
}

const LISTING: Listing = Listing {
    what: "services",
    headers: &["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS", "LOCAL", "INTERNAL", "EXTERNAL", "AFFINITY"],
    narrow: 6,
};

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
