//! What a worker listens to its own pipeline with.

use super::{Ledger, Record, Writer};
use crate::events::{Event, Fate, Hears, Observer};
use crate::tables::Tables;

/// Notes the decisions of one batch, or with `ALL` every packet.
pub struct Watch<'a, const ALL: bool> {
    /// Where events go.
    pub ring: &'a mut Writer,
    /// Where drops are counted.
    pub ledger: &'a mut Ledger,
    /// What the batch is decided by.
    pub tables: &'a Tables,
    /// Nanoseconds of the workers' clock.
    pub now: u64,
}

impl<const ALL: bool> Observer for Watch<'_, ALL> {
    const HEARS: Hears = if ALL { Hears::Everything } else { Hears::Decisions };

    fn packet(&mut self, event: &Event<'_>) {
        let reason = event.verdict.reason();
        if let Some(reason) = reason {
            self.ledger.count(self.tables, event, reason);
        }
        // Answers to ARP and neighbour discovery are no flows.
        if event.headers.is_some() || reason.is_some() {
            self.ring.write(Record { time: self.now, generation: self.tables.generation, fate: Fate::from(event) });
        }
    }
}
