//! Frames and the memory they live in.
//!
//! A [`Frame`] is a move-only handle to one slot of an [`Arena`]. Whoever holds the handle owns the bytes; while a frame
//! is in a ring of the kernel no handle to it exists. So an arena can hand out `&mut [u8]` from `&self`: two handles never
//! name the same slot.
//!
//! A packet that is longer than a slot is a chain: its frame is the first buffer, which has all headers and alone is edited,
//! and owns the further ones, which are only passed on. Which slot follows which stands in a table of the arena.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A packet: a slot of an arena, which bytes of the slot it fills, and the slots of the chain behind it, if any. Neither
/// `Clone` nor `Copy`.
#[derive(Debug)]
pub struct Frame {
    slot: u32,
    start: u32,
    len: u32,
    arena: u32,
    /// The last slot of the chain; the same as `slot` where there is none.
    last: u32,
    /// Bytes of the packet in the slots behind the first.
    rest_len: u32,
}

impl Frame {
    /// Index of the slot in its arena.
    pub fn slot(&self) -> u32 {
        self.slot
    }
    /// Bytes of the packet in its first buffer, of most packets all.
    #[allow(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }
    /// Bytes of the packet in all its buffers.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.len as usize + self.rest_len as usize
    }
    /// Tells whether the packet goes on behind its first buffer.
    #[inline]
    pub fn is_chain(&self) -> bool {
        self.rest_len > 0
    }
    /// Bytes free in front of the packet.
    pub fn headroom_bytes(&self) -> usize {
        self.start as usize
    }
    /// Drops `count` bytes from the front (decapsulation). Takes at most what the first buffer has.
    #[inline]
    pub fn pull_front(&mut self, count: usize) {
        let count = (count as u32).min(self.len);
        self.start += count;
        self.len -= count;
    }
}

/// Memory for `count` frames in slots of equal size.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    slot_bytes: u32,
    headroom_bytes: u32,
    count: u32,
    id: u32,
    /// By slot: what follows it in its chain. Arbitrary for the last of a chain.
    next: Box<[Next]>,
    /// Who sends frames of this arena finishes checksums that were left to it.
    finishes_checksums: bool,
}

// SAFETY: an arena is a range of memory without interior state; access goes through frames, which are unique (module head).
unsafe impl Send for Arena {}
// SAFETY: as above: `&Arena` gives access only to the bytes of a frame that the caller holds.
unsafe impl Sync for Arena {}

/// A buffer of a chain behind the first. Only who holds the chain reads or writes the entry of a slot, so the order of
/// memory accesses is theirs to keep; atomic because an arena is shared.
#[derive(Debug, Default)]
struct Next {
    slot: AtomicU32,
    start: AtomicU32,
    len: AtomicU32,
    /// Of the first buffer of a chain: where a checksum is left to who sends it ([`Checksum`]); 0 where none is.
    checksum: AtomicU32,
}

/// An Internet checksum (RFC 1071) over a packet from some byte to its end. Its field holds the sum of what else it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Distance of the first byte that is summed from the packet's start.
    pub start: u16,
    /// Distance of the field from there.
    pub field: u16,
}

impl Next {
    fn store(&self, frame: &Frame) {
        self.slot.store(frame.slot, Ordering::Relaxed);
        self.start.store(frame.start, Ordering::Relaxed);
        self.len.store(frame.len, Ordering::Relaxed);
        self.checksum.store(0, Ordering::Relaxed);
    }
    /// Slot, first byte in it, length.
    fn load(&self) -> (u32, u32, u32) {
        (self.slot.load(Ordering::Relaxed), self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed))
    }
}

const _: () = assert!(size_of::<Frame>() == 24);

static NEXT_ID: AtomicU32 = AtomicU32::new(0);

/// A number that no arena of this process had before: frames of two arenas are never taken for each other's.
fn next_id() -> u32 {
    let id = NEXT_ID.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1));
    id.unwrap_or_else(|_| panic!("this process has made {} arenas", u32::MAX))
}

