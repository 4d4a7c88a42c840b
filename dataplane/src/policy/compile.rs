//! `NodeState` policies -> rows.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::classes::{Class, rules_of};
use super::flatten::{Layer, keys_of};
use super::{ClassMap, Classes, Policies, Row, RuleRef, RuleSite, SubjectId, Verdict};
use crate::model::{Action, Direction, IdentityIndex, NamedPort, NodeState, PolicyIndex, PortSpec, Rule, Selection, SelectionIndex, Tier};

/// What tells subjects apart: the policies that select the pod in order of evaluation, and its own named ports where ingress
/// rules ask for some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Subject {
    policies: Vec<PolicyIndex>,
    named: Vec<NamedPort>,
}

/// What of a class matters to one subject in one direction.
#[derive(PartialEq, Eq, Hash)]
struct View {
    selections: Vec<SelectionIndex>,
    named: Vec<NamedPort>,
    exempt: bool,
}

/// The rules of one subject in one direction, in order of evaluation.
struct Side<'a> {
    rules: Vec<(Tier, &'a Rule, RuleRef)>,
    isolated: bool,
    direction: Direction,
    /// The subject's named ports.
    named: &'a [NamedPort],
}

/// What was laid out already, and where: equal parts share a place.
#[derive(Default)]
struct Known {
    starts: HashMap<Vec<u32>, u32>,
    rows: HashMap<Vec<(u32, Verdict)>, u32>,
    grids: HashMap<Vec<u32>, u32>,
}

/// The subjects of a snapshot.
#[derive(Debug)]
pub struct Subjects {
    /// Subject of each identity, in the order in which they were given.
    pub ids: Vec<SubjectId>,
    /// Each distinct subject; the first is the pod that no policy selects.
    list: Vec<Subject>,
}

/// Finds what tells the pods with these identities apart.
pub fn subjects(state: &NodeState, local: &[IdentityIndex]) -> Subjects {
    let mut list = vec![Subject::default()];
    let mut index: HashMap<Subject, SubjectId> = HashMap::from_iter([(Subject::default(), 0)]);
    let ids = subjects_of(state, local).into_iter().map(|subject| {
        *index.entry(subject).or_insert_with_key(|subject| {
            list.push(subject.clone());
            list.len() as SubjectId - 1
        })
    });
    Subjects { ids: ids.collect(), list }
}

impl Policies {
    /// Compiles the verdicts of every subject against every class.
    pub fn compile(state: &NodeState, classes: &Classes, subjects: &Subjects) -> Self {
        let mut policies = Self::default();
        let numbers = policies.number_rules(state);
        let mut known = Known::default();
        for subject in &subjects.list {
            for direction in [Direction::Ingress, Direction::Egress] {
                let side = Side::new(state, subject, direction, &numbers);
                let map = policies.class_map(&side, classes, &mut known);
                policies.maps.push(map);
            }
        }
        policies
    }

    /// Gives every rule a number. Returns the first number of each (policy, direction).
    fn number_rules(&mut self, state: &NodeState) -> HashMap<(PolicyIndex, Direction), u32> {
        let mut numbers = HashMap::new();
        for (index, policy) in state.policies.iter().enumerate() {
            for direction in [Direction::Ingress, Direction::Egress] {
                let policy_index = index as PolicyIndex;
                numbers.insert((policy_index, direction), self.rules.len() as u32);
                let count = rules_of(policy, direction).len() as u32;
                self.rules.extend((0..count).map(|rule| RuleSite { policy: policy_index, direction, rule }));
            }
        }
        numbers
    }

    fn class_map(&mut self, side: &Side<'_>, classes: &Classes, known: &mut Known) -> ClassMap {
        if side.rules.is_empty() && !side.isolated {
            return ClassMap::Open;
        }
        let mentioned: BTreeSet<SelectionIndex> = side.rules.iter().flat_map(|(_, r, _)| r.peers.iter().flatten().copied()).collect();
        let asks_names = side.direction == Direction::Egress && side.rules.iter().any(|(_, rule, _)| names_ports(rule));
        let mut views: HashMap<View, u32> = HashMap::new();
        let mut grid = Vec::with_capacity(classes.list().len());
        for class in classes.list() {
            let view = View::new(class, &mentioned, asks_names, side.direction);
            let row = *views.entry(view).or_insert_with_key(|view| {
                let ranges = side.flatten(view);
                *known.rows.entry(ranges).or_insert_with_key(|ranges| self.push_row(ranges, &mut known.starts))
            });
            grid.push(row);
        }
        let base = *known.grids.entry(grid).or_insert_with_key(|grid| {
            let base = self.grid.len() as u32;
            self.grid.extend(grid);
            base
        });
        ClassMap::Classes(base)
    }

    fn push_row(&mut self, ranges: &[(u32, Verdict)], known: &mut HashMap<Vec<u32>, u32>) -> u32 {
        let (starts, verdicts): (Vec<u32>, Vec<Verdict>) = ranges.iter().copied().unzip();
        let start = *known.entry(starts).or_insert_with_key(|starts| {
            let first = self.starts.len() as u32;
            self.starts.extend(starts);
            first
        });
        self.rows.push(Row { start, verdict: self.verdicts.len() as u32, count: ranges.len() as u32 });
        self.verdicts.extend(verdicts);
        self.rows.len() as u32 - 1
    }
}

fn names_ports(rule: &Rule) -> bool {
    rule.ports.iter().flatten().any(|p| matches!(p.port, PortSpec::Named(_)))
}

