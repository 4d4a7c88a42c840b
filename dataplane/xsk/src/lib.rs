//! AF_XDP rings and frames: the one place where memory is shared with the kernel, and so where `unsafe` lives.
//!
//! Knows rings and frames, knows no protocol.

mod arena;
mod bind;
mod error;
mod link;
mod memory;
mod port;
mod redirect;
mod ring;
mod socket;
mod wait;

pub use arena::{Arena, Checksum, Frame};
pub use bind::{Binder, Bound};
pub use error::PortError;
pub use link::Link;
pub use memory::{BUFFER_BYTES, BUFFERS_MAX, HEADROOM_BYTES, PACKET_BYTES_MAX, SLOT_BYTES};
pub use port::{FrameCounts, PORTS_MAX, PortConfig, PortStatistics, Ports, SystemCalls, UmemConfig};
pub use redirect::{AttachMode, Attached, PortRole, Redirect, RedirectError, UplinkFilter};
pub use wait::Waker;