impl Arena {
    /// Maps zeroed memory for `count` slots of `slot_bytes` each and gives the frames, each starting after
    /// `headroom_bytes` with length 0. Asks for 2 MiB pages.
    ///
    /// # Errors
    /// What mmap says.
    pub fn heap(count: u32, slot_bytes: u32, headroom_bytes: u32) -> io::Result<(Self, Vec<Frame>)> {
        assert!(headroom_bytes <= slot_bytes && count > 0, "headroom {headroom_bytes} of slots of {slot_bytes} bytes, {count} slots");
        let bytes = count as usize * slot_bytes as usize;
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        // SAFETY: the range was just mapped; the advice changes page sizes, not contents. Refusal costs speed only.
        let _ = unsafe { madvise(base, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        let id = next_id();
        let next = (0..count).map(|_| Next::default()).collect();
        let arena = Self { base, slot_bytes, headroom_bytes, count, id, next, finishes_checksums: false };
        let frames = (0..count).map(|slot| Frame { slot, start: headroom_bytes, len: 0, arena: id, last: slot, rest_len: 0 }).collect();
        Ok((arena, frames))
    }

    /// Number of slots.
    pub fn count(&self) -> u32 {
        self.count
    }
    /// Bytes of a slot, headroom included: the longest packet it can hold is shorter by the headroom.
    pub fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }
    /// Headroom of a fresh frame.
    pub fn headroom_bytes(&self) -> u32 {
        self.headroom_bytes
    }

    /// Asks for the first cache line of a packet, which holds its headers, to be written: another core, which wrote it, gives it up at
    /// once and not twice, first to be read.
    #[inline(always)]
    pub fn prefetch(&self, frame: &Frame) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: PREFETCHW reads and writes nothing that the program could see and never faults, whatever the address. Processors
        // without it take it for a NOP. An intrinsic exists, but without the target feature it asks for reading only.
        unsafe {
            let (base, at) = (self.base.as_ptr().addr(), self.place(frame));
            std::arch::asm!("prefetchw [{} + {}]", in(reg) base, in(reg) at, options(nomem, nostack, preserves_flags));
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = frame;
    }
    /// Asks for the cache line before a packet, which encapsulation writes.
    #[inline(always)]
    pub fn prefetch_headroom(&self, frame: &Frame) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().wrapping_add(self.place(frame)).wrapping_sub(64).cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = frame;
    }
    /// Where a packet begins, for who does not read there: unlike [`offset`](Self::offset), of any arena.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    fn place(&self, frame: &Frame) -> usize {
        frame.slot as usize * self.slot_bytes as usize + frame.start as usize
    }
    /// The bytes of a packet's first buffer.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = self.offset(frame);
        // SAFETY: `offset` checked that the frame is of this arena; `start + len` stays within its slot (every method that
        // moves either checks it); the handle is borrowed shared, so nobody writes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start), frame.len as usize) }
    }
    /// The bytes of a packet's first buffer, for writing.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.offset(frame);
        // SAFETY: as in `bytes`; the handle is borrowed exclusively and handles are unique, so nobody else reads or writes.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(start), frame.len as usize) }
    }
    /// Grows the packet at the front by `count` bytes, whose content is arbitrary. Tells whether there was headroom.
    #[must_use]
    #[inline]
    pub fn push_front(&self, frame: &mut Frame, count: usize) -> bool {
        let fits = count <= frame.start as usize;
        if fits {
            frame.start -= count as u32;
            frame.len += count as u32;
        }
        fits
    }
    /// Takes `off` bytes from the front of the packet, puts `on` bytes there and cuts all of it to `len` bytes: other headers, and
    /// no padding. Gives its bytes, those that are cut off included; new ones are arbitrary. `None` where there is not so much
    /// headroom, not so much to cut, or a further buffer, and then nothing has changed.
    #[inline(always)]
    pub fn reframe<'a>(&'a self, frame: &'a mut Frame, off: u32, on: u32, len: u32) -> Option<&'a mut [u8]> {
        let moved = i64::from(off) - i64::from(on);
        let (start, whole) = (i64::from(frame.start) + moved, i64::from(frame.len) - moved);
        if start < 0 || whole < i64::from(len) || frame.is_chain() {
            return None;
        }
        // Neither is more than the end of the packet, which stays where it was.
        (frame.start, frame.len) = (start as u32, len);
        let start = self.offset(frame);
        // SAFETY: as in `bytes_mut`; the packet's last byte is the one that it was, and so within its slot.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(start), whole as usize) })
    }
    /// Sets the length of the whole packet; new bytes at the end are arbitrary. What it had in further buffers is no part of
    /// it any more. Tells whether the slot is long enough.
    #[must_use]
    #[inline]
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        let fits = len <= (self.slot_bytes - frame.start) as usize;
        if fits {
            frame.len = len as u32;
            frame.rest_len = 0;
        }
        fits
    }
    /// Makes the frame what a fresh one is: full headroom, length 0.
    #[inline]
    pub fn reset(&self, frame: &mut Frame) {
        frame.start = self.headroom_bytes;
        frame.len = 0;
        frame.rest_len = 0;
    }
    /// Lengthens the packet by another one, buffers and all.
    pub fn append(&self, frame: &mut Frame, more: Frame) {
        assert!(frame.last == frame.slot || frame.is_chain(), "what was cut off is still behind the frame");
        assert!(frame.arena == self.id && more.arena == self.id, "a frame of another arena");
        self.next[frame.last as usize].store(&more);
        frame.last = more.last;
        frame.rest_len += more.len + more.rest_len;
    }
    /// Leaves the checksum of a chain's last header to who sends it: the header begins `start` bytes from the packet's start, goes on
    /// to its end, and has its checksum `field` bytes further, where the sum of what else is covered stands now (of TCP and UDP the
    /// pseudo header). Tells whether they will; if not, and for a packet of one buffer, nothing has changed.
    #[must_use]
    pub fn leave_checksum(&self, frame: &Frame, start: usize, field: usize) -> bool {
        let at = frame.start as usize + start;
        let leaves = self.finishes_checksums && frame.is_chain() && start + field + 2 <= frame.len() && frame.arena == self.id;
        if leaves {
            // Both are below the bytes of a slot. By the place in the slot, as the packet's start may still move.
            self.next[frame.slot as usize].checksum.store((at as u32) << 16 | field as u32, Ordering::Relaxed);
        }
        leaves
    }
    /// The checksum of a chain that was left to who sends it.
    pub fn left_checksum(&self, frame: &Frame) -> Option<Checksum> {
        let left = self.next[frame.slot as usize].checksum.load(Ordering::Relaxed);
        let start = (left >> 16).checked_sub(frame.start)?;
        (left != 0 && frame.is_chain()).then_some(Checksum { start: start as u16, field: left as u16 })
    }
    /// Says that who sends frames of this arena finishes checksums that are left to it.
    ///
    /// # Panics
    /// Where slots are longer than 64 KiB.
    pub fn finish_checksums(&mut self) {
        assert!(self.slot_bytes <= 1 << 16, "slots of {} bytes", self.slot_bytes);
        self.finishes_checksums = true;
    }
    /// Tells whether they do.
    pub fn finishes_checksums(&self) -> bool {
        self.finishes_checksums
    }
    /// Takes off everything behind the first buffer, itself a frame with the others behind it; `None` where there is nothing.
    /// Before a frame is forgotten, this must have given `None`: buffers that are still behind it are lost.
    #[inline]
    pub fn split(&self, frame: &mut Frame) -> Option<Frame> {
        if frame.last == frame.slot {
            return None;
        }
        assert!(frame.arena == self.id, "a frame of another arena");
        let (slot, start, len) = self.next[frame.slot as usize].load();
        let rest = Frame { slot, start, len, arena: self.id, last: frame.last, rest_len: frame.rest_len.saturating_sub(len) };
        (frame.last, frame.rest_len) = (frame.slot, 0);
        Some(rest)
    }
    /// The bytes of a packet, buffer by buffer.
    pub fn buffers<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> {
        let mut slot = frame.slot;
        let rest = std::iter::from_fn(move || {
            if slot == frame.last {
                return None;
            }
            let (next, start, len) = self.next[slot as usize].load();
            slot = next;
            let at = next as usize * self.slot_bytes as usize + start as usize;
            // SAFETY: `append` kept what was a frame of this arena, so its bytes stay within its slot; the chain is borrowed
            // with its frame, so nobody writes.
            Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len as usize) })
        });
        // What `set_len` cut off is still behind the frame.
        std::iter::once(self.bytes(frame)).chain(rest.take(if frame.is_chain() { usize::MAX } else { 0 }))
    }
    /// Makes the handle of a slot whose bytes nobody else has: one that the kernel gave back.
    ///
    /// # Safety
    /// No other handle to `slot` may exist, and the kernel must be done with it.
    pub(crate) unsafe fn reclaim(&self, slot: u32, start: u32, len: u32) -> Frame {
        assert!(slot < self.count && start <= self.slot_bytes && len <= self.slot_bytes - start, "slot {slot}: {len} bytes from {start}");
        Frame { slot, start, len, arena: self.id, last: slot, rest_len: 0 }
    }
    /// The addresses of all slots.
    pub(crate) fn memory(&self) -> std::ops::Range<u64> {
        let start = self.base.as_ptr().expose_provenance() as u64;
        start..start + u64::from(self.count) * u64::from(self.slot_bytes)
    }
    /// Tells arenas apart.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
    /// Distance of the packet's first byte from the start of the memory.
    pub(crate) fn address(&self, frame: &Frame) -> usize {
        self.offset(frame)
    }
    /// Copies `bytes` in as the whole packet. Tells whether they fit; if not, the frame is as after [`reset`](Self::reset).
    #[must_use]
    pub fn fill(&self, frame: &mut Frame, bytes: &[u8]) -> bool {
        self.reset(frame);
        let fits = self.set_len(frame, bytes.len());
        if fits {
            self.bytes_mut(frame).copy_from_slice(bytes);
        }
        fits
    }

    #[inline(always)]
    fn offset(&self, frame: &Frame) -> usize {
        assert!(frame.arena == self.id, "a frame of another arena");
        frame.slot as usize * self.slot_bytes as usize + frame.start as usize
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let bytes = self.count as usize * self.slot_bytes as usize;
        // SAFETY: `heap` mapped exactly this range, and no slice of it can outlive the arena that it borrows from.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_never_overlap_and_stay_in_their_slot() {
        let (arena, mut frames) = Arena::heap(4, 256, 64).unwrap();
        for (n, frame) in frames.iter_mut().enumerate() {
            assert!(arena.fill(frame, &[n as u8; 192]));
            assert!(!arena.set_len(frame, 193));
            assert!(arena.push_front(frame, 64));
            assert!(!arena.push_front(frame, 1));
            assert!(arena.reframe(frame, 0, 1, 1).is_none() && arena.reframe(frame, 1, 0, 256).is_none());
            assert!(arena.reframe(frame, 257, 0, 0).is_none() && arena.reframe(frame, u32::MAX, 0, u32::MAX).is_none());
            assert!(arena.reframe(frame, 0, u32::MAX, 0).is_none() && arena.reframe(frame, u32::MAX, u32::MAX, 257).is_none());
            assert_eq!(arena.reframe(frame, 57, 1, 190).unwrap()[8..], [n as u8; 192]);
            assert_eq!((frame.headroom_bytes(), frame.len()), (56, 190));
            assert_eq!(arena.reframe(frame, 0, 56, 246).unwrap().len(), 246);
            assert!(arena.set_len(frame, 256));
            arena.bytes_mut(frame)[..64].fill(n as u8);
        }
        for (n, frame) in frames.iter().enumerate() {
            assert!(arena.bytes(frame).iter().all(|b| *b == n as u8), "slot {n} was overwritten");
            assert_eq!(frame.len(), 256);
        }
    }

    #[test]
    fn a_chain_gives_its_bytes_in_order_and_its_buffers_back() {
        let (arena, mut frames) = Arena::heap(8, 256, 64).unwrap();
        let mut filled = |bytes: &[u8]| {
            let mut frame = frames.pop().unwrap();
            assert!(arena.fill(&mut frame, bytes));
            frame
        };
        let (mut head, mut middle, end) = (filled(b"one"), filled(b"two"), filled(b"three"));
        arena.append(&mut middle, end);
        arena.append(&mut head, middle);
        assert_eq!((head.len(), head.total_len(), head.is_chain()), (3, 11, true));
        assert_eq!(arena.buffers(&head).collect::<Vec<_>>().concat(), b"onetwothree");
        head.pull_front(1);
        assert_eq!(arena.buffers(&head).collect::<Vec<_>>().concat(), b"netwothree");
        // An answer takes the place of the packet: what is behind is not sent, but not lost either.
        assert!(arena.set_len(&mut head, 2));
        assert_eq!((head.total_len(), arena.buffers(&head).count()), (2, 1));
        let mut rest = arena.split(&mut head).unwrap();
        assert!(arena.split(&mut head).is_none(), "a buffer comes back once");
        assert_eq!(arena.bytes(&rest), b"two");
        let mut last = arena.split(&mut rest).unwrap();
        assert_eq!((arena.bytes(&last), rest.total_len(), last.total_len()), (&b"three"[..], 3, 5));
        assert!(arena.split(&mut rest).is_none() && arena.split(&mut last).is_none());
    }

    #[test]
    fn a_checksum_is_left_once_and_by_the_packet_that_it_is_of() {
        let (mut arena, mut frames) = Arena::heap(4, 256, 64).unwrap();
        let [Some(mut head), Some(mut more), Some(mut short)] = [frames.pop(), frames.pop(), frames.pop()] else { unreachable!() };
        assert!(arena.set_len(&mut head, 100) && arena.set_len(&mut more, 100) && arena.set_len(&mut short, 100));
        arena.append(&mut head, more);
        assert!(!arena.leave_checksum(&head, 34, 16), "nobody would finish it");
        arena.finish_checksums();
        assert!(!arena.leave_checksum(&short, 34, 16) && !arena.leave_checksum(&head, 84, 16), "one buffer; beyond it");
        assert_eq!(arena.left_checksum(&head), None);
        assert!(arena.leave_checksum(&head, 34, 16));
        assert!(arena.push_front(&mut head, 50));
        assert_eq!(arena.left_checksum(&head), Some(Checksum { start: 84, field: 16 }), "wherever the packet starts");
        head.pull_front(85);
        assert_eq!(arena.left_checksum(&head), None, "what it is of was taken off");
        // The same slots as another packet, short and long.
        let mut more = arena.split(&mut head).unwrap();
        arena.reset(&mut head);
        assert!(arena.set_len(&mut head, 100) && arena.set_len(&mut more, 100));
        assert_eq!(arena.left_checksum(&head), None);
        arena.append(&mut head, more);
        assert_eq!(arena.left_checksum(&head), None);
        // An answer in the place of a packet.
        assert!(arena.leave_checksum(&head, 34, 16) && arena.set_len(&mut head, 60));
        assert_eq!(arena.left_checksum(&head), None);
    }

    #[test]
    #[should_panic(expected = "another arena")]
    fn a_frame_of_another_arena_is_refused() {
        let (one, _frames) = Arena::heap(1, 64, 0).unwrap();
        let (_two, others) = Arena::heap(1, 64, 0).unwrap();
        one.bytes(&others[0]);
    }
}
