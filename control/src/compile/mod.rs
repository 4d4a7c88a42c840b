//! Kubernetes objects in, the desired state of one node out.
//!
//! Stands between `source` and the daemon. Pure: no clock, no I/O, no randomness. Every vector of the result is sorted by
//! name or by order of evaluation, so that the same objects in any order give the same bytes.
//!
//! What needs the whole cluster is decided here, once: which pods a selector means, which endpoints of a Service this
//! node may use. What needs the packet is left to the dataplane.

mod check;
mod endpoint;
mod incremental;
mod overlay;
mod policy;
mod selection;
mod service;
#[cfg(test)]
mod tests;

use weir_dataplane::model::{Cluster, NodeConfig, NodeState};

pub use check::check;
pub use incremental::Compiler;
use selection::{Matches, Selections};

use crate::source::Faults;
use crate::source::objects::Snapshot;

/// Why a snapshot cannot be compiled for a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The node is not in the snapshot.
    #[error("the snapshot has no Node {node:?}; it has: {known}")]
    NoSuchNode {
        /// What was asked for.
        node: String,
        /// The Nodes that there are.
        known: String,
    },
    /// Two Service ports are reached at one address, protocol and port (E2.3): every such pair, at the Service that sorts second.
    #[error("{0}")]
    FrontendTaken(Faults),
}

/// Compiles `snapshot` for the node called `node`.
///
/// # Errors
/// [`CompileError::NoSuchNode`], [`CompileError::FrontendTaken`].
pub fn compile(snapshot: &Snapshot, node: &str, config: &NodeConfig) -> Result<NodeState, CompileError> {
    compile_with(snapshot, node, config, &mut Matches::default())
}

/// The same; `matches`, which has none, gets what selectors match.
fn compile_with(snapshot: &Snapshot, node: &str, config: &NodeConfig, matches: &mut Matches) -> Result<NodeState, CompileError> {
    let nodes = overlay::nodes(snapshot);
    let this_node = match overlay::find(&nodes, node) {
        Some(index) if snapshot.nodes.iter().any(|n| n.meta.name == node) => index,
        _ => {
            let mut known: Vec<&str> = snapshot.nodes.iter().map(|n| n.meta.name.as_str()).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(CompileError::NoSuchNode { node: node.into(), known });
        }
    };
    let services = service::compile(snapshot, &nodes[this_node as usize], config)?;
    let cluster = Cluster { pod_cidrs: overlay::pod_cidrs(&nodes, config), service_cidrs: overlay::service_cidrs(config) };
    let pods = endpoint::Pods::collect(snapshot, &nodes);
    let leaving = snapshot.nodes.iter().any(|n| n.leaving && n.meta.name == node);
    let cluster_ips = service::cluster_ips(snapshot);
    let rest = NodeState { this_node, leaving, cluster, nodes, services, cluster_ips, ..NodeState::default() };
    Ok(with_policies(rest, snapshot, pods, matches))
}

/// A state with these pods, and with the policies and what they select.
fn with_policies(state: NodeState, snapshot: &Snapshot, pods: endpoint::Pods<'_>, matches: &mut Matches) -> NodeState {
    let mut selections = Selections::new(snapshot, &pods, matches);
    let policies = policy::compile(snapshot, &pods, &state.nodes, state.this_node, &mut selections);
    NodeState {
        selections: selections.into_vec(),
        namespaces: pods.namespaces.iter().map(|n| n.name.to_string()).collect(),
        identities: pods.identities,
        endpoints: pods.endpoints,
        policies,
        ..state
    }
}
