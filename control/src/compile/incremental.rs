//! A state that follows its objects: one changed object costs work for what it touches.
//!
//! A Service or an EndpointSlice touches one Service, and that alone is compiled anew. A pod touches its identity, what selectors
//! select of that, and those Services that select it and whose endpoints no slice tells. A policy touches its own selectors, a
//! Namespace's labels the selectors of namespaces. All else of the new state is that of the old one, so that tables can share it too.
//! A Node touches everything, and what only changes the set of namespaces all selectors.

use std::collections::BTreeSet;
use std::sync::Arc;

use weir_dataplane::model::{NodeConfig, NodeState};

use super::endpoint::Pods;
use super::service::{self, Name};
use super::{CompileError, Matches, compile_with, overlay, with_policies};
use crate::source::objects::{Meta, Object, Pod, Snapshot};

/// The objects of a cluster and the state of one node, in step.
pub struct Compiler {
    snapshot: Snapshot,
    node: String,
    config: NodeConfig,
    state: Arc<NodeState>,
    /// What the selectors of the state's policies match.
    matches: Matches,
}

/// More Services or pods than this are compiled faster with all the others.
const FEW: usize = 100;

/// What a change can reach.
#[derive(Default)]
struct Touched<'o> {
    /// These Services.
    services: BTreeSet<Name<'o>>,
    /// A Service itself changed, not only its slices.
    frontends: bool,
    /// These pods, as they were and as they are.
    pods: Vec<&'o Pod>,
    /// Namespaces of these names.
    namespaces: Vec<&'o str>,
    /// What selectors select, or what they are asked for.
    selectors: bool,
    /// All of it.
    everything: bool,
}

impl<'o> Touched<'o> {
    fn by(objects: impl IntoIterator<Item = &'o Object>) -> Self {
        let mut touched = Self::default();
        for object in objects {
            match object {
                Object::Service(service) => {
                    touched.frontends = true;
                    touched.services.insert((&service.meta.namespace, &service.meta.name));
                }
                Object::EndpointSlice(slice) => {
                    touched.services.extend(slice.service.as_ref().map(|name| (&*slice.meta.namespace, &**name)));
                }
                Object::Pod(pod) => touched.pods.push(pod),
                Object::Namespace(namespace) => touched.namespaces.push(&namespace.meta.name),
                Object::NetworkPolicy(_) | Object::ClusterPolicy(_) => touched.selectors = true,
                Object::Node(_) => touched.everything = true,
            }
        }
        touched
    }
}

impl Compiler {
    /// Compiles `snapshot` for the node called `node`.
    ///
    /// # Errors
    /// As [`compile`](super::compile).
    pub fn new(snapshot: Snapshot, node: &str, config: NodeConfig) -> Result<Self, CompileError> {
        let mut matches = Matches::default();
        let state = Arc::new(compile_with(&snapshot, node, &config, &mut matches)?);
        Ok(Self { snapshot, node: node.into(), config, state, matches })
    }

    /// The state of the objects as they are.
    pub fn state(&self) -> &Arc<NodeState> {
        &self.state
    }

    /// Adds an object, or puts it in the place of the one of the same kind and name.
    ///
    /// # Errors
    /// As [`compile`](super::compile); objects and state are as before then.
    pub fn apply(&mut self, object: Object) -> Result<&Arc<NodeState>, CompileError> {
        let namespaces = self.snapshot.namespaces.len();
        let (kind, Meta { namespace, name, .. }) = (object.kind(), object.meta().clone());
        let after = object.clone();
        let before = self.snapshot.apply(object);
        self.follow(Touched::by(before.iter().chain([&after]))).map_err(|(compiler, error)| {
            match before {
                Some(before) => drop(compiler.snapshot.apply(before)),
                None => drop(compiler.snapshot.remove(kind, &namespace, &name)),
            }
            compiler.snapshot.namespaces.truncate(namespaces);
            error
        })
    }

