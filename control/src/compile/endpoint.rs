//! Pods as endpoints, and what selectors can tell of them as identities.
//!
//! Finished pods and pods without an address are left out here, so that nobody later can match them (E1.39, E1.40, E2.12).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use weir_dataplane::model::{Endpoint, Identity, IdentityIndex, NamedPort, NamespaceIndex, Node, NodeIndex, NodeState};

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

/// All living pods with an address, as selectors see them.
pub(super) struct Pods<'a> {
    /// Sorted by name.
    pub(super) namespaces: Vec<Namespace<'a>>,
    /// Sorted, so that those of a namespace are neighbours.
    pub(super) identities: Arc<Vec<Arc<Identity>>>,
    /// Sorted by namespace and name.
    pub(super) endpoints: Arc<Vec<Endpoint>>,
    /// Of which identities there is a pod off the host network.
    selectable: Vec<bool>,
}

/// What became of the identities when pods changed.
pub(super) struct Moved {
    /// The index of each that there was; `None` = it is gone.
    pub(super) to: Vec<Option<IdentityIndex>>,
    /// Those that there were not, sorted.
    pub(super) new: Vec<IdentityIndex>,
}

impl<'a> Pods<'a> {
    /// Collects the pods of `snapshot`; every pod's node is among `nodes`.
    pub(super) fn collect(snapshot: &'a Snapshot, nodes: &[Node]) -> Self {
        let namespaces = namespaces(snapshot);
        let mut live: Vec<Live<'a>> = snapshot.pods.iter().filter_map(|pod| Live::new(pod, &namespaces, nodes)).collect();
        live.sort_by(|a, b| a.traits().cmp(&b.traits()));
        let mut identities = Vec::new();
        for index in 0..live.len() {
            if index == 0 || live[index - 1].traits() != live[index].traits() {
                identities.push(Arc::new(live[index].identity()));
            }
            live[index].identity = identities.len() as IdentityIndex - 1;
        }
        live.sort_unstable_by_key(|l| (l.namespace, l.pod.meta.name.as_str()));
        let endpoints = live.into_iter().map(Live::into_endpoint).collect();
        Self::new(namespaces, Arc::new(identities), Arc::new(endpoints))
    }

    /// The pods of `snapshot`, when they are those of `before`.
    pub(super) fn same(snapshot: &'a Snapshot, before: &NodeState) -> Self {
        Self::new(namespaces(snapshot), before.identities.clone(), before.endpoints.clone())
    }

    /// The pods of `snapshot`, when those not called `changed` (namespace, name), all nodes and the names of namespaces are as in
    /// `before`.
    pub(super) fn follow(snapshot: &'a Snapshot, before: &NodeState, changed: &BTreeSet<(&str, &str)>) -> (Self, Moved) {
        let namespaces = namespaces(snapshot);
        let changed = |namespace: &str, name: &str| changed.contains(&(namespace, name));
        let others = || before.endpoints.iter().filter(|e| !changed(&e.namespace, &e.name));
        let mut used = vec![false; before.identities.len()];
        others().for_each(|e| used[e.identity as usize] = true);
        let stay = before.identities.iter().zip(&used).filter(|(_, used)| **used);
        let mut identities: Vec<Arc<Identity>> = stay.map(|(identity, _)| identity.clone()).collect();
        let pods = snapshot.pods.iter().filter(|p| changed(&p.meta.namespace, &p.meta.name));
        let live: Vec<Live<'_>> = pods.filter_map(|pod| Live::new(pod, &namespaces, &before.nodes)).collect();
        for one in &live {
            if let Err(at) = one.find(&identities) {
                identities.insert(at, Arc::new(one.identity()));
            }
        }
        let moved = Moved::between(&before.identities, &used, &identities);
        let others = others().map(|e| Endpoint { identity: moved.to[e.identity as usize].unwrap_or_default(), ..e.clone() });
        let mut endpoints: Vec<Endpoint> = others.collect();
        for mut one in live {
            one.identity = one.find(&identities).unwrap_or_default() as IdentityIndex;
            let one = one.into_endpoint();
            let at = endpoints.partition_point(|e| (&e.namespace, &e.name) < (&one.namespace, &one.name));
            endpoints.insert(at, one);
        }
        (Self::new(namespaces, Arc::new(identities), Arc::new(endpoints)), moved)
    }

    fn new(mut namespaces: Vec<Namespace<'a>>, identities: Arc<Vec<Arc<Identity>>>, endpoints: Arc<Vec<Endpoint>>) -> Self {
        for (identity, index) in identities.iter().zip(0..) {
            let space = &mut namespaces[identity.namespace as usize].identities;
            *space = if space.end == 0 { index } else { space.start }..index + 1;
        }
        let mut selectable = vec![false; identities.len()];
        endpoints.iter().filter(|e| !e.host_network).for_each(|e| selectable[e.identity as usize] = true);
        Self { namespaces, identities, endpoints, selectable }
    }

    /// Finds a namespace by its name.
    pub(super) fn namespace(&self, name: &str) -> Option<NamespaceIndex> {
        find_namespace(&self.namespaces, name)
    }

    /// The namespaces that `selector` selects, sorted.
    pub(super) fn namespaces_selected(&self, selector: &Selector) -> Vec<NamespaceIndex> {
        let all = self.namespaces.iter().zip(0..);
        all.filter(|(n, _)| selector.matches(n.labels)).map(|(_, index)| index).collect()
    }

    /// Tells whether policies can see a pod of this identity: one that is not on the host network (E1.30, E1.50).
    pub(super) fn is_selectable(&self, identity: IdentityIndex) -> bool {
        self.selectable[identity as usize]
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

impl Moved {
    /// `used` tells which of `before` are among `after`.
    fn between(before: &[Arc<Identity>], used: &[bool], after: &[Arc<Identity>]) -> Self {
        let mut moved = Self { to: Vec::with_capacity(before.len()), new: Vec::new() };
        let mut next = 0;
        for (identity, used) in before.iter().zip(used) {
            while *used && !Arc::ptr_eq(&after[next], identity) {
                moved.new.push(next as IdentityIndex);
                next += 1;
            }
            moved.to.push(used.then_some(next as IdentityIndex));
            next += usize::from(*used);
        }
        moved.new.extend(next as IdentityIndex..after.len() as IdentityIndex);
        moved
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

    fn identity(&self) -> Identity {
        Identity { namespace: self.namespace, labels: self.pod.meta.labels.clone(), named_ports: self.named_ports.clone() }
    }

    /// Where its identity is in `identities`, or would be.
    fn find(&self, identities: &[Arc<Identity>]) -> Result<usize, usize> {
        identities.binary_search_by(|i| (i.namespace, &i.labels, &*i.named_ports).cmp(&self.traits()))
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

/// All namespaces, sorted, as yet without identities.
fn namespaces(snapshot: &Snapshot) -> Vec<Namespace<'_>> {
    let all = snapshot.namespaces.iter();
    let mut namespaces: Vec<_> = all.map(|n| Namespace { name: &n.meta.name, labels: &n.meta.labels, identities: 0..0 }).collect();
    namespaces.sort_unstable_by_key(|n| n.name);
    namespaces
}

fn find_namespace(namespaces: &[Namespace<'_>], name: &str) -> Option<NamespaceIndex> {
    namespaces.binary_search_by(|n| n.name.cmp(name)).ok().map(|index| index as NamespaceIndex)
}
