//! The ends that flows have, and groups of them that no table tells apart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use weir_dataplane::model::{Family, FrontendKind, Ip, Selection};
use weir_dataplane::tables::OwnerKind;

use super::World;
use super::likeness::Likeness;

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A pod off the host network.
    Pod,
    /// A node.
    Node,
    /// A Service's virtual address; never opens a connection.
    Service,
    /// Addresses that are nobody's.
    Outside,
}

/// One end of flows, in one family, in each of the worlds that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub kind: Kind,
    /// `namespace/pod`, `node/name`, `svc/namespace/name`, or ranges of addresses.
    pub name: String,
    /// Its address in each world; `None` where a world does not have it.
    pub addresses: Vec<Option<Ip>>,
    /// The index of its node in each world; `None` for what is on no node.
    pub homes: Vec<Option<usize>>,
    /// Its family.
    pub family: Family,
}

/// Places that the tables of no world tell apart.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they are.
    pub kind: Kind,
    /// At least one. The first ones answer for all; they are on as few nodes as possible.
    pub places: Vec<Place>,
}

/// Whether a node and the other end of a flow are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Nodes {
    /// The pod, or a backend of the Service, is on that node.
    Same,
    /// It is on another one.
    Other,
}

impl Nodes {
    /// ` (own node)`, ` (other nodes)`, to follow what a flow is.
    pub fn words(nodes: Option<Self>) -> &'static str {
        match nodes {
            None => "",
            Some(Self::Same) => " (own node)",
            Some(Self::Other) => " (other nodes)",
        }
    }
}

/// Two ends of a flow, one of each group.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Who opens it.
    pub from: &'a Place,
    /// To whom.
    pub to: &'a Place,
    /// Where a node is one of the ends.
    pub nodes: Option<Nodes>,
}

impl Group {
    /// The places' names: of the one that answers for all, then the others', sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.places.iter().map(|place| place.name.as_str()).collect();
        names[1..].sort_unstable();
        names
    }

    /// The first names, and how many more there are.
    pub fn label(&self) -> String {
        const SHOWN: usize = 3;
        let names = self.names();
        let more = names.len().saturating_sub(SHOWN);
        let shown = names[..names.len() - more].join(", ");
        if more == 0 { shown } else { format!("{shown} and {more} more") }
    }

    /// Flows' two ends, one of each group and not the same place, that stand for all there are: one pair, or, where a node is one
    /// of the ends, one for each way in which the ends share a node in the worlds. None where there are no two places.
    pub fn pairs<'a>(&'a self, to: &'a Self, worlds: &[&World]) -> Vec<Pair<'a>> {
        let is_other = |a: &Place, b: &Place| (a.kind, &a.name) != (b.kind, &b.name);
        let first = &self.places[0];
        let pair = |from: &'a Place, to: &'a Place| Pair { from, to, nodes: None };
        if (self.kind, to.kind) == (Kind::Node, Kind::Service) {
            // A node that has a backend and one that has none: what a node sends to its own pods no policy denies.
            let service = &to.places[0];
            let served = served_on(worlds, service);
            let pair = |has: bool| {
                let from = self.places.iter().find(|node| is_among(&served, node) == has)?;
                Some(Pair { from, to: service, nodes: Some(if has { Nodes::Same } else { Nodes::Other }) })
            };
            return [true, false].into_iter().filter_map(pair).collect();
        }
        let nodes_matter = matches!((self.kind, to.kind), (Kind::Node, Kind::Pod) | (Kind::Pod, Kind::Node));
        if !nodes_matter {
            return to.places.iter().find(|place| is_other(first, place)).map(|other| pair(first, other)).into_iter().collect();
        }
        let mut found: Vec<Pair<'a>> = Vec::new();
        let mut add = |from: &'a Place, to: &'a Place| {
            let shared = |pair: &Pair<'_>| pair.from.homes.iter().zip(&pair.to.homes).map(|(a, b)| a == b).collect::<Vec<bool>>();
            let new = Pair { from, to, nodes: Some(if from.homes[0] == to.homes[0] { Nodes::Same } else { Nodes::Other }) };
            if !found.iter().any(|other| shared(other) == shared(&new)) {
                found.push(new);
            }
        };
        for world in 0..first.homes.len() {
            let at: HashMap<Option<usize>, &Place> = to.places.iter().rev().map(|place| (place.homes[world], place)).collect();
            if let Some((from, to)) = self.places.iter().find_map(|from| Some((from, *at.get(&from.homes[world])?))) {
                add(from, to);
            }
        }
        let apart = |a: &Place, b: &Place| a.homes.iter().zip(&b.homes).all(|(a, b)| a != b);
        let mut all = self.places.iter().flat_map(|from| to.places.iter().map(move |to| (from, to)));
        if let Some((from, to)) = all.find(|(from, to)| apart(from, to)) {
            add(from, to);
        }
        found
    }
}

