//! `weir drops`: what the daemon discarded and refused, packet by packet counted, and who wanted it so.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use weir_dataplane::admin::figures::DropCounts;
use weir_dataplane::flows::{DropCause, DropRow};
use weir_dataplane::model::Direction;
use weir_dataplane::policy::PolicyName;
use weir_dataplane::verdict::DropReason;

use super::Answer;
use super::common::{DaemonArgs, Output, parse_duration, parse_reason, print_data, table};

/// Arguments of `weir drops`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every packet that weir status counts as dropped or rejected is in exactly one row. POD is the pod of this node that \
                        was judged, else the sender, else the receiver; POLICY the one whose rule denied, or all that isolate the pod."
)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// One row for each what; generations are told apart in wide, json and yaml without this
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Only of pods in this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Only of this pod
    #[arg(long, value_name = "NS/POD")]
    pod: Option<String>,
    /// Only for this reason, e.g. POLICY_DENIED
    #[arg(long, value_name = "REASON", value_parser = parse_reason)]
    reason: Option<DropReason>,
    /// Ask again every so often, and show what came on top
    #[arg(short, long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1s", value_parser = parse_duration)]
    watch: Option<Duration>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Reason,
    Policy,
    Pod,
    Generation,
}

/// The ledger as JSON and YAML have it.
#[derive(Debug, Serialize)]
struct Ledger<'a> {
    /// As in `weir status`.
    packets: Sums,
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Sums {
    drop: u64,
    reject: u64,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    packets: u64,
    how: &'static str,
    reason: &'static str,
    reason_code: u8,
    pod: Option<String>,
    direction: Option<Direction>,
    policies: &'a [PolicyName],
    generation: u32,
}

