//! Every list of a case, judged.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use weir_dataplane::model::{Family, Protocol};
use weir_dataplane::service::Affinity;
use weir_dataplane::yaml::{Node, Source};

use super::case::{FlowAnswer, Head, HealthAnswer, Kind, Pairs, PolicyVerdict, Snat, Step, Stickiness};
use super::objects::{self, Objects};
use super::packets;
use super::report::Tally;
use super::world::{World, pair};

/// Clients whose choice is remembered at once.
const CLIENTS_MAX: u32 = 1024;

/// What connections with affinity leave behind. A sequence whose first connection may go anywhere starts without memory.
pub(super) struct Sequences {
    seed: u64,
    random: fastrand::Rng,
    affinity: Affinity,
    before: HashMap<IpAddr, SocketAddr>,
    /// Where a Service was reached in any state so far: flows to elsewhere are nobody's to clean up.
    served: HashSet<(SocketAddr, Protocol)>,
}

impl Sequences {
    /// Starts without memory.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            affinity: Affinity::new(CLIENTS_MAX, seed),
            before: HashMap::new(),
            served: HashSet::new(),
        }
    }
}

/// Judges one state of a case's objects.
pub(super) fn step(
    source: &Source,
    node: &Node<'_>,
    head: &Head,
    step: &Step,
    objects: &Objects<'_>,
    sequences: &mut Sequences,
    tally: &mut Tally<'_>,
) {
    tally.facts(step.facts.len());
    if head.kind == Kind::Validation {
        return validation(source, node, tally);
    }
    let count = expectations(step);
    if !step.packets.is_empty() {
        let changes = node.field("packets").map_or(&[][..], |n| n.list());
        if let Err(why) = packets::judge(source, head.config.as_ref(), step, changes, objects.clone(), sequences.seed, tally) {
            tally.broken(1, &why);
        }
        return;
    }
    let snapshot = match objects.snapshot(source) {
        Ok(snapshot) => snapshot,
        Err(why) => return tally.broken(count, &why),
    };
    let world = World::new(snapshot, head.config.as_ref());
    for pairs in &step.expect {
        policy(&world, pairs, tally);
    }
    if let Err(why) = services(&world, step, sequences, tally) {
        tally.broken(count, &why);
    }
}

/// How many expectations a step states.
fn expectations(step: &Step) -> usize {
    let pairs = |p: &Pairs| {
        let (from, to) = (p.from.as_slice(), p.to.as_slice());
        let between: usize = from.iter().map(|from| to.iter().filter(|to| p.with_self || from != *to).count()).sum();
        between * p.port.as_slice().len() * p.protocol.as_slice().len()
    };
    let packets = step.packets.iter().filter(|p| p.expect.is_some()).count();
    let sequences: usize = step.affinity.iter().map(|s| s.steps.len()).sum();
    let flows: usize = step.flows.iter().map(|f| 1 + f.expect.policy.len()).sum();
    step.expect.iter().map(pairs).sum::<usize>() + flows + step.healthchecks.len() + step.conntrack.len() + sequences + packets
}

/// The cross product of one item of `expect`.
fn policy(world: &World, pairs: &Pairs, tally: &mut Tally<'_>) {
    for from in pairs.from.as_slice() {
        for to in pairs.to.as_slice().iter().filter(|to| pairs.with_self || *to != from) {
            let addresses = world.addresses(from).and_then(|f| world.addresses(to).map(|t| (f, t)));
            let ends = addresses.and_then(|(f, t)| {
                pair(&f, &t, pairs.family.map(Family::from)).ok_or_else(|| format!("{from} and {to} have no address of one family"))
            });
            for &port in pairs.port.as_slice() {
                for &protocol in pairs.protocol.as_slice() {
                    let to_port = || format!("{to}:{port}/{protocol:?}");
                    let judged = ends.clone().and_then(|(f, t)| Ok(((f, t), world.judge(f, t, protocol, port, false)?.verdict())));
                    match judged {
                        Ok((_, verdict)) if verdict == pairs.verdict => tally.pass(),
                        Ok(((f, t), verdict)) => {
                            let why = world.explain(f, t, protocol, port);
                            tally.fail((from, &to_port()), word(&pairs.verdict), word(&verdict), why);
                        }
                        Err(why) => tally.fail((from, &to_port()), word(&pairs.verdict), "no answer".into(), why),
                    }
                }
            }
        }
    }
}

