//! One flow's way over the tables of the nodes that it meets: mirrors what a first packet meets there, with every backend at once.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{DenyAction, Direction, Ip, OverlayMode, proto};
use weir_dataplane::service::{Backend, Candidates, hairpin};
use weir_dataplane::tables::{Owner, OwnerKind, Tables};
use weir_dataplane::verdict::DropReason;

use super::{End, Flow, Outcome, World};

/// How a flow reaches a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Pod,
    Host,
    Tunnel(u32),
    Uplink,
}

/// What a walk found.
struct Walked {
    outcome: Outcome,
    /// The last port up to which every table that was asked says the same.
    until: u16,
}

/// Longest way of a flow, in nodes.
const HOPS_MAX: usize = 4;

impl World {
    /// What becomes of a flow.
    pub fn reach(&self, flow: &Flow) -> Outcome {
        self.reach_until(flow).0
    }

    /// What becomes of a flow, and the last port up to which it is the same, from the flow's on: nothing that was looked at on the
    /// way says otherwise before.
    pub fn reach_until(&self, flow: &Flow) -> (Outcome, u16) {
        #[cfg(test)]
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut walked = Walked { outcome: Outcome::default(), until: u16::MAX };
        let (at, sender) = self.start(flow);
        self.walk(at, sender, flow, None, None, HOPS_MAX, &mut walked);
        (walked.outcome, walked.until)
    }

    /// The last port up to which the same Service, or none, answers at the flow's address, and it is the overlay's or not.
    fn served_until(&self, flow: &Flow) -> u16 {
        let before = |port: u16| if port == flow.port { port } else { port - 1 };
        let next = |ports: &[u16]| ports.get(ports.partition_point(|port| *port < flow.port)).map(|port| before(*port));
        let at_node = matches!(self.homes.get(&flow.dst), Some((_, true)));
        let node_ports = self.node_ports.get(&flow.proto).filter(|_| at_node).and_then(|ports| next(ports));
        let frontends = self.frontends.get(&(flow.dst, flow.proto)).and_then(|ports| next(ports));
        let overlay = (flow.proto == proto::UDP).then(|| next(&[self.config.overlay.port])).flatten();
        node_ports.into_iter().chain(frontends).chain(overlay).min().unwrap_or(u16::MAX)
    }

    pub(super) fn start(&self, flow: &Flow) -> (usize, Sender) {
        match self.homes.get(&flow.src) {
            Some((node, true)) => (*node, Sender::Host),
            Some((node, false)) => (*node, Sender::Pod),
            None => (self.homes.get(&flow.dst).map_or(self.default, |(node, _)| *node), Sender::Uplink),
        }
    }

    /// One node's part of the way; mirrors `pipeline::first_packet`.
    #[allow(clippy::too_many_arguments)]
    fn walk(
        &self,
        at: usize,
        sender: Sender,
        flow: &Flow,
        backend: Option<SocketAddr>,
        snat: Option<IpAddr>,
        hops: usize,
        walked: &mut Walked,
    ) {
        if sender == Sender::Pod
            && let Some(departed) = self.depart(at, flow)
        {
            *walked = departed;
            return;
        }
        let tables = self.node(at);
        let end = |verdict, reason: Option<DropReason>| End { verdict, reason: reason.map(DropReason::name), backend, snat };
        let loops = if hops == 0 { Err(DropReason::OtherHost) } else { Ok(()) };
        if backend.is_none() {
            walked.until = walked.until.min(self.served_until(flow));
        }
        if let Err(reason) = admit(tables, sender, flow).and(loops) {
            walked.outcome.ends.insert(end("drop", Some(reason)));
            return;
        }
        let tuple = Tuple { src: flow.src, dst: flow.dst, sport: 50_000, dport: flow.port, proto: flow.proto };
        let name = |outcome: &mut Outcome, index: u32| {
            let service = tables.state.services.get(index as usize).map(|s| format!("svc/{}/{}", s.namespace, s.name));
            outcome.service = outcome.service.take().or(service);
        };
        match tables.services.candidates(&tuple, tables.origin(flow.src), tables.owner(flow.dst).in_services) {
            Candidates::NotService => self.onward(at, sender, flow, false, false, &end("forward", None), hops, walked),
            Candidates::Refuse(reason, service) => {
                service.into_iter().for_each(|index| name(&mut walked.outcome, index));
                walked.outcome.ends.insert(end("reject", Some(reason)));
            }
            Candidates::Drop(reason, service) => {
                service.into_iter().for_each(|index| name(&mut walked.outcome, index));
                walked.outcome.ends.insert(end("drop", Some(reason)));
            }
            Candidates::Backends { backends, masquerade, service } => {
                name(&mut walked.outcome, service);
                for chosen in backends {
                    let seen = Flow { dst: chosen.address, port: chosen.port, ..*flow };
                    let masquerade = masquerade || hairpin(flow.src, chosen);
                    let backend = backend.or(Some(SocketAddr::new(chosen.address.to_std(), chosen.port)));
                    self.onward(at, sender, &seen, true, masquerade, &End { backend, ..end("forward", None) }, hops, walked);
                }
            }
        }
    }

