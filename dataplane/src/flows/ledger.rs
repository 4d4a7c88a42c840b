//! What a worker discards and refuses, counted by reason, pod and rule: numbers in memory of fixed size.
//!
//! Counting is no sampling: the sum over all rows is what the counters say, also where the ring of events overflows. What finds
//! no row any more is counted by its reason alone.

use hashbrown::HashMap;

use crate::events::Event;
use crate::io::{BATCH_MAX, PortId};
use crate::model::{Direction, EndpointIndex};
use crate::policy::RuleRef;
use crate::tables::{Side, Tables};
use crate::verdict::{DropReason, Verdict};

/// Rows of a ledger: pods of a node times directions times the usual reasons. 32 bytes each.
const ROWS: usize = 1024;

/// What is counted together. Indices are of the tables of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Number of the tables that decided.
    pub generation: u32,
    /// Why.
    pub reason: DropReason,
    /// The sender was told.
    pub refused: bool,
    /// The pod of this node whose packet it was, and which way it went.
    pub pod: Option<(EndpointIndex, Direction)>,
    /// The rule that denied; `None` also where a pod is isolated and no rule allowed.
    pub rule: Option<RuleRef>,
}

const _: () = assert!(size_of::<(Entry, u64)>() <= 40);

/// Counts of one worker since it was last read.
#[derive(Clone, Debug)]
pub struct Ledger {
    rows: HashMap<Entry, u64>,
    /// What found no row: by refused or not, and reason code.
    other: Box<[[u64; 256]; 2]>,
    /// What was refused in this batch, by position: the answer may yet find no way out.
    refused: Vec<(usize, Entry)>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { rows: HashMap::with_capacity(ROWS), other: Box::new([[0; 256]; 2]), refused: Vec::with_capacity(BATCH_MAX) }
    }
}

impl Ledger {
    /// Begins a batch.
    pub fn begin(&mut self) {
        self.refused.clear();
    }

    /// Counts a packet that was discarded or refused.
    pub fn count(&mut self, tables: &Tables, event: &Event<'_>, reason: DropReason) {
        let (pod, rule) = blame(tables, event);
        let refused = matches!(event.verdict, Verdict::Reply(_));
        let entry = Entry { generation: tables.generation, reason, refused, pod, rule };
        *self.slot(entry) += 1;
        if refused && self.refused.len() < self.refused.capacity() {
            self.refused.push((event.index, entry));
        }
    }

    /// Counts a packet whose verdict stands and that `port` then did not take: discarded after all.
    #[cold]
    pub fn undelivered(&mut self, tables: &Tables, index: usize, verdict: Verdict, in_port: PortId, port: PortId) {
        if matches!(verdict, Verdict::Reply(Some(_)))
            && let Some((_, entry)) = self.refused.iter().find(|(of, _)| *of == index).copied()
        {
            *self.slot(entry) -= 1;
        }
        let to = if port == in_port { None } else { pod_at(tables, port).map(|pod| (pod, Direction::Ingress)) };
        let pod = to.or_else(|| pod_at(tables, in_port).map(|pod| (pod, Direction::Egress)));
        let reason = DropReason::PortUnavailable;
        *self.slot(Entry { generation: tables.generation, reason, refused: false, pod, rule: None }) += 1;
    }

    /// Every count that is not 0; `None` stands for what found no row, of which only reason and kind are known.
    pub fn counts(&self) -> impl Iterator<Item = (DropReason, bool, Option<&Entry>, u64)> {
        let rows = self.rows.iter().map(|(entry, count)| (entry.reason, entry.refused, Some(entry), *count));
        let other = [false, true].into_iter().flat_map(move |refused| {
            DropReason::ALL.iter().map(move |reason| (*reason, refused, None, self.other[usize::from(refused)][usize::from(reason.code())]))
        });
        rows.chain(other).filter(|(.., count)| *count > 0)
    }

