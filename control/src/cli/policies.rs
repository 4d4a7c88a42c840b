//! `weir policies`: the policies that the daemon enforces on this node's pods.

use serde::Serialize;
use weir_dataplane::model::{NodeState, Policy, PolicyKind, Selection, Tier};

use super::Answer;
use super::common::{DaemonArgs, Output, print_data, print_table};

/// Arguments of `weir policies`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Only of this namespace; cluster-wide policies have none
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// One policy, as JSON and YAML have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: PolicyKind,
    namespace: Option<String>,
    name: String,
    tier: Tier,
    priority: i32,
    subject: String,
    /// `None` where the policy does not act in this direction.
    ingress_rules: Option<usize>,
    egress_rules: Option<usize>,
    /// Pods of this node that it selects, `namespace/name`.
    pods: Vec<String>,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let (_, state) = self.daemon.connect()?.state()?;
        let rows: Vec<Row> = state
            .policies
            .iter()
            .map(|p| row(&state, p))
            .filter(|row| self.namespace.is_none() || self.namespace == row.namespace)
            .collect();
        match self.output {
            Output::Text => print_table("policies", &HEADERS[..7], rows.iter().map(|row| cells(row).into_iter().take(7).collect()))?,
            Output::Wide => print_table("policies", HEADERS, rows.iter().map(cells))?,
            form => print_data(form, &rows)?,
        }
        Ok(Answer::Yes)
    }
}

const HEADERS: &[&str] = &["NAMESPACE", "NAME", "KIND", "SUBJECT", "INGRESS", "EGRESS", "PODS", "TIER", "PRIORITY", "SELECTED"];

fn cells(row: &Row) -> Vec<String> {
    let rules = |count: Option<usize>| match count {
        None => "-".into(),
        Some(0) => "no rules".into(),
        Some(1) => "1 rule".into(),
        Some(count) => format!("{count} rules"),
    };
    vec![
        row.namespace.clone().unwrap_or_else(|| "<cluster>".into()),
        row.name.clone(),
        format!("{:?}", row.kind),
        if row.subject.is_empty() { "<all>".into() } else { row.subject.clone() },
        rules(row.ingress_rules),
        rules(row.egress_rules),
        row.pods.len().to_string(),
        format!("{:?}", row.tier),
        row.priority.to_string(),
        row.pods.join(","),
    ]
}

fn row(state: &NodeState, policy: &Policy) -> Row {
    let (subject, identities) = match state.selections.get(policy.subject as usize) {
        Some(Selection::Pods { namespace_text, pod_text, identities, .. }) => {
            let namespaces = namespace_text.as_ref().filter(|text| !text.is_empty()).map(|text| format!("namespaces {text}: "));
            (namespaces.unwrap_or_default() + pod_text, identities.as_slice())
        }
        _ => (String::new(), &[][..]),
    };
    let local = state.endpoints.iter().filter(|e| e.node == state.this_node && !e.host_network);
    Row {
        kind: policy.kind,
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        tier: policy.tier,
        priority: policy.priority,
        subject,
        ingress_rules: policy.ingress.as_ref().map(Vec::len),
        egress_rules: policy.egress.as_ref().map(Vec::len),
        pods: local.filter(|e| identities.contains(&e.identity)).map(|e| format!("{}/{}", e.namespace, e.name)).collect(),
    }
}
