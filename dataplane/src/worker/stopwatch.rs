//! Where a worker's time goes: the time stamp counter, read where one stage ends and the next begins.
//!
//! Sits around the pipeline. Every tick between two readings belongs to the stage that ended with the second one, so the
//! stages add up to the time that went by. Costs a reading, some 20 clocks, per stage and batch.

use crate::counters::{Stage, Stages};
use crate::events::{Event, Hears, Observer};

/// Counts the ticks of one worker by stage.
pub(super) struct Stopwatch {
    clock: quanta::Clock,
    last: u64,
    stages: Stages,
}

impl Stopwatch {
    /// Starts now.
    pub(super) fn start() -> Self {
        let clock = quanta::Clock::new();
        Self { last: clock.raw(), clock, stages: Stages::default() }
    }

    /// Counts all time since the last lap as spent on `stage`, with `vectors` packets in hand.
    #[inline]
    pub(super) fn lap(&mut self, stage: Stage, vectors: usize) {
        let now = self.clock.raw();
        // Saturating: a machine whose counters differ from core to core is none that a pinned thread would meet.
        self.stages.count(stage, vectors, now.saturating_sub(self.last));
        self.last = now;
    }

    /// What was counted so far.
    pub(super) fn stages(&self) -> Stages {
        self.stages
    }
}

/// An observer whose pipeline is measured.
pub(super) struct Timed<'a, O> {
    /// Who hears of packets.
    pub(super) observer: O,
    /// What measures.
    pub(super) stopwatch: &'a mut Stopwatch,
}

impl<O: Observer> Observer for Timed<'_, O> {
    const HEARS: Hears = O::HEARS;

    #[inline]
    fn packet(&mut self, event: &Event<'_>) {
        self.observer.packet(event);
    }
    #[inline]
    fn stage(&mut self, stage: Stage, packets: usize) {
        self.stopwatch.lap(stage, packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_add_up_to_the_time_that_went_by() {
        let (clock, mock) = quanta::Clock::mock();
        let mut stopwatch = Stopwatch { last: clock.raw(), clock, stages: Stages::default() };
        for (ticks, stage, vectors) in [(30, Stage::Receive, 32), (700, Stage::Apply, 32), (9, Stage::Idle, 0), (31, Stage::Receive, 1)] {
            mock.increment(ticks);
            stopwatch.lap(stage, vectors);
        }
        let stages = stopwatch.stages();
        let receive = stages.of(Stage::Receive);
        assert_eq!((receive.calls, receive.vectors, receive.clocks), (2, 33, 61));
        assert_eq!(Stage::ALL.map(|stage| stages.of(stage).clocks), [61, 0, 0, 700, 0, 0, 0, 9]);
        let mut later = stages;
        later.count(Stage::Idle, 0, 5);
        assert_eq!(Stage::ALL.map(|stage| later.since(&stages).of(stage).clocks), [0, 0, 0, 0, 0, 0, 0, 5]);
    }
}