    /// Never allocates: a table of that capacity takes so many rows, and none is ever removed.
    fn slot(&mut self, entry: Entry) -> &mut u64 {
        if self.rows.len() < ROWS || self.rows.contains_key(&entry) {
            self.rows.entry(entry).or_insert(0)
        } else {
            &mut self.other[usize::from(entry.refused)][usize::from(entry.reason.code())]
        }
    }
}

/// The pod of this node whose packet was not wanted, and the rule that said so: of a denial, the pod that was judged; else the
/// sender, else the pod that it was for.
fn blame(tables: &Tables, event: &Event<'_>) -> (Option<(EndpointIndex, Direction)>, Option<RuleRef>) {
    let seen = event.headers.map(|headers| event.trail.seen(headers));
    let owner = |address| tables.owner(address).local_pod();
    let denied = [(Direction::Egress, event.trail.egress), (Direction::Ingress, event.trail.ingress)];
    let denied = denied.into_iter().find_map(|(direction, judged)| Some((direction, judged.filter(|judged| !judged.allowed)?)));
    match (denied, seen) {
        (Some((Direction::Egress, judged)), Some(seen)) => (owner(seen.src).map(|pod| (pod, Direction::Egress)), judged.rule),
        (Some((Direction::Ingress, judged)), Some(seen)) => (owner(seen.dst).map(|pod| (pod, Direction::Ingress)), judged.rule),
        _ => {
            let sender = pod_at(tables, event.in_port).map(|pod| (pod, Direction::Egress));
            (sender.or_else(|| owner(seen?.dst).map(|pod| (pod, Direction::Ingress))), None)
        }
    }
}

/// The pod behind a port.
fn pod_at(tables: &Tables, port: PortId) -> Option<EndpointIndex> {
    match &tables.ports.get(port)?.side {
        Side::Pod(addresses) => tables.owner(*addresses.as_ref()?.first()?).local_pod(),
        Side::Uplink | Side::Host => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Trail;
    use crate::model::NodeConfig;
    use crate::model::NodeState;
    use crate::runtime::Runtime;

    fn tables(generation: u32) -> Tables {
        let state = NodeState::default();
        Tables::compile(&state, &Runtime::offline(&state, NodeConfig::offline("n")), generation)
    }

    fn event(trail: &Trail, index: usize, verdict: Verdict) -> Event<'_> {
        Event { index, in_port: PortId(0), decap: None, headers: None, verdict, trail }
    }

    #[test]
    fn what_finds_no_row_is_counted_by_its_reason() {
        let (mut ledger, trail) = (Ledger::default(), Trail::default());
        let capacity = ledger.rows.capacity();
        for generation in 0..2000 {
            let tables = Tables { generation, ..tables(0) };
            ledger.count(&tables, &event(&trail, 0, Verdict::Drop(DropReason::Multicast)), DropReason::Multicast);
        }
        assert_eq!((ledger.rows.len(), ledger.rows.capacity()), (ROWS, capacity), "it must not grow");
        assert_eq!(ledger.counts().map(|(.., count)| count).sum::<u64>(), 2000);
        let other: u64 = ledger.counts().filter(|(_, _, entry, _)| entry.is_none()).map(|(.., count)| count).sum();
        assert_eq!(other, 2000 - ROWS as u64);
    }

    #[test]
    fn a_refusal_that_found_no_way_out_is_a_drop() {
        let (mut ledger, trail, tables) = (Ledger::default(), Trail::default(), tables(1));
        let refused = Verdict::Reply(Some(DropReason::PolicyDenied));
        ledger.begin();
        ledger.count(&tables, &event(&trail, 3, refused), DropReason::PolicyDenied);
        ledger.undelivered(&tables, 3, refused, PortId(0), PortId(0));
        ledger.undelivered(&tables, 4, Verdict::Forward(PortId(1)), PortId(0), PortId(1));
        let counts: Vec<_> = ledger.counts().map(|(reason, refused, _, count)| (reason, refused, count)).collect();
        assert_eq!(counts, [(DropReason::PortUnavailable, false, 2)]);
    }
}
