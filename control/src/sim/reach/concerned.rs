//! Whom a change of policies concerns: a pod fares otherwise only where a policy that selects it does.

use std::collections::{HashMap, HashSet};

use weir_dataplane::model::{Ip, PolicyKind, Selection};

use super::World;
use crate::source::objects::{ClusterPolicy, NetworkPolicy, Snapshot};

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

impl World {
    /// Addresses of all pods that are selected by a policy which only one of the worlds has, or which says something else there.
    /// `None` where the worlds differ in more than policies: then it may be anybody.
    pub fn concerned(&self, other: &Self) -> Option<HashSet<Ip>> {
        let (one, two) = (&self.snapshot, &other.snapshot);
        let beside = (&one.nodes, &one.namespaces, &one.pods, &one.services, &one.slices);
        if self.config != other.config || beside != (&two.nodes, &two.namespaces, &two.pods, &two.services, &two.slices) {
            return None;
        }
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
        Some(concerned)
    }

    /// Addresses of the backends of all Services that answer at an address.
    pub fn behind(&self, address: Ip) -> &[Ip] {
        self.behind.get(&address).map_or(&[], Vec::as_slice)
    }
}
