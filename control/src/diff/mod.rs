//! What would change: two snapshots, compared by what becomes of traffic.
//!
//! Over all classes of traffic ([`compare`]): every group of places that no table of either snapshot tells apart, times every
//! range of ports likewise, is asked of both. Over a capture ([`replayed`]): every packet goes through both, each with its own
//! connections. Either way connections that are open when the new snapshot comes are told apart from new ones: what was allowed
//! may live on because connection tracking holds it ([`Held`]). A pod's traffic to itself never reaches the dataplane and is not compared, nor is what goes by from outside to
//! outside.

mod replayed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use serde::Serialize;
use weir_dataplane::model::{Family, Ip, proto};

pub use replayed::{Case, FlowChange, PacketChange, ReplayError, Replayed, replayed};

use crate::sim::reach::{End, Flow, Group, Held, Kind, Nodes, Outcome, Pair, Span, World, groups, named, push, ranges, traffic};

/// What differs between two snapshots.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// Nothing differs.
    pub same: bool,
    /// Pods and nodes that only the old one has: `namespace/pod`, `node/name`.
    pub removed: Vec<String>,
    /// Likewise the new one.
    pub added: Vec<String>,
    /// Flows between places that both have.
    pub changes: Vec<Change>,
}

/// Flows that end otherwise than before.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Who opens them: places that no rule tells apart. Addresses below are the first one's.
    pub from: Vec<String>,
    /// To whom, likewise.
    pub to: Vec<String>,
    /// Where one end is a node: whether it is the other end's own. `null` where that does not matter.
    pub nodes: Option<Nodes>,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// Protocols and ports, for people.
    pub traffic: String,
    /// Protocols and ports.
    pub ports: Vec<Ports>,
    /// How they ended.
    pub old: Side,
    /// How they would end.
    pub new: Side,
    /// What becomes of those that are open by then and that could not be opened anew; empty where there are none.
    pub open: Vec<Open>,
}

/// Open connections that could not be opened anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Open {
    /// The backend that they have, where a Service was asked for.
    pub backend: Option<SocketAddr>,
    /// What becomes of them.
    pub held: Held,
}

/// A range of ports.
#[derive(Debug, Serialize)]
pub struct Ports {
    /// `tcp`, `udp`, `sctp`, or `other` for everything without ports.
    pub proto: String,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl From<&Span> for Ports {
    fn from(span: &Span) -> Self {
        let proto = if span.proto == proto::ICMP { "other".into() } else { crate::sim::row::protocol(span.proto) };
        Self { proto: proto.into_owned(), first: span.first, last: span.last }
    }
}

/// How flows end in one snapshot.
#[derive(Debug, Serialize)]
pub struct Side {
    /// `forward`, `host`, `reject`, `drop`, or `mixed` where it depends on the backend.
    pub verdict: &'static str,
    /// In what ways.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Which rules or reasons say so.
    pub why: String,
}

/// Compares over all classes of traffic.
pub fn compare(old: &World, new: &World) -> Diff {
    let worlds = [old, new];
    let groups = groups(&worlds);
    let concerned = concerned(&worlds, &groups);
    compare_concerned(&worlds, &groups, &concerned)
}

/// Compares flows that have one of the groups that are marked at an end.
fn compare_concerned(worlds: &[&World; 2], groups: &[Group], concerned: &[bool]) -> Diff {
    let only = |world: usize| {
        let places = named(worlds).into_iter().filter(|place| place.addresses[1 - world].is_none());
        let mut names: Vec<String> = places.map(|place| place.name).collect();
        names.dedup();
        names
    };
    let (removed, added) = (only(0), only(1));
    let unchanged = Unchanged::new(worlds, groups);
    let mut changes = Vec::new();
    for (f, from) in groups.iter().enumerate().filter(|(_, group)| group.kind != Kind::Service) {
        let (mut touched, mut found) = (HashSet::new(), Vec::new());
        // Services after their backends.
        let asked = groups.iter().enumerate().filter(|(t, _)| concerned[f] || concerned[*t]);
        let (services, others): (Vec<_>, Vec<_>) = asked.partition(|(_, to)| to.kind == Kind::Service);
        for (t, to) in others.into_iter().filter(|(_, to)| (from.kind, to.kind) != (Kind::Outside, Kind::Outside)) {
            let changes = changed(worlds, from, to);
            touched.extend((!changes.is_empty()).then_some(t));
            found.push((t, changes));
        }
        for (t, to) in services.into_iter().filter(|(t, _)| !unchanged.tells(*t, from, &touched)) {
            found.push((t, changed(worlds, from, to)));
        }
        found.sort_by_key(|(t, _)| *t);
        changes.extend(found.into_iter().flat_map(|(_, changes)| changes));
    }
    Diff { same: changes.is_empty() && removed.is_empty() && added.is_empty(), removed, added, changes }
}

/// Which groups a change concerns as an end of flows.
fn concerned(worlds: &[&World; 2], groups: &[Group]) -> Vec<bool> {
    let Some(concerned) = worlds[0].concerned(worlds[1]) else { return vec![true; groups.len()] };
    let behind = |address| worlds.iter().flat_map(move |world| world.behind(address)).any(|backend| concerned.contains(backend));
    let node_ports = worlds.iter().any(|world| world.node_ports_lead_to(&concerned));
    let is_concerned = |group: &Group| {
        let mut addresses = group.places.iter().flat_map(|place| &place.addresses).flatten();
        node_ports && group.kind == Kind::Node || addresses.any(|address| concerned.contains(address) || behind(*address))
    };
    groups.iter().map(is_concerned).collect()
}

/// Services that both snapshots have alike: what pods ask of them changes only with what they ask of the backends.
struct Unchanged {
    /// Of each group: the groups of the backends, and their addresses.
    backends: Vec<Option<(Vec<usize>, Vec<Ip>)>>,
}

impl Unchanged {
    fn new(worlds: &[&World; 2], groups: &[Group]) -> Self {
        let mut group_of: HashMap<Ip, usize> = HashMap::new();
        for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.kind == Kind::Pod) {
            let stays = group.places.iter().filter(|place| place.addresses[0] == place.addresses[1]);
            group_of.extend(stays.filter_map(|place| Some((place.addresses[0]?, index))));
        }
        let backends = |group: &Group| {
            let addresses = group.places[0].addresses.iter().filter(|_| group.kind == Kind::Service);
            let found: Vec<_> = addresses.zip(worlds).map(|(ip, world)| ip.and_then(|ip| world.backends(ip))).collect();
            let [Some((port, backends)), Some(others)] = found[..] else { return None };
            if (port, backends) != others {
                return None;
            }
            let mut behind: Vec<usize> = backends.iter().map(|b| group_of.get(&b.address).copied()).collect::<Option<_>>()?;
            behind.sort_unstable();
            behind.dedup();
            Some((behind, backends.iter().map(|b| b.address).collect()))
        };
        Self { backends: groups.iter().map(backends).collect() }
    }

