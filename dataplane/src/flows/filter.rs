//! Which flow events somebody wants to see: the filters of `hubble observe`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Flow, Outcome, Party, PodName};
use crate::model::Direction;
use crate::verdict::DropReason;

/// All terms must hold; none at all = every event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(pub Vec<Term>);

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// It must not hold.
    pub not: bool,
    /// What is looked at.
    pub test: Test,
}

/// What is looked at; one of the values must match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Test {
    /// An address, before or after translation.
    Ip(End, Vec<IpNet>),
    /// Pods by namespace and the start of their name.
    Pod(End, Vec<PodName>),
    /// Pods by namespace.
    Namespace(End, Vec<String>),
    /// Pods by labels; each value is a list of labels that must all be there.
    Label(End, Vec<Labels>),
    /// A port or range of ports, before or after translation.
    Port(End, Vec<(u16, u16)>),
    /// Services by namespace and the start of their name.
    Service(End, Vec<PodName>),
    /// Dropped or refused, or forwarded.
    Verdict(Vec<Verdict>),
    /// IANA protocol numbers.
    Protocol(Vec<u8>),
    /// Why it was dropped or refused.
    Reason(Vec<DropReason>),
    /// The event's type.
    Type(Vec<EventType>),
    /// The node that decided.
    Node(Vec<String>),
    /// Relative to the pod of this node.
    Traffic(Vec<Direction>),
    /// All of these bits of TCP's flags byte are set.
    TcpFlags(Vec<u8>),
}

/// Which end of a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The source.
    From,
    /// The destination.
    To,
    /// Any of the two.
    Either,
}

/// Labels that must all be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels(Vec<String>);

impl Labels {
    /// Reads `app=web,tier=front`; a key alone asks for any value, and `k8s:` may stand in front.
    pub fn parse(text: &str) -> Self {
        Self(text.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect())
    }

    fn matches(&self, labels: &[String]) -> bool {
        let has = |wanted: &String| {
            labels.iter().any(|label| {
                let bare = label.split_once(':').map_or(label.as_str(), |(_, bare)| bare);
                [label, bare].iter().any(|l| *l == wanted || l.split_once('=').is_some_and(|(key, _)| key == wanted))
            })
        };
        self.0.iter().all(has)
    }
}

/// A verdict as Hubble has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// It went on, or was answered.
    Forwarded,
    /// It was discarded or refused.
    Dropped,
}

/// An event's type as Hubble has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventType {
    /// Discarded or refused.
    Drop,
    /// Everything else.
    Trace,
    /// To a pod.
    ToEndpoint,
    /// To the node's own stack.
    ToStack,
    /// Inside VXLAN.
    ToOverlay,
    /// By the uplink as it is.
    ToNetwork,
}

impl Filter {
    /// Tells whether an event is wanted.
    pub fn wants(&self, flow: &Flow) -> bool {
        self.0.iter().all(|term| term.test.holds(flow) != term.not)
    }

    /// Tells whether packets of known flows may be wanted too, and not decisions alone.
    pub fn wants_known(&self) -> bool {
        !self.0.iter().any(|term| {
            !term.not
                && match &term.test {
                    Test::Reason(_) => true,
                    Test::Verdict(verdicts) => !verdicts.contains(&Verdict::Forwarded),
                    Test::Type(types) => types.iter().all(|t| *t == EventType::Drop),
                    _ => false,
                }
        })
    }
}

impl Flow {
    /// Its verdict as Hubble has it.
    pub fn verdict(&self) -> Verdict {
        if self.reason.is_some() { Verdict::Dropped } else { Verdict::Forwarded }
    }

    /// Its type as Hubble has it.
    pub fn event_type(&self) -> EventType {
        let to_pod = || self.out_port.as_ref().is_some_and(|port| port.contains('/'));
        match self.outcome {
            _ if self.reason.is_some() => EventType::Drop,
            Outcome::Encap => EventType::ToOverlay,
            Outcome::Host => EventType::ToStack,
            _ if to_pod() => EventType::ToEndpoint,
            _ => EventType::ToNetwork,
        }
    }

