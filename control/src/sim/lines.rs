//! The lines of a replay, written fast: what packets of one flow have in common is made once.
//!
//! From packet to packet of a flow only number and time change. [`Lines`] keeps the rest of the line, found by everything that
//! it is made of, in a table of fixed size where a newcomer takes the place of whoever was there.

use std::hash::BuildHasher;
use std::io::{self, Write};

use hashbrown::DefaultHashBuilder;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::events::Trail;
use weir_dataplane::io::PortId;
use weir_dataplane::model::NodeIndex;
use weir_dataplane::parse::HeaderFlags;
use weir_dataplane::verdict::Verdict;

use super::fate::Fate;
use super::row::timestamp;

/// Rests of lines kept, about half a kilobyte each.
const SLOTS: usize = 1 << 14;

/// All of a packet that a line shows, but for its number and time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    in_port: PortId,
    decap: Option<NodeIndex>,
    tuple: Option<Tuple>,
    /// A later fragment has no ports to show.
    portless: bool,
    verdict: Verdict,
    trail: Trail,
}

/// Keeps the rests of lines.
#[derive(Default)]
pub struct Lines {
    slots: Vec<Option<(Key, String)>>,
    hasher: DefaultHashBuilder,
    clock: Clock,
}

impl Lines {
    /// The rest of the line of a packet; `make` makes it where it is not kept.
    pub fn rest(&mut self, fate: &Fate, make: impl FnOnce() -> String) -> &str {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        let key = Key {
            in_port: fate.in_port,
            decap: fate.decap,
            tuple: fate.headers.map(|headers| headers.tuple),
            portless: fate.headers.is_some_and(|headers| headers.has(HeaderFlags::FRAGMENT_LATER)),
            verdict: fate.verdict,
            trail: fate.trail,
        };
        let slot = self.hasher.hash_one((key.tuple, key.in_port.0)) as usize % SLOTS;
        let slot = &mut self.slots[slot];
        match slot {
            Some((kept, _)) if *kept == key => {}
            _ => *slot = Some((key, make())),
        }
        slot.as_ref().map_or("", |(_, text)| text)
    }

    /// Writes `{"n":…,"time":"…"`, the start of every JSON line.
    ///
    /// # Errors
    /// What the writer says.
    pub fn json_head(&mut self, out: &mut impl Write, n: u64, time: u64) -> io::Result<()> {
        write!(out, "{{\"n\":{n},\"time\":\"")?;
        self.clock.write(out, time)?;
        out.write_all(b"\"")
    }
}

/// Writes timestamps; packets of one second share all but the fraction.
#[derive(Default)]
struct Clock {
    second: Option<u64>,
    /// `2026-01-01T00:00:00`.
    text: String,
}

impl Clock {
    /// As [`timestamp`]: no zeros at the end of the fraction.
    fn write(&mut self, out: &mut impl Write, time: u64) -> io::Result<()> {
        const SECOND: u64 = 1_000_000_000;
        let (second, nanos) = (time / SECOND, time % SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = timestamp(second * SECOND).trim_end_matches('Z').to_owned();
        }
        out.write_all(self.text.as_bytes())?;
        if nanos > 0 {
            let digits: [u8; 9] = std::array::from_fn(|n| b'0' + (nanos / 10_u64.pow(8 - n as u32) % 10) as u8);
            let len = 9 - digits.iter().rev().take_while(|digit| **digit == b'0').count();
            out.write_all(b".")?;
            out.write_all(&digits[..len])?;
        }
        out.write_all(b"Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_timestamps_are() {
        let mut clock = Clock::default();
        for time in [0, 1, 999_999_999, 1_000_000_000, 1_767_225_600_010_000_000, 1_767_225_600_000_000_100, 1_767_225_601_123_456_789] {
            let mut text = Vec::new();
            clock.write(&mut text, time).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), timestamp(time));
        }
    }
}
