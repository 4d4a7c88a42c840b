//! Objects coming and going in a snapshot, and what must hold between objects.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;

use weir_dataplane::model::Protocol;
use weir_dataplane::yaml::Fault;

use super::decode::{namespace, protocol_name};
use super::objects::{Meta, Namespace, Object, Origin, Service, ServiceType, Snapshot};

impl Snapshot {
    /// Adds an object, or puts it in the place of the one of the same kind and name, which it gives back.
    pub fn apply(&mut self, object: Object) -> Option<Object> {
        fn put<T>(all: &mut Vec<T>, object: T, same: impl Fn(&T) -> bool) -> Option<T> {
            match all.iter_mut().find(|o| same(o)) {
                Some(place) => Some(std::mem::replace(place, object)),
                None => {
                    all.push(object);
                    None
                }
            }
        }
        let meta = object.meta().clone();
        let same = |m: &Meta| (&m.namespace, &m.name) == (&meta.namespace, &meta.name);
        let before = match object {
            Object::Node(o) => put(&mut self.nodes, o, |o| same(&o.meta)).map(Object::Node),
            Object::Namespace(o) => put(&mut self.namespaces, o, |o| same(&o.meta)).map(Object::Namespace),
            Object::Pod(o) => put(&mut self.pods, o, |o| same(&o.meta)).map(Object::Pod),
            Object::Service(o) => put(&mut self.services, o, |o| same(&o.meta)).map(Object::Service),
            Object::EndpointSlice(o) => put(&mut self.slices, o, |o| same(&o.meta)).map(Object::EndpointSlice),
            Object::NetworkPolicy(o) => put(&mut self.network_policies, o, |o| same(&o.meta)).map(Object::NetworkPolicy),
            Object::ClusterPolicy(o) => {
                let kind = o.kind;
                put(&mut self.cluster_policies, o, |o| o.kind == kind && same(&o.meta)).map(Object::ClusterPolicy)
            }
        };
        if !meta.namespace.is_empty() && !self.namespaces.iter().any(|n| n.meta.name == meta.namespace) {
            self.namespaces.push(implied(meta.namespace));
        }
        before
    }

