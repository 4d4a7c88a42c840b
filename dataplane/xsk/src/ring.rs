//! The four rings of an AF_XDP socket, as the kernel shares them (Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h).
//!
//! A ring has one producer and one consumer: us and the kernel, in either part. Each writes one of two indices, which only grow and
//! wrap at 2^32, and reads the other. An entry belongs to the producer until its index has passed it, then to the consumer until
//! that one's has. Knows where entries are and who may touch them, not what they mean.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::sockopt;
use rustix::net::xdp::{
    XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpRingFlags, XdpRingOffset,
};

/// The rings of one socket.
pub(crate) struct Rings {
    /// What was received.
    pub(crate) rx: Consumer<XdpDesc>,
    /// What is to be sent.
    pub(crate) tx: Producer<XdpDesc>,
    /// Addresses to receive into.
    pub(crate) fill: Producer<u64>,
    /// Addresses of what was sent.
    pub(crate) completion: Consumer<u64>,
}

impl Rings {
    /// Makes and maps the rings of a socket that is not bound yet, each of `size` entries, which must be a power of two.
    ///
    /// # Errors
    /// What setsockopt and mmap say.
    pub(crate) fn new(socket: impl AsFd, size: u32) -> io::Result<Self> {
        let socket = socket.as_fd();
        sockopt::set_xdp_rx_ring_size(socket, size)?;
        sockopt::set_xdp_tx_ring_size(socket, size)?;
        sockopt::set_xdp_umem_fill_ring_size(socket, size)?;
        sockopt::set_xdp_umem_completion_ring_size(socket, size)?;
        let at = sockopt::xdp_mmap_offsets(socket)?;
        // SAFETY: each ring was just made with `size` entries of the type that the kernel keeps in it (`struct xdp_desc` in rx and
        // tx, addresses in the others), at the offsets that the kernel gave.
        unsafe {
            Ok(Self {
                rx: Consumer(Ring::map(socket, XDP_PGOFF_RX_RING, &at.rx, size)?),
                tx: Producer(Ring::map(socket, XDP_PGOFF_TX_RING, &at.tx, size)?),
                fill: Producer(Ring::map(socket, XDP_UMEM_PGOFF_FILL_RING, &at.fr, size)?),
                completion: Consumer(Ring::map(socket, XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, size)?),
            })
        }
    }
}

/// One ring, from either side.
struct Ring<T> {
    map: NonNull<u8>,
    map_bytes: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    /// Our index; ahead of what the kernel was told by what was not published or released yet.
    ours: u32,
    /// The kernel's index when we last looked.
    theirs: u32,
}

// SAFETY: a ring is memory of its own; one thread at a time is our side of it, as all access to entries takes `&mut`.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// Maps a ring.
    ///
    /// # Safety
    /// `offset` must name a ring of `size` entries of `T` of this socket, laid out as `at` says, that nobody else of ours has mapped;
    /// `size` must be a power of two, and any bits be a `T`.
    unsafe fn map(socket: impl AsFd, offset: u64, at: &XdpRingOffset, size: u32) -> io::Result<Self> {
        // They came with Linux 5.4, long before multi-buffer frames, without which we do not run.
        let flags_at = at.flags.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let map_bytes = at.desc as usize + size as usize * size_of::<T>();
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let map = unsafe { mmap(std::ptr::null_mut(), map_bytes, ProtFlags::READ | ProtFlags::WRITE, flags, socket, offset)? };
        let map: NonNull<u8> = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        let place = |offset: u64| {
            // SAFETY: the kernel's offsets lie within the mapping.
            unsafe { map.add(offset as usize) }
        };
        Ok(Self {
            map,
            map_bytes,
            producer: place(at.producer).cast(),
            consumer: place(at.consumer).cast(),
            flags: place(flags_at).cast(),
            entries: place(at.desc).cast(),
            size,
            ours: 0,
            theirs: 0,
        })
    }
}

