//! Why a connection fails, and the least that lets it pass.
//!
//! Two answers where policies are the cause: the smallest set of policies without which it would pass, found by trying sets in
//! order of size, and the smallest NetworkPolicy that admits it: these pods, this peer, this port. Both are proven: the
//! changed snapshot is traced with packets, and compared with the old one over all classes of traffic, so that it is plain what else
//! would change. Where policies are not the cause, the Service or the drop reason is named.

mod kept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread;

use serde::Serialize;
use weir_dataplane::model::{Direction, Ip, NodeConfig, PolicyKind, Tier, proto};
use weir_dataplane::policy::PolicyName;

use crate::diff::{Change, compare};
use crate::sim::place::Place;
use crate::sim::reach::{End, Flow, Nodes, Outcome, World};
use crate::sim::row::endpoint_of;
use crate::sim::trace::{Question, Sent, trace};
use crate::source::load_text;
use crate::source::objects::{EndpointSlice, Meta, Object, Snapshot, policy_kind};

/// What is answered.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The connection's first packet.
    pub packet: Sent,
    /// It passes, whichever backend is chosen: there is nothing to mend.
    pub passes: bool,
    /// In what ways it ends.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Which rules or reasons say so.
    pub why: String,
    /// What is amiss outside of policies.
    pub hint: Option<String>,
    /// The smallest set of policies without which it would pass.
    pub remove: Option<Removal>,
    /// The smallest policies that would let it pass.
    pub add: Option<Addition>,
}

/// Policies without which the connection passes.
#[derive(Debug, Serialize)]
pub struct Removal {
    /// Which.
    pub policies: Vec<PolicyName>,
    /// Everything that ends otherwise without them.
    pub changes: Vec<Change>,
}

/// Policies with which the connection passes.
#[derive(Debug, Serialize)]
pub struct Addition {
    /// NetworkPolicy documents, for `kubectl apply -f -`.
    pub patch: String,
    /// The verdict of `weir trace` with them.
    pub traced: &'static str,
    /// They shut a pod in that no NetworkPolicy isolated before, to override a rule of the Baseline tier. What was open to it stands
    /// in their rules as it is in this snapshot; `changes` tell whether anything is missing.
    pub isolates: bool,
    /// Everything that ends otherwise with them.
    pub changes: Vec<Change>,
}

/// More policies on one connection than this are only tried all together.
const TRIED_MAX: usize = 12;

/// Finds why the connection of `question` fails.
///
/// # Errors
/// As [`trace`].
pub fn why(snapshot: &Snapshot, config: &NodeConfig, question: &Question) -> Result<Answer, String> {
    let traced = trace(snapshot, config, question)?;
    let world = World::new(snapshot, config)?;
    let flow = flow_of(&traced.packet, question.proto)?;
    let outcome = world.reach(&flow);
    let passes = outcome.passes();
    let mut answer =
        Answer { packet: traced.packet, passes, why: world.why(&flow, &outcome), hint: None, remove: None, add: None, outcome };
    if passes {
        return Ok(answer);
    }
    let failing: Vec<&End> = answer.outcome.ends.iter().filter(|end| !end.passes()).collect();
    if !failing.iter().any(|end| matches!(end.reason, Some("POLICY_DENIED" | "POLICY_DENY"))) {
        answer.hint = hint(snapshot, question, &answer.outcome);
        return Ok(answer);
    }
    let via_service = answer.outcome.service.is_some();
    let mut guilty = BTreeMap::new();
    let (mut documents, mut isolates) = (BTreeSet::new(), false);
    for end in failing {
        for side in world.sides(&flow, end, via_service).into_iter().flatten() {
            // Also where the side allows: a policy taken away for the one side may be what allows the other.
            guilty.extend(side.explained.isolated_by.iter().map(|policy| (key(policy), policy.clone())));
            let denying = side.explained.denied_by.as_ref();
            let denying = denying.map(|rule| PolicyName { kind: rule.kind, namespace: rule.namespace.clone(), name: rule.name.clone() });
            match denying {
                Some(policy) => {
                    // Over the Baseline tier a NetworkPolicy has the last word (E1.45); the Admin tier leaves it nothing to add.
                    if tier(&world, &policy) == Some(Tier::Baseline) {
                        isolates = true;
                        documents.extend(document(&world, &flow, end, side.direction, true));
                    }
                    guilty.insert(key(&policy), policy);
                }
                None if side.explained.allowed => {}
                None => documents.extend(document(&world, &flow, end, side.direction, false)),
            }
        }
    }
    let guilty: Vec<PolicyName> = guilty.into_values().collect();
    // Each compares the whole cluster with a changed one.
    let (remove, add) = thread::scope(|scope| {
        let remove = scope.spawn(|| removal(snapshot, config, &world, &flow, &guilty));
        let add = addition(snapshot, config, &world, question, &flow, &documents);
        (remove.join().unwrap_or_else(|_| Err("the search for policies to remove has panicked".into())), add)
    });
    answer.remove = remove?;
    answer.add = add?.map(|found| Addition { isolates, ..found });
    Ok(answer)
}

