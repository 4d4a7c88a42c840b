//! The objects of a case as they come and go.

use weir_dataplane::yaml::{Node, Source};

use crate::source::load_nodes;
use crate::source::objects::Snapshot;

/// Trees of objects, in the order of their first appearance.
#[derive(Clone, Default)]
pub(super) struct Objects<'t> {
    nodes: Vec<(Name, &'t Node<'t>)>,
}

#[derive(Clone, PartialEq, Eq)]
struct Name {
    kind: String,
    namespace: String,
    name: String,
}

impl Name {
    fn new(kind: &Node<'_>, meta: &Node<'_>) -> Self {
        let text = |node: &Node<'_>, key: &str| node.field(key).and_then(|n| n.str()).unwrap_or_default().to_owned();
        Self { kind: text(kind, "kind"), namespace: text(meta, "namespace"), name: text(meta, "name") }
    }
}

impl<'t> Objects<'t> {
    /// Adds objects, or replaces those of the same kind and name.
    pub(super) fn apply(&mut self, nodes: &'t [Node<'t>]) {
        for node in nodes {
            let name = node.field("metadata").map_or_else(|| Name::new(node, node), |meta| Name::new(node, meta));
            match self.nodes.iter_mut().find(|(n, _)| *n == name) {
                Some((_, old)) => *old = node,
                None => self.nodes.push((name, node)),
            }
        }
    }

    /// Takes objects away, named by kind, namespace and name.
    pub(super) fn delete(&mut self, nodes: &[Node<'_>]) {
        for node in nodes {
            let name = Name::new(node, node);
            self.nodes.retain(|(n, _)| *n != name);
        }
    }

    /// Reads what is there now.
    pub(super) fn snapshot(&self, source: &Source) -> Result<Snapshot, String> {
        read(source, self.nodes.iter().map(|(_, node)| *node))
    }
}

/// Reads trees as the loader does: checked and defaulted.
pub(super) fn read<'t>(source: &Source, nodes: impl IntoIterator<Item = &'t Node<'t>>) -> Result<Snapshot, String> {
    load_nodes(source, nodes).map_err(|faults| faults.to_string())
}