fn services(world: &World, step: &Step, sequences: &mut Sequences, tally: &mut Tally<'_>) -> Result<(), String> {
    for flow in &step.flows {
        let (from, to) = (flow.from.to_string(), format!("{}/{:?} ({})", flow.to, flow.protocol, flow.name));
        let got = world.service(flow.from, flow.to, flow.protocol)?;
        let FlowAnswer { verdict, endpoints, snat, policy } = &flow.expect;
        let mut endpoints = endpoints.clone();
        endpoints.sort_unstable();
        let expected = (*verdict, endpoints, snat.or(got.snat));
        let show = |(verdict, endpoints, snat): &(_, Vec<SocketAddr>, Option<Snat>)| {
            let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
            format!("{} [{}] snat {}", word(verdict), endpoints.join(" "), snat.as_ref().map_or("-".into(), word))
        };
        tally.check((&from, &to), &expected, &(got.verdict, got.endpoints, got.snat), show, || got.reason.into());
        for (endpoint, verdict) in policy {
            let judged = world.judge(flow.from, endpoint.ip(), flow.protocol, endpoint.port(), true)?.verdict();
            let why = || world.explain(flow.from, endpoint.ip(), flow.protocol, endpoint.port());
            tally.check((&from, &endpoint.to_string()), verdict, &judged, word::<PolicyVerdict>, why);
        }
    }
    for check in &step.healthchecks {
        let got = world.health(&check.service, check.port)?;
        let local_endpoints = check.expect.local_endpoints.or(got.local_endpoints);
        let expected = HealthAnswer { local_endpoints, ..check.expect };
        let to = format!("health check port {}", check.port);
        tally.check((&check.service, &to), &expected, &got, |answer| format!("{answer:?}"), String::new);
    }
    if world.has_node() {
        sequences.served.extend(world.frontends()?);
    }
    for entry in &step.conntrack {
        let to = SocketAddr::new(entry.orig_dst, entry.orig_dport);
        let got = !sequences.served.contains(&(to, entry.protocol)) || world.keeps(entry.protocol, to, entry.reply_src)?;
        let between = (entry.reply_src.to_string(), format!("{to}/{:?}", entry.protocol));
        let show = |keep: &bool| if *keep { "kept" } else { "removed" }.to_owned();
        tally.check((&between.0, &between.1), &entry.keep, &got, show, String::new);
    }
    for sequence in &step.affinity {
        affinity(world, sequence, sequences, tally)?;
    }
    Ok(())
}

fn affinity(world: &World, sequence: &super::case::Sequence, state: &mut Sequences, tally: &mut Tally<'_>) -> Result<(), String> {
    if sequence.steps.first().is_some_and(|one| one.expect == Stickiness::Any) {
        state.affinity = Affinity::new(CLIENTS_MAX, state.seed);
        state.before.clear();
    }
    for one in &sequence.steps {
        let chosen = world.choose(one.from, one.to, one.protocol, &state.affinity, one.at, &mut state.random)?;
        let before = state.before.get(&one.from).copied();
        let holds = match one.expect {
            Stickiness::Any => chosen.is_some(),
            Stickiness::Same => chosen.is_some() && chosen == before,
            Stickiness::Other => chosen.is_some() && chosen != before,
        };
        if holds {
            tally.pass();
        } else {
            let show = |endpoint: Option<SocketAddr>| endpoint.map_or("none".into(), |e| e.to_string());
            let to = format!("{} at {} s ({})", one.to, one.at, sequence.name);
            let explanation = format!("before it was {}", show(before));
            tally.fail((&one.from.to_string(), &to), word(&one.expect), show(chosen), explanation);
        }
        if let Some(chosen) = chosen {
            state.before.insert(one.from, chosen);
        }
    }
    Ok(())
}

/// Objects that the API server takes or refuses.
fn validation(source: &Source, node: &Node<'_>, tally: &mut Tally<'_>) {
    for item in node.field("invalid").map_or(&[][..], |n| n.list()) {
        let text = |key: &str| item.field(key).and_then(|n| n.str()).unwrap_or_default().to_owned();
        let valid = item.field("valid").is_some_and(|n| n.value == weir_dataplane::yaml::Value::Bool(true));
        let Some(object) = item.field("object") else {
            tally.broken(1, "an item without an object");
            continue;
        };
        let read = objects::read(source, [object]);
        let show = |valid: &bool| if *valid { "valid" } else { "invalid" }.to_owned();
        let why = read.as_ref().err().cloned().unwrap_or_default();
        tally.check((&text("reason"), "-"), &valid, &read.is_ok(), show, || why);
    }
}

/// An answer in the case format's words.
fn word<T: std::fmt::Debug>(answer: &T) -> String {
    format!("{answer:?}").to_lowercase()
}