fn tier(world: &World, policy: &PolicyName) -> Option<Tier> {
    let mut all = world.state().policies.iter();
    all.find(|p| (p.kind, &p.namespace, &p.name) == (policy.kind, &policy.namespace, &policy.name)).map(|p| p.tier)
}

fn key(policy: &PolicyName) -> (PolicyKind, Option<String>, String) {
    (policy.kind, policy.namespace.clone(), policy.name.clone())
}

pub(crate) fn flow_of(packet: &Sent, proto: u8) -> Result<Flow, String> {
    let end = |text: &str| match text.parse::<SocketAddr>() {
        Ok(end) => Ok((Ip::from(end.ip()), end.port())),
        Err(_) => text.parse().map(|ip: IpAddr| (Ip::from(ip), 0)).map_err(|error| format!("{text}: {error}")),
    };
    let ((src, _), (dst, port)) = (end(&packet.src)?, end(&packet.dst)?);
    Ok(Flow { src, dst, proto, port })
}

/// The part of a snapshot that decides on a flow: its ends, the Service that was asked for and the backends; all policies.
fn part(snapshot: &Snapshot, flow: &Flow, outcome: &Outcome) -> Snapshot {
    let mut ends: Vec<IpAddr> = outcome.ends.iter().filter_map(|end| Some(end.backend?.ip())).collect();
    ends.extend([flow.src.to_std(), flow.dst.to_std()]);
    let service = |meta: &Meta| outcome.service.as_ref().is_some_and(|name| *name == format!("svc/{meta}"));
    let services: Vec<_> = snapshot.services.iter().filter(|s| service(&s.meta)).cloned().collect();
    let of_service = |slice: &&EndpointSlice| {
        services.iter().any(|s| s.meta.namespace == slice.meta.namespace && slice.service.as_ref() == Some(&s.meta.name))
    };
    Snapshot {
        pods: snapshot.pods.iter().filter(|pod| pod.addresses.iter().any(|address| ends.contains(address))).cloned().collect(),
        slices: snapshot.slices.iter().filter(of_service).cloned().collect(),
        services,
        nodes: snapshot.nodes.clone(),
        namespaces: snapshot.namespaces.clone(),
        network_policies: snapshot.network_policies.clone(),
        cluster_policies: snapshot.cluster_policies.clone(),
        ..Snapshot::default()
    }
}

/// The smallest subset of `guilty` without which the flow passes.
fn removal(snapshot: &Snapshot, config: &NodeConfig, world: &World, flow: &Flow, guilty: &[PolicyName]) -> Result<Option<Removal>, String> {
    let without = |snapshot: &Snapshot, subset: &[&PolicyName]| {
        let mut less = snapshot.clone();
        for policy in subset {
            less.remove(policy_kind(policy.kind), policy.namespace.as_deref().unwrap_or_default(), &policy.name);
        }
        World::new(&less, config)
    };
    let all: Vec<&PolicyName> = guilty.iter().collect();
    let part = part(snapshot, flow, &world.reach(flow));
    if !without(&part, &all)?.reach(flow).passes() {
        return Ok(None);
    }
    let mut best = all.clone();
    if all.len() <= TRIED_MAX {
        let mut subsets: Vec<u32> = (1..1_u32 << all.len()).collect();
        subsets.sort_by_key(|subset| subset.count_ones());
        for subset in subsets {
            let chosen: Vec<&PolicyName> = (0..all.len()).filter(|n| subset & 1 << n != 0).map(|n| all[n]).collect();
            if without(&part, &chosen)?.reach(flow).passes() {
                best = chosen;
                break;
            }
        }
    }
    // Proven on the whole cluster, not on the part alone.
    let new = without(snapshot, &best)?;
    if !new.reach(flow).passes() {
        return Ok(None);
    }
    Ok(Some(Removal { policies: best.into_iter().cloned().collect(), changes: compare(world, &new).changes }))
}

