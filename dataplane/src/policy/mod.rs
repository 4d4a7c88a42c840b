//! Network policy: may this pod talk to this peer, and which rule says so.
//!
//! Sits after the service choice and before source translation (E1.25), for new flows only. Never sees a packet: it is asked
//! about a pod, a direction, a peer and a port.
//!
//! Kubernetes policy is no general classifier. All that policies can tell of an address is which selections match it: its
//! *class* ([`Classes`]). All that they can tell of a local pod is which policies select it: its *subject*. So the compiler
//! flattens, for each subject, direction and class, the tiers (E1.45) into one row of disjoint port ranges, and a verdict
//! is one array access and one binary search in a short row, however many policies there are.

mod classes;
mod compile;
mod explain;
mod flatten;
#[cfg(test)]
mod tests;

pub use classes::{ClassId, Classes};
pub use compile::{Subjects, subjects};
pub use explain::{Explained, Nearest, PolicyName, Query, RuleName, explain, isolating};

use crate::model::{Direction, PolicyIndex, proto};
use crate::verdict::DropReason;

/// What policies can tell of a local pod; index into the tables of [`Policies`]. 0 = no policy selects it.
pub type SubjectId = u32;

/// A rule of a policy of the same snapshot: index into [`Policies::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef(pub u32);

/// Where a [`RuleRef`] points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSite {
    /// Which policy.
    pub policy: PolicyIndex,
    /// Which of its lists.
    pub direction: Direction,
    /// Position in the list.
    pub rule: u32,
}

/// What policy says of one side of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The flow may pass this side.
    pub allowed: bool,
    /// The rule that decided; `None` where isolation or the default did.
    pub rule: Option<RuleRef>,
    /// Why not; `None` where allowed.
    pub reason: Option<DropReason>,
}

impl Judgement {
    /// Nobody objects.
    pub const ALLOWED: Self = Self { allowed: true, rule: None, reason: None };
}

/// All verdicts of one snapshot, for the pods of this node.
///
/// A row is a run of `verdicts` beside a run of `starts`; a verdict holds from its start up to the next one. Policies name the same
/// few ports for many peers, so rows whose ranges start alike share the starts, and a search stays in the first cache. 4 bytes per
/// range, 12 bytes per row, 4 bytes per (subject, direction, class).
#[derive(Debug, Default)]
pub struct Policies {
    /// Which map serves a subject: `subject * 2 + direction`.
    maps: Vec<ClassMap>,
    /// Row of each class, for the maps that tell classes apart.
    grid: Vec<u32>,
    rows: Vec<Row>,
    /// First key of each range ([`key`]).
    starts: Vec<u32>,
    verdicts: Vec<Verdict>,
    /// Every rule that can decide.
    rules: Vec<RuleSite>,
}

/// The rows of one subject in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassMap {
    /// No policy acts: allowed.
    Open,
    /// Start in `grid`, indexed by class.
    Classes(u32),
}

/// Where the ranges of a row are.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// First of its `starts`.
    start: u32,
    /// First of its `verdicts`.
    verdict: u32,
    /// How many it has of each.
    count: u32,
}

/// A verdict in one word: bit 31 allowed, bit 30 explicit deny, the rest rule number + 1, 0 = no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Verdict(u32);

impl Verdict {
    const ALLOWED: u32 = 1 << 31;
    const DENY: u32 = 1 << 30;
    const RULE: u32 = Self::DENY - 1;

    /// By default, or by an exemption.
    const DEFAULT: Self = Self(Self::ALLOWED);
    /// Isolated, and no rule allows.
    const ISOLATED: Self = Self(0);

    fn by_rule(allowed: bool, rule: RuleRef) -> Self {
        Self(if allowed { Self::ALLOWED } else { Self::DENY } | (rule.0 + 1))
    }

    #[inline(always)]
    fn judgement(self) -> Judgement {
        let allowed = self.0 & Self::ALLOWED != 0;
        let rule = (self.0 & Self::RULE).checked_sub(1).map(RuleRef);
        let denied = if self.0 & Self::DENY != 0 { DropReason::PolicyDeny } else { DropReason::PolicyDenied };
        Judgement { allowed, rule, reason: (!allowed).then_some(denied) }
    }
}

/// Protocols as rows tell them apart.
const SLOT_TCP: u32 = 0;
const SLOT_UDP: u32 = 1;
const SLOT_SCTP: u32 = 2;
/// Every other protocol, ICMP included: only rules without ports match (E1.15).
const SLOT_OTHER: u32 = 3;

/// The last key of a row.
const KEY_LAST: u32 = key_of(SLOT_OTHER, 0);

const fn key_of(slot: u32, port: u16) -> u32 {
    slot << 16 | port as u32
}

/// Where (protocol, destination port) stands in a row.
const fn key(protocol: u8, port: u16) -> u32 {
    match protocol {
        proto::TCP => key_of(SLOT_TCP, port),
        proto::UDP => key_of(SLOT_UDP, port),
        proto::SCTP => key_of(SLOT_SCTP, port),
        _ => KEY_LAST,
    }
}

impl Policies {
    /// Judges one side of a new flow. Cost: two array accesses and a binary search among the ranges of one row.
    #[inline(always)]
    pub fn judge(&self, subject: SubjectId, direction: Direction, peer: ClassId, protocol: u8, port: u16) -> Judgement {
        self.verdict(subject, direction, peer, protocol, port).judgement()
    }
    #[inline]
    fn verdict(&self, subject: SubjectId, direction: Direction, peer: ClassId, protocol: u8, port: u16) -> Verdict {
        match self.row(subject, direction, peer) {
            None => Verdict::DEFAULT,
            Some(row) => self.verdicts[row.verdict as usize + self.range(row, key(protocol, port))],
        }
    }

    /// The last port up to which [`judge`](Self::judge) says the same of a protocol, from `port` on.
    pub fn judged_until(&self, subject: SubjectId, direction: Direction, peer: ClassId, protocol: u8, port: u16) -> u16 {
        let key = key(protocol, port);
        let next = self.row(subject, direction, peer).and_then(|row| self.starts_of(row).get(self.range(row, key) + 1).copied());
        match next {
            Some(next) if next >> 16 == key >> 16 => (next - 1) as u16,
            _ => u16::MAX,
        }
    }

    /// The ranges of a subject and a class; `None` where no policy acts.
    fn row(&self, subject: SubjectId, direction: Direction, peer: ClassId) -> Option<&Row> {
        let side = match direction {
            Direction::Ingress => 0,
            Direction::Egress => 1,
        };
        match self.maps[subject as usize * 2 + side] {
            ClassMap::Open => None,
            ClassMap::Classes(base) => Some(&self.rows[self.grid[base as usize + peer as usize] as usize]),
        }
    }

    fn starts_of(&self, row: &Row) -> &[u32] {
        &self.starts[row.start as usize..][..row.count as usize]
    }

    /// Which range of a row holds a key.
    fn range(&self, row: &Row, key: u32) -> usize {
        // Every row starts with key 0.
        self.starts_of(row).partition_point(|start| *start <= key) - 1
    }

    /// Where a rule stands.
    pub fn site(&self, rule: RuleRef) -> RuleSite {
        self.rules[rule.0 as usize]
    }

    /// Every rule that can decide, by [`RuleRef`].
    pub fn rules(&self) -> &[RuleSite] {
        &self.rules
    }
}