    /// What follows the service choice: policy, route, masquerade, the next node.
    #[allow(clippy::too_many_arguments)]
    fn onward(
        &self,
        at: usize,
        sender: Sender,
        seen: &Flow,
        via_service: bool,
        masquerade: bool,
        so_far: &End,
        hops: usize,
        walked: &mut Walked,
    ) {
        let tables = self.node(at);
        let (source, destination) = (tables.owner(seen.src), tables.owner(seen.dst));
        let ours = matches!(destination.kind, OwnerKind::LocalPod { .. } | OwnerKind::OwnNode);
        // A backend's port is its own, whichever port of the frontend was asked for.
        let own_port = so_far.backend.is_none();
        if own_port {
            let sides = [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)];
            let until = sides.map(|(pod, way, other)| tables.judged_until(pod, way, other, seen.proto, seen.port, via_service));
            walked.until = walked.until.min(until[0]).min(until[1]);
        }
        let mut ends = |verdict, reason: Option<DropReason>| {
            walked.outcome.ends.insert(End { verdict, reason: reason.map(DropReason::name), ..so_far.clone() });
        };
        if !via_service && sender == Sender::Uplink && destination.kind == OwnerKind::OwnNode {
            return ends("host", None);
        }
        if !via_service && matches!(sender, Sender::Uplink | Sender::Tunnel(_)) && !ours {
            return ends("drop", Some(DropReason::OtherHost));
        }
        for (pod, direction, other) in [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)] {
            if let Some(reason) = tables.judge_owners(pod, direction, other, seen.proto, seen.port, via_service).reason {
                let silent = tables.runtime.config.policy.deny_action == DenyAction::Drop;
                return ends(if silent { "drop" } else { "reject" }, Some(reason));
            }
        }
        if let Err(reason) = tables.routes.resolve(destination, seen.dst) {
            return ends("drop", Some(reason));
        }
        let outside = !destination.in_cluster && destination.kind != OwnerKind::OwnNode;
        let leaves = match sender {
            Sender::Pod => outside && !destination.keeps_source,
            Sender::Host => outside && via_service,
            Sender::Uplink | Sender::Tunnel(_) => false,
        };
        let is_node_itself = source.kind == OwnerKind::OwnNode && destination.in_cluster;
        let own = match leaves || masquerade && !is_node_itself {
            true => match tables.own_address(seen.src.is_v4()) {
                Some(own) => Some(own),
                None => return ends("drop", Some(DropReason::NoMappingForMasquerade)),
            },
            false => None,
        };
        let snat = own.filter(|own| *own != seen.src).map(Ip::to_std).or(so_far.snat);
        let onward = Flow { src: own.unwrap_or(seen.src), ..*seen };
        let overlay = tables.runtime.config.overlay.mode == OverlayMode::Vxlan;
        let (next, sender) = match destination.kind {
            OwnerKind::LocalPod { .. } | OwnerKind::Nobody(None) => {
                walked.outcome.ends.insert(End { snat, ..so_far.clone() });
                return;
            }
            OwnerKind::OwnNode => {
                walked.outcome.ends.insert(End { verdict: "host", snat, ..so_far.clone() });
                return;
            }
            OwnerKind::RemotePod { node, .. } | OwnerKind::Nobody(Some(node)) if overlay => (node, Sender::Tunnel(at as u32)),
            OwnerKind::RemotePod { node, .. } | OwnerKind::Nobody(Some(node)) | OwnerKind::OtherNode(node) => (node, Sender::Uplink),
        };
        if let Some((judged, until)) = self.arrival(at, next as usize, &onward) {
            if own_port {
                walked.until = walked.until.min(until);
            }
            let silent = tables.runtime.config.policy.deny_action == DenyAction::Drop;
            let verdict = if judged.is_none() {
                "forward"
            } else if silent {
                "drop"
            } else {
                "reject"
            };
            walked.outcome.ends.insert(End { verdict, reason: judged.map(DropReason::name), snat, ..so_far.clone() });
            return;
        }
        self.walk(next as usize, sender, &onward, so_far.backend, snat, hops - 1, walked);
    }

    /// The whole way of a pod's flow to a pod, or to a Service whose backends are pods and the same for all clients: policies alone
    /// decide, and the tables of all pods have them; no node's own are made for it. `None` where there is more to look at.
    fn depart(&self, at: usize, flow: &Flow) -> Option<Walked> {
        let everywhere = &self.everywhere;
        let tuple = Tuple { src: flow.src, dst: flow.dst, sport: 50_000, dport: flow.port, proto: flow.proto };
        let source = everywhere.owner(flow.src);
        let mut walked = Walked { outcome: Outcome::default(), until: self.served_until(flow) };
        let own_port = [Backend { address: flow.dst, port: flow.port }];
        let (backends, service) = match self.plain.is_virtual(flow.dst) {
            false => (&own_port[..], None),
            true => match everywhere.services.candidates(&tuple, everywhere.origin(flow.src), everywhere.owner(flow.dst).in_services) {
                Candidates::Backends { backends, service, .. } => (backends, Some(service)),
                _ => return None,
            },
        };
        let silent = self.config.policy.deny_action == DenyAction::Drop;
        for chosen in backends {
            let (to, false) = *self.homes.get(&chosen.address)? else { return None };
            let destination = everywhere.owner(chosen.address);
            if !destination.in_cluster || !self.plain.is_pod(at, to, chosen.address, destination) {
                return None;
            }
            let via_service = service.is_some();
            let sides = [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)];
            let judged = |(pod, way, other): (&Owner, _, &Owner)| {
                everywhere.judge_owners(pod, way, other, flow.proto, chosen.port, via_service).reason
            };
            let reason = sides.into_iter().find_map(judged);
            if !via_service {
                let until = sides.map(|(pod, way, other)| everywhere.judged_until(pod, way, other, flow.proto, flow.port, false));
                walked.until = walked.until.min(until[0]).min(until[1]);
            }
            let verdict = if reason.is_none() {
                "forward"
            } else if silent {
                "drop"
            } else {
                "reject"
            };
            // What comes back to its sender does so from its node.
            let own = || self.state().nodes.get(at).and_then(|node| node.primary(flow.src.is_v4()));
            let snat = if via_service && hairpin(flow.src, chosen) && reason.is_none() { Some(own()?) } else { None };
            let backend = via_service.then(|| SocketAddr::new(chosen.address.to_std(), chosen.port));
            walked.outcome.ends.insert(End { verdict, reason: reason.map(DropReason::name), backend, snat });
        }
        let named = service.and_then(|index| everywhere.state.services.get(index as usize));
        walked.outcome.service = named.map(|s| format!("svc/{}/{}", s.namespace, s.name));
        Some(walked)
    }

    /// What the node of a pod says of a flow that another node sends it: policies alone decide, and they are the same in the tables
    /// of all pods, and up to which port it says so. `None` where there is more to look at.
    fn arrival(&self, from: usize, to: usize, flow: &Flow) -> Option<(Option<DropReason>, u16)> {
        let everywhere = &self.everywhere;
        let sent_there = self.homes.get(&flow.dst) == Some(&(to, false));
        let sent_by = self.homes.get(&flow.src).is_some_and(|(node, _)| *node == from);
        let plain = sent_there && sent_by && !everywhere.owner(flow.dst).in_services;
        if !plain || self.serves(flow) || everywhere.services.is_cluster_ip(flow.dst) {
            return None;
        }
        let (source, destination) = (everywhere.owner(flow.src), everywhere.owner(flow.dst));
        let reason = everywhere.judge_owners(destination, Direction::Ingress, source, flow.proto, flow.port, false).reason;
        Some((reason, everywhere.judged_until(destination, Direction::Ingress, source, flow.proto, flow.port, false)))
    }
}