impl<T> Ring<T> {
    fn index(&self, of: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: mapped as long as `self`, aligned as the kernel lays out its own `u32`s, and accessed atomically by both sides.
        unsafe { of.as_ref() }
    }
    /// The place of entry `index`.
    #[inline(always)]
    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the size is a power of two, so the offset is below it and within the mapping.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this range, and nothing borrowed from it outlives the ring.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

/// Our side of a ring into which we write: fill and tx.
pub(crate) struct Producer<T>(Ring<T>);

impl<T: Copy> Producer<T> {
    /// Tells how many entries there is room for, if it is less than `want`; else `want` or more. The kernel's index, whose cache line
    /// it may just be writing, is read only where the room that is known is too small.
    #[inline]
    pub(crate) fn room(&mut self, want: u32) -> u32 {
        let Ring { size, ours, theirs, .. } = self.0;
        let room = size - ours.wrapping_sub(theirs);
        if room >= want {
            return room;
        }
        self.0.theirs = self.0.index(self.0.consumer).load(Ordering::Acquire);
        size - ours.wrapping_sub(self.0.theirs)
    }
    /// Writes an entry, which the kernel sees with the next [`publish`](Self::publish). Tells whether there was room.
    #[inline]
    #[must_use]
    pub(crate) fn push(&mut self, entry: T) -> bool {
        let fits = self.room(1) > 0;
        if fits {
            // SAFETY: the kernel has consumed what was in this place (`room`), and reads it again only once our index has passed.
            unsafe { self.0.entry(self.0.ours).write(entry) };
            self.0.ours = self.0.ours.wrapping_add(1);
        }
        fits
    }
    /// Gives the kernel what was written.
    #[inline]
    pub(crate) fn publish(&mut self) {
        self.0.index(self.0.producer).store(self.0.ours, Ordering::Release);
    }
    /// Tells how many entries the kernel has not consumed, those that it cannot see yet included.
    #[inline]
    pub(crate) fn pending(&mut self) -> u32 {
        self.0.theirs = self.0.index(self.0.consumer).load(Ordering::Acquire);
        self.0.ours.wrapping_sub(self.0.theirs)
    }
    /// Tells whether the kernel waits for a system call before it looks at the ring again.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.0.index(self.0.flags).load(Ordering::Relaxed) & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }
}

/// Our side of a ring from which we read: rx and completion.
pub(crate) struct Consumer<T>(Ring<T>);

impl<T: Copy> Consumer<T> {
    /// Tells how many entries are there to be read, by a look at the kernel's index.
    #[inline]
    pub(crate) fn ready(&mut self) -> u32 {
        self.0.theirs = self.0.index(self.0.producer).load(Ordering::Acquire);
        self.0.theirs.wrapping_sub(self.0.ours)
    }
    /// Reads the next of those entries that the last [`ready`](Self::ready) saw.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.0.ours == self.0.theirs {
            return None;
        }
        // SAFETY: the kernel has produced this entry (`ready`) and writes it again only once our index has passed; any bits are a `T`.
        let entry = unsafe { self.0.entry(self.0.ours).read() };
        self.0.ours = self.0.ours.wrapping_add(1);
        Some(entry)
    }
    /// Gives the kernel back the places of what was read.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.0.index(self.0.consumer).store(self.0.ours, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::mm::mmap_anonymous;

    use super::*;

    pub(crate) const SIZE: u32 = 8;
    /// Wraps after a few rounds.
    const FIRST: u32 = u32::MAX - 20;

    /// Both sides of a ring in plain memory, as one of a socket is after 2^32 - 21 entries. The producer must be dropped first.
    pub(crate) fn pair<T: Copy>() -> (Producer<T>, Consumer<T>) {
        let at = XdpRingOffset { producer: 0, consumer: 64, flags: Some(128), desc: 192 };
        let bytes = at.desc as usize + SIZE as usize * size_of::<T>();
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let map = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        let map: NonNull<u8> = NonNull::new(map.unwrap().cast()).unwrap();
        let side = |map_bytes| {
            // SAFETY: the offsets are within the mapping, as `at` and `bytes` say.
            let place = |offset: u64| unsafe { map.add(offset as usize) };
            let (producer, consumer) = (place(at.producer).cast(), place(at.consumer).cast());
            let (flags, entries) = (place(128).cast(), place(at.desc).cast());
            Ring { map, map_bytes, producer, consumer, flags, entries, size: SIZE, ours: FIRST, theirs: FIRST }
        };
        // Only one of them unmaps it.
        let (producer, consumer) = (Producer(side(0)), Consumer(side(bytes)));
        producer.0.index(producer.0.producer).store(FIRST, Ordering::Relaxed);
        consumer.0.index(consumer.0.consumer).store(FIRST, Ordering::Relaxed);
        (producer, consumer)
    }

    #[test]
    fn nothing_is_seen_before_it_is_published_and_no_place_used_before_it_is_released() {
        let (mut producer, mut consumer) = pair::<u64>();
        for round in 0..10 {
            for n in 0..u64::from(SIZE) {
                assert!(producer.push(round * 100 + n));
            }
            assert!(!producer.push(7), "full");
            assert_eq!((producer.pending(), consumer.ready(), consumer.pop()), (SIZE, 0, None));
            producer.publish();
            assert_eq!((consumer.pop(), consumer.ready()), (None, SIZE), "a look at the index comes first");
            for n in 0..u64::from(SIZE) {
                assert_eq!(consumer.pop(), Some(round * 100 + n));
            }
            assert_eq!((consumer.pop(), producer.room(1), producer.pending()), (None, 0, SIZE));
            consumer.release();
            assert_eq!((producer.room(1), producer.pending(), consumer.ready()), (SIZE, 0, 0));
        }
        drop(producer);
    }

    /// That the order of memory accesses is kept shows on machines that would change it, which x86 does not.
    #[test]
    fn what_one_thread_writes_another_reads_once_and_in_order() {
        let (mut producer, mut consumer) = pair::<u64>();
        const COUNT: u64 = 300_000;
        std::thread::scope(|scope| {
            let producer = &mut producer;
            scope.spawn(move || {
                let mut next = 0;
                while next < COUNT {
                    for _ in 0..producer.room(3).min(3) {
                        assert!(producer.push(next));
                        next += 1;
                    }
                    producer.publish();
                    std::thread::yield_now();
                }
            });
            let mut next = 0;
            while next < COUNT {
                for _ in 0..consumer.ready() {
                    assert_eq!(consumer.pop(), Some(next));
                    next += 1;
                }
                consumer.release();
                std::thread::yield_now();
            }
        });
        drop(producer);
    }
}
