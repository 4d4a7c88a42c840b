//! Rows: disjoint ranges of keys with a verdict each, searched a cache line at a time.
//!
//! Eight ranges and their verdicts are one line, which is searched without a branch: what a key finds is as random as traffic. A longer row has guides, lines with the first key of each of its others. So a row of 8 ranges costs one line, one of
//! 128 two, and beyond that a binary search goes before.

use super::Verdict;

/// Ranges of a line.
const RANGES: usize = 8;
/// First keys of a guide.
const GUIDED: usize = 16;
/// Behind every key.
const NONE: u32 = u32::MAX;

/// First keys of ranges, sorted, and their verdicts.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    starts: [u32; RANGES],
    verdicts: [Verdict; RANGES],
}

/// First keys of lines, sorted.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Guide([u32; GUIDED]);

const _: () = assert!(size_of::<Line>() == 64 && size_of::<Guide>() == 64);

/// Where the parts of a row start.
#[derive(Clone, Copy, Debug)]
struct Row {
    line: u32,
    guide: u32,
    /// Guides, none for a row of one line.
    guides: u32,
}

/// All rows: 64 bytes for every 8 ranges, 4 to 8 for each line of a longer row, and 12 for each row.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    lines: Vec<Line>,
    guides: Vec<Guide>,
}

/// The place of the last of the sorted keys that is at most `key`, as the first one is. `N` is a power of two.
#[inline(always)]
fn last_at_most<const N: usize>(starts: &[u32; N], key: u32) -> usize {
    let (mut at, mut half) = (0, N / 2);
    while half > 0 {
        at += half * usize::from(starts[(at + half) % N] <= key);
        half /= 2;
    }
    at
}

impl Rows {
    /// Adds a row of ranges, each of which holds from its first key to the next one's; the first starts at 0. Gives its number.
    pub(super) fn push(&mut self, ranges: &[(u32, Verdict)]) -> u32 {
        debug_assert_eq!(ranges.first().map(|(start, _)| *start), Some(0));
        let (line, guide) = (self.lines.len() as u32, self.guides.len() as u32);
        for chunk in ranges.chunks(RANGES) {
            let mut line = Line { starts: [NONE; RANGES], verdicts: [Verdict::ISOLATED; RANGES] };
            for (place, (start, verdict)) in chunk.iter().enumerate() {
                (line.starts[place], line.verdicts[place]) = (*start, *verdict);
            }
            self.lines.push(line);
        }
        let lines = &self.lines[line as usize..];
        if lines.len() > 1 {
            self.guides.extend(lines.chunks(GUIDED).map(|lines| {
                let mut guide = Guide([NONE; GUIDED]);
                guide.0.iter_mut().zip(lines).for_each(|(first, line)| *first = line.starts[0]);
                guide
            }));
        }
        self.rows.push(Row { line, guide, guides: self.guides.len() as u32 - guide });
        self.rows.len() as u32 - 1
    }

    /// The verdict on a key.
    #[inline]
    pub(super) fn find(&self, row: u32, key: u32) -> Verdict {
        let Row { line, guide, guides } = self.rows[row as usize];
        let mut line = line as usize;
        if guides > 0 {
            let guides = &self.guides[guide as usize..][..guides as usize];
            // The first key of all is 0, so there is always one at or before the key.
            let guide = guides.partition_point(|guide| guide.0[0] <= key) - 1;
            line += guide * GUIDED + last_at_most(&guides[guide].0, key);
        }
        let line = &self.lines[line];
        line.verdicts[last_at_most(&line.starts, key) % RANGES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_length_say_what_a_scan_says() {
        let (mut rows, mut random) = (Rows::default(), fastrand::Rng::with_seed(3));
        for count in (1..40).chain([127, 128, 129, 130, 300, 2000]) {
            let mut starts: Vec<u32> = (1..count).map(|_| random.u32(1..0x4_0000)).collect();
            starts.push(0);
            starts.sort_unstable();
            starts.dedup();
            let ranges: Vec<(u32, Verdict)> = starts.iter().map(|start| (*start, Verdict(random.u32(..)))).collect();
            let row = rows.push(&ranges);
            let edges = starts.iter().flat_map(|start| [start.saturating_sub(1), *start, start + 1]);
            for key in edges.chain([0x3_ffff]) {
                let expected = ranges.iter().rfind(|(start, _)| *start <= key).map(|(_, verdict)| *verdict);
                assert_eq!(Some(rows.find(row, key)), expected, "{key} among {count}");
            }
        }
    }
}
