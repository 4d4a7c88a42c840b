//! One row: ordered tiers of rules, flattened into disjoint ranges of (protocol, port).

use super::{KEY_LAST, SLOT_OTHER, SLOT_SCTP, SLOT_TCP, SLOT_UDP, key_of};
use crate::model::{NamedPort, PortMatch, PortSpec, Protocol};

/// Keys that a rule's ports match, as inclusive ranges. `named` are the destination's ports (E1.27).
pub(super) fn keys_of(ports: Option<&[PortMatch]>, named: &[NamedPort]) -> Vec<(u32, u32)> {
    let Some(items) = ports else { return vec![(0, KEY_LAST)] };
    let mut keys = Vec::new();
    for item in items {
        if let PortSpec::Named(name) = &item.port {
            let matching = named.iter().filter(|p| p.name == *name && item.protocol.is_none_or(|wanted| wanted == p.protocol));
            keys.extend(matching.map(|p| (key_of(slot(p.protocol), p.port), key_of(slot(p.protocol), p.port))));
            continue;
        }
        let (first, last) = match item.port {
            PortSpec::Range(first, last) => (first, last),
            _ => (0, u16::MAX),
        };
        if first > last {
            continue;
        }
        let slots = match item.protocol {
            Some(protocol) => slot(protocol)..=slot(protocol),
            None => SLOT_TCP..=SLOT_OTHER - 1,
        };
        keys.extend(slots.map(|slot| (key_of(slot, first), key_of(slot, last))));
    }
    keys
}

fn slot(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => SLOT_TCP,
        Protocol::Udp => SLOT_UDP,
        Protocol::Sctp => SLOT_SCTP,
    }
}

/// A set of elementary ranges in which each is decided by the first rule that covers it.
pub(super) struct Layer<T> {
    decided: Vec<Option<T>>,
    /// The next undecided range at or after each one, found by path halving.
    next: Vec<u32>,
}

impl<T: Copy> Layer<T> {
    /// A layer of `count` ranges, none decided.
    pub(super) fn new(count: usize) -> Self {
        Self { decided: vec![None; count], next: (0..=count as u32).collect() }
    }
    /// Decides those of `first..end` that nobody decided before.
    pub(super) fn paint(&mut self, first: usize, end: usize, value: T) {
        let mut at = self.undecided(first);
        while at < end {
            self.decided[at] = Some(value);
            self.next[at] = at as u32 + 1;
            at = self.undecided(at + 1);
        }
    }
    /// What was decided of a range.
    pub(super) fn at(&self, range: usize) -> Option<T> {
        self.decided[range]
    }
    fn undecided(&mut self, mut at: usize) -> usize {
        while self.next[at] as usize != at {
            let beyond = self.next[self.next[at] as usize];
            self.next[at] = beyond;
            at = beyond as usize;
        }
        at
    }
}
