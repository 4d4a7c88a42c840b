//! What only traffic can tell: rules that no packet hits, packets that no interface takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use weir_dataplane::capture::{Capture, CaptureError};
use weir_dataplane::model::{Direction, PolicyKind};
use weir_dataplane::policy::RuleRef;

use super::Finding;
use crate::sim::node::SimNode;
use crate::sim::replay::{self, Hint, Taken};
use crate::source::objects::Snapshot;

/// Replays a capture on a node and tells what it shows.
///
/// # Errors
/// Where the capture cannot be read to its end.
pub fn lint(snapshot: &Snapshot, node: &mut SimNode, pcap: &Path, hints: &[Hint]) -> Result<Vec<Finding>, CaptureError> {
    let mut hit: BTreeSet<u32> = BTreeSet::new();
    let mut too_big: BTreeMap<String, (u64, u16)> = BTreeMap::new();
    let tables = node.tables();
    let (policies, state) = (tables.policies.clone(), tables.state.clone());
    let names: Vec<String> = node.runtime().ports.iter().map(|port| port.name.clone()).collect();
    let port_of = replay::port_of(node, hints).map_err(|error| CaptureError::Open(std::io::Error::other(error)))?;
    let mut watcher = |taken: &Taken<'_>| {
        let trail = &taken.fate.trail;
        hit.extend([trail.egress, trail.ingress].into_iter().flatten().filter_map(|judged| judged.rule).map(|rule: RuleRef| rule.0));
        if let Some(mtu) = trail.mtu {
            let from = names.get(usize::from(taken.fate.in_port.0)).cloned().unwrap_or_default();
            too_big.entry(from).or_insert((0, mtu)).0 += 1;
        }
        Ok(())
    };
    let ended = replay::run(node, Capture::open(pcap)?, port_of, Some(&mut watcher), |_, _| {}).map_err(CaptureError::Open)?;
    if let Some(fault) = ended.fault {
        return Err(fault);
    }
    let mut findings = Vec::new();
    for (number, site) in (0..).zip(policies.rules()).filter(|(number, _)| !hit.contains(number)) {
        let _: u32 = number;
        let policy = &state.policies[site.policy as usize];
        let (word, kind) = (if site.direction == Direction::Ingress { "ingress" } else { "egress" }, policy.kind);
        let meta = match kind {
            PolicyKind::NetworkPolicy => {
                let mut all = snapshot.network_policies.iter().map(|p| &p.meta);
                all.find(|m| Some(&m.namespace) == policy.namespace.as_ref() && m.name == policy.name)
            }
            _ => snapshot.cluster_policies.iter().filter(|p| p.kind == kind).map(|p| &p.meta).find(|m| m.name == policy.name),
        };
        let Some(meta) = meta else { continue };
        let why = "no packet of the capture that opens a flow is decided by this rule on this node".to_owned();
        let fix = "if the capture covers enough time, the rule can go, or it does not match what it was written for".to_owned();
        let kind = crate::source::objects::policy_kind(kind);
        findings.push(Finding::new("rule-never-hit", kind, meta, format!("spec.{word}[{}]", site.rule), why, fix));
    }
    for (port, (count, mtu)) in too_big {
        findings.push(Finding {
            file: pcap.display().to_string(),
            line: 0,
            object: port,
            field: String::new(),
            check: "mtu",
            why: format!("sends {count} packets larger than {mtu} bytes, which is all that the way out takes"),
            fix: format!("give its interface an MTU of {mtu}"),
        });
    }
    Ok(findings)
}
