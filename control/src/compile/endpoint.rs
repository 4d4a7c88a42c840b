//! Pods as endpoints, and what selectors can tell of them as identities.
//!
//! Finished pods and pods without an address are left out here, so that nobody later can match them (E1.39, E1.40, E2.12).

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

use weir_dataplane::model::{Endpoint, EndpointIndex, Identity, IdentityIndex, NamedPort, NamespaceIndex, Node, NodeIndex};

use super::overlay;
use crate::source::objects::{Labels, Pod, Selector, Snapshot};

/// A namespace that selectors can see.
pub(super) struct Namespace<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its labels, the one with its name included (E0.5).
    pub(super) labels: &'a Labels,
    /// Its identities.
    pub(super) identities: Range<IdentityIndex>,
}

/// All living pods with an address, indexed for selectors.
pub(super) struct Pods<'a> {
    /// Sorted by name.
    pub(super) namespaces: Vec<Namespace<'a>>,
    /// Sorted, so that those of a namespace are neighbours.
    pub(super) identities: Vec<Identity>,
    /// Sorted by namespace and name.
    pub(super) endpoints: Vec<Endpoint>,
    /// The object of each endpoint.
    pub(super) objects: Vec<&'a Pod>,
    /// The endpoints of each identity, sorted.
    pub(super) members: Vec<Vec<EndpointIndex>>,
    /// Identities that carry a label, by key and value, sorted.
    by_label: HashMap<&'a str, HashMap<&'a str, Vec<IdentityIndex>>>,
}

impl<'a> Pods<'a> {
    /// Collects the pods of `snapshot`; every pod's node is among `nodes`.
    pub(super) fn collect(snapshot: &'a Snapshot, nodes: &[Node]) -> Self {
        let mut namespaces: Vec<Namespace<'a>> =
            snapshot.namespaces.iter().map(|n| Namespace { name: &n.meta.name, labels: &n.meta.labels, identities: 0..0 }).collect();
        namespaces.sort_unstable_by_key(|n| n.name);

        let mut live: Vec<Live<'a>> = snapshot.pods.iter().filter_map(|pod| Live::new(pod, &namespaces, nodes)).collect();
        live.sort_by(|a, b| a.traits().cmp(&b.traits()));
        let mut identities: Vec<Identity> = Vec::new();
        let mut by_label: HashMap<&str, HashMap<&str, Vec<IdentityIndex>>> = HashMap::new();
        for index in 0..live.len() {
            if index == 0 || live[index - 1].traits() != live[index].traits() {
                let identity = identities.len() as IdentityIndex;
                let Live { namespace, named_ports, pod, .. } = &live[index];
                let labels = &pod.meta.labels;
                for (key, value) in labels {
                    by_label.entry(key).or_default().entry(value).or_default().push(identity);
                }
                let space = &mut namespaces[*namespace as usize].identities;
                *space = if space.end == 0 { identity } else { space.start }..identity + 1;
                identities.push(Identity { namespace: *namespace, labels: labels.clone(), named_ports: named_ports.clone() });
            }
            live[index].identity = identities.len() as IdentityIndex - 1;
        }

        live.sort_unstable_by_key(|l| (l.namespace, l.pod.meta.name.as_str()));
        let mut members = vec![Vec::new(); identities.len()];
        for (index, one) in live.iter().enumerate() {
            members[one.identity as usize].push(index as EndpointIndex);
        }
        let objects = live.iter().map(|l| l.pod).collect();
        let endpoints = live.into_iter().map(Live::into_endpoint).collect();
        Self { namespaces, identities, endpoints, objects, members, by_label }
    }

    /// Finds a namespace by its name.
    pub(super) fn namespace(&self, name: &str) -> Option<NamespaceIndex> {
        find_namespace(&self.namespaces, name)
    }

    /// The namespaces that `selector` selects, sorted.
    pub(super) fn namespaces_selected(&self, selector: &Selector) -> Vec<NamespaceIndex> {
        let all = self.namespaces.iter().enumerate();
        all.filter(|(_, n)| selector.matches(n.labels)).map(|(index, _)| index as NamespaceIndex).collect()
    }

