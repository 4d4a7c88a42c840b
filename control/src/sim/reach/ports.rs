//! Ports gathered into ranges that no table tells apart.

use serde::Serialize;
use weir_dataplane::model::{Direction, Ip, Tier, proto};

use super::{Flow, Outcome, World};
use crate::sim::row::protocol;

/// The protocols with ports, and the one that stands for all others.
const PROTOCOLS: [u8; 4] = [proto::ICMP, proto::TCP, proto::UDP, proto::SCTP];

/// A range of ports of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// IANA number; ICMP stands for everything without ports, and for ICMPv6 in IPv6.
    pub proto: u8,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl Span {
    /// The flow of its first port between two addresses.
    pub fn flow(&self, from: Ip, to: Ip) -> Flow {
        let proto = if self.proto == proto::ICMP && !from.is_v4() { proto::ICMPV6 } else { self.proto };
        Flow { src: from, dst: to, proto, port: self.first }
    }
}

/// Every port between two ends in ranges in which all `worlds` say the same, and what each says. `ends` are those of each world.
pub fn ranges(worlds: &[&World], ends: &[(Ip, Ip)]) -> Vec<(Span, Vec<Outcome>)> {
    let mut found = Vec::new();
    for proto in PROTOCOLS {
        let mut first = 0;
        loop {
            let mut last = u16::MAX;
            let span = Span { proto, first, last: first };
            let asked = worlds.iter().zip(ends).map(|(world, (from, to))| {
                let (outcome, until) = world.reach_until(&span.flow(*from, *to));
                // What has no ports is one flow.
                last = if proto == proto::ICMP { last } else { last.min(until) };
                outcome
            });
            let outcomes = asked.collect();
            found.push((Span { last, ..span }, outcomes));
            match last.checked_add(1) {
                Some(next) => first = next,
                None => break,
            }
        }
    }
    found
}

impl World {
    /// The ports that neither isolation nor the Baseline tier shuts on the side of the pod at `pod`, to or from `peer`.
    pub fn admitted(&self, pod: Ip, direction: Direction, peer: Ip) -> Vec<Span> {
        let tables = &self.everywhere;
        let (pod, other) = (tables.owner(pod), tables.owner(peer));
        let tier = |rule| tables.state.policies[tables.policies.site(rule).policy as usize].tier;
        let mut admitted = Vec::new();
        for proto in PROTOCOLS {
            let mut next = Some(0);
            while let Some(first) = next {
                let last = tables.judged_until(pod, direction, other, proto, first, false);
                let judged = tables.judge_owners(pod, direction, other, proto, first, false);
                if judged.allowed || judged.rule.is_some_and(|rule| tier(rule) == Tier::Admin) {
                    push(&mut admitted, Span { proto, first, last });
                }
                next = last.checked_add(1);
            }
        }
        admitted
    }
}

/// Adds a range behind others, to the last one where it follows.
pub fn push(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.proto == span.proto && u32::from(last.last) + 1 == u32::from(span.first) => last.last = span.last,
        _ => spans.push(span),
    }
}

/// Ranges as people write them: `tcp 80, 443-445; udp`; `all traffic` where nothing is missing.
pub fn traffic(spans: &[Span]) -> String {
    let mut merged: Vec<Span> = Vec::new();
    spans.iter().for_each(|span| push(&mut merged, *span));
    let whole = |span: &Span| span.first == 0 && span.last == 65_535;
    if merged.iter().filter(|s| whole(s)).count() == PROTOCOLS.len() {
        return "all traffic".into();
    }
    let mut texts: Vec<(u8, Vec<String>)> = Vec::new();
    for span in &merged {
        let text = match span {
            _ if whole(span) => None,
            Span { first, last, .. } if first == last => Some(first.to_string()),
            Span { first, last, .. } => Some(format!("{first}-{last}")),
        };
        match texts.last_mut() {
            Some((proto, all)) if *proto == span.proto => all.extend(text),
            _ => texts.push((span.proto, text.into_iter().collect())),
        }
    }
    let name = |proto: u8| if proto == proto::ICMP { "other".into() } else { protocol(proto) };
    let one = |(proto, ports): &(u8, Vec<String>)| format!("{} {}", name(*proto), ports.join(", ")).trim_end().to_owned();
    texts.iter().map(one).collect::<Vec<_>>().join("; ")
}
