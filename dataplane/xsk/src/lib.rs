//! AF_XDP rings and frames: the one place where memory is shared with the kernel, and so where `unsafe` lives.
//!
//! Knows rings and frames, knows no protocol.

mod arena;

pub use arena::{Arena, Frame};
