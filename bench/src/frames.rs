//! A batch of frames for parts that are measured alone. Its lines stay in the first cache.

use weir_dataplane::overlay::vxlan::{Template, encap};
use weir_dataplane::parse::{Headers, Kind, parse_into};
use weir_dataplane::wire::tcp;
use weir_xsk::{Arena, Frame};

use crate::plan::Plan;
use crate::traffic::{craft_of, remote};

/// Frames of a batch.
pub const COUNT: u32 = 32;
/// Off any power of two, as in `traffic`.
const SLOT_BYTES: u32 = 2112;
const HEADROOM: u32 = 256;

/// Requests of the first flows of a plan.
pub struct Frames {
    /// Their memory.
    pub arena: Arena,
    /// The frames.
    pub frames: Vec<Frame>,
    /// What parsing finds in each.
    pub headers: Vec<Headers>,
}

impl Frames {
    /// Frames of `len` bytes.
    ///
    /// # Panics
    /// Where `len` is too short for the headers, or too long for a slot.
    pub fn new(plan: Plan, len: usize) -> Self {
        let (arena, mut frames) = Arena::heap(COUNT, SLOT_BYTES, HEADROOM).expect("memory for the frames");
        let fill = |(index, frame): (usize, &mut Frame)| {
            assert!(arena.fill(frame, &craft_of(plan.tuple(index as u32), tcp::ACK, len).frame()));
            let mut headers = Headers::BLANK;
            assert_eq!(parse_into(arena.bytes(frame), &mut headers), Ok(Kind::Ip));
            headers
        };
        let headers = frames.iter_mut().enumerate().map(fill).collect();
        Self { arena, frames, headers }
    }

    /// The outer headers of the way to another node.
    pub fn template(&self) -> Template {
        Template::new(&remote(0, 1))
    }

    /// Wraps all frames, as they come from that node. Gives their outer headers.
    ///
    /// # Panics
    /// Where a frame is too long.
    pub fn wrap(&mut self) -> Headers {
        for frame in &mut self.frames {
            assert!(encap(&self.arena, frame, &Template::new(&remote(1, 0)), 0, 1));
        }
        let mut outer = Headers::BLANK;
        assert_eq!(parse_into(self.arena.bytes(&self.frames[0]), &mut outer), Ok(Kind::Ip));
        outer
    }
}
