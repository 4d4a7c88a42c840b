//! Memory of the table: one mapping per array, zeroed, never moved, with 2 MiB pages where the kernel has them.
//!
//! Holds atomics only, and no pointers: an entry is named by its number, so that the arrays could lie in memory that several
//! processes share.

#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;

use super::index::Bucket;
use super::line::{Cold, Line};
use super::sync::AtomicU32;

/// Types whose value of all zero bytes is `T::default()` and that need no drop.
///
/// # Safety
/// Both must hold, and the alignment must not be larger than a page.
pub(super) unsafe trait Zeroed: Default {}

// SAFETY: arrays and structs of integer atomics: all zero is their default, nothing to drop, aligned to at most 128 bytes.
unsafe impl Zeroed for Line {}
// SAFETY: as above.
unsafe impl Zeroed for Cold {}
// SAFETY: as above.
unsafe impl Zeroed for Bucket {}
// SAFETY: as above.
unsafe impl Zeroed for AtomicU32 {}

pub(super) use memory::Slab;

#[cfg(not(any(miri, all(test, any(feature = "loom", feature = "shuttle")))))]
mod memory {
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::*;

    /// A fixed array in a mapping of its own.
    pub(in super::super) struct Slab<T: Zeroed> {
        base: NonNull<T>,
        count: usize,
        bytes: usize,
        owns: PhantomData<T>,
    }

    // SAFETY: a slab owns its items like a `Box<[T]>`.
    unsafe impl<T: Zeroed + Send> Send for Slab<T> {}
    // SAFETY: as above; `&Slab` gives `&[T]` only.
    unsafe impl<T: Zeroed + Sync> Sync for Slab<T> {}

    impl<T: Zeroed> Slab<T> {
        /// Maps `count` zeroed items.
        pub(in super::super) fn new(count: usize) -> io::Result<Self> {
            let bytes = count.max(1).checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
            // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
            let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
            // SAFETY: the range was just mapped; the advice changes page sizes, not contents. Refusal costs speed only.
            let _ = unsafe { madvise(base, bytes, Advice::LinuxHugepage) };
            let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { base, count, bytes, owns: PhantomData })
        }
    }
    impl<T: Zeroed> Deref for Slab<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            // SAFETY: `count` items are mapped, page aligned, and all zero is a value of `T` (`Zeroed`); they are unmapped on
            // drop only.
            unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
        }
    }
    impl<T: Zeroed> Drop for Slab<T> {
        fn drop(&mut self) {
            // SAFETY: `new` mapped exactly this range, and no borrow of it outlives the slab.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }
}

/// Checkers have atomics of another size, and Miri maps no memory: a plain box serves there.
#[cfg(any(miri, all(test, any(feature = "loom", feature = "shuttle"))))]
mod memory {
    use super::*;

    /// A fixed array.
    pub(in super::super) struct Slab<T: Zeroed>(Box<[T]>);

    impl<T: Zeroed> Slab<T> {
        /// Makes `count` items.
        pub(in super::super) fn new(count: usize) -> io::Result<Self> {
            Ok(Self((0..count).map(|_| T::default()).collect()))
        }
    }
    impl<T: Zeroed> Deref for Slab<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            &self.0
        }
    }
}
