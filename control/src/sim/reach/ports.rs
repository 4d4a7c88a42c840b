//! Ports gathered into ranges that no table tells apart.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weir_dataplane::model::{PortSpec, proto};

use super::World;
use crate::sim::row::protocol;

/// The protocols with ports, and the one that stands for all others.
const PROTOCOLS: [u8; 4] = [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP];

/// Where ranges of ports begin, by protocol.
pub type Cuts = BTreeMap<u8, BTreeSet<u32>>;

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

/// Finds the ports at which some table of these worlds changes its mind.
pub fn cuts(worlds: &[&World]) -> Cuts {
    let mut cuts: Cuts = PROTOCOLS.iter().map(|p| (*p, BTreeSet::from([0]))).collect();
    let mut range = |proto: Option<u8>, first: u16, last: u16| {
        for (_, starts) in cuts.iter_mut().filter(|(p, _)| **p != proto::ICMP && proto.is_none_or(|wanted| wanted == **p)) {
            starts.extend([u32::from(first), u32::from(last) + 1].into_iter().filter(|start| *start <= 65_535));
        }
    };
    for tables in worlds.iter().flat_map(|world| [&world.everywhere, world.node(world.default)]) {
        for rule in tables.state.policies.iter().flat_map(|p| p.ingress.iter().flatten().chain(p.egress.iter().flatten())) {
            for item in rule.ports.iter().flatten() {
                match item.port {
                    PortSpec::Range(first, last) => range(item.protocol.map(|p| p.number()), first, last),
                    PortSpec::Any | PortSpec::Named(_) => {}
                }
            }
        }
        for named in tables.state.identities.iter().flat_map(|identity| &identity.named_ports) {
            range(Some(named.protocol.number()), named.port, named.port);
        }
        for service in &tables.state.services {
            let ports = service.frontends.iter().map(|f| f.port).chain(service.backends.iter().map(|b| b.port));
            ports.for_each(|port| range(Some(service.protocol.number()), port, port));
        }
        range(Some(proto::UDP), tables.runtime.config.overlay.port, tables.runtime.config.overlay.port);
    }
    cuts
}

/// The ranges between cuts.
pub fn spans(cuts: &Cuts) -> impl Iterator<Item = Span> + '_ {
    cuts.iter().flat_map(|(proto, starts)| {
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([65_535]);
        starts.iter().zip(ends).map(|(first, last)| Span { proto: *proto, first: *first as u16, last: last as u16 })
    })
}

/// Ranges as people write them: `tcp 80, 443-445; udp`; `all traffic` where nothing is missing.
pub fn traffic(spans: &[Span]) -> String {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.proto == span.proto && u32::from(last.last) + 1 == u32::from(span.first) => last.last = span.last,
            _ => merged.push(*span),
        }
    }
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
