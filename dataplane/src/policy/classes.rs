//! Address classes: all that the policies of a snapshot can tell of an address.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::model::{Direction, IdentityIndex, NamedPort, NodeIndex, NodeState, PortSpec, Rule, Selection, SelectionIndex};

/// Index of a class. 0 = no selection matches.
pub type ClassId = u32;

/// One class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// Which selections match, sorted.
    pub(super) selections: Vec<SelectionIndex>,
    /// Named ports that egress rules ask for, as this peer has them (E1.27).
    pub(super) named: Vec<NamedPort>,
    /// The NetworkPolicy tier never denies traffic from it (E1.31, E1.34).
    pub(super) exempt_ingress: bool,
    /// The NetworkPolicy tier never denies traffic to it (E1.32, E1.34).
    pub(super) exempt_egress: bool,
}

/// The classes of one snapshot, each distinct one once.
#[derive(Debug)]
pub struct Classes {
    /// Selections of pods that rules name as peers, by identity.
    of_identity: Vec<Vec<SelectionIndex>>,
    /// Selections of nodes, by node.
    of_node: Vec<Vec<SelectionIndex>>,
    /// Selections that are blocks.
    blocks: Vec<SelectionIndex>,
    /// Names of ports that egress rules ask for.
    names: BTreeSet<String>,
    list: Vec<Class>,
    index: HashMap<Class, ClassId>,
}

/// The rules of a policy in one direction.
pub(super) fn rules_of(policy: &crate::model::Policy, direction: Direction) -> &[Rule] {
    match direction {
        Direction::Ingress => policy.ingress.as_deref().unwrap_or_default(),
        Direction::Egress => policy.egress.as_deref().unwrap_or_default(),
    }
}

impl Classes {
    /// Collects what the policies of `state` ask of peers.
    pub fn new(state: &NodeState) -> Self {
        let mut mentioned = BTreeSet::new();
        let mut names = BTreeSet::new();
        for policy in &state.policies {
            for direction in [Direction::Ingress, Direction::Egress] {
                for rule in rules_of(policy, direction) {
                    mentioned.extend(rule.peers.iter().flatten().copied());
                    if direction == Direction::Egress {
                        names.extend(rule.ports.iter().flatten().filter_map(|p| match &p.port {
                            PortSpec::Named(name) => Some(name.clone()),
                            _ => None,
                        }));
                    }
                }
            }
        }
        let mut of_identity = vec![Vec::new(); state.identities.len()];
        let mut of_node = vec![Vec::new(); state.nodes.len()];
        let mut blocks = Vec::new();
        for selection in mentioned {
            match &state.selections[selection as usize] {
                Selection::Pods { identities, .. } => identities.iter().for_each(|i| of_identity[*i as usize].push(selection)),
                Selection::Nodes { nodes, .. } => nodes.iter().for_each(|n| of_node[*n as usize].push(selection)),
                Selection::Block { .. } => blocks.push(selection),
            }
        }
        let nobody = Class::default();
        Self { of_identity, of_node, blocks, names, list: vec![nobody.clone()], index: HashMap::from_iter([(nobody, 0)]) }
    }

    /// The address blocks that rules name as peers.
    pub fn blocks(&self) -> &[SelectionIndex] {
        &self.blocks
    }

    /// The class of a pod, and its class as seen by itself through a Service (E1.50). `blocks` are those that cover its address.
    pub fn pod(&mut self, identity: IdentityIndex, named: &[NamedPort], blocks: &[SelectionIndex]) -> (ClassId, ClassId) {
        let selections = merge(&self.of_identity[identity as usize], blocks);
        let named = named.iter().filter(|p| self.names.contains(&p.name)).cloned().collect();
        let class = Class { selections, named, ..Class::default() };
        let own = Class { exempt_ingress: true, exempt_egress: true, ..class.clone() };
        (self.intern(class), self.intern(own))
    }

    /// The class of a node's address. `own` = (NetworkPolicy never denies traffic from it, likewise to it).
    pub fn node(&mut self, node: NodeIndex, blocks: &[SelectionIndex], own: (bool, bool)) -> ClassId {
        let selections = merge(&self.of_node[node as usize], blocks);
        self.intern(Class { selections, named: Vec::new(), exempt_ingress: own.0, exempt_egress: own.1 })
    }

    /// The class of an address that is no pod's and no node's.
    pub fn outside(&mut self, blocks: &[SelectionIndex]) -> ClassId {
        self.intern(Class { selections: blocks.to_vec(), ..Class::default() })
    }

    pub(super) fn list(&self) -> &[Class] {
        &self.list
    }

    fn intern(&mut self, class: Class) -> ClassId {
        let next = self.list.len() as ClassId;
        let list = &mut self.list;
        *self.index.entry(class).or_insert_with_key(|class| {
            list.push(class.clone());
            next
        })
    }
}

fn merge(a: &[SelectionIndex], b: &[SelectionIndex]) -> Vec<SelectionIndex> {
    let mut all = [a, b].concat();
    all.sort_unstable();
    all
}
