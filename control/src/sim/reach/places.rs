//! The ends that flows have, and groups of them that no table tells apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weir_dataplane::model::{Family, FrontendKind, Ip, Selection};
use weir_dataplane::tables::OwnerKind;

use super::World;

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
    /// Its family.
    pub family: Family,
}

/// Places that the tables of no world tell apart.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they are.
    pub kind: Kind,
    /// At least one.
    pub places: Vec<Place>,
}

impl Group {
    /// The places' names, without repetition.
    pub fn names(&self) -> Vec<&str> {
        self.places.iter().map(|place| place.name.as_str()).collect()
    }

    /// The first names, and how many more there are.
    pub fn label(&self) -> String {
        const SHOWN: usize = 3;
        let names = self.names();
        let more = names.len().saturating_sub(SHOWN);
        let shown = names[..names.len() - more].join(", ");
        if more == 0 { shown } else { format!("{shown} and {more} more") }
    }

    /// A flow's two ends, one of each group and not the same place; `None` where there are no two.
    pub fn pair<'a>(&'a self, to: &'a Self) -> Option<(&'a Place, &'a Place)> {
        let from = &self.places[0];
        to.places.iter().find(|place| (place.kind, &place.name) != (from.kind, &from.name)).map(|place| (from, place))
    }
}

/// What the places of a group share: all that the tables of each world know of their addresses.
type Likeness = (Kind, Family, Vec<Vec<u64>>);

/// All places of `worlds`, gathered. Pods that only some worlds have are left out: [`Place::addresses`] are all there.
pub fn groups(worlds: &[&World]) -> Vec<Group> {
    let mut groups: BTreeMap<Likeness, Vec<Place>> = BTreeMap::new();
    let mut add = |place: Place| {
        let signature = worlds.iter().zip(&place.addresses).map(|(world, ip)| ip.map(|ip| world.signature(ip)).unwrap_or_default());
        groups.entry((place.kind, place.family, signature.collect())).or_default().push(place);
    };
    for place in named(worlds).into_iter().filter(|place| place.addresses.iter().all(Option::is_some)) {
        add(place);
    }
    for (first, last) in intervals(worlds) {
        let taken = |ip: Ip| worlds.iter().any(|w| w.homes.contains_key(&ip) || w.nodes.iter().any(|t| t.services.is_cluster_ip(ip)));
        // An interval in which more than this many addresses stand one after the other is taken by pods.
        let free = (first.0..=last.0).map(Ip).take(1024).find(|ip| !taken(*ip));
        let Some(ip) = free.filter(|ip| worlds.iter().all(|world| world.is_outside(*ip))) else { continue };
        let name = range_name(first, last);
        add(Place { kind: Kind::Outside, name, addresses: vec![Some(ip); worlds.len()], family: ip.family() });
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
    found.into_iter().map(|((kind, name, family), addresses)| Place { kind, name, addresses, family }).collect()
}

impl World {
    /// Everything that the tables of all nodes know of an address.
    pub(super) fn signature(&self, ip: Ip) -> Vec<u64> {
        let mut signature = Vec::new();
        for tables in &self.nodes {
            let owner = tables.owner(ip);
            let flags = u64::from(owner.in_cluster) | u64::from(owner.in_services) << 1 | u64::from(owner.keeps_source) << 2;
            let (kind, detail) = match owner.kind {
                OwnerKind::LocalPod { subject, .. } => (0, subject),
                OwnerKind::RemotePod { node, .. } => (1, node),
                OwnerKind::OwnNode => (2, 0),
                OwnerKind::OtherNode(node) => (3, node),
                OwnerKind::Nobody(None) => (4, 0),
                OwnerKind::Nobody(Some(node)) => (5, node),
            };
            signature.extend([owner.class.into(), owner.own_class.into(), flags, kind, detail.into()]);
            let address = ip.to_std();
            for (index, service) in tables.state.services.iter().enumerate() {
                let index = index as u64;
                let frontends =
                    service.frontends.iter().filter(|f| f.address == address).map(|f| 1 << 48 | index << 16 | u64::from(f.port));
                let backends = service.backends.iter().filter(|b| b.address == address).map(|b| 2 << 48 | index << 16 | u64::from(b.port));
                let ranges = service.source_ranges.iter().filter(|r| r.contains(&address)).map(|_| 3 << 48 | index << 16);
                signature.extend(frontends.chain(backends).chain(ranges));
            }
            signature.push(u64::MAX);
        }
        signature
    }

    /// Tells whether an address belongs to nobody in the cluster, nor to a range of it.
    fn is_outside(&self, ip: Ip) -> bool {
        self.nodes.iter().all(|tables| {
            let owner = tables.owner(ip);
            owner.kind == OwnerKind::Nobody(None) && !owner.in_cluster && !owner.in_services
        })
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
    for tables in worlds.iter().flat_map(|world| &world.nodes) {
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
