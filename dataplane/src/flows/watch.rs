//! What a worker listens to its own pipeline with.

use super::{Record, Writer};
use crate::events::{Event, Fate, Hears, Observer};

/// Notes the decisions of one batch, or with `ALL` every packet.
pub struct Watch<'a, const ALL: bool> {
    /// Where to.
    pub ring: &'a mut Writer,
    /// Number of the tables in force.
    pub generation: u32,
    /// Nanoseconds of the workers' clock.
    pub now: u64,
}

impl<const ALL: bool> Observer for Watch<'_, ALL> {
    const HEARS: Hears = if ALL { Hears::Everything } else { Hears::Decisions };

    fn packet(&mut self, event: &Event<'_>) {
        // Answers to ARP and neighbour discovery are no flows.
        if event.headers.is_some() || event.verdict.reason().is_some() {
            self.ring.write(Record { time: self.now, generation: self.generation, fate: Fate::from(event) });
        }
    }
}
