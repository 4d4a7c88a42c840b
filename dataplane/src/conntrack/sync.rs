//! The atomics that the table is built of: the standard ones, or those of a checker that tries all (loom) or many (shuttle)
//! interleavings. Features `loom` and `shuttle` matter to tests of this crate only.

#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(all(test, feature = "loom"))]
pub(super) use loom::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread::yield_now as spin_loop,
};

#[cfg(all(test, feature = "shuttle", not(feature = "loom")))]
pub(super) use shuttle::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

/// Tells whether a checker runs the code: tables are then as small as can be, so that all interleavings can be tried.
pub(super) const MODEL: bool = cfg!(all(test, feature = "loom"));
