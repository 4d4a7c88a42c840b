//! A state that follows its objects: one changed object costs work for what it touches.
//!
//! A Service or an EndpointSlice touches one Service, and that alone is compiled anew. A pod, a namespace or a policy touches what
//! selectors select, and those Services whose endpoints no slice tells. The other Services of the new state are those of the
//! old one, so that tables can share them too. A change of a Node compiles everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use weir_dataplane::model::{NodeConfig, NodeState};

use super::endpoint::Pods;
use super::service::{self, Name};
use super::{CompileError, compile, overlay};
use crate::source::objects::{Meta, Object, Snapshot};

/// The objects of a cluster and the state of one node, in step.
pub struct Compiler {
    snapshot: Snapshot,
    node: String,
    config: NodeConfig,
    state: Arc<NodeState>,
}

/// More Services than this are compiled faster with all the others.
const FEW: usize = 100;

/// What a change can reach.
#[derive(Default)]
struct Touched {
    /// These Services.
    services: BTreeSet<Name>,
    /// A Service itself changed, not only its slices.
    frontends: bool,
    /// What selectors select, or what they are asked for.
    selectors: bool,
    /// All of it.
    everything: bool,
}

impl Touched {
    fn by<'o>(objects: impl IntoIterator<Item = &'o Object>) -> Self {
        let mut touched = Self::default();
        for object in objects {
            match object {
                Object::Service(service) => {
                    touched.frontends = true;
                    touched.services.insert((service.meta.namespace.clone(), service.meta.name.clone()));
                }
                Object::EndpointSlice(slice) => {
                    touched.services.extend(slice.service.clone().map(|name| (slice.meta.namespace.clone(), name)));
                }
                Object::Pod(_) | Object::Namespace(_) | Object::NetworkPolicy(_) | Object::ClusterPolicy(_) => touched.selectors = true,
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
    /// As [`compile`].
    pub fn new(snapshot: Snapshot, node: &str, config: NodeConfig) -> Result<Self, CompileError> {
        let state = Arc::new(compile(&snapshot, node, &config)?);
        Ok(Self { snapshot, node: node.into(), config, state })
    }

    /// The state of the objects as they are.
    pub fn state(&self) -> &Arc<NodeState> {
        &self.state
    }

    /// Adds an object, or puts it in the place of the one of the same kind and name.
    ///
    /// # Errors
    /// As [`compile`]; objects and state are as before then.
    pub fn apply(&mut self, object: Object) -> Result<&Arc<NodeState>, CompileError> {
        let namespaces = self.snapshot.namespaces.len();
        let (kind, Meta { namespace, name, .. }) = (object.kind(), object.meta().clone());
        let after = object.clone();
        let before = self.snapshot.apply(object);
        let touched = Touched::by(before.iter().chain([&after]));
        self.follow(touched, namespaces).map_err(|(compiler, error)| {
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
    /// As [`compile`]; objects and state are as before then.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Result<&Arc<NodeState>, CompileError> {
        let namespaces = self.snapshot.namespaces.len();
        let before = self.snapshot.remove(kind, namespace, name);
        let touched = Touched::by(&before);
        self.follow(touched, namespaces).map_err(|(compiler, error)| {
            if let Some(before) = before {
                compiler.snapshot.apply(before);
            }
            error
        })
    }

    /// Takes other objects instead; tells whether any differs.
    ///
    /// # Errors
    /// As [`compile`]; objects and state are as before then.
    pub fn replace(&mut self, snapshot: Snapshot) -> Result<bool, CompileError> {
        let differences = self.snapshot.differences(&snapshot);
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        if differences.is_empty() {
            return Ok(false);
        }
        match self.follow(Touched::by(&differences), before.namespaces.len()) {
            Ok(_) => Ok(true),
            Err((compiler, error)) => {
                compiler.snapshot = before;
                Err(error)
            }
        }
    }

    /// Makes the state that of the objects. `namespaces` = how many there were before the change.
    fn follow(&mut self, mut touched: Touched, namespaces: usize) -> Result<&Arc<NodeState>, (&mut Self, CompileError)> {
        touched.selectors |= self.snapshot.namespaces.len() != namespaces;
        let partly = if touched.everything { None } else { self.partly(touched) };
        match partly.unwrap_or_else(|| compile(&self.snapshot, &self.node, &self.config)) {
            Ok(state) => {
                self.state = Arc::new(state);
                Ok(&self.state)
            }
            Err(error) => Err((self, error)),
        }
    }

    /// The state with what is touched compiled anew; `None` where that alone does not do, or is no less work than everything.
    fn partly(&self, touched: Touched) -> Option<Result<NodeState, CompileError>> {
        let (old, snapshot) = (&*self.state, &self.snapshot);
        let Touched { services: mut names, frontends, selectors, .. } = touched;
        if selectors && overlay::nodes(snapshot) != old.nodes {
            return None;
        }
        let pods = selectors.then(|| Pods::collect(snapshot, &old.nodes));
        if selectors {
            names.extend(service::without_slices(snapshot));
        }
        if names.len() > FEW {
            return None;
        }
        let made = service::compile_some(snapshot, pods.as_ref(), &names, &old.nodes, old.this_node, &self.config)?;
        let mut services = old.services.clone();
        for ((namespace, name), made) in made {
            let of = (namespace.as_str(), name.as_str());
            let first = services.partition_point(|s| (s.namespace.as_str(), s.name.as_str()) < of);
            let end = services.partition_point(|s| (s.namespace.as_str(), s.name.as_str()) <= of);
            services.splice(first..end, made);
        }
        let cluster_ips = if frontends { service::cluster_ips(snapshot) } else { old.cluster_ips.clone() };
        if frontends && let Err(error) = service::refuse_taken(&services) {
            return Some(Err(error));
        }
        let nodes = old.nodes.clone();
        Some(Ok(match pods {
            Some(pods) => super::assemble(snapshot, pods, nodes, old.this_node, old.cluster.clone(), services, cluster_ips),
            None => NodeState { services, cluster_ips, ..old.clone() },
        }))
    }
}