    /// Relative to the pod of this node; `None` where there is none.
    pub fn direction(&self) -> Option<Direction> {
        match &self.policy {
            Some(side) => Some(side.direction),
            None if self.in_port.contains('/') => Some(Direction::Egress),
            None => self.destination.as_ref().and_then(|party| party.pod.as_ref()).map(|_| Direction::Ingress),
        }
    }
}

impl Test {
    fn holds(&self, flow: &Flow) -> bool {
        match self {
            Self::Ip(end, nets) => end.any(|from| addresses(flow, from).any(|ip| nets.iter().any(|net| net.contains(&ip)))),
            Self::Pod(end, pods) => end.any(|from| {
                let pod = party(flow, from).and_then(|party| party.pod.as_ref());
                pod.is_some_and(|pod| pods.iter().any(|wanted| starts_with(wanted, &pod.namespace, &pod.name)))
            }),
            Self::Namespace(end, names) => end.any(|from| {
                let pod = party(flow, from).and_then(|party| party.pod.as_ref());
                pod.is_some_and(|pod| names.contains(&pod.namespace))
            }),
            Self::Label(end, wanted) => {
                end.any(|from| party(flow, from).is_some_and(|party| wanted.iter().any(|labels| labels.matches(&party.labels))))
            }
            Self::Port(end, ranges) => {
                end.any(|from| ports(flow, from).any(|port| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))))
            }
            Self::Service(end, wanted) => {
                let is_reply = flow.state.is_reply() == Some(true);
                let asked = flow.service.as_ref();
                end.any(|from| {
                    from == is_reply && asked.is_some_and(|s| wanted.iter().any(|wanted| starts_with(wanted, &s.namespace, &s.name)))
                })
            }
            Self::Verdict(verdicts) => verdicts.contains(&flow.verdict()),
            Self::Protocol(numbers) => flow.packet.is_some_and(|packet| numbers.contains(&packet.tuple.proto)),
            Self::Reason(reasons) => flow.reason.is_some_and(|reason| reasons.contains(&reason)),
            Self::Type(types) => {
                let own = flow.event_type();
                types.iter().any(|t| *t == own || *t == EventType::Trace && own != EventType::Drop)
            }
            Self::Node(names) => names.iter().any(|name| *name == *flow.node),
            Self::Traffic(directions) => flow.direction().is_some_and(|direction| directions.contains(&direction)),
            Self::TcpFlags(masks) => flow.packet.is_some_and(|packet| masks.iter().any(|mask| packet.tcp_flags & mask == *mask)),
        }
    }
}

impl End {
    /// Asks about the ends that are meant: `true` = the source.
    fn any(self, mut holds: impl FnMut(bool) -> bool) -> bool {
        (self != Self::To && holds(true)) || (self != Self::From && holds(false))
    }
}

fn party(flow: &Flow, from: bool) -> Option<&Party> {
    if from { flow.source.as_deref() } else { flow.destination.as_deref() }
}

fn addresses(flow: &Flow, from: bool) -> impl Iterator<Item = IpAddr> {
    let tuples = flow.packet.map(|packet| packet.tuple).into_iter().chain(flow.after);
    tuples.map(move |tuple| if from { tuple.src } else { tuple.dst }.to_std())
}

fn ports(flow: &Flow, from: bool) -> impl Iterator<Item = u16> {
    let tuples = flow.packet.filter(|packet| packet.has_ports()).map(|packet| [Some(packet.tuple), flow.after]);
    tuples.into_iter().flatten().flatten().map(move |tuple| if from { tuple.sport } else { tuple.dport })
}

fn starts_with(wanted: &PodName, namespace: &str, name: &str) -> bool {
    wanted.namespace == namespace && name.starts_with(&wanted.name)
}