    /// Removes the object of this kind and name and gives it back, if there was one.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Option<Object> {
        fn take_from<T>(all: &mut Vec<T>, same: impl Fn(&T) -> bool) -> Option<T> {
            let place = all.iter().position(same)?;
            Some(all.remove(place))
        }
        let same = |m: &Meta| (m.namespace.as_str(), m.name.as_str()) == (namespace, name);
        let removed = match kind {
            "Node" => take_from(&mut self.nodes, |o| same(&o.meta)).map(Object::Node),
            "Namespace" => take_from(&mut self.namespaces, |o| same(&o.meta)).map(Object::Namespace),
            "Pod" => take_from(&mut self.pods, |o| same(&o.meta)).map(Object::Pod),
            "Service" => take_from(&mut self.services, |o| same(&o.meta)).map(Object::Service),
            "EndpointSlice" => take_from(&mut self.slices, |o| same(&o.meta)).map(Object::EndpointSlice),
            "NetworkPolicy" => take_from(&mut self.network_policies, |o| same(&o.meta)).map(Object::NetworkPolicy),
            _ => {
                let same = |o: &super::objects::ClusterPolicy| super::objects::policy_kind(o.kind) == kind && same(&o.meta);
                take_from(&mut self.cluster_policies, same).map(Object::ClusterPolicy)
            }
        };
        if let Some(Object::Namespace(_)) = removed {
            self.complete();
        }
        removed
    }

    /// Every object that is not the same in `other`: as it is here, as it is there, or both.
    pub fn differences(&self, other: &Self) -> Vec<Object> {
        fn between<T: PartialEq + Clone>(
            ours: &[T],
            theirs: &[T],
            named: impl Fn(&T) -> Named<'_>,
            kind: fn(T) -> Object,
            out: &mut Vec<Object>,
        ) {
            let mut left: HashMap<_, &T> = ours.iter().map(|o| (named(o), o)).collect();
            for object in theirs {
                match left.remove(&named(object)) {
                    Some(same) if same == object => {}
                    before => out.extend(before.into_iter().chain([object]).cloned().map(kind)),
                }
            }
            out.extend(left.into_values().cloned().map(kind));
        }
        let mut all = Vec::new();
        between(&self.nodes, &other.nodes, |o| named(&o.meta, 0), Object::Node, &mut all);
        between(&self.namespaces, &other.namespaces, |o| named(&o.meta, 0), Object::Namespace, &mut all);
        between(&self.pods, &other.pods, |o| named(&o.meta, 0), Object::Pod, &mut all);
        between(&self.services, &other.services, |o| named(&o.meta, 0), Object::Service, &mut all);
        between(&self.slices, &other.slices, |o| named(&o.meta, 0), Object::EndpointSlice, &mut all);
        between(&self.network_policies, &other.network_policies, |o| named(&o.meta, 0), Object::NetworkPolicy, &mut all);
        between(&self.cluster_policies, &other.cluster_policies, |o| named(&o.meta, o.kind as u8), Object::ClusterPolicy, &mut all);
        all
    }

    /// Adds an object that is new; gives its index among those of its kind.
    pub(super) fn push(&mut self, object: Object) -> usize {
        fn last<T>(all: &mut Vec<T>, object: T) -> usize {
            all.push(object);
            all.len() - 1
        }
        match object {
            Object::Node(o) => last(&mut self.nodes, o),
            Object::Namespace(o) => last(&mut self.namespaces, o),
            Object::Pod(o) => last(&mut self.pods, o),
            Object::Service(o) => last(&mut self.services, o),
            Object::EndpointSlice(o) => last(&mut self.slices, o),
            Object::NetworkPolicy(o) => last(&mut self.network_policies, o),
            Object::ClusterPolicy(o) => last(&mut self.cluster_policies, o),
        }
    }

    /// Tells whether the object at `index` among those of its kind says the same; if not, where it stands.
    pub(super) fn holds(&self, object: &Object, index: usize) -> Result<(), Origin> {
        let (same, meta) = match object {
            Object::Node(o) => (self.nodes[index] == *o, &self.nodes[index].meta),
            Object::Namespace(o) => (self.namespaces[index] == *o, &self.namespaces[index].meta),
            Object::Pod(o) => (self.pods[index] == *o, &self.pods[index].meta),
            Object::Service(o) => (self.services[index] == *o, &self.services[index].meta),
            Object::EndpointSlice(o) => (self.slices[index] == *o, &self.slices[index].meta),
            Object::NetworkPolicy(o) => (self.network_policies[index] == *o, &self.network_policies[index].meta),
            Object::ClusterPolicy(o) => (self.cluster_policies[index] == *o, &self.cluster_policies[index].meta),
        };
        if same { Ok(()) } else { Err(meta.origin.clone()) }
    }

    /// Gives every namespace that an object mentions an object of its own, with its name label (E0.5).
    pub(super) fn complete(&mut self) {
        let known: HashSet<&str> = self.namespaces.iter().map(|n| n.meta.name.as_str()).collect();
        let metas = self.pods.iter().map(|o| &o.meta).chain(self.services.iter().map(|o| &o.meta));
        let metas = metas.chain(self.slices.iter().map(|o| &o.meta)).chain(self.network_policies.iter().map(|o| &o.meta));
        let missing: BTreeSet<String> = metas.filter(|m| !known.contains(m.namespace.as_str())).map(|m| m.namespace.clone()).collect();
        self.namespaces.extend(missing.into_iter().map(implied));
    }

    /// Everything that is wrong between objects that are each valid by themselves.
    pub fn check(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.pod_addresses(&mut faults);
        self.frontends(&mut faults);
        self.node_blocks(&mut faults);
        faults.sort();
        faults
    }

    /// What is legal between objects but surely not meant.
    pub(super) fn doubts(&self) -> Vec<String> {
        let services: HashSet<(&str, &str)> = self.services.iter().map(|s| (&*s.meta.namespace, &*s.meta.name)).collect();
        let mut doubts = Vec::new();
        for slice in &self.slices {
            if let Some(service) = &slice.service
                && !services.contains(&(&slice.meta.namespace, service))
            {
                let message = format!("is a slice of Service {service}, which is not in the snapshot");
                doubts.push(fault("EndpointSlice", &slice.meta, "metadata.labels", message).to_string());
            }
        }
        for service in &self.services {
            let guarded = |address: &IpAddr| service.source_ranges.iter().any(|range| range.addr().is_ipv4() == address.is_ipv4());
            if let Some(address) = service.load_balancer_ips.iter().find(|a| !service.source_ranges.is_empty() && !guarded(a)) {
                let message = format!("has no block of the family of {address}: everybody may reach that address (E2.32)");
                doubts.push(fault("Service", &service.meta, "spec.loadBalancerSourceRanges", message).to_string());
            }
        }
        let mut places: HashMap<_, &Meta> = HashMap::new();
        for policy in &self.cluster_policies {
            if let Some(before) = places.insert((policy.tier, policy.priority), &policy.meta) {
                let message = format!("has the tier and priority of {before}; the order is then that of the names (E1.49)");
                doubts.push(fault(super::objects::policy_kind(policy.kind), &policy.meta, "spec.priority", message).to_string());
            }
        }
        doubts
    }

    /// Two pods that both live, off the host network, cannot have one address.
    fn pod_addresses(&self, faults: &mut Vec<Fault>) {
        let mut owners = Owners::default();
        for pod in self.pods.iter().filter(|p| !p.finished && !p.host_network) {
            for address in &pod.addresses {
                let message =
                    |other: &Meta| format!("{address} is also the address of pod {other} ({}), which has not finished", other.origin);
                owners.claim(*address, &pod.meta, message, |message| faults.push(fault("Pod", &pod.meta, "status.podIPs", message)));
            }
        }
    }

    /// (address, protocol, port) names one Service port, and so does (protocol, nodePort).
    fn frontends(&self, faults: &mut Vec<Fault>) {
        let (mut places, mut node_ports) = (Owners::default(), Owners::default());
        let proxied = |s: &&Service| !s.headless && !s.other_proxy && s.kind != ServiceType::ExternalName;
        for service in self.services.iter().filter(proxied) {
            let addresses: BTreeSet<IpAddr> =
                service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips).copied().collect();
            let meta = &service.meta;
            for port in &service.ports {
                let protocol = protocol_name(port.protocol);
                for address in &addresses {
                    let message =
                        |other: &Meta| format!("{address} {protocol} {} is also a port of Service {other} ({})", port.port, other.origin);
                    places.claim((*address, port.protocol, port.port), meta, message, |message| {
                        faults.push(fault("Service", meta, "spec.ports", message));
                    });
                }
                if let Some(number) = port.node_port {
                    let message = |other: &Meta| format!("nodePort {protocol} {number} is also one of Service {other} ({})", other.origin);
                    node_ports.claim((port.protocol, number), meta, message, |message| {
                        faults.push(fault("Service", meta, "spec.ports", message));
                    });
                }
            }
            if let Some(number) = service.health_check_node_port {
                let message = |other: &Meta| format!("port {number} is also a node port of Service {other} ({})", other.origin);
                node_ports.claim((Protocol::Tcp, number), meta, message, |message| {
                    faults.push(fault("Service", meta, "spec.healthCheckNodePort", message));
                });
            }
        }
    }

    /// Pod address blocks of two nodes cannot overlap: no VTEP could be chosen.
    fn node_blocks(&self, faults: &mut Vec<Fault>) {
        let mut blocks: Vec<_> = self.nodes.iter().flat_map(|n| n.pod_cidrs.iter().map(move |block| (*block, &n.meta))).collect();
        blocks.sort_by_key(|(block, _)| (block.addr(), block.prefix_len()));
        // Sorted by first address, a block that overlaps any earlier one overlaps the widest of them still open.
        let mut widest: Option<(ipnet::IpNet, &Meta)> = None;
        for (block, meta) in blocks {
            match widest {
                Some((wide, other)) if wide.contains(&block) => {
                    if other.name != meta.name {
                        let message = format!("{block} overlaps {wide} of Node {other} ({})", other.origin);
                        faults.push(fault("Node", meta, "spec.podCIDRs", message));
                    }
                }
                _ => widest = Some((block, meta)),
            }
        }
    }
}

