//! What became of each packet of a batch, kept.

pub use weir_dataplane::events::Fate;
use weir_dataplane::events::{Event, Observer};

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
        self.0[event.index] = Some(Fate::from(event));
    }
}
