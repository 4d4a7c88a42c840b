//! What the connection table takes and gives: plain values, no memory of their own.

use super::state::FlowState;
use super::tcp::Numbers;
use super::tuple::Tuple;

/// Milliseconds of the worker's clock, modulo 2^32. Ages are compared as signed differences, so the wrap after 49.7 days
/// and a clock that is a little behind another worker's are harmless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks(pub u32);

impl Ticks {
    /// Converts nanoseconds of a monotonic clock. Once per batch: it divides.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos / 1_000_000) as u32)
    }
    /// Milliseconds since `earlier`; 0 where `earlier` lies in the future.
    pub const fn since(self, earlier: Self) -> u32 {
        let age = self.0.wrapping_sub(earlier.0);
        if age as i32 > 0 { age } else { 0 }
    }
}

/// The number of a flow's entry: 1 to `max`. Stable while the flow lives, reused later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub(super) u32);

impl EntryId {
    /// The number, for display.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum FlowDir {
    /// As the first packet went.
    Original = 0,
    /// The way back.
    Reply = 1,
}

impl FlowDir {
    /// The opposite direction.
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// A flow found by one of its tuples. Good until the worker's (or reader's) next quiescent point, not longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hit {
    /// The flow.
    pub entry: EntryId,
    /// The direction whose tuple was found.
    pub dir: FlowDir,
}

/// What was decided for one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// Where its packets leave; the table does not look inside.
    pub exit: u32,
    /// Ones' complement delta of the IPv4 header checksum. Kept for IPv4 only.
    pub l3_delta: u16,
    /// Ones' complement delta of the transport checksum.
    pub l4_delta: u16,
}

/// The packet that opens a flow, which is counted with the insertion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstPacket {
    /// Length of the IP packet, bytes; 0: none is counted.
    pub bytes: u32,
    /// Of TCP over IPv4.
    pub numbers: Numbers,
}

impl FirstPacket {
    /// No packet went this way yet.
    pub const NONE: Self = Self { bytes: 0, numbers: Numbers { seq: 0, ack: 0 } };
}

/// No share is charged for this flow.
pub const NO_OWNER: u32 = u32::MAX;

/// This flow is counted at no counter.
pub const NOT_COUNTED: u32 = u32::MAX;

/// What a new flow starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInit {
    /// The first packet's direction.
    pub original: Leg,
    /// The way back.
    pub reply: Leg,
    /// What opens it.
    pub first: FirstPacket,
    /// Generation of the tables that decided, for both directions.
    pub generation: u32,
    /// Whose share of the table it uses: below `TableConfig::owners`, or [`NO_OWNER`].
    pub owner: u32,
    /// The counter that it is counted at while it is open: below [`ConnTable::counters`](super::ConnTable::counters), or
    /// [`NOT_COUNTED`].
    pub counter: u32,
    /// State after the first packet: [`FlowState::opening`].
    pub state: FlowState,
}

/// One direction of a flow, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// The tuple of this direction, as its packets arrive.
    pub tuple: Tuple,
    /// The tuple with which they leave: the inverse of the other direction's.
    pub to: Tuple,
    /// What was decided.
    pub leg: Leg,
    /// Generation of the tables that decided it.
    pub generation: u32,
    /// State of the connection.
    pub state: FlowState,
    /// Source address or port change.
    pub nat_src: bool,
    /// Destination address or port change.
    pub nat_dst: bool,
}

/// What only dumps and slow paths ask about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowDetails {
    /// Whose share it uses, or [`NO_OWNER`].
    pub owner: u32,
    /// The counter that it is counted at, or [`NOT_COUNTED`].
    pub counter: u32,
    /// When it was inserted.
    pub created: Ticks,
    /// When its last packet was seen.
    pub last_seen: Ticks,
    /// Milliseconds until it expires if nothing more is seen.
    pub remaining_ms: u32,
    /// Packets and bytes of the original direction, then of the reply. Approximate where two workers see one direction.
    pub counts: [FlowCounts; 2],
}

/// Traffic of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Packets, modulo 2^40.
    pub packets: u64,
    /// Bytes, modulo 2^56.
    pub bytes: u64,
}

/// A flow in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its entry.
    pub entry: EntryId,
    /// The original direction.
    pub original: FlowView,
    /// The way back.
    pub reply: FlowView,
    /// The rest.
    pub details: FlowDetails,
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No entry is free. Flows that saw no reply yet make room for later ones.
    Full,
    /// One of the two tuples belongs to this flow.
    Exists(Hit),
    /// The owner uses its whole share.
    ShareExceeded,
    /// Another worker is just inserting one of the tuples and did not finish in time; as rare as being preempted there.
    Busy,
}
