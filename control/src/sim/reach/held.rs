//! What becomes of connections that are open when another snapshot comes into force.
//!
//! Mirrors what a node does then: `pipeline::revalidate` at a flow's next packet, and the flows that the daemon forgets at once
//! because an address has another owner or a Service's endpoint no longer serves (E2.39).

use serde::Serialize;
use weir_dataplane::model::{Ip, OnChange, proto};

use super::{End, Flow, World};

/// What becomes of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// It goes on until it ends: connection tracking holds it.
    LivesOn,
    /// Its next packet is dropped (`policy.onChange: cut`; `drain` for what is not TCP).
    Cut,
    /// Its next packet is answered by a reset, both ways (`policy.onChange: drain`).
    Reset,
    /// It is forgotten: an address is another pod's or nobody's now, or a UDP endpoint serves no longer.
    Forgotten,
    /// There is no way to its other end.
    Unroutable,
}

impl Held {
    /// The name that JSON has too.
    pub fn word(self) -> &'static str {
        match self {
            Self::LivesOn => "lives_on",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Forgotten => "forgotten",
            Self::Unroutable => "unroutable",
        }
    }

    /// `live on: …`, to follow "open connections".
    pub fn words(self) -> &'static str {
        match self {
            Self::LivesOn => "live on until they end: connection tracking holds them",
            Self::Cut => "are cut: their next packet is dropped (policy.onChange)",
            Self::Reset => "are reset at their next packet (policy.onChange: drain)",
            Self::Forgotten => "end: an address of theirs is another pod's or nobody's, or the endpoint serves no longer",
            Self::Unroutable => "end: there is no way to the other end",
        }
    }
}

impl World {
    /// What becomes of an open connection that ended as `end` in `old`, once this world is in force.
    pub fn held(&self, old: &Self, flow: &Flow, end: &End, via_service: bool) -> Held {
        let (to, port) = end.backend.map_or((flow.dst, flow.port), |b| (b.ip().into(), b.port()));
        let snat = end.snat.map(Ip::from);
        if [flow.src, flow.dst, to].into_iter().chain(snat).any(|ip| old.pod_at(ip).is_some_and(|pod| self.pod_at(ip) != Some(pod))) {
            return Held::Forgotten;
        }
        let (at, _) = self.start(flow);
        let here = self.node(at);
        let asked = here.services.service_at(flow.dst, flow.proto, flow.port);
        let serves = match (asked, via_service) {
            (Some(service), true) => here.services.is_serving(service, to, port),
            (asked, via_service) => asked.is_none() && !via_service,
        };
        if flow.proto == proto::UDP && !serves {
            return Held::Forgotten;
        }
        let on_change = here.runtime.config.policy.on_change;
        if on_change != OnChange::Keep && self.sides(flow, end, via_service).iter().flatten().any(|side| !side.explained.allowed) {
            return if on_change == OnChange::Drain && flow.proto == proto::TCP { Held::Reset } else { Held::Cut };
        }
        let there = self.homes.get(&to).map_or(at, |(node, _)| *node);
        let back = snat.unwrap_or(flow.src);
        let ways = [(at, to), (there, to), (there, back), (at, flow.src)];
        match ways.into_iter().all(|(node, ip)| self.node(node).routes.resolve(self.node(node).owner(ip), ip).is_ok()) {
            true => Held::LivesOn,
            false => Held::Unroutable,
        }
    }

    /// The pod that has an address, and its node.
    fn pod_at(&self, ip: Ip) -> Option<[&str; 3]> {
        let state = self.state();
        let pod = &state.endpoints[*self.pods.get(&ip)? as usize];
        let node = state.nodes.get(pod.node as usize).map_or("", |node| &node.name);
        Some([&pod.namespace, &pod.name, node])
    }
}