/// A namespace that only other objects mention.
fn implied(name: String) -> Namespace {
    namespace(Meta { name, ..Meta::default() })
}

/// What names an object among those of its type: namespace, name, and its kind where one type has several.
type Named<'s> = (&'s str, &'s str, u8);

fn named(meta: &Meta, kind: u8) -> Named<'_> {
    (&meta.namespace, &meta.name, kind)
}

/// Who claimed a thing first.
struct Owners<'s, K>(HashMap<K, &'s Meta>);

impl<K> Default for Owners<'_, K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<'s, K: Hash + Eq> Owners<'s, K> {
    /// Notes that `meta` claims `key`; if another object did before, says so.
    fn claim<M: Display>(&mut self, key: K, meta: &'s Meta, message: impl Fn(&Meta) -> M, say: impl FnOnce(String)) {
        let owner = *self.0.entry(key).or_insert(meta);
        if !std::ptr::eq(owner, meta) {
            say(message(owner).to_string());
        }
    }
}

/// A fault of a whole object, at its place.
pub(crate) fn fault(kind: &str, meta: &Meta, path: &str, message: String) -> Fault {
    let origin = &meta.origin;
    Fault {
        file: origin.file.clone(),
        line: origin.line,
        column: origin.column,
        object: format!("{kind} {meta}"),
        path: path.into(),
        message,
    }
}