    /// Nothing changes between the pods of `from` and a Service, where `touched` are the groups to which something does.
    fn tells(&self, service: usize, from: &Group, touched: &HashSet<usize>) -> bool {
        let Some((behind, addresses)) = &self.backends[service] else { return false };
        let asks = &from.places[0].addresses;
        // What comes back to its sender is judged by other rules (E1.50).
        let itself = addresses.iter().any(|address| asks.contains(&Some(*address)));
        from.kind == Kind::Pod && asks[0] == asks[1] && !itself && behind.iter().all(|group| !touched.contains(group))
    }
}

/// Spans by what becomes of them: before, then, and of what is open between.
type Changed = BTreeMap<(Outcome, Outcome, Vec<Open>), Vec<Span>>;

fn changed(worlds: &[&World; 2], from: &Group, to: &Group) -> Vec<Change> {
    let pairs = from.pairs(to, worlds).into_iter().filter(|pair| pair.from.family == pair.to.family);
    let mut found: Vec<(Pair<'_>, Changed)> = pairs.map(|pair| (pair, changed_between(worlds, &pair))).collect();
    // Where it is the same on the own node and elsewhere, nodes do not matter.
    if let [(first, one), (_, other)] = &mut found[..]
        && one == other
    {
        first.nodes = None;
        found.truncate(1);
    }
    found.into_iter().flat_map(|(pair, changed)| changes(worlds, (from, to), &pair, changed)).collect()
}

/// The flow of a span between two places in one of the worlds.
fn flow_in(pair: &Pair<'_>, world: usize, span: &Span) -> Option<Flow> {
    Some(span.flow(pair.from.addresses[world]?, pair.to.addresses[world]?))
}

fn changed_between(worlds: &[&World; 2], pair: &Pair<'_>) -> Changed {
    let mut by_outcome = Changed::new();
    let ends: Option<Vec<(Ip, Ip)>> = (0..2).map(|world| Some((pair.from.addresses[world]?, pair.to.addresses[world]?))).collect();
    let Some(ends) = ends else { return by_outcome };
    for (span, outcomes) in ranges(worlds, &ends) {
        // Virtual addresses answer pings themselves or not at all: no rule decides.
        let pings = pair.to.kind == Kind::Service && span.proto == proto::ICMP;
        let [old, new] = &outcomes[..] else { continue };
        if old != new && !pings {
            let open = open(worlds, &span.flow(ends[0].0, ends[0].1), old, new);
            push(by_outcome.entry((old.clone(), new.clone(), open)).or_default(), span);
        }
    }
    by_outcome
}

fn changes(worlds: &[&World; 2], (from, to): (&Group, &Group), pair: &Pair<'_>, changed: Changed) -> Vec<Change> {
    let side = |world: usize, outcome: Outcome, span: &Span| {
        let why = flow_in(pair, world, span).map(|flow| worlds[world].why(&flow, &outcome)).unwrap_or_default();
        Side { verdict: outcome.verdict(), outcome, why }
    };
    let change = |((old, new, open), ports): ((Outcome, Outcome, Vec<Open>), Vec<Span>)| Change {
        from: from.names().into_iter().map(str::to_owned).collect(),
        to: to.names().into_iter().map(str::to_owned).collect(),
        nodes: pair.nodes,
        family: pair.from.family,
        traffic: traffic(&ports),
        old: side(0, old, &ports[0]),
        new: side(1, new, &ports[0]),
        ports: ports.iter().map(Ports::from).collect(),
        open,
    };
    changed.into_iter().map(change).collect()
}

/// What becomes of open connections that took a way of `old` which `new` does not have.
fn open(worlds: &[&World; 2], flow: &Flow, old: &Outcome, new: &Outcome) -> Vec<Open> {
    let stays = |end: &End| new.ends.iter().any(|other| other.passes() && other.backend == end.backend);
    let lost = old.ends.iter().filter(|end| end.passes() && !stays(end));
    let held = |end: &End| worlds[1].held(worlds[0], flow, end, old.service.is_some());
    let mut open: Vec<Open> = lost.map(|end| Open { backend: end.backend, held: held(end) }).collect();
    open.sort();
    open.dedup();
    open
}
