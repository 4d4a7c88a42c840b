//! Whom a change concerns: a flow ends otherwise only where one of its ends does.
//!
//! A pod fares otherwise where a policy that selects it changed, or its own labels, ports or namespace did, which is also what
//! makes it another peer to everybody else. A Service does where what is compiled of it changed, or a backend is such a pod.

use std::collections::{HashMap, HashSet};

use weir_dataplane::model::{Family, Ip, PolicyKind, Protocol, Selection, Service};

use super::World;
use crate::source::objects::{ClusterPolicy, NetworkPolicy, Pod, Snapshot};

/// A policy as it was written.
#[derive(PartialEq)]
enum Written<'a> {
    Namespaced(&'a NetworkPolicy),
    Cluster(&'a ClusterPolicy),
}

type Key<'a> = (PolicyKind, &'a str, &'a str);

fn written(snapshot: &Snapshot) -> HashMap<Key<'_>, Written<'_>> {
    let namespaced = snapshot.network_policies.iter().map(|policy| {
        let key = (PolicyKind::NetworkPolicy, policy.meta.namespace.as_str(), policy.meta.name.as_str());
        (key, Written::Namespaced(policy))
    });
    let cluster = snapshot.cluster_policies.iter().map(|policy| ((policy.kind, "", policy.meta.name.as_str()), Written::Cluster(policy)));
    namespaced.chain(cluster).collect()
}

/// What is compiled of a Service port, wherever it is asked for.
fn compiled(world: &World) -> HashMap<(&str, &str, &str, Protocol, Family), &Service> {
    let services = world.everywhere.state.services.iter();
    services.map(|s| ((s.namespace.as_str(), s.name.as_str(), s.port_name.as_str(), s.protocol, s.family), &**s)).collect()
}

/// Things of both snapshots that only one of them has, or has like this.
fn differing<'a, T: PartialEq>(one: &'a [T], two: &'a [T], key: impl Fn(&'a T) -> (&'a str, &'a str)) -> Vec<&'a T> {
    let [ours, theirs] = [one, two].map(|all| all.iter().map(|thing| (key(thing), thing)).collect::<HashMap<_, _>>());
    let only = |all: &'a [T], others: &HashMap<_, &T>| {
        all.iter().filter(|thing| others.get(&key(thing)).is_none_or(|other| *other != *thing)).collect::<Vec<_>>()
    };
    [only(one, &theirs), only(two, &ours)].concat()
}

impl World {
    /// Addresses of all pods and Services that a flow may end otherwise at, or come otherwise from, in the other world. `None`
    /// where that may be anybody: with other nodes, or where Services differ that are not the same on every node.
    pub fn concerned(&self, other: &Self) -> Option<HashSet<Ip>> {
        let (one, two) = (&self.snapshot, &other.snapshot);
        if self.config != other.config || one.nodes != two.nodes {
            return None;
        }
        let pods = differing(&one.pods, &two.pods, |pod| (&pod.meta.namespace, &pod.meta.name));
        // A pod on the host network has its node's address.
        if pods.iter().any(|pod| pod.host_network) {
            return None;
        }
        let services = self.changed_services(other);
        let same_services = services.is_empty()
            && (&one.services, &one.slices) == (&two.services, &two.slices)
            && pods.iter().all(|pod| stays(pod, one, two));
        let alike_everywhere = self.plain.services_are_alike() && other.plain.services_are_alike();
        if !same_services && !alike_everywhere {
            return None;
        }
        let mut concerned = self.selected_otherwise(other);
        concerned.extend(services);
        concerned.extend(pods.iter().flat_map(|pod| &pod.addresses).map(|address| Ip::from(*address)));
        let namespaces = differing(&one.namespaces, &two.namespaces, |namespace| ("", &namespace.meta.name));
        let namespaces: HashSet<&str> = namespaces.into_iter().map(|namespace| namespace.meta.name.as_str()).collect();
        let inside = one.pods.iter().chain(&two.pods).filter(|pod| namespaces.contains(pod.meta.namespace.as_str()));
        concerned.extend(inside.flat_map(|pod| &pod.addresses).map(|address| Ip::from(*address)));
        Some(concerned)
    }

    /// Addresses of Services of which something else is compiled in the other world, and those that only one of them keeps for
    /// Services.
    fn changed_services(&self, other: &Self) -> HashSet<Ip> {
        let (ours, theirs) = (compiled(self), compiled(other));
        let keys = ours.keys().chain(theirs.keys()).filter(|key| ours.get(*key) != theirs.get(*key));
        let changed = keys.flat_map(|key| ours.get(key).into_iter().chain(theirs.get(key))).flat_map(|service| &service.frontends);
        let kept = [self, other].map(|world| world.everywhere.state.cluster_ips.iter().copied().collect::<HashSet<_>>());
        let kept_by_one = kept[0].symmetric_difference(&kept[1]).copied();
        changed.map(|frontend| frontend.address).chain(kept_by_one).map(Ip::from).collect()
    }

    /// Addresses of all pods that are selected by a policy which only one of the worlds has, or which says something else there.
    fn selected_otherwise(&self, other: &Self) -> HashSet<Ip> {
        let (ours, theirs) = (written(&self.snapshot), written(&other.snapshot));
        let mut concerned = HashSet::new();
        for world in [self, other] {
            let state = &world.everywhere.state;
            let changed = |key: &Key<'_>| ours.get(key) != theirs.get(key);
            let policies = state.policies.iter().filter(|p| changed(&(p.kind, p.namespace.as_deref().unwrap_or_default(), &p.name)));
            let mut selected = HashSet::new();
            for policy in policies {
                if let Some(Selection::Pods { identities, .. }) = state.selections.get(policy.subject as usize) {
                    selected.extend(identities.iter().copied());
                }
            }
            let pods = state.endpoints.iter().filter(|endpoint| selected.contains(&endpoint.identity));
            concerned.extend(pods.flat_map(|endpoint| &endpoint.addresses).map(|address| Ip::from(*address)));
        }
        concerned
    }

    /// Tells whether a NodePort of some Service may lead to one of these pods.
    pub fn node_ports_lead_to(&self, pods: &HashSet<Ip>) -> bool {
        let opened = self.snapshot.services.iter().filter(|service| service.ports.iter().any(|port| port.node_port.is_some()));
        let opened: HashSet<(&str, &str)> = opened.map(|s| (s.meta.namespace.as_str(), s.meta.name.as_str())).collect();
        let mut services = self.everywhere.state.services.iter().filter(|s| opened.contains(&(s.namespace.as_str(), s.name.as_str())));
        services.any(|service| service.backends.iter().any(|backend| pods.contains(&Ip::from(backend.address))))
    }

    /// Addresses of the backends of all Services that answer at an address.
    pub fn behind(&self, address: Ip) -> &[Ip] {
        self.behind.get(&address).map_or(&[], Vec::as_slice)
    }
}

/// Both snapshots have a pod at the same place in the same condition: it differs in labels and ports alone.
fn stays(pod: &Pod, one: &Snapshot, two: &Snapshot) -> bool {
    let place = |pod: &Pod| (pod.node.clone(), pod.finished, pod.terminating, pod.ready, pod.addresses.clone());
    let has = |snapshot: &Snapshot| {
        let mut named = snapshot.pods.iter().filter(|p| (&p.meta.namespace, &p.meta.name) == (&pod.meta.namespace, &pod.meta.name));
        named.any(|other| place(other) == place(pod))
    };
    has(one) && has(two)
}
