//! What became of each packet and why, for whoever listens: replay, trace, flow events. Free when nobody does.
//!
//! An observer is told after the fact and cannot change a verdict.

use crate::conntrack::{FlowDir, Tuple};
use crate::io::PortId;
use crate::model::{NodeIndex, ServiceIndex};
use crate::parse::Headers;
use crate::policy::Judgement;
use crate::service::Backend;
use crate::verdict::Verdict;

/// What connection tracking says of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// One packet.
#[derive(Debug)]
pub struct Event<'a> {
    /// Position in the batch.
    pub index: usize,
    /// Where it came in.
    pub in_port: PortId,
    /// The node that encapsulated it.
    pub decap: Option<NodeIndex>,
    /// Its headers as they came in, the inner ones of an overlay packet; `None` where there is no IP packet.
    pub headers: Option<&'a Headers>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was decided on the way.
    pub trail: &'a Trail,
}

/// Somebody who listens.
pub trait Observer {
    /// Whether anybody listens at all; known at compile time.
    const LISTENS: bool = true;
    /// Takes one packet's event.
    fn packet(&mut self, event: &Event<'_>);
}

/// Nobody listens.
impl Observer for () {
    const LISTENS: bool = false;
    fn packet(&mut self, _event: &Event<'_>) {}
}