/// What a node refuses before it looks at services and policies.
fn admit(tables: &Tables, sender: Sender, flow: &Flow) -> Result<(), DropReason> {
    let (source, destination) = (tables.owner(flow.src).kind, tables.owner(flow.dst).kind);
    let overlay = flow.proto == proto::UDP && flow.port == tables.runtime.config.overlay.port;
    match sender {
        Sender::Pod if overlay && matches!(destination, OwnerKind::OwnNode | OwnerKind::OtherNode(_)) => {
            Err(DropReason::EncapsulationProhibited)
        }
        Sender::Pod | Sender::Host => Ok(()),
        Sender::Tunnel(from) => match source {
            OwnerKind::RemotePod { node, .. } | OwnerKind::OtherNode(node) | OwnerKind::Nobody(Some(node)) if node == from => Ok(()),
            _ => Err(DropReason::InvalidSourceIp),
        },
        // What claims to be an overlay packet must come from a node and hold one.
        Sender::Uplink if overlay && destination == OwnerKind::OwnNode => Err(match source {
            OwnerKind::OtherNode(_) => DropReason::InvalidPacket,
            _ => DropReason::UnknownVtep,
        }),
        Sender::Uplink => match source {
            OwnerKind::LocalPod { .. } | OwnerKind::OwnNode => Err(DropReason::InvalidSourceIp),
            _ => Ok(()),
        },
    }
}
