//! What became of each packet and why, for whoever listens: replay, trace, flow events, the ledger of drops. Free where nobody
//! does.
//!
//! An observer is told after the fact and cannot change a verdict. It says at compile time what it wants to hear of
//! ([`Hears`]), so that packets of known flows cost nothing where only decisions are wanted.

use serde::{Deserialize, Serialize};

use crate::conntrack::{FlowDir, Tuple};
use crate::counters::Stage;
use crate::io::PortId;
use crate::model::{NodeIndex, ServiceIndex};
use crate::parse::Headers;
use crate::policy::Judgement;
use crate::service::Backend;
use crate::verdict::{DropReason, Verdict};

/// What connection tracking says of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CtState {
    /// Never asked: the packet ended before.
    #[default]
    Untracked,
    /// Opens a flow.
    New,
    /// Belongs to a flow, in this direction.
    Established(FlowDir),
    /// An ICMP error about a flow, in this direction.
    Related(FlowDir),
    /// Belongs to no flow and cannot open one.
    Invalid,
}

impl CtState {
    /// Tells whether the packet goes against the direction in which its flow was opened; `None` where it is of no flow.
    pub fn is_reply(self) -> Option<bool> {
        match self {
            Self::New => Some(false),
            Self::Established(dir) | Self::Related(dir) => Some(dir == FlowDir::Reply),
            Self::Untracked | Self::Invalid => None,
        }
    }

    /// A word for it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Untracked => None,
            Self::New => Some("new"),
            Self::Established(FlowDir::Original) => Some("established"),
            Self::Established(FlowDir::Reply) => Some("reply"),
            Self::Related(_) => Some("related"),
            Self::Invalid => Some("invalid"),
        }
    }
}

/// What the stages decided on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// What connection tracking says.
    pub state: CtState,
    /// The service that was asked for.
    pub service: Option<ServiceIndex>,
    /// The backend that the service chose; of an established flow, the one that it keeps to.
    pub backend: Option<Backend>,
    /// Policy of the source, where it is a local pod and the flow new.
    pub egress: Option<Judgement>,
    /// Policy of the destination, likewise.
    pub ingress: Option<Judgement>,
    /// The tuple after translation.
    pub after: Option<Tuple>,
    /// The node to which it was encapsulated.
    pub encap: Option<NodeIndex>,
    /// The largest IP packet that the way out takes, where the packet was too big.
    pub mtu: Option<u16>,
}

impl Trail {
    /// The flow of a packet with these headers as policies see it: in the direction in which it was opened, after the service
    /// choice, before source translation (E1.25).
    pub fn seen(&self, headers: &Headers) -> Tuple {
        if self.state.is_reply() == Some(true) {
            let opener = self.after.unwrap_or(headers.tuple).inverse();
            return Tuple { dst: headers.tuple.src, dport: headers.tuple.sport, ..opener };
        }
        match self.backend {
            Some(backend) => Tuple { dst: backend.address, dport: backend.port, ..headers.tuple },
            None => headers.tuple,
        }
    }
}

/// One packet.
#[derive(Debug)]
pub struct Event<'a> {
    /// Position in the batch.
    pub index: usize,
    /// Where it came in.
    pub in_port: PortId,
    /// The node that encapsulated it.
    pub decap: Option<NodeIndex>,
    /// Its headers as they came in, the inner ones of an overlay packet; `None` where there is no IP packet, or it was answered
    /// on the link.
    pub headers: Option<&'a Headers>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was decided on the way.
    pub trail: &'a Trail,
}

/// Which packets an observer wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    /// None.
    Nothing,
    /// Those about which something was decided ([`is_decision`]).
    Decisions,
    /// All.
    Everything,
}

/// Tells whether something was decided about a packet: it was dropped or refused, or it is no packet of a known flow. What merely
/// follows its flow is none, and neither is an answer of our own (ARP, echo).
#[inline(always)]
pub fn is_decision(verdict: Verdict, state: CtState) -> bool {
    matches!(verdict, Verdict::Drop(_) | Verdict::Reply(Some(_))) || matches!(state, CtState::New | CtState::Related(_) | CtState::Invalid)
}

/// Somebody who listens.
pub trait Observer {
    /// What it wants to hear of; known at compile time.
    const HEARS: Hears = Hears::Everything;
    /// Takes one packet's event.
    fn packet(&mut self, event: &Event<'_>);
    /// Is told that `packets` packets have gone through a part of the pipeline: once per batch, for who measures.
    #[inline]
    fn stage(&mut self, _stage: Stage, _packets: usize) {}
}

/// Nobody listens.
impl Observer for () {
    const HEARS: Hears = Hears::Nothing;
    fn packet(&mut self, _event: &Event<'_>) {}
}

/// An [`Event`] that was kept.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    /// Where it came in.
    pub in_port: PortId,
    /// The node that encapsulated it.
    pub decap: Option<NodeIndex>,
    /// Its headers as they came in, the inner ones of an overlay packet.
    pub headers: Option<Headers>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was decided on the way.
    pub trail: Trail,
}

impl From<&Event<'_>> for Fate {
    fn from(event: &Event<'_>) -> Self {
        let Event { in_port, decap, verdict, .. } = *event;
        Self { in_port, decap, headers: event.headers.copied(), verdict, trail: *event.trail }
    }
}

impl Fate {
    /// The verdict's name: `forward`, `host`, `reply` or `drop`.
    pub fn verdict_name(&self) -> &'static str {
        self.verdict.name()
    }

    /// Why it was dropped or refused.
    pub fn reason(&self) -> Option<DropReason> {
        self.verdict.reason()
    }

    /// The port by which it left.
    pub fn out_port(&self) -> Option<PortId> {
        match self.verdict {
            Verdict::Forward(port) | Verdict::Encap(port) | Verdict::Host(port) => Some(port),
            Verdict::Reply(_) => Some(self.in_port),
            Verdict::Drop(_) => None,
        }
    }

    /// Tells whether it goes against the direction in which its flow was opened; `None` where it is of no flow.
    pub fn is_reply(&self) -> Option<bool> {
        self.trail.state.is_reply()
    }

    /// What connection tracking said, in a word.
    pub fn state_name(&self) -> Option<&'static str> {
        self.trail.state.name()
    }
}
