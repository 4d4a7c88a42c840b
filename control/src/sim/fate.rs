//! What became of each packet of a batch, kept: an [`Event`] without its borrows.

use weir_dataplane::conntrack::FlowDir;
use weir_dataplane::events::{CtState, Event, Observer, Trail};
use weir_dataplane::io::PortId;
use weir_dataplane::model::NodeIndex;
use weir_dataplane::parse::Headers;
use weir_dataplane::verdict::{DropReason, Verdict};

/// One packet's end, and what led to it.
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

impl Fate {
    /// The verdict's name: `forward`, `host`, `reply` or `drop`.
    pub fn verdict_name(&self) -> &'static str {
        match self.verdict {
            Verdict::Forward(_) | Verdict::Encap(_) => "forward",
            Verdict::Host(_) => "host",
            Verdict::Reply(_) => "reply",
            Verdict::Drop(_) => "drop",
        }
    }

    /// Why it was dropped or refused.
    pub fn reason(&self) -> Option<DropReason> {
        match self.verdict {
            Verdict::Drop(reason) | Verdict::Reply(Some(reason)) => Some(reason),
            _ => None,
        }
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
        match self.trail.state {
            CtState::New => Some(false),
            CtState::Established(dir) | CtState::Related(dir) => Some(dir == FlowDir::Reply),
            CtState::Untracked | CtState::Invalid => None,
        }
    }

    /// What connection tracking said, in a word.
    pub fn state_name(&self) -> Option<&'static str> {
        match self.trail.state {
            CtState::Untracked => None,
            CtState::New => Some("new"),
            CtState::Established(FlowDir::Original) => Some("established"),
            CtState::Established(FlowDir::Reply) => Some("reply"),
            CtState::Related(_) => Some("related"),
            CtState::Invalid => Some("invalid"),
        }
    }
}

/// Keeps the fates of a batch, by position.
#[derive(Debug, Default)]
pub struct Fates(Vec<Option<Fate>>);

impl Fates {
    /// Forgets the last batch.
    pub fn clear(&mut self) {
        self.0.clear();
    }
    /// What became of the packet at `index` of the batch.
    pub fn of(&self, index: usize) -> Option<&Fate> {
        self.0.get(index)?.as_ref()
    }
}

impl Observer for Fates {
    fn packet(&mut self, event: &Event<'_>) {
        if self.0.len() <= event.index {
            self.0.resize(event.index + 1, None);
        }
        let headers = event.headers.copied();
        self.0[event.index] =
            Some(Fate { in_port: event.in_port, decap: event.decap, headers, verdict: event.verdict, trail: *event.trail });
    }
}