/// The subject of each identity of `local`.
fn subjects_of(state: &NodeState, local: &[IdentityIndex]) -> Vec<Subject> {
    let mut selected: HashMap<IdentityIndex, Vec<PolicyIndex>> = local.iter().map(|identity| (*identity, Vec::new())).collect();
    let mut order: Vec<PolicyIndex> = (0..state.policies.len() as PolicyIndex).collect();
    order.sort_by_key(|p| (state.policies[*p as usize].tier, state.policies[*p as usize].priority));
    for policy in order {
        if let Selection::Pods { identities, .. } = &state.selections[state.policies[policy as usize].subject as usize] {
            for identity in identities {
                if let Some(policies) = selected.get_mut(identity) {
                    policies.push(policy);
                }
            }
        }
    }
    let subject = |identity: &IdentityIndex| {
        let policies = selected[identity].clone();
        let mut ingress = policies.iter().flat_map(|p| rules_of(&state.policies[*p as usize], Direction::Ingress));
        let named = if ingress.any(names_ports) { state.identities[*identity as usize].named_ports.clone() } else { Vec::new() };
        Subject { policies, named }
    };
    local.iter().map(subject).collect()
}

impl View {
    fn new(class: &Class, mentioned: &BTreeSet<SelectionIndex>, asks_names: bool, direction: Direction) -> Self {
        let selections = class.selections.iter().copied().filter(|s| mentioned.contains(s)).collect();
        let named = if asks_names { class.named.clone() } else { Vec::new() };
        let exempt = match direction {
            Direction::Ingress => class.exempt_ingress,
            Direction::Egress => class.exempt_egress,
        };
        Self { selections, named, exempt }
    }
    fn has(&self, rule: &Rule) -> bool {
        let matches = |peers: &Vec<SelectionIndex>| peers.iter().any(|peer| self.selections.binary_search(peer).is_ok());
        rule.peers.as_ref().is_none_or(matches)
    }
}

impl<'a> Side<'a> {
    fn new(state: &'a NodeState, subject: &'a Subject, direction: Direction, numbers: &HashMap<(PolicyIndex, Direction), u32>) -> Self {
        let mut side = Self { rules: Vec::new(), isolated: false, direction, named: &subject.named };
        for index in &subject.policies {
            let policy = &state.policies[*index as usize];
            let present = match direction {
                Direction::Ingress => policy.ingress.is_some(),
                Direction::Egress => policy.egress.is_some(),
            };
            side.isolated |= present && policy.tier == Tier::NetworkPolicy;
            let first = numbers[&(*index, direction)];
            let numbered = rules_of(policy, direction).iter().zip(first..);
            side.rules.extend(numbered.map(|(rule, number)| (policy.tier, rule, RuleRef(number))));
        }
        side
    }

    /// Evaluates the tiers for every port at once: each tier is a layer that its rules paint in order; then the layers are read
    /// from the top (E1.45 to E1.47).
    fn flatten(&self, view: &View) -> Vec<(u32, Verdict)> {
        let named = match self.direction {
            Direction::Ingress => self.named,
            Direction::Egress => &view.named,
        };
        let matching: Vec<_> = self
            .rules
            .iter()
            .filter(|(_, rule, _)| view.has(rule))
            .map(|(tier, rule, number)| (*tier, rule.action, *number, keys_of(rule.ports.as_deref(), named)))
            .collect();
        let mut cuts: Vec<u32> =
            matching.iter().flat_map(|(_, _, _, keys)| keys.iter().flat_map(|(first, last)| [*first, last + 1])).collect();
        cuts.push(0);
        cuts.sort_unstable();
        cuts.dedup();
        let at = |key: u32| cuts.partition_point(|cut| *cut < key);
        let [mut admin, mut network, mut baseline] = [(); 3].map(|()| Layer::new(cuts.len()));
        for (tier, action, number, keys) in &matching {
            let layer = match tier {
                Tier::Admin => &mut admin,
                Tier::NetworkPolicy => &mut network,
                Tier::Baseline => &mut baseline,
            };
            for (first, last) in keys {
                layer.paint(at(*first), at(last + 1), (*action, *number));
            }
        }
        let mut ranges: Vec<(u32, Verdict)> = Vec::new();
        for (index, start) in cuts.iter().enumerate().filter(|(_, start)| **start <= super::KEY_LAST) {
            let verdict = decide(admin.at(index), network.at(index), baseline.at(index), self.isolated, view.exempt);
            if ranges.last().is_none_or(|(_, before)| *before != verdict) {
                ranges.push((*start, verdict));
            }
        }
        ranges
    }
}

/// What the tiers say together of one range.
fn decide(
    admin: Option<(Action, RuleRef)>,
    network: Option<(Action, RuleRef)>,
    baseline: Option<(Action, RuleRef)>,
    isolated: bool,
    exempt: bool,
) -> Verdict {
    match admin {
        Some((Action::Allow, rule)) => return Verdict::by_rule(true, rule),
        Some((Action::Deny, rule)) => return Verdict::by_rule(false, rule),
        Some((Action::Pass, _)) | None => {}
    }
    if isolated {
        return match network {
            Some((_, rule)) => Verdict::by_rule(true, rule),
            None if exempt => Verdict::DEFAULT,
            None => Verdict::ISOLATED,
        };
    }
    match baseline {
        Some((Action::Allow, rule)) => Verdict::by_rule(true, rule),
        Some((Action::Deny, rule)) => Verdict::by_rule(false, rule),
        Some((Action::Pass, _)) | None => Verdict::DEFAULT,
    }
}