fn addition(
    snapshot: &Snapshot,
    config: &NodeConfig,
    world: &World,
    question: &Question,
    flow: &Flow,
    documents: &BTreeSet<String>,
) -> Result<Option<Addition>, String> {
    if documents.is_empty() {
        return Ok(None);
    }
    let patch = documents.iter().map(String::as_str).collect::<Vec<_>>().join("---\n");
    let more = patched(snapshot, &patch)?;
    let new = World::new(&more, config)?;
    let traced = trace(&more, config, question)?.verdict;
    if !new.reach(flow).passes() || !matches!(traced, "forward" | "host") {
        return Ok(None);
    }
    Ok(Some(Addition { patch, traced, isolates: false, changes: compare(world, &new).changes }))
}

/// The snapshot with the policies of `patch`, as `kubectl apply` would leave it.
///
/// # Errors
/// Where the patch cannot be loaded.
pub fn patched(snapshot: &Snapshot, patch: &str) -> Result<Snapshot, String> {
    let found = load_text("patch.yaml", patch).map_err(|faults| faults.to_string())?;
    let mut more = snapshot.clone();
    for policy in found.network_policies {
        more.apply(Object::NetworkPolicy(policy));
    }
    Ok(more)
}

/// Labels that are other ones after every rollout.
const FLEETING: [&str; 3] = ["pod-template-hash", "controller-revision-hash", "pod-template-generation"];

/// The labels by which a patch selects a pod.
fn lasting(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    labels.iter().filter(|(key, _)| !FLEETING.contains(&key.as_str()))
}

/// The NetworkPolicy that admits the flow on one side; where it is the first to isolate the pod, with all that is open now.
fn document(world: &World, flow: &Flow, end: &End, direction: Direction, isolates: bool) -> Option<String> {
    let state = world.state();
    let (dst, port) = end.backend.map_or((flow.dst, flow.port), |b| (b.ip().into(), b.port()));
    let arrives_as = end.snat.map_or(flow.src, Ip::from);
    let (subject, other) = match direction {
        Direction::Egress => (flow.src, dst),
        Direction::Ingress => (dst, if endpoint_of(state, flow.src.to_std()).is_some() { flow.src } else { arrives_as }),
    };
    let pod = |ip: Ip| {
        let endpoint = &state.endpoints[endpoint_of(state, ip.to_std())? as usize];
        let labels = &state.identities[endpoint.identity as usize].labels;
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let pairs: Vec<String> = lasting(labels).map(|(key, value)| format!("{}: {}", quoted(key), quoted(value))).collect();
        let selector = if pairs.is_empty() { "{}".into() } else { format!("{{matchLabels: {{{}}}}}", pairs.join(", ")) };
        Some((&endpoint.namespace, &endpoint.name, selector))
    };
    let kept = if isolates { kept::rules(world, subject, direction) } else { String::new() };
    let (namespace, name, subject) = pod(subject)?;
    let (peer, other_name) = match pod(other) {
        Some((theirs, name, selector)) if theirs == namespace => (format!("podSelector: {selector}"), name.clone()),
        Some((theirs, name, selector)) => {
            let label = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: \"{theirs}\"}}}}");
            (format!("{label}\n      podSelector: {selector}"), format!("{theirs}-{name}"))
        }
        None => (
            format!("ipBlock: {{cidr: \"{other}/{}\"}}", if other.is_v4() { 32 } else { 128 }),
            format!("{other}").replace([':', '.'], "-"),
        ),
    };
    let (kind, word, list, name) = match direction {
        Direction::Ingress => ("Ingress", "ingress", "from", format!("allow-{name}-from-{other_name}")),
        Direction::Egress => ("Egress", "egress", "to", format!("allow-{name}-to-{other_name}")),
    };
    let ports = match flow.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            let proto = crate::sim::row::protocol(flow.proto).to_uppercase();
            format!("    ports:\n    - {{protocol: {proto}, port: {port}}}\n")
        }
        // Only a rule without ports admits what has none (E1.15).
        _ => String::new(),
    };
    let name: String = name.chars().take(63).collect();
    Some(format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  namespace: \"{namespace}\"\n  name: \"{}\"\nspec:\n  podSelector: \
         {subject}\n  policyTypes: [{kind}]\n  {word}:\n  - {list}:\n    - {peer}\n{ports}{kept}",
        name.trim_end_matches('-')
    ))
}

