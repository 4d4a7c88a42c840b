//! Selectors resolved: each distinct one once.

use std::collections::HashMap;

use ipnet::IpNet;
use weir_dataplane::model::{IdentityIndex, NamespaceIndex, NodeIndex, Selection, SelectionIndex};

use super::endpoint::Pods;
use crate::source::objects::{Labels, Selector, Snapshot};

/// The namespace part of a selection of pods.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope<'a> {
    /// The policy's own namespace (E1.16).
    Own(NamespaceIndex),
    /// Those that a selector selects (E1.17).
    Selected(&'a Selector),
}

/// Selections in the order of their first use, hash-consed by their text and by their content.
pub(super) struct Selections<'p, 'a> {
    pods: &'p Pods<'a>,
    nodes: Vec<(&'a str, &'a Labels)>,
    made: Vec<Selection>,
    by_content: HashMap<Selection, SelectionIndex>,
    by_selectors: HashMap<(Scope<'a>, &'a Selector), SelectionIndex>,
    namespaces: HashMap<&'a Selector, Vec<NamespaceIndex>>,
}

impl<'p, 'a> Selections<'p, 'a> {
    /// Starts with none.
    pub(super) fn new(snapshot: &'a Snapshot, pods: &'p Pods<'a>) -> Self {
        let mut nodes: Vec<_> = snapshot.nodes.iter().map(|n| (n.meta.name.as_str(), &n.meta.labels)).collect();
        nodes.sort_unstable_by_key(|(name, _)| *name);
        Self { pods, nodes, made: Vec::new(), by_content: HashMap::new(), by_selectors: HashMap::new(), namespaces: HashMap::new() }
    }

    /// All that were made.
    pub(super) fn into_vec(self) -> Vec<Selection> {
        self.made
    }

    /// Pods by labels, never those on the host network (E1.30).
    pub(super) fn pods(&mut self, scope: Scope<'a>, selector: &'a Selector) -> SelectionIndex {
        if let Some(&index) = self.by_selectors.get(&(scope, selector)) {
            return index;
        }
        let namespaces = self.scope(scope);
        let identities = self.identities(&namespaces, selector);
        let namespace_text = match scope {
            Scope::Own(_) => None,
            Scope::Selected(selector) => Some(selector.to_string()),
        };
        let index = self.intern(Selection::Pods { namespaces, identities, namespace_text, pod_text: selector.to_string() });
        self.by_selectors.insert((scope, selector), index);
        index
    }

    /// Nodes by labels.
    pub(super) fn nodes(&mut self, selector: &Selector, index_of: impl Fn(&str) -> Option<NodeIndex>) -> SelectionIndex {
        let selected = self.nodes.iter().filter(|(_, labels)| selector.matches(labels));
        let nodes = selected.filter_map(|(name, _)| index_of(name)).collect();
        self.intern(Selection::Nodes { nodes, text: selector.to_string() })
    }

    /// An address block.
    pub(super) fn block(&mut self, cidr: IpNet, except: &[IpNet]) -> SelectionIndex {
        let mut except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        except.sort_unstable();
        except.dedup();
        self.intern(Selection::Block { cidr: cidr.trunc(), except })
    }

    fn scope(&mut self, scope: Scope<'a>) -> Vec<NamespaceIndex> {
        match scope {
            Scope::Own(namespace) => vec![namespace],
            Scope::Selected(selector) => self.namespaces.entry(selector).or_insert_with(|| self.pods.namespaces_selected(selector)).clone(),
        }
    }

    fn identities(&self, namespaces: &[NamespaceIndex], selector: &Selector) -> Vec<IdentityIndex> {
        let mut identities = self.pods.identities_selected(namespaces, selector);
        identities.retain(|&i| self.pods.is_selectable(i));
        identities
    }

    fn intern(&mut self, selection: Selection) -> SelectionIndex {
        if let Some(&index) = self.by_content.get(&selection) {
            return index;
        }
        let index = self.made.len() as SelectionIndex;
        self.made.push(selection.clone());
        self.by_content.insert(selection, index);
        index
    }
}
