//! A state that follows its objects: one changed object costs work for what it touches.
//!
//! A Service or an EndpointSlice touches one Service, and that alone is compiled anew; the other Services of the new state are
//! those of the old one, so that tables can share them too. Pods, Nodes, Namespaces and policies may touch every selector: a
//! change of them compiles everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use weir_dataplane::model::{NodeConfig, NodeState};

use super::{CompileError, compile, service};
use crate::source::objects::{Meta, Object, Snapshot};

/// The objects of a cluster and the state of one node, in step.
pub struct Compiler {
    snapshot: Snapshot,
    node: String,
    config: NodeConfig,
    state: Arc<NodeState>,
}

/// `(namespace, name)` of a Service.
type Name = (String, String);

/// What a change can reach.
enum Touched {
    /// These Services; whether one of the objects themselves changed, not only its slices.
    Services(BTreeSet<Name>, bool),
    Everything,
}

impl Touched {
    fn by<'o>(objects: impl IntoIterator<Item = &'o Object>) -> Self {
        let (mut names, mut themselves) = (BTreeSet::new(), false);
        for object in objects {
            match object {
                Object::Service(service) => {
                    themselves = true;
                    names.insert((service.meta.namespace.clone(), service.meta.name.clone()));
                }
                Object::EndpointSlice(slice) => names.extend(slice.service.clone().map(|name| (slice.meta.namespace.clone(), name))),
                _ => return Self::Everything,
            }
        }
        Self::Services(names, themselves)
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
    fn follow(&mut self, touched: Touched, namespaces: usize) -> Result<&Arc<NodeState>, (&mut Self, CompileError)> {
        let partly = match touched {
            Touched::Services(names, themselves) if self.snapshot.namespaces.len() == namespaces => self.services(&names, themselves),
            _ => None,
        };
        match partly.unwrap_or_else(|| compile(&self.snapshot, &self.node, &self.config)) {
            Ok(state) => {
                self.state = Arc::new(state);
                Ok(&self.state)
            }
            Err(error) => Err((self, error)),
        }
    }

    /// The state with these Services compiled anew; `None` where that alone does not do.
    fn services(&self, names: &BTreeSet<Name>, themselves: bool) -> Option<Result<NodeState, CompileError>> {
        let mut state = NodeState::clone(&self.state);
        for (namespace, name) in names {
            let of = (namespace.as_str(), name.as_str());
            let made = service::compile_one(&self.snapshot, of, &state.nodes, state.this_node, &self.config)?;
            let first = state.services.partition_point(|s| (s.namespace.as_str(), s.name.as_str()) < of);
            let end = state.services.partition_point(|s| (s.namespace.as_str(), s.name.as_str()) <= of);
            state.services.splice(first..end, made);
        }
        if themselves {
            state.cluster_ips = service::cluster_ips(&self.snapshot);
            if let Err(error) = service::refuse_taken(&state.services) {
                return Some(Err(error));
            }
        }
        Some(Ok(state))
    }
}
