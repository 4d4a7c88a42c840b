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

/// The full fence between publishing by a compare-and-swap, which is the last thing that the thread did, and looking for what others
/// have published.
#[inline(always)]
pub(super) fn fence_after_swap() {
    // A locked instruction of x86 is such a fence already: no later load passes it (Intel SDM vol. 3A §9.2.3.9, AMD APM vol. 2 §7.2).
    // What is left is to hold the compiler to the order.
    #[cfg(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle"))))))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle")))))))]
    fence(Ordering::SeqCst);
}
