//! `weir policies`: the policies that the daemon enforces on this node's pods.

use serde::Serialize;
use weir_dataplane::model::{NodeState, Policy, PolicyKind, Selection, Tier};

use super::Answer;
use super::common::{AskArgs, Listing, ObjectArgs};

/// Arguments of `weir policies`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    objects: ObjectArgs,
    /// Only those that select this pod
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
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
        let (_, state) = self.ask.daemon.connect()?.state()?;
        let rows = state.policies.iter().map(|policy| row(&state, policy));
        let rows: Vec<Row> = rows
            .filter(|row| self.objects.wants(row.namespace.as_deref(), &row.name))
            .filter(|row| self.pod.as_ref().is_none_or(|pod| row.pods.contains(pod)))
            .collect();
        LISTING.print(self.ask.output, &rows, cells)
    }
}

/// In the order in which they are evaluated.
const LISTING: Listing = Listing {
    what: "policies",
    headers: &["NAMESPACE", "NAME", "KIND", "SUBJECT", "INGRESS", "EGRESS", "PODS", "TIER", "PRIORITY", "SELECTED"],
    narrow: 7,
};

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
