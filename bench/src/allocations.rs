//! A global allocator that counts: for the rule that the packet loop allocates nothing, and for what objects take in memory.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counting every allocation of each thread.
pub struct Counting;

impl Counting {
    /// Allocations and reallocations of the calling thread since it began.
    pub fn count() -> u64 {
        COUNT.with(Cell::get)
    }
    /// Bytes that the calling thread has asked for and not given back, as asked for: without what the allocator adds.
    pub fn live_bytes() -> i64 {
        LIVE.with(Cell::get)
    }
    fn note(more: usize, less: usize) {
        // A thread that is ending has no counters any more, and nobody asks it.
        let _ = COUNT.try_with(|count| count.set(count.get() + u64::from(more > 0)));
        let _ = LIVE.try_with(|live| live.set(live.get() + more as i64 - less as i64));
    }
}

// SAFETY: every method passes its arguments unchanged to the system's allocator, whose contract is the same; the counters
// are plain cells of the thread that allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size(), 0);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        Self::note(0, layout.size());
        // SAFETY: `ptr` came from `alloc` above, and so from the system's allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size, layout.size());
        // SAFETY: as in `dealloc`; `size` is the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