    /// Removes the object of this kind and name, if there is one.
    ///
    /// # Errors
    /// As [`compile`](super::compile); objects and state are as before then.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Result<&Arc<NodeState>, CompileError> {
        let before = self.snapshot.remove(kind, namespace, name);
        self.follow(Touched::by(&before)).map_err(|(compiler, error)| {
            if let Some(before) = before {
                compiler.snapshot.apply(before);
            }
            error
        })
    }

    /// Takes other objects instead; tells whether any differs.
    ///
    /// # Errors
    /// As [`compile`](super::compile); objects and state are as before then.
    pub fn replace(&mut self, snapshot: Snapshot) -> Result<bool, CompileError> {
        let differences = self.snapshot.differences(&snapshot);
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        if differences.is_empty() {
            return Ok(false);
        }
        match self.follow(Touched::by(&differences)) {
            Ok(_) => Ok(true),
            Err((compiler, error)) => {
                compiler.snapshot = before;
                Err(error)
            }
        }
    }

    /// Makes the state that of the objects.
    fn follow(&mut self, touched: Touched<'_>) -> Result<&Arc<NodeState>, (&mut Self, CompileError)> {
        let followed = match self.partly(touched) {
            Some(followed) => followed,
            None => {
                let mut matches = Matches::default();
                let state = compile_with(&self.snapshot, &self.node, &self.config, &mut matches);
                state.inspect(|_| self.matches = matches)
            }
        };
        match followed {
            Ok(state) => {
                self.state = Arc::new(state);
                Ok(&self.state)
            }
            Err(error) => Err((self, error)),
        }
    }

    /// The state with what is touched compiled anew; `None` where that alone does not do, or is no less work than everything.
    /// `matches` follow only where there is a new state.
    fn partly(&mut self, touched: Touched<'_>) -> Option<Result<NodeState, CompileError>> {
        let (old, snapshot) = (&*self.state, &self.snapshot);
        // A node that no object tells of is there for its living pods alone.
        let places = |pod: &Pod| !overlay::is_nobody(pod) && !snapshot.nodes.iter().any(|n| n.meta.name == overlay::node_name(pod));
        if touched.everything || touched.pods.len() > FEW || touched.pods.iter().any(|pod| places(pod)) {
            return None;
        }
        let mut names = touched.services;
        names.extend(service::selecting(snapshot, &touched.pods));
        if names.len() > FEW {
            return None;
        }
        let this = &old.nodes[old.this_node as usize];
        let mut services = old.services.clone();
        for (of, made) in service::compile_some(snapshot, &names, this, &self.config) {
            let first = services.partition_point(|s| (&*s.namespace, &*s.name) < of);
            let end = services.partition_point(|s| (&*s.namespace, &*s.name) <= of);
            services.splice(first..end, made);
        }
        let cluster_ips = if touched.frontends { service::cluster_ips(snapshot) } else { old.cluster_ips.clone() };
        if touched.frontends
            && let Err(error) = service::refuse_taken(&services, snapshot)
        {
            return Some(Err(error));
        }
        // No error from here on.
        let others = snapshot.namespaces.len() != old.namespaces.len()
            || touched.namespaces.iter().any(|name| old.namespaces.binary_search_by(|n| n.as_str().cmp(name)).is_err());
        let pods = if others {
            self.matches = Matches::default();
            Pods::collect(snapshot, &old.nodes)
        } else if !touched.pods.is_empty() {
            let changed = touched.pods.iter().map(|pod| (&*pod.meta.namespace, &*pod.meta.name)).collect();
            let (pods, moved) = Pods::follow(snapshot, old, &changed);
            self.matches.follow(&moved, &pods);
            pods
        } else if touched.selectors || !touched.namespaces.is_empty() {
            Pods::same(snapshot, old)
        } else {
            return Some(Ok(NodeState { services, cluster_ips, ..old.clone() }));
        };
        if !touched.namespaces.is_empty() {
            self.matches.forget_namespaces();
        }
        let rest = NodeState {
            this_node: old.this_node,
            leaving: old.leaving,
            cluster: old.cluster.clone(),
            nodes: old.nodes.clone(),
            services,
            cluster_ips,
            ..NodeState::default()
        };
        Some(Ok(with_policies(rest, snapshot, pods, &mut self.matches)))
    }
}
