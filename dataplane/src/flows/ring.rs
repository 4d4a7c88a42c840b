//! The way of records from a worker to whoever reads: bounded, one writer, one reader, nobody waits.
//!
//! The ring is `rtrb`'s. What does not fit is counted and gone: a slow reader loses events and never slows a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::events::Fate;

/// What a worker notes of one packet. Plain and of fixed size; names come later.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Nanoseconds of the workers' clock.
    pub time: u64,
    /// Number of the tables that it was decided by; indices in `fate` are of their state.
    pub generation: u32,
    /// What became of it.
    pub fate: Fate,
}

/// Memory of a ring is this many bytes a record.
const _: () = assert!(size_of::<Record>() <= 384);

/// Makes a ring of `capacity` records.
pub fn ring(capacity: usize) -> (Writer, Reader) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let lost = Arc::new(AtomicU64::new(0));
    (Writer { ring: producer, lost: lost.clone() }, Reader { ring: consumer, lost })
}

/// A worker's end of a ring.
#[derive(Debug)]
pub struct Writer {
    ring: rtrb::Producer<Record>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    /// Writes a record, or counts it as lost where there is no room.
    #[inline]
    pub fn write(&mut self, record: Record) {
        if self.ring.push(record).is_err() {
            // One writer: no read-modify-write is needed.
            self.lost.store(self.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

/// The reader's end of a ring.
#[derive(Debug)]
pub struct Reader {
    ring: rtrb::Consumer<Record>,
    lost: Arc<AtomicU64>,
}

impl Reader {
    /// Takes everything that is there.
    pub fn drain(&mut self, mut each: impl FnMut(Record)) {
        // No more than one ring full: the writer may be as fast as we are.
        for _ in 0..self.ring.slots() {
            let Ok(record) = self.ring.pop() else { return };
            each(record);
        }
    }

    /// Records that found no room since the start. With those drained and those still inside: all that were written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Trail;
    use crate::io::PortId;
    use crate::verdict::Verdict;

    fn record(time: u64) -> Record {
        let fate = Fate { in_port: PortId(0), decap: None, headers: None, verdict: Verdict::Reply(None), trail: Trail::default() };
        Record { time, generation: 1, fate }
    }

    #[test]
    fn what_does_not_fit_is_lost_and_counted_and_the_rest_comes_in_order() {
        let (mut writer, mut reader) = ring(4);
        (0..7).for_each(|n| writer.write(record(n)));
        let mut got = Vec::new();
        reader.drain(|r| got.push(r.time));
        assert_eq!((got, reader.lost()), (vec![0, 1, 2, 3], 3));
        writer.write(record(9));
        let mut got = Vec::new();
        reader.drain(|r| got.push(r.time));
        assert_eq!((got, reader.lost()), (vec![9], 3));
    }

    #[test]
    fn between_two_threads_every_record_is_read_once_or_counted_as_lost() {
        const WRITTEN: u64 = 200_000;
        let (mut writer, mut reader) = ring(64);
        let thread = std::thread::spawn(move || (0..WRITTEN).for_each(|n| writer.write(record(n))));
        let (mut last, mut read) = (None, 0);
        loop {
            let ended = thread.is_finished();
            reader.drain(|r| {
                assert!(last.is_none_or(|last| last < r.time), "{last:?} before {}", r.time);
                (last, read) = (Some(r.time), read + 1);
            });
            if ended {
                break;
            }
        }
        thread.join().unwrap();
        assert_eq!(read + reader.lost(), WRITTEN);
    }
}