/// What the places of a group share: all that each world knows of their addresses, and whether they stay on their node.
type Alike = (Kind, Family, Vec<Vec<u64>>, bool);

/// All places of `worlds`, gathered. Pods that only some worlds have are left out: [`Place::addresses`] are all there.
pub fn groups(worlds: &[&World]) -> Vec<Group> {
    let likeness: Vec<Likeness<'_>> = worlds.iter().map(|world| Likeness::new(world)).collect();
    let mut groups: BTreeMap<Alike, Vec<Place>> = BTreeMap::new();
    let mut add = |place: Place| {
        let marks = likeness.iter().zip(&place.addresses).map(|(likeness, ip)| ip.map(|ip| likeness.of(ip)).unwrap_or_default());
        let node = |world: usize| place.homes[world].and_then(|node| Some(&worlds[world].everywhere.state.nodes.get(node)?.name));
        let stays = (1..worlds.len()).all(|world| node(world) == node(0));
        groups.entry((place.kind, place.family, marks.collect(), stays)).or_default().push(place);
    };
    for place in named(worlds).into_iter().filter(|place| place.addresses.iter().all(Option::is_some)) {
        add(place);
    }
    for (first, last) in intervals(worlds) {
        let taken = |ip: Ip| worlds.iter().any(|w| w.homes.contains_key(&ip) || w.everywhere.services.is_cluster_ip(ip));
        // An interval in which more than this many addresses stand one after the other is taken by pods.
        let free = (first.0..=last.0).map(Ip).take(1024).find(|ip| !taken(*ip));
        let Some(ip) = free.filter(|ip| worlds.iter().all(|world| world.is_outside(*ip))) else { continue };
        let (name, addresses, homes) = (range_name(first, last), vec![Some(ip); worlds.len()], vec![None; worlds.len()]);
        add(Place { kind: Kind::Outside, name, addresses, homes, family: ip.family() });
    }
    let mut groups: Vec<Group> = groups.into_iter().map(|((kind, ..), places)| Group { kind, places }).collect();
    groups.sort_by(|a, b| (a.kind, &a.places[0].name, a.places[0].family).cmp(&(b.kind, &b.places[0].name, b.places[0].family)));
    // What no rule names is simply the outside.
    for family in [Family::V4, Family::V6] {
        let outside = groups.iter_mut().filter(|g| g.kind == Kind::Outside && g.places[0].family == family);
        if let Some(largest) = outside.max_by_key(|g| g.places.len()) {
            largest.places.truncate(1);
            largest.places[0].name = "outside".into();
        }
    }
    // Each node that is asked must be compiled: those that stand for others are gathered on few.
    let mut asked: HashSet<Option<usize>> = HashSet::from([None]);
    for group in &mut groups {
        group.places.sort_by_key(|place| !asked.contains(&place.homes[0]));
        asked.extend(group.places.first().map(|place| place.homes[0]));
    }
    groups
}

/// Pods, nodes and virtual addresses of Services, each with its address in each world.
pub fn named(worlds: &[&World]) -> Vec<Place> {
    let mut found: BTreeMap<(Kind, String, Family), Vec<Option<Ip>>> = BTreeMap::new();
    let mut put = |kind, name: String, address: IpAddr, world: usize| {
        let ip = Ip::from(address);
        let addresses = found.entry((kind, name, ip.family())).or_insert_with(|| vec![None; worlds.len()]);
        addresses[world].get_or_insert(ip);
    };
    for (index, world) in worlds.iter().enumerate() {
        let state = world.state();
        for pod in state.endpoints.iter().filter(|e| !e.host_network) {
            pod.addresses.iter().for_each(|a| put(Kind::Pod, format!("{}/{}", pod.namespace, pod.name), *a, index));
        }
        for node in &state.nodes {
            node.addresses.iter().for_each(|a| put(Kind::Node, format!("node/{}", node.name), *a, index));
        }
        for service in &state.services {
            for frontend in service.frontends.iter().filter(|f| f.kind != FrontendKind::NodePort) {
                let at = if frontend.kind == FrontendKind::ClusterIp { String::new() } else { format!(" at {}", frontend.address) };
                let name = format!("svc/{}/{}{at}", service.namespace, service.name);
                // An address stays what people ask for, also where the other world has no Service there.
                (0..worlds.len()).for_each(|world| put(Kind::Service, name.clone(), frontend.address, world));
            }
        }
    }
    let home = |world: usize, ip: &Option<Ip>| worlds[world].homes.get(ip.as_ref()?).map(|(node, _)| *node);
    let place = |((kind, name, family), addresses): ((Kind, String, Family), Vec<Option<Ip>>)| {
        let homes = addresses.iter().enumerate().map(|(world, ip)| home(world, ip)).collect();
        Place { kind, name, addresses, homes, family }
    };
    found.into_iter().map(place).collect()
}