/// What is amiss with the Service that was asked for.
fn hint(snapshot: &Snapshot, question: &Question, outcome: &Outcome) -> Option<String> {
    let Place::Service { namespace, name } = &question.to else { return None };
    let service = snapshot.services.iter().find(|s| s.meta.namespace == *namespace && s.meta.name == *name)?;
    if outcome.service.is_none() {
        let ports: Vec<String> =
            service.ports.iter().map(|p| format!("{}/{}", p.port, crate::sim::row::protocol(p.protocol.number()))).collect();
        return Some(format!("Service {namespace}/{name} serves {} and nothing else", ports.join(", ")));
    }
    let selector: Vec<String> = service.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let selector = selector.join(",");
    let selected = |labels: &BTreeMap<String, String>| service.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let pods: Vec<_> = snapshot.pods.iter().filter(|p| p.meta.namespace == *namespace && selected(&p.meta.labels)).collect();
    Some(match pods.iter().filter(|pod| pod.ready).count() {
        _ if selector.is_empty() => format!("Service {namespace}/{name} has no selector; its endpoints must come from EndpointSlices"),
        _ if pods.is_empty() => format!("no pod in namespace {namespace} has {selector}, which Service {namespace}/{name} selects"),
        0 => format!("Service {namespace}/{name} selects {} pods ({selector}), and none is ready", pods.len()),
        ready => {
            format!("Service {namespace}/{name} selects {ready} ready pods ({selector}), and none is a usable endpoint for this client")
        }
    })
}

impl Answer {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("{} {} > {}: {}\n", self.packet.proto, self.packet.src, self.packet.dst, self.outcome.words());
        out.push_str(&format!("Why: {}\n", self.why));
        if let Some(hint) = &self.hint {
            out.push_str(&format!("Look at: {hint}\n"));
        }
        let effects = |out: &mut String, changes: Vec<&Change>| {
            for change in changes {
                out.push_str(&format!(
                    "  {} -> {}: {}{}: {} becomes {}\n",
                    change.from.join(", "),
                    change.to.join(", "),
                    change.traffic,
                    Nodes::words(change.nodes),
                    change.old.outcome.words(),
                    change.new.outcome.words()
                ));
            }
        };
        if let Some(removal) = &self.remove {
            let name = |p: &PolicyName| format!("{}{}", p.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default(), p.name);
            let policies: Vec<String> = removal.policies.iter().map(name).collect();
            out.push_str(&format!("\nIt would pass without {}; all that would change:\n", policies.join(" and ")));
            effects(&mut out, removal.changes.iter().collect());
        }
        if let Some(addition) = &self.add {
            out.push_str(&format!("\nIt would pass ({} by trace) with this; all that would change:\n", addition.traced));
            effects(&mut out, addition.changes.iter().collect());
            if addition.isolates {
                out.push_str(
                    "\nNo NetworkPolicy isolated the pod before; from then on only what this one names is open to it, as pods are now.\n",
                );
                let shut: Vec<&Change> = addition.changes.iter().filter(|change| !change.open.is_empty()).collect();
                if shut.is_empty() {
                    out.push_str("Nothing that was open is shut.\n");
                } else {
                    out.push_str("This is shut that was open, since a NetworkPolicy cannot say it more closely:\n");
                    effects(&mut out, shut);
                }
            }
            out.push_str(&format!("\n{}", addition.patch));
        } else if self.remove.is_some() {
            out.push_str(
                "\nNo NetworkPolicy that is added lets it pass: a rule of the Admin tier denies it, which stands above NetworkPolicies.\n",
            );
        }
        out
    }
}