/// The cells by which rows are put together; `true` = all columns.
type Key = fn(&DropCause, bool) -> Vec<String>;

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut client = self.daemon.connect()?;
        let mut shown = BTreeMap::new();
        loop {
            let DropCounts { dropped, refused, rows } = client.drops()?;
            let rows: Vec<DropRow> = rows.into_iter().filter(|row| self.wants(&row.cause)).collect();
            let rows = fresh(rows, &mut shown);
            if self.watch.is_none() || !rows.is_empty() {
                self.print(dropped, refused, &rows)?;
            }
            match self.watch {
                Some(pause) => std::thread::sleep(pause),
                None => return Ok(Answer::Yes),
            }
        }
    }

    fn wants(&self, cause: &DropCause) -> bool {
        let pod = cause.pod.as_ref();
        self.namespace.as_ref().is_none_or(|wanted| pod.is_some_and(|pod| pod.namespace == *wanted))
            && self.pod.as_ref().is_none_or(|wanted| pod.is_some_and(|pod| pod.to_string() == *wanted))
            && self.reason.is_none_or(|wanted| cause.reason == wanted)
    }

    fn print(&self, dropped: u64, refused: u64, rows: &[DropRow]) -> anyhow::Result<()> {
        if !matches!(self.output, Output::Text | Output::Wide) {
            let rows = rows.iter().map(row).collect();
            return print_data(self.output, &Ledger { packets: Sums { drop: dropped, reject: refused }, rows });
        }
        let wide = self.output == Output::Wide;
        let (headers, key): (&[&str], Key) = match self.by {
            Some(By::Reason) => (&["HOW", "REASON"], |c, _| vec![how(c).into(), c.reason.name().into()]),
            Some(By::Policy) => (&["POLICY"], |c, _| vec![policies(c)]),
            Some(By::Pod) => (&["POD"], |c, _| vec![pod(c)]),
            Some(By::Generation) => (&["GENERATION"], |c, _| vec![c.generation.to_string()]),
            None if wide => (&["HOW", "REASON", "POD", "DIRECTION", "POLICY", "GENERATION"], cells),
            None => (&["HOW", "REASON", "POD", "DIRECTION", "POLICY"], cells),
        };
        let mut sums: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for row in rows {
            *sums.entry(key(&row.cause, wide)).or_default() += row.packets;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
        let headers = [&["PACKETS"], headers].concat();
        let text = table(&headers, sums.into_iter().map(|(cells, packets)| [vec![packets.to_string()], cells].concat()));
        if text.is_empty() {
            eprintln!("No drops found.");
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// What came on top of what was shown, which is brought up to date. The first time that is everything.
fn fresh(rows: Vec<DropRow>, shown: &mut BTreeMap<DropCause, u64>) -> Vec<DropRow> {
    let more = |row: DropRow| {
        let before = shown.insert(row.cause.clone(), row.packets).unwrap_or_default();
        // A row may shrink where old generations are put together.
        Some(DropRow { packets: row.packets.saturating_sub(before), ..row }).filter(|row| row.packets > 0)
    };
    rows.into_iter().filter_map(more).collect()
}

fn row(row: &DropRow) -> Row<'_> {
    let DropRow { cause, packets } = row;
    Row {
        packets: *packets,
        how: how(cause),
        reason: cause.reason.name(),
        reason_code: cause.reason.code(),
        pod: cause.pod.as_ref().map(ToString::to_string),
        direction: cause.direction,
        policies: &cause.policies,
        generation: cause.generation,
    }
}

fn cells(cause: &DropCause, wide: bool) -> Vec<String> {
    let direction = match cause.direction {
        Some(Direction::Ingress) => "ingress",
        Some(Direction::Egress) => "egress",
        None => "-",
    };
    let mut cells = vec![how(cause).to_owned(), cause.reason.name().into(), pod(cause), direction.into(), policies(cause)];
    if wide {
        cells.push(if cause.generation == 0 { "older".into() } else { cause.generation.to_string() });
    }
    cells
}

fn how(cause: &DropCause) -> &'static str {
    if cause.refused { "reject" } else { "drop" }
}

fn pod(cause: &DropCause) -> String {
    cause.pod.as_ref().map_or_else(|| "-".into(), ToString::to_string)
}

fn policies(cause: &DropCause) -> String {
    let name = |policy: &PolicyName| match &policy.namespace {
        Some(namespace) => format!("{namespace}/{}", policy.name),
        None => policy.name.clone(),
    };
    let names: Vec<String> = cause.policies.iter().map(name).collect();
    if names.is_empty() { "-".into() } else { names.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_dataplane::flows::PodName;
    use weir_dataplane::model::PolicyKind;
    use weir_dataplane::verdict::DropReason;

    fn denied(packets: u64) -> DropRow {
        let policy = PolicyName { kind: PolicyKind::NetworkPolicy, namespace: Some("shop".into()), name: "db".into() };
        let cause = DropCause {
            generation: 3,
            reason: DropReason::PolicyDenied,
            refused: false,
            pod: Some(PodName { namespace: "shop".into(), name: "db-0".into() }),
            direction: Some(Direction::Ingress),
            policies: vec![policy],
        };
        DropRow { cause, packets }
    }

    #[test]
    fn watching_shows_only_what_came_on_top() {
        let mut shown = BTreeMap::new();
        assert_eq!(fresh(vec![denied(4)], &mut shown), [denied(4)]);
        assert_eq!(fresh(vec![denied(4)], &mut shown), []);
        assert_eq!(fresh(vec![denied(9)], &mut shown), [denied(5)]);
    }

    #[test]
    fn a_row_names_reason_pod_and_policy() {
        let json = serde_json::to_value(row(&denied(4))).unwrap();
        for (field, value) in [("reason", "POLICY_DENIED"), ("pod", "shop/db-0"), ("how", "drop"), ("direction", "ingress")] {
            assert_eq!(json[field], value, "{json}");
        }
        assert_eq!((&json["reason_code"], &json["policies"][0]["name"]), (&133.into(), &"db".into()));
        assert_eq!(cells(&denied(4).cause, true).join(" "), "drop POLICY_DENIED shop/db-0 ingress shop/db 3");
    }
}
