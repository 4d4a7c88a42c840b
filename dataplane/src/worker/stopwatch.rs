//! Where a worker's time goes: the time stamp counter, read where one stage ends and the next begins.
//!
//! Sits around the pipeline. Every tick between two readings belongs to what ended with the second one, so that all of them
//! together are the time that went by. A reading costs some 25 ns in a virtual machine, and a batch has six stages: under load only
//! one batch in [`EVERY`] is measured by stage. A worker that rests between batches has time for all.

use crate::counters::{Stage, Stages};
use crate::events::{Event, Hears, Observer};

/// Under load one batch in so many is measured: 7 readings in 16 batches of 64 are 0.2 ns a packet.
const EVERY: u32 = 16;

/// Counts the ticks of one worker by stage.
pub(super) struct Stopwatch {
    clock: quanta::Clock,
    /// The latest reading.
    last: u64,
    /// A batch was worked on since.
    unread: bool,
    /// The stages of the batch at hand are measured.
    measuring: bool,
    /// Batches before the next one that is measured.
    before_next: u32,
    stages: Stages,
}

impl Stopwatch {
    /// Starts now.
    pub(super) fn start() -> Self {
        Self::with_clock(quanta::Clock::new())
    }

    fn with_clock(clock: quanta::Clock) -> Self {
        Self { last: clock.raw(), clock, unread: false, measuring: false, before_next: 0, stages: Stages::default() }
    }

    /// A batch may come.
    #[inline]
    pub(super) fn begin(&mut self) {
        if self.before_next == 0 {
            self.settle();
            self.measuring = true;
        }
    }

    /// The batch, of `vectors` packets, has gone through a stage.
    #[inline]
    pub(super) fn lap(&mut self, stage: Stage, vectors: usize) {
        let clocks = if self.measuring { self.ticks() } else { 0 };
        self.unread = !self.measuring;
        self.stages.busy += clocks;
        self.stages.count(stage, vectors, clocks);
    }

    /// The batch is done. A worker that `rests` now will measure the next one.
    #[inline]
    pub(super) fn end(&mut self, rests: bool) {
        self.before_next = match (rests, self.measuring) {
            (true, _) => 0,
            (false, true) => EVERY - 1,
            (false, false) => self.before_next - 1,
        };
        self.measuring = false;
    }

    /// All time since the latest reading was spent on batches, if there was any.
    #[inline]
    pub(super) fn settle(&mut self) {
        if self.unread {
            self.stages.busy += self.ticks();
        }
    }

    /// All time since the latest reading was spent on this, which is no batch.
    pub(super) fn other(&mut self, stage: Stage) {
        let clocks = self.ticks();
        self.stages.count(stage, 0, clocks);
    }

    /// What was counted so far.
    pub(super) fn stages(&self) -> Stages {
        self.stages
    }

    fn ticks(&mut self) -> u64 {
        let now = self.clock.raw();
        // Saturating: a machine whose counters differ from core to core is none that a pinned thread would meet.
        let ticks = now.saturating_sub(self.last);
        (self.last, self.unread) = (now, false);
        ticks
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

    /// Runs batches whose stages take 30, 700 and 70 ticks, with a rest of 9 after each where the worker `rests`.
    fn run(batches: u64, rests: bool) -> Stages {
        let (clock, mock) = quanta::Clock::mock();
        let mut stopwatch = Stopwatch::with_clock(clock);
        for _ in 0..batches {
            stopwatch.begin();
            for (ticks, stage) in [(30, Stage::Receive), (700, Stage::Apply), (70, Stage::Transmit)] {
                mock.increment(ticks);
                stopwatch.lap(stage, 32);
            }
            stopwatch.end(rests);
            if rests {
                stopwatch.settle();
                mock.increment(9_u64);
                stopwatch.other(Stage::Idle);
            }
        }
        stopwatch.settle();
        stopwatch.stages()
    }

    #[test]
    fn a_worker_that_rests_measures_every_batch_and_everything_adds_up() {
        let stages = run(5, true);
        assert_eq!(Stage::ALL.map(|stage| stages.of(stage).clocks), [150, 0, 0, 3_500, 0, 350, 0, 45]);
        assert_eq!(stages.busy, 5 * 800);
        let receive = stages.of(Stage::Receive);
        assert_eq!((receive.calls, receive.vectors), (5, 160));
    }

    #[test]
    fn under_load_one_batch_in_some_is_measured_and_all_are_counted() {
        let batches = 2 * u64::from(EVERY) + 1;
        let stages = run(batches, false);
        assert_eq!(Stage::ALL.map(|stage| stages.of(stage).clocks), [90, 0, 0, 2_100, 0, 210, 0, 0]);
        assert_eq!((stages.of(Stage::Apply).calls, stages.busy), (batches, batches * 800));
        let none = stages.since(&stages);
        assert_eq!(none, Stages::default());
    }

    #[test]
    fn what_is_no_batch_is_never_counted_as_one() {
        let (clock, mock) = quanta::Clock::mock();
        let mut stopwatch = Stopwatch::with_clock(clock);
        for stage in [Stage::Idle, Stage::Control] {
            // Empty rings: a batch might have come.
            stopwatch.begin();
            mock.increment(11_u64);
            stopwatch.settle();
            stopwatch.other(stage);
        }
        let stages = stopwatch.stages();
        assert_eq!((stages.busy, stages.of(Stage::Idle).clocks, stages.of(Stage::Control).clocks), (0, 11, 11));
    }
}
