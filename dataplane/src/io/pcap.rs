//! A capture as the ports of a dataplane: what it holds comes in; what leaves has been seen by whoever drives the
//! pipeline, and is forgotten.
//!
//! A packet that is there twice, as it came and as it went, is taken as it came.
//!
//! The clock is the capture's, made monotonic: a record that claims to be older than one before it happens at that one's
//! time. A batch spans a millisecond at most, so that one clock reading serves it.

use std::io;

use weir_xsk::{Arena, Frame};

use super::{BATCH_MAX, Batch, Packet, PacketIo, PortId};
use crate::capture::{Capture, Interface, RECORD_MAX_BYTES};
use crate::verdict::{DropReason, Verdict};

/// Room for the outer headers of the overlay, and more.
const HEADROOM_BYTES: u32 = 256;
/// The longest record, its synthetic Ethernet header, and an odd number of cache lines: headers of different slots must
/// not share cache sets.
const SLOT_BYTES: u32 = HEADROOM_BYTES + RECORD_MAX_BYTES as u32 + 14 + 50;
const _: () = assert!((SLOT_BYTES / 64) % 2 == 1 && SLOT_BYTES.is_multiple_of(64));
/// One batch and the record that did not belong to it any more.
const SLOTS: u32 = BATCH_MAX as u32 + 1;
/// How far the clock may run within a batch, nanoseconds.
const BATCH_SPAN: u64 = 1_000_000;

/// What the capture says of a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// Number in the capture, from 1.
    pub number: u64,
    /// As written in the capture, nanoseconds since 1970.
    pub time: u64,
    /// Length on the wire; more than the frame has where the capture cut it.
    pub wire_len: u32,
}

/// Packets between one that came in and its copy that went out, in a capture of both.
const COPIES: usize = 4096;

/// Chooses the port by which a frame of a capture's interface comes in; `true` where the capture has it as it went out.
pub type PortOf = Box<dyn FnMut(Option<&Interface>, bool, &[u8]) -> PortId + Send>;

/// A capture as a set of ports.
pub struct PcapIo {
    capture: Capture,
    arena: Arena,
    free: Vec<Frame>,
    port_of: PortOf,
    notes: Vec<Note>,
    held: Option<(Packet, Note)>,
    /// Packets that came in, by the lower bits of their numbers.
    came: Box<[Option<u64>; COPIES]>,
    /// Copies that were passed over.
    copies: u64,
    /// The latest time seen.
    latest: u64,
    /// The time of the last batch.
    now: u64,
    error: Option<io::Error>,
}

impl PcapIo {
    /// Makes ports of `capture`; `port_of` says by which one each frame comes in.
    ///
    /// # Errors
    /// Where there is no memory for the frames.
    pub fn new(capture: Capture, port_of: PortOf) -> io::Result<Self> {
        let (arena, free) = Arena::heap(SLOTS, SLOT_BYTES, HEADROOM_BYTES)?;
        let notes = Vec::with_capacity(BATCH_MAX);
        let came = Box::new([None; COPIES]);
        Ok(Self { capture, arena, free, port_of, notes, held: None, came, copies: 0, latest: 0, now: 0, error: None })
    }

    /// The clock during the last batch: nanoseconds since 1970, never backwards.
    pub fn now(&self) -> u64 {
        self.now
    }
    /// What the capture says of the packets that the last `rx` gave, in order.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
    /// The capture.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }
    /// Records that were passed over because the same packet is there as it came in.
    pub fn copies(&self) -> u64 {
        self.copies
    }
    /// Frames that are neither in a batch nor held back.
    pub fn free_frames(&self) -> usize {
        self.free.len()
    }

    /// Reads the next record into a frame; `None` at the end, at an error, and while no frame is free.
    fn read(&mut self) -> Option<(Packet, Note)> {
        let mut frame = self.free.pop()?;
        let record = loop {
            match self.capture.next() {
                Some(Ok(record)) => {
                    let came = record.id.map(|id| (id, &mut self.came[id as usize % COPIES]));
                    match came {
                        Some((id, came)) if record.out && *came == Some(id) => self.copies += 1,
                        Some((id, came)) if !record.out => {
                            *came = Some(id);
                            break record;
                        }
                        _ => break record,
                    }
                }
                end => {
                    // Said once; kept until the records before it were given.
                    if let Some(Err(error)) = end {
                        self.error = Some(io::Error::other(error));
                    }
                    self.free.push(frame);
                    return None;
                }
            }
        };
        let note = Note { number: record.number, time: record.time, wire_len: record.wire_len };
        self.arena.reset(&mut frame);
        // A slot holds the longest record (checked where it is read), so this cannot fail; were it to, the frame is empty
        // and the parser refuses it.
        if self.arena.set_len(&mut frame, record.len()) {
            record.copy_to(self.arena.bytes_mut(&mut frame));
        }
        let (interface, out) = (record.interface, record.out);
        let in_port = (self.port_of)(self.capture.interface(interface), out, self.arena.bytes(&frame));
        Some((Packet { frame, in_port, verdict: Verdict::Drop(DropReason::InvalidPacket) }, note))
    }
}

impl PacketIo for PcapIo {
    fn arena(&self) -> &Arena {
        &self.arena
    }

    /// At the end of the capture the batch stays empty.
    ///
    /// # Errors
    /// A [`CaptureError`](crate::capture::CaptureError), after all that could be read was given.
    fn rx(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.notes.clear();
        while batch.len() < BATCH_MAX {
            let Some((packet, note)) = self.held.take().or_else(|| self.read()) else { break };
            self.latest = self.latest.max(note.time);
            if self.notes.is_empty() {
                self.now = self.latest;
            } else if self.latest > self.now + BATCH_SPAN {
                self.held = Some((packet, note));
                break;
            }
            batch.push(packet);
            self.notes.push(note);
        }
        if self.notes.is_empty() { self.error.take().map_or(Ok(()), Err) } else { Ok(()) }
    }

    fn tx(&mut self, _port: PortId, frame: Frame) -> bool {
        self.free.push(frame);
        true
    }

    fn free(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::PcapWriter;

    fn capture(times: &[u64]) -> Capture {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for time in times {
            writer.packet(*time, &[0; 60]).unwrap();
        }
        Capture::new(Box::new(io::Cursor::new(writer.finish().unwrap()))).unwrap()
    }

    #[test]
    fn a_batch_spans_a_millisecond_and_the_clock_never_runs_back() {
        let capture = capture(&[5_000_000, 5_900_000, 1, 6_100_000, 2_000_000, 9_000_000]);
        let mut io = PcapIo::new(capture, Box::new(|_, _, _| PortId(7))).unwrap();
        let mut seen = Vec::new();
        loop {
            let mut batch = Batch::new();
            io.rx(&mut batch).unwrap();
            if batch.is_empty() {
                break;
            }
            seen.push((io.now(), io.notes().iter().map(|n| n.number).collect::<Vec<_>>()));
            assert!(batch.iter().all(|p| p.in_port == PortId(7) && p.frame.len() == 60));
            batch.drain(..).for_each(|p| io.free(p.frame));
        }
        assert_eq!(seen, [(5_000_000, vec![1, 2, 3]), (6_100_000, vec![4, 5]), (9_000_000, vec![6])]);
        assert_eq!(io.free_frames(), SLOTS as usize);
    }
}
