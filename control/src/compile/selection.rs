//! Selectors resolved: each distinct one once.

use std::collections::HashMap;

use ipnet::IpNet;
use weir_dataplane::model::{IdentityIndex, NamespaceIndex, NodeIndex, Selection, SelectionIndex};

use super::endpoint::{Moved, Pods};
use crate::source::objects::{Labels, Selector, Snapshot};

/// The namespace part of a selection of pods.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope<'a> {
    /// The policy's own namespace (E1.16).
    Own(NamespaceIndex),
    /// Those that a selector selects (E1.17).
    Selected(&'a Selector),
}

/// What selectors select, kept from one state to the next: of a change only what it touches is matched again.
#[derive(Default)]
pub(super) struct Matches {
    /// Identities by pod selector, in all namespaces, sorted.
    identities: HashMap<Selector, Match>,
    /// Namespaces by namespace selector, sorted.
    namespaces: HashMap<Selector, Match>,
}

struct Match {
    /// Indices of what matches.
    all: Vec<u32>,
    /// A policy asked for it since the last state.
    asked: bool,
}

impl Matches {
    /// Follows identities that came and went.
    pub(super) fn follow(&mut self, moved: &Moved, pods: &Pods<'_>) {
        for (selector, matched) in &mut self.identities {
            let stay = matched.all.iter().filter_map(|&i| moved.to[i as usize]);
            let come = moved.new.iter().copied().filter(|&i| selector.matches(&pods.identities[i as usize].labels));
            let mut all: Vec<IdentityIndex> = stay.chain(come).collect();
            all.sort_unstable();
            matched.all = all;
        }
    }

    /// Forgets what selectors of namespaces select: labels of a namespace changed.
    pub(super) fn forget_namespaces(&mut self) {
        self.namespaces.clear();
    }

    /// Forgets what no policy asked for since the last call.
    fn forget_unasked(&mut self) {
        for matches in [&mut self.identities, &mut self.namespaces] {
            matches.retain(|_, matched| std::mem::take(&mut matched.asked));
        }
    }
}

/// What `selector` matches; asks `find` where that is not known.
fn matched<'m>(matches: &'m mut HashMap<Selector, Match>, selector: &Selector, find: impl FnOnce() -> Vec<u32>) -> &'m [u32] {
    let matched = matches.entry(selector.clone()).or_insert_with(|| Match { all: find(), asked: false });
    matched.asked = true;
    &matched.all
}

/// Selections in the order of their first use, hash-consed by their text and by their content.
pub(super) struct Selections<'p, 'a> {
    pods: &'p Pods<'a>,
    matches: &'p mut Matches,
    /// Identities that carry a label, by key and value, sorted. Made when a selector comes that was not asked for before.
    labelled: Option<HashMap<&'p str, HashMap<&'p str, Vec<IdentityIndex>>>>,
    nodes: Vec<(&'a str, &'a Labels)>,
    made: Vec<Selection>,
    by_content: HashMap<Selection, SelectionIndex>,
    by_selectors: HashMap<(Scope<'a>, &'a Selector), SelectionIndex>,
}

impl<'p, 'a> Selections<'p, 'a> {
    /// Starts with none. `matches` is of these pods.
    pub(super) fn new(snapshot: &'a Snapshot, pods: &'p Pods<'a>, matches: &'p mut Matches) -> Self {
        let mut nodes: Vec<_> = snapshot.nodes.iter().map(|n| (n.meta.name.as_str(), &n.meta.labels)).collect();
        nodes.sort_unstable_by_key(|(name, _)| *name);
        Self { pods, matches, labelled: None, nodes, made: Vec::new(), by_content: HashMap::new(), by_selectors: HashMap::new() }
    }

    /// All that were made.
    pub(super) fn into_vec(self) -> Vec<Selection> {
        self.matches.forget_unasked();
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
            Scope::Selected(selector) => {
                matched(&mut self.matches.namespaces, selector, || self.pods.namespaces_selected(selector)).to_vec()
            }
        }
    }

    /// The identities in `namespaces` that `selector` selects, sorted.
    fn identities(&mut self, namespaces: &[NamespaceIndex], selector: &Selector) -> Vec<IdentityIndex> {
        let (pods, labelled) = (self.pods, &mut self.labelled);
        let everywhere = matched(&mut self.matches.identities, selector, || {
            let labelled = labelled.get_or_insert_with(|| by_label(pods));
            let with = |(key, value): (&String, &String)| labelled.get(&**key).and_then(|v| v.get(&**value)).map_or(&[][..], Vec::as_slice);
            let matches = |identity: &IdentityIndex| selector.matches(&pods.identities[*identity as usize].labels);
            // Only those that carry the rarest of the selector's labels, where it has any, are looked at.
            match selector.match_labels.iter().map(with).min_by_key(|with| with.len()) {
                Some(rarest) => rarest.iter().copied().filter(matches).collect(),
                None => (0..pods.identities.len() as IdentityIndex).filter(matches).collect(),
            }
        });
        let ranges = namespaces.iter().map(|&n| &pods.namespaces[n as usize].identities);
        let within = ranges.flat_map(|range| {
            let first = everywhere.partition_point(|&i| i < range.start);
            everywhere[first..].iter().copied().take_while(|&i| i < range.end)
        });
        within.filter(|&i| pods.is_selectable(i)).collect()
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

fn by_label<'p>(pods: &'p Pods<'_>) -> HashMap<&'p str, HashMap<&'p str, Vec<IdentityIndex>>> {
    let mut labelled: HashMap<&str, HashMap<&str, Vec<IdentityIndex>>> = HashMap::new();
    for (identity, index) in pods.identities.iter().zip(0..) {
        for (key, value) in &identity.labels {
            labelled.entry(key).or_default().entry(value).or_default().push(index);
        }
    }
    labelled
}
