//! Why a flow ends as it does: what policies say of both its ends, rule by rule.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use weir_dataplane::model::{Direction, EndpointIndex, Ip};
use weir_dataplane::policy::{Explained, Query, explain};
use weir_dataplane::verdict::DropReason;

use super::{End, Flow, Outcome, World};
use crate::sim::row::PolicySide;

/// What was asked of one side: the pod, the direction, the peer, protocol and port, and whether a Service was asked for.
type Side = (EndpointIndex, Direction, Ip, u8, u16, bool);

/// Answers that are remembered: Services with the same backends have the same ones, and each reads all policies.
#[derive(Default)]
pub(super) struct Memo(Mutex<HashMap<Side, Explained>>);

/// More are forgotten, all at once: a matrix asks for millions.
const REMEMBERED_MAX: usize = 1 << 15;

impl Memo {
    fn get(&self, side: Side, explain: impl FnOnce() -> Explained) -> Explained {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&side) {
            return known.clone();
        }
        let explained = explain();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == REMEMBERED_MAX {
            known.clear();
        }
        known.insert(side, explained.clone());
        explained
    }
}

impl World {
    /// What policy says of both ends of a flow that takes `end`: egress of the source, ingress of the destination; `None` for what
    /// is no pod.
    pub fn sides(&self, flow: &Flow, end: &End, via_service: bool) -> [Option<PolicySide>; 2] {
        let (dst, port) = end.backend.map_or((flow.dst, flow.port), |b| (b.ip().into(), b.port()));
        let away = self.homes.get(&dst).map(|(node, _)| node) != self.homes.get(&flow.src).map(|(node, _)| node);
        let arrives_as = end.snat.filter(|_| away).map_or(flow.src, Ip::from);
        let side = |pod: Ip, direction, peer: Ip| {
            let Some((node, false)) = self.homes.get(&pod) else { return None };
            // Only its own node is more to a pod than others.
            let own = self.homes.get(&peer) == Some(&(*node, true));
            // A node that only pods mention has tables without any pod.
            let made = self.nodes[*node].get().filter(|tables| !tables.state.endpoints.is_empty());
            let tables = if own { self.node(*node) } else { made.unwrap_or(&self.everywhere) };
            let endpoint = *self.pods.get(&pod)?;
            let query = Query { pod: endpoint, direction, peer, protocol: flow.proto, port, via_service };
            let asked = (endpoint, direction, peer, flow.proto, port, via_service);
            let explained = self.memo.get(asked, || explain(&tables.state, &tables.runtime, &query));
            Some(PolicySide { direction, explained })
        };
        [side(flow.src, Direction::Egress, dst), side(dst, Direction::Ingress, arrives_as)]
    }

    /// Why a flow ends as it does, in the words of policies and drop reasons.
    pub fn why(&self, flow: &Flow, outcome: &Outcome) -> String {
        let mut reasons: Vec<String> = Vec::new();
        for end in &outcome.ends {
            let sides = self.sides(flow, end, outcome.service.is_some());
            let denied = matches!(end.reason, Some("POLICY_DENIED" | "POLICY_DENY"));
            let told = sides.iter().flatten().filter(|s| if denied { !s.explained.allowed } else { !s.explained.by.is_empty() });
            let mut words: Vec<String> = told.map(PolicySide::to_string).collect();
            if words.is_empty() {
                let reason = DropReason::ALL.iter().find(|r| Some(r.name()) == end.reason);
                words.push(reason.map_or("no policy isolates either end".into(), |r| r.words().to_owned()));
            }
            let words = words.join("; ");
            if !reasons.contains(&words) {
                reasons.push(words);
            }
        }
        reasons.join(" or ")
    }
}
