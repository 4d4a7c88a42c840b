//! What was discarded and refused since the daemon started, by names: the sum of the workers' ledgers.
//!
//! Rows are named by the tables that decided, while these are still there. The number of rows is bounded: where there are too
//! many, old generations are put together, then everything but the reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Ledger, PodName};
use crate::model::{Direction, EndpointIndex};
use crate::policy::{PolicyName, RuleRef, isolating};
use crate::tables::Tables;
use crate::verdict::DropReason;

/// Most rows.
pub const DROP_ROWS_MAX: usize = 8192;

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropCause {
    /// Number of the tables that decided; 0 = of several, long ago.
    pub generation: u32,
    /// Why.
    pub reason: DropReason,
    /// The sender was told, by a reset or an ICMP error.
    pub refused: bool,
    /// The pod of this node whose packets they were: the one that was judged, else the sender, else who they were for.
    pub pod: Option<PodName>,
    /// Which way, relative to that pod.
    pub direction: Option<Direction>,
    /// The policies that denied: the one whose rule did, or all that isolate the pod.
    pub policies: Vec<PolicyName>,
}

/// A cause and how many packets it cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRow {
    /// Why, whose, by whom.
    #[serde(flatten)]
    pub cause: DropCause,
    /// Packets.
    pub packets: u64,
}

/// The ledger of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Drops(BTreeMap<DropCause, u64>);

impl Drops {
    /// Adds what a worker counted. `tables` are those in force or, while new ones are put in force, the ones before; what others
    /// decided has no names but its reason's.
    pub fn add(&mut self, ledger: &Ledger, tables: &[&Tables]) {
        for (reason, refused, entry, count) in ledger.counts() {
            let deciding = entry.and_then(|entry| Some((entry, *tables.iter().find(|t| t.generation == entry.generation)?)));
            let cause = match deciding {
                Some((entry, tables)) => named(tables, reason, refused, entry.pod, entry.rule),
                None => bare(entry.map_or(0, |entry| entry.generation), reason, refused),
            };
            *self.0.entry(cause).or_default() += count;
        }
        self.shrink(DROP_ROWS_MAX);
    }

    /// All rows, most packets first.
    pub fn rows(&self) -> Vec<DropRow> {
        let mut rows: Vec<DropRow> = self.0.iter().map(|(cause, packets)| DropRow { cause: cause.clone(), packets: *packets }).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.packets));
        rows
    }

    /// Packets discarded, or refused, in all.
    pub fn sum(&self, refused: bool) -> u64 {
        self.0.iter().filter(|(cause, _)| cause.refused == refused).map(|(_, count)| count).sum()
    }

    /// Puts rows together until there are at most `max`.
    fn shrink(&mut self, max: usize) {
        while self.0.len() > max {
            let newest = self.0.keys().next_back().map_or(0, |cause| cause.generation);
            let oldest = self.0.keys().map(|cause| cause.generation).find(|generation| *generation > 0 && *generation < newest);
            match oldest {
                Some(oldest) => self.merge(|cause| {
                    let generation = if cause.generation == oldest { 0 } else { cause.generation };
                    DropCause { generation, ..cause }
                }),
                None => {
                    self.merge(|cause| bare(0, cause.reason, cause.refused));
                    return;
                }
            }
        }
    }

    fn merge(&mut self, into: impl Fn(DropCause) -> DropCause) {
        for (cause, count) in std::mem::take(&mut self.0) {
            *self.0.entry(into(cause)).or_default() += count;
        }
    }
}

fn bare(generation: u32, reason: DropReason, refused: bool) -> DropCause {
    DropCause { generation, reason, refused, pod: None, direction: None, policies: Vec::new() }
}

fn named(tables: &Tables, reason: DropReason, refused: bool, pod: Option<(EndpointIndex, Direction)>, rule: Option<RuleRef>) -> DropCause {
    let state = &tables.state;
    let policies = match (rule, pod) {
        (Some(rule), _) => vec![state.policies[tables.policies.site(rule).policy as usize].full_name()],
        (None, Some((pod, direction))) if reason == DropReason::PolicyDenied => isolating(state, pod, direction),
        (None, _) => Vec::new(),
    };
    let name = pod.map(|(pod, _)| &state.endpoints[pod as usize]);
    DropCause {
        generation: tables.generation,
        reason,
        refused,
        pod: name.map(|pod| PodName { namespace: pod.namespace.clone(), name: pod.name.clone() }),
        direction: pod.map(|(_, direction)| direction),
        policies,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(generation: u32, pod: &str) -> DropCause {
        let pod = PodName { namespace: "shop".into(), name: pod.into() };
        DropCause { pod: Some(pod), direction: Some(Direction::Ingress), ..bare(generation, DropReason::PolicyDenied, false) }
    }

    #[test]
    fn too_many_rows_lose_their_generation_first_and_their_pods_last_and_never_a_packet() {
        let mut drops = Drops::default();
        for generation in 1..=10 {
            for pod in ["a", "b"] {
                drops.0.insert(cause(generation, pod), 1);
            }
        }
        drops.shrink(8);
        assert!(drops.0.len() <= 8);
        assert_eq!((drops.sum(false), drops.sum(true)), (20, 0));
        assert_eq!(drops.0[&cause(10, "a")], 1, "the newest stays");
        assert_eq!(drops.0[&cause(0, "a")], 7, "the oldest are together");
        (0..20).for_each(|pod| drops.0.extend([(cause(10, &pod.to_string()), 1)]));
        drops.shrink(8);
        assert_eq!((drops.0.len(), drops.sum(false)), (1, 40));
    }
}
