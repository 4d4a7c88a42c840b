//! A global allocator that counts, for the rule that the packet loop allocates nothing.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting every allocation of each thread.
pub struct Counting;

impl Counting {
    /// Allocations and reallocations of the calling thread since it began.
    pub fn count() -> u64 {
        COUNT.with(Cell::get)
    }
    fn note() {
        // A thread that is ending has no counter any more, and nobody asks it.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every method passes its arguments unchanged to the system's allocator, whose contract is the same; the counter
// is a plain cell of the thread that allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `alloc` above, and so from the system's allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note();
        // SAFETY: as in `dealloc`; `size` is the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