/// The nodes in each of the worlds that have a backend of a Service.
fn served_on(worlds: &[&World], service: &Place) -> Vec<Vec<usize>> {
    let nodes = |(world, address): (&&World, &Option<Ip>)| {
        let backends = address.map_or(&[][..], |address| world.behind(address));
        backends.iter().filter_map(|backend| world.homes.get(backend).map(|(node, _)| *node)).collect()
    };
    worlds.iter().zip(&service.addresses).map(nodes).collect()
}

fn is_among(served: &[Vec<usize>], node: &Place) -> bool {
    served.iter().zip(&node.homes).any(|(nodes, home)| home.is_some_and(|home| nodes.contains(&home)))
}

/// Tells whether a Service has a backend on a node in any of the worlds.
#[cfg(test)]
pub(crate) fn is_served_on(worlds: &[&World], service: &Place, node: &Place) -> bool {
    is_among(&served_on(worlds, service), node)
}

impl World {
    /// Tells whether an address belongs to nobody in the cluster, nor to a range of it.
    fn is_outside(&self, ip: Ip) -> bool {
        let owner = self.everywhere.owner(ip);
        owner.kind == OwnerKind::Nobody(None) && !owner.in_cluster && !owner.in_services
    }
}

/// Never the address of an other end: this network, loopback, link-local, multicast and reserved (RFC 6890).
const SPECIAL: [&str; 9] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "::ffff:0:0/96", "fe80::/10", "fec0::/10", "ff00::/8"];

/// Ranges of addresses between any two places where some prefix begins or ends, without the special ones.
fn intervals(worlds: &[&World]) -> Vec<(Ip, Ip)> {
    let special: Vec<IpNet> = SPECIAL.iter().filter_map(|text| text.parse().ok()).collect();
    let mut prefixes: BTreeSet<IpNet> = special.iter().copied().collect();
    prefixes.extend(["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse::<IpNet>().ok()));
    for tables in worlds.iter().map(|world| &world.everywhere) {
        let state = &tables.state;
        for selection in &state.selections {
            if let Selection::Block { cidr, except } = selection {
                prefixes.insert(*cidr);
                prefixes.extend(except);
            }
        }
        prefixes.extend(state.nodes.iter().flat_map(|node| &node.pod_cidrs));
        prefixes.extend(state.cluster.pod_cidrs.iter().flatten());
        prefixes.extend(&state.cluster.service_cidrs);
        prefixes.extend(state.services.iter().flat_map(|service| &service.source_ranges));
        prefixes.extend(&tables.runtime.config.masquerade.except_cidrs);
    }
    let mut found = Vec::new();
    for v4 in [true, false] {
        let of_family: Vec<&IpNet> = prefixes.iter().filter(|p| p.addr().is_ipv4() == v4).collect();
        let number = |address: IpAddr| Ip::from(address).0;
        let mut starts: BTreeSet<u128> = of_family.iter().map(|p| number(p.network())).collect();
        let end = of_family.iter().map(|p| number(p.broadcast())).max().unwrap_or(0);
        starts.extend(of_family.iter().map(|p| number(p.broadcast())).filter(|last| *last < end).map(|last| last + 1));
        let ends: Vec<u128> = starts.iter().skip(1).map(|next| next - 1).chain([end]).collect();
        let ranges = starts.iter().zip(ends).map(|(first, last)| (Ip(*first), Ip(last)));
        found.extend(ranges.filter(|(first, _)| !special.iter().any(|net| net.contains(&first.to_std()))));
    }
    found
}

/// `10.0.0.0/8` where a range is one block, else its ends.
fn range_name(first: Ip, last: Ip) -> String {
    let bits = if first.is_v4() { 32 } else { 128 };
    let size = last.0 - first.0;
    let host = 128 - size.leading_zeros();
    let is_block = size.wrapping_add(1).is_power_of_two() || size == u128::MAX;
    if is_block && host <= bits && first.0 & size == 0 {
        return format!("{first}/{}", bits - host);
    }
    format!("{first}-{last}")
}
