//! What happened to a made-up packet, step by step, and what that depended on, as people read it.

use std::sync::Arc;

use serde::Serialize;
use weir_dataplane::io::PortId;
use weir_dataplane::model::{Direction, Ip, proto};
use weir_dataplane::verdict::Verdict;

use super::Answer;
use crate::sim::fate::Fate;
use crate::sim::node::SimNode;
use crate::sim::row::{Encap, Namer, PolicySide, Row, endpoint_of, protocol};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// On which node.
    pub node: String,
    /// In which stage.
    pub stage: &'static str,
    /// What.
    pub text: String,
}

/// What is gathered on the way.
pub(super) struct Walk {
    pub(super) steps: Vec<Step>,
    pub(super) depends_on: Vec<String>,
    pub(super) encap: Option<Arc<Encap>>,
    pub(super) snat: Option<Ip>,
}

impl Walk {
    /// Puts what one node did into steps.
    pub(super) fn tell(&mut self, node: &SimNode, port: PortId, fate: &Fate, candidates: usize) {
        let mut namer = Namer::new(node.tables().clone());
        let row = Row::new(1, &namer.flow(0, fate));
        let name = namer.node().to_owned();
        let mut step = |stage, text: String| self.steps.push(Step { node: name.clone(), stage, text });
        let (src, dst) = (row.src.clone().unwrap_or_default(), row.dst.clone().unwrap_or_default());
        let way_in = row.decap.as_ref().map(|from| format!(", unwrapped from node {from}'s VXLAN")).unwrap_or_default();
        step("in", format!("by {}: {} {src} > {dst}{way_in}", row.in_port, row.proto.clone().unwrap_or_default()));
        if let Some(state) = row.state {
            step("conntrack", state.into());
        }
        if let Some(service) = &row.service {
            let of =
                format!("svc/{}/{}{}", service.namespace, service.name, service.port.as_ref().map(|p| format!(":{p}")).unwrap_or_default());
            let text = match &row.backend {
                Some(backend) => format!("{of}: {backend}, one of {candidates}"),
                None => of,
            };
            step("service", text);
        }
        for (direction, judgement) in [(Direction::Egress, fate.trail.egress), (Direction::Ingress, fate.trail.ingress)] {
            let Some(judgement) = judgement else { continue };
            match row.policy.as_ref().filter(|side| side.direction == direction) {
                Some(side) => step("policy", side.to_string()),
                None => step("policy", allowed_words(direction, judgement.rule.is_some()).into()),
            }
        }
        if let Some(to) = &row.dnat {
            step("nat", format!("destination becomes {to}"));
        }
        if let Some(from) = &row.snat {
            step("nat", format!("source becomes {from}"));
        }
        let out = row.out.clone().unwrap_or_default();
        let (stage, text) = match (fate.verdict, &row.encap) {
            (Verdict::Encap(_), Some(encap)) => ("encap", format!("by {out}, in VXLAN to {} with VNI {}", encap.vtep, encap.vni)),
            (Verdict::Forward(_) | Verdict::Encap(_), _) => ("out", format!("by {out}")),
            (Verdict::Host(_), _) => ("host", "to the node's own stack".into()),
            (Verdict::Reply(None), _) => ("reply", "answered by the dataplane".into()),
            (Verdict::Reply(Some(reason)), _) => ("reject", format!("{} ({}): {}", reason.name(), reason.code(), reason.words())),
            (Verdict::Drop(reason), _) => ("drop", format!("{} ({}): {}", reason.name(), reason.code(), reason.words())),
        };
        step(stage, text);
        self.depend(&name, node, port, fate, candidates);
    }

    /// Notes what a node's decision looked at, as OVS's megaflow does.
    fn depend(&mut self, name: &str, node: &SimNode, port: PortId, fate: &Fate, candidates: usize) {
        let Some(headers) = &fate.headers else { return };
        let tuple = &headers.tuple;
        let proto = protocol(tuple.proto);
        let port = node.runtime().ports.get(usize::from(port.0)).map_or("", |p| p.name.as_str());
        let mut fields = vec![format!("in={port}"), format!("proto={proto}"), format!("src={}", tuple.src), format!("dst={}", tuple.dst)];
        if matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP) {
            fields.push(format!("dport={}", tuple.dport));
        }
        if fate.trail.backend.is_some() && candidates > 1 {
            fields.push("random".into());
        }
        for (side, judgement, pod) in
            [("egress", fate.trail.egress, tuple.src), ("ingress", fate.trail.ingress, fate.trail.backend.map_or(tuple.dst, |b| b.address))]
        {
            let pod = judgement.and_then(|_| endpoint_of(node.state(), pod.to_std()));
            if let Some(pod) = pod.and_then(|index| node.state().endpoints.get(index as usize)) {
                fields.push(format!("{side} policies of {}/{}", pod.namespace, pod.name));
            }
        }
        self.depends_on.push(format!("{name}: {}", fields.join(", ")));
    }
}

fn allowed_words(direction: Direction, by_rule: bool) -> &'static str {
    match (direction, by_rule) {
        (Direction::Egress, true) => "egress allowed by a rule",
        (Direction::Egress, false) => "egress allowed: no policy isolates the pod, or it is exempt",
        (Direction::Ingress, true) => "ingress allowed by a rule",
        (Direction::Ingress, false) => "ingress allowed: no policy isolates the pod, or it is exempt",
    }
}

impl Answer {
    /// The answer for people: the packet, the steps, what they depend on, the end.
    pub fn text(&self) -> String {
        let mut out = format!("Packet: {} {} > {}\n", self.packet.proto, self.packet.src, self.packet.dst);
        let mut node = "";
        for (n, step) in self.steps.iter().enumerate() {
            if step.node != node {
                node = &step.node;
                out.push_str(&format!("\nnode {node}\n{}\n", "-".repeat(5 + node.chars().count())));
            }
            out.push_str(&format!("{n:2}. {:<9} {}\n", step.stage, step.text));
        }
        out.push('\n');
        for (direction, explained) in [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)] {
            if let Some(explained) = explained {
                let side = PolicySide { direction, explained: explained.clone() };
                let words =
                    if explained.isolated || !explained.allowed { side.to_string() } else { format!("{side}: no policy isolates the pod") };
                out.push_str(&format!("Policy: {words}\n"));
            }
        }
        if !self.backends.is_empty() {
            out.push_str(&format!("Backends: {}\n", self.backends.join(", ")));
        }
        if let Some(snat) = &self.snat {
            out.push_str(&format!("The destination sees: {snat}\n"));
        }
        out.push_str("Depends on:\n");
        for line in &self.depends_on {
            out.push_str(&format!("  {line}\n"));
        }
        let reason = self.reason.map(|r| format!(" ({r})")).unwrap_or_default();
        out.push_str(&format!("Verdict: {}{reason}\n", self.verdict));
        out
    }
}