    /// The identities in `namespaces` (sorted) whose labels `selector` selects, sorted. Looks only at those that carry the
    /// rarest of the selector's labels, where it has any.
    pub(super) fn identities_selected(&self, namespaces: &[NamespaceIndex], selector: &Selector) -> Vec<IdentityIndex> {
        let matches = |identity: IdentityIndex| selector.matches(&self.identities[identity as usize].labels);
        match selector.match_labels.iter().map(|(key, value)| self.labelled(key, value)).min_by_key(|p| p.len()) {
            Some(rarest) if namespaces.len() > 1 || rarest.len() < 16 => {
                let within = |identity: IdentityIndex| namespaces.binary_search(&self.identities[identity as usize].namespace).is_ok();
                rarest.iter().copied().filter(|&i| within(i) && matches(i)).collect()
            }
            _ => namespaces.iter().flat_map(|&n| self.namespaces[n as usize].identities.clone()).filter(|&i| matches(i)).collect(),
        }
    }

    fn labelled(&self, key: &str, value: &str) -> &[IdentityIndex] {
        self.by_label.get(key).and_then(|values| values.get(value)).map_or(&[], Vec::as_slice)
    }

    /// Tells whether policies can see a pod of this identity: one that is not on the host network (E1.30, E1.50).
    pub(super) fn is_selectable(&self, identity: IdentityIndex) -> bool {
        self.members[identity as usize].iter().any(|&e| !self.endpoints[e as usize].host_network)
    }

    /// The identities of the pods on `node` that policies can act on, sorted.
    pub(super) fn identities_on(&self, node: NodeIndex) -> Vec<IdentityIndex> {
        let here = self.endpoints.iter().filter(|e| e.node == node && !e.host_network);
        let mut identities: Vec<IdentityIndex> = here.map(|e| e.identity).collect();
        identities.sort_unstable();
        identities.dedup();
        identities
    }
}

/// A pod on its way to become an endpoint.
struct Live<'a> {
    pod: &'a Pod,
    namespace: NamespaceIndex,
    node: NodeIndex,
    named_ports: Vec<NamedPort>,
    addresses: Vec<IpAddr>,
    identity: IdentityIndex,
}

impl<'a> Live<'a> {
    fn new(pod: &'a Pod, namespaces: &[Namespace<'_>], nodes: &[Node]) -> Option<Self> {
        if pod.finished {
            return None;
        }
        let node = overlay::find(nodes, overlay::node_name(pod))?;
        let mut addresses = pod.addresses.clone();
        if addresses.is_empty() && pod.host_network {
            let node = &nodes[node as usize];
            addresses.extend([true, false].into_iter().filter_map(|v4| node.primary(v4)));
        }
        let namespace = find_namespace(namespaces, &pod.meta.namespace)?;
        (!addresses.is_empty()).then(|| Self { pod, namespace, node, named_ports: named_ports(pod), addresses, identity: 0 })
    }

    fn traits(&self) -> (NamespaceIndex, &Labels, &[NamedPort]) {
        (self.namespace, &self.pod.meta.labels, &self.named_ports)
    }

    fn into_endpoint(self) -> Endpoint {
        Endpoint {
            namespace: self.pod.meta.namespace.clone(),
            name: self.pod.meta.name.clone(),
            node: self.node,
            addresses: self.addresses,
            host_network: self.pod.host_network,
            identity: self.identity,
        }
    }
}

/// The named ports of all containers, sorted; of two with the same name and protocol the first counts (E1.27).
fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let mut named: Vec<NamedPort> = Vec::new();
    for port in &pod.ports {
        if let Some(name) = &port.name
            && !named.iter().any(|n| n.name == *name && n.protocol == port.protocol)
        {
            named.push(NamedPort { name: name.clone(), protocol: port.protocol, port: port.port });
        }
    }
    named.sort_unstable();
    named
}

fn find_namespace(namespaces: &[Namespace<'_>], name: &str) -> Option<NamespaceIndex> {
    namespaces.binary_search_by(|n| n.name.cmp(name)).ok().map(|index| index as NamespaceIndex)
}
