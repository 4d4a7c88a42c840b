//! AF_XDP sockets of one worker: many ports over one memory, moved in batches, added and removed while running.
//!
//! A frame received on one port leaves by another without a copy: all sockets share one UMEM, each with a fill and a
//! completion ring of its own. A packet may start anywhere in its slot when it is sent. Knows no protocol.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::xdp::XdpDescOptions;
use tracing::{debug, warn};

use crate::arena::{Arena, Frame};
use crate::bind::{Binder, Bound};
use crate::error::PortError;
use crate::memory::{BUFFERS_MAX, CLOSING_COUNT, CLOSING_FIRST, METADATA_BYTES, Memory, Owner};
use crate::socket::{Port, WAITING_FIRST, WAITING_LEAST};
use crate::wait::{Sleeper, Waker};

/// Frames that one port may give before the next port has its turn.
const TURN: u32 = 32;
/// Shortest packet that a port takes: an Ethernet header. The kernel would keep an empty one for good.
const PACKET_BYTES_MIN: usize = 14;
/// Highest port index plus one.
pub const PORTS_MAX: u16 = CLOSING_FIRST;

/// Sizes of a worker's memory and rings.
#[derive(Clone, Copy, Debug)]
pub struct UmemConfig {
    /// Slots of 4096 bytes. Each costs 131 bytes of kernel memory per port beside its own.
    pub slots: u32,
    /// Descriptors in each ring of each port; a power of two.
    pub ring: u32,
}

impl Default for UmemConfig {
    /// 16,384 slots (64 MiB) and rings of 2048: of long packets that holds 128, 7.6 MB, which is more than a TCP connection of
    /// Linux has under way (`net.ipv4.tcp_rmem`: 6 MB).
    fn default() -> Self {
        Self { slots: 16_384, ring: 2048 }
    }
}

/// How a port is bound.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The interface's name in the calling thread's network namespace.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// How many frames wait in the kernel for packets at most, up to a ring's worth: bursts that are longer lose packets. An idle
    /// port has 64 to 256, and twice as many whenever a burst took more than half.
    pub waiting: u32,
}

/// Where all slots of the memory are. The sum of the parts is at most `total`; between batches it is `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// All slots.
    pub total: u32,
    /// In the free list.
    pub free: u32,
    /// Waiting in the kernel for a packet.
    pub fill: u32,
    /// Received and not yet fetched, or fetched and the rest of their packet not.
    pub rx: u32,
    /// To be sent.
    pub tx: u32,
    /// Sent and not yet taken back.
    pub completion: u32,
}

impl FrameCounts {
    /// Frames that are nowhere: in the caller's hands, or lost where the caller holds none.
    pub fn lost(&self) -> u32 {
        self.total - self.free - self.fill - self.rx - self.tx - self.completion
    }
}

/// What the kernel counts for a port since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStatistics {
    /// Packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Packets dropped for want of a waiting frame, or longer than a slot.
    pub rx_dropped: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
}

/// System calls that were made for the ports, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemCalls {
    /// To have frames sent (`sendto`).
    pub send: u64,
    /// To tell the kernel of new frames to receive into, where it asks for that (`poll`).
    pub fill: u64,
    /// To sleep (`epoll_wait`).
    pub wait: u64,
    /// To have the sleep end with a port's next packet, or no longer (`epoll_ctl`).
    pub watch: u64,
    /// After a sleep that another thread ended (`read`).
    pub wake: u64,
}

/// A removed port whose socket is being closed.
struct Closing {
    id: u16,
    thread: Option<JoinHandle<()>>,
    /// Slots that the kernel had of it.
    fill: u32,
    tx: u32,
}

/// The ports of one worker and the memory that they share.
pub struct Ports {
    ports: Vec<Option<Port>>,
    /// Indices of the ports that exist, in the order of being asked.
    live: Vec<u16>,
    /// Sum of what waits at each port when all is quiet.
    waiting: u32,
    /// Where in `live` the next round begins.
    turn: usize,
    /// Ports with slots in `in_tx`.
    sending: Vec<u16>,
    closing: Vec<Closing>,
    sleeper: Sleeper,
    calls: SystemCalls,
    // Last: the sockets above keep the memory registered.
    memory: Memory,
    ring: u32,
}

impl Ports {
    /// Maps and registers the memory; no port yet.
    ///
    /// # Errors
    /// `Config`, `Permission` or `Memory`.
    pub fn new(config: UmemConfig) -> Result<Self, PortError> {
        if !config.ring.is_power_of_two() {
            return Err(PortError::Config(format!("rings of {} descriptors: only powers of two work", config.ring)));
        }
        let memory = Memory::new(config.slots)?;
        let sleeper = Sleeper::new().map_err(|source| PortError::Memory { slots: 0, slot_bytes: 0, source })?;
        let (ports, live, sending, closing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { ports, live, waiting: 0, turn: 0, sending, closing, sleeper, calls: SystemCalls::default(), memory, ring: config.ring })
    }

    /// The memory that the frames live in.
    pub fn arena(&self) -> &Arena {
        &self.memory.arena
    }

    /// Makes sockets for these ports on other threads, as binding takes 6 ms and more.
    pub fn binder(&self) -> Binder {
        Binder::new(&self.memory, self.ring)
    }

    /// Binds a socket and makes it port `index`: [`Binder::bind`] and [`insert`](Self::insert) in one.
    ///
    /// # Errors
    /// All but `Memory`; nothing is changed then.
    pub fn add(&mut self, index: u16, config: &PortConfig) -> Result<(), PortError> {
        let same = |port: &Port| port.interface == config.interface && port.queue == config.queue;
        if let Some(index) = self.live.iter().copied().find(|live| self.ports[usize::from(*live)].as_ref().is_some_and(same)) {
            return Err(PortError::IndexTaken {
                by: config.interface.clone(),
                interface: config.interface.clone(),
                queue: config.queue,
                index,
            });
        }
        self.check_index(index, &config.interface, config.queue)?;
        let bound = self.binder().bind(config)?;
        self.insert(index, bound)
    }

    /// Makes a bound socket port `index`. Packets come once the socket is in the redirect program's map.
    ///
    /// # Errors
    /// `IndexTaken`, or `Config` where the index is too high or the socket is on another memory. The socket is closed then.
    pub fn insert(&mut self, index: u16, bound: Bound) -> Result<(), PortError> {
        self.check_index(index, &bound.interface, bound.queue)?;
        if bound.arena != self.memory.arena.id() {
            return Err(PortError::Config("the socket was bound for the memory of another worker".into()));
        }
        let Bound { interface, queue, waiting, socket, rings, .. } = bound;
        let mut port = Port {
            interface,
            queue,
            socket,
            rings,
            ring: self.ring,
            waiting: 0,
            waiting_max: waiting.min(self.ring),
            in_fill: 0,
            in_tx: 0,
            partial: None,
            in_partial: 0,
            sending: false,
            watched: false,
        };
        let start = if self.waiting + WAITING_FIRST <= self.memory.arena.count() / 4 { WAITING_FIRST } else { WAITING_LEAST };
        port.waiting = start.min(port.waiting_max);
        self.waiting += port.waiting;
        port.refill(index, &mut self.memory, &mut self.calls);
        if self.ports.len() <= usize::from(index) {
            self.ports.resize_with(usize::from(index) + 1, || None);
        }
        self.ports[usize::from(index)] = Some(port);
        self.live.push(index);
        Ok(())
    }

    fn check_index(&self, index: u16, interface: &str, queue: u32) -> Result<(), PortError> {
        match self.ports.get(usize::from(index)) {
            _ if index >= PORTS_MAX => Err(PortError::Config(format!("port index {index}: at most {PORTS_MAX} ports"))),
            Some(Some(taken)) => Err(PortError::IndexTaken { interface: interface.to_owned(), queue, index, by: taken.interface.clone() }),
            _ => Ok(()),
        }
    }

    /// Removes port `index`. Its socket is closed by another thread, as that takes 8 ms and more; the frames that the kernel
    /// has of it come back after that, at some later call. Tells whether there was such a port.
    pub fn remove(&mut self, index: u16) -> bool {
        let Some(mut port) = self.ports.get_mut(usize::from(index)).and_then(Option::take) else { return false };
        if let Some(partial) = port.partial.take() {
            self.memory.put(partial);
        }
        if port.watched {
            self.calls.watch += 1;
            self.sleeper.forget(port.socket());
        }
        self.live.retain(|live| *live != index);
        self.waiting -= port.waiting;
        self.sending.retain(|sending| *sending != index);
        self.recover();
        let ids = CLOSING_FIRST..CLOSING_FIRST + CLOSING_COUNT;
        let id = ids.clone().find(|id| self.closing.iter().all(|closing| closing.id != *id)).unwrap_or(ids.start);
        if self.closing.len() >= usize::from(CLOSING_COUNT) {
            self.recover_all();
        }
        self.memory.close(index, id);
        let (fill, tx) = (port.in_fill, port.in_tx);
        debug!(interface = port.interface, queue = port.queue, fill, tx, "port removed");
        // Closing is complete when the drop returns: the kernel waits until no CPU can be receiving into our slots
        // (xsk_release in net/xdp/xsk.c).
        let thread = thread::Builder::new().name("weir-xsk-close".into()).spawn(move || drop(port));
        self.closing.push(Closing { id, thread: thread.ok(), fill, tx });
        true
    }

    /// Takes back the frames of sockets that are closed by now.
    fn recover(&mut self) {
        let memory = &mut self.memory;
        self.closing.retain(|closing| {
            // Where no thread could be started, the socket was closed on the spot.
            let done = closing.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if done {
                // SAFETY: the thread that dropped the port has ended: its descriptor is closed and its rings unmapped. Nothing else
                // held the socket but the redirect map, from which closing removes it.
                unsafe { memory.recover(closing.id) };
            }
            !done
        });
    }

    /// Waits until all removed ports are closed and takes back their frames.
    pub fn recover_all(&mut self) {
        for closing in &mut self.closing {
            if let Some(thread) = closing.thread.take() {
                let _ = thread.join();
            }
        }
        self.recover();
    }

    /// The indices of all ports.
    pub fn indices(&self) -> &[u16] {
        &self.live
    }

    /// The socket of port `index`, for the redirect program's map.
    pub fn socket(&self, index: u16) -> Option<BorrowedFd<'_>> {
        Some(self.ports.get(usize::from(index))?.as_ref()?.socket())
    }

    /// The interface and queue of port `index`.
    pub fn interface(&self, index: u16) -> Option<(&str, u32)> {
        let port = self.ports.get(usize::from(index))?.as_ref()?;
        Some((&port.interface, port.queue))
    }

    /// Fetches what has arrived: up to `max` packets, given to `take` with their port. All ports have their turn: none
    /// gives more than 32 buffers before the others were asked. Also hands the kernel new frames to receive into.
    pub fn rx(&mut self, max: usize, mut take: impl FnMut(u16, Frame)) -> usize {
        if !self.closing.is_empty() {
            self.recover();
        }
        let mut count = 0;
        for _ in 0..self.live.len() {
            if count >= max {
                break;
            }
            if self.turn >= self.live.len() {
                self.turn = 0;
            }
            let index = self.live[self.turn];
            self.turn += 1;
            let Some(Some(port)) = self.ports.get_mut(usize::from(index)) else { continue };
            let ready = port.rings.rx.ready();
            if ready == 0 {
                continue;
            }
            if port.watched {
                // A watched socket costs its sender a wake-up call per packet: not while we are awake.
                port.watched = false;
                self.calls.watch += 1;
                self.sleeper.forget(port.socket());
            }
            let want = ((max - count) as u32).min(TURN);
            for _ in 0..want {
                let Some(desc) = port.rings.rx.pop() else { break };
                if let Some(frame) = self.memory.take(desc.addr, desc.len, Owner::fill(index)) {
                    port.in_fill -= 1;
                    self.memory.arena.prefetch(&frame);
                    let has_more = desc.options.contains(XdpDescOptions::XDP_PKT_CONTD);
                    if let Some(packet) = port.join(frame, has_more, &self.memory.arena) {
                        count += 1;
                        take(index, packet);
                    }
                }
            }
            port.rings.rx.release();
            if ready >= want && port.waiting < port.waiting_max && ready > port.waiting / 2 {
                // A burst that was twice as long would have lost packets. Half of the memory stays for what is under way.
                let more = port.waiting.min(port.waiting_max - port.waiting);
                if self.waiting + more <= self.memory.arena.count() / 2 {
                    self.waiting += more;
                    port.waiting += more;
                }
            }
            port.refill(index, &mut self.memory, &mut self.calls);
        }
        count
    }

    /// Takes `frame` for port `index`; it leaves at the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// Gives the frame back where there is no such port, its queue is full, the frame has no whole Ethernet header, or the
    /// packet more than [`BUFFERS_MAX`](crate::BUFFERS_MAX) buffers.
    pub fn tx(&mut self, index: u16, frame: Frame) -> Result<(), Frame> {
        let Some(Some(port)) = self.ports.get_mut(usize::from(index)) else { return Err(frame) };
        let buffers = if frame.is_chain() { self.memory.arena.buffers(&frame).count() as u32 } else { 1 };
        // The kernel wants this room in front of every buffer. Further ones have it: they start where they were received.
        let cramped = self.memory.arena.finishes_checksums() && frame.headroom_bytes() < METADATA_BYTES as usize;
        if frame.len() < PACKET_BYTES_MIN || buffers > BUFFERS_MAX || cramped {
            return Err(frame);
        }
        if !port.has_room(buffers) {
            port.send(index, &mut self.memory, &mut self.calls);
            if !port.has_room(buffers) {
                return Err(frame);
            }
        }
        port.stage(index, frame, &mut self.memory);
        if !port.sending {
            port.sending = true;
            self.sending.push(index);
        }
        Ok(())
    }

    /// Sends what was taken and takes back what is sent. One system call per port that has something to send, more only
    /// where the kernel left some of it; what the device does not take now is tried again at the next call.
    pub fn flush(&mut self) {
        let mut n = 0;
        while let Some(index) = self.sending.get(n).copied() {
            let done = match self.ports.get_mut(usize::from(index)) {
                Some(Some(port)) => {
                    port.send(index, &mut self.memory, &mut self.calls);
                    port.sending = port.in_tx > 0;
                    !port.sending
                }
                _ => true,
            };
            if done {
                self.sending.swap_remove(n);
            } else {
                n += 1;
            }
        }
    }

    /// A fresh frame of length 0, if one is free.
    pub fn alloc(&mut self) -> Option<Frame> {
        self.memory.free.pop()
    }

    /// Takes back a frame that goes nowhere.
    pub fn free(&mut self, frame: Frame) {
        self.memory.put(frame);
    }

    /// Counts where all frames are.
    pub fn frames(&mut self) -> FrameCounts {
        self.recover();
        let mut counts = FrameCounts { total: self.memory.arena.count(), free: self.memory.free.len() as u32, ..FrameCounts::default() };
        for port in self.ports.iter_mut().flatten() {
            // What the kernel has moved on between the two reads makes the second number grow, never the sum.
            let received = port.rings.rx.ready().min(port.in_fill);
            let completed = port.rings.completion.ready().min(port.in_tx);
            counts.fill += port.in_fill - received;
            counts.rx += received + port.in_partial;
            counts.tx += port.in_tx - completed;
            counts.completion += completed;
        }
        for closing in &self.closing {
            counts.fill += closing.fill;
            counts.tx += closing.tx;
        }
        counts
    }

    /// Descriptors that the kernel returned and that it never had; anything but 0 means corrupt rings.
    pub fn faults(&self) -> u64 {
        self.memory.faults
    }

    /// The system calls that moving packets and sleeping took so far. Those that make and close a socket are not among them.
    pub fn system_calls(&self) -> SystemCalls {
        self.calls
    }

    /// What the kernel counts for port `index`.
    ///
    /// # Errors
    /// What getsockopt says; `NotFound` without such a port.
    pub fn statistics(&self, index: u16) -> io::Result<PortStatistics> {
        let port = self.ports.get(usize::from(index)).and_then(Option::as_ref).ok_or(io::ErrorKind::NotFound)?;
        let s = sockopt::xdp_statistics(port.socket())?;
        Ok(PortStatistics {
            // Since Linux 5.9, long before what we need.
            rx_ring_full: s.rx_ring_full.unwrap_or(0),
            rx_dropped: s.rx_dropped,
            invalid_descriptors: s.rx_invalid_descs + s.tx_invalid_descs,
        })
    }

    /// Sleeps until a port has received something, the [`waker`](Self::waker) is used, or `timeout` has passed. Returns at
    /// once where something is there already. While frames are still to be sent it sleeps for 1 ms at most.
    ///
    /// Idle ports stay in the epoll set; a port leaves it with its first packet ([`rx`](Self::rx)) and comes back here. So
    /// going to sleep costs one system call for each port that was busy, however many are idle.
    ///
    /// # Errors
    /// What epoll says.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        for index in &self.live {
            if let Some(Some(port)) = self.ports.get_mut(usize::from(*index))
                && !port.watched
            {
                self.calls.watch += 1;
                self.sleeper.watch(port.socket())?;
                port.watched = true;
            }
        }
        let timeout = if self.sending.is_empty() { timeout } else { timeout.min(Duration::from_millis(1)) };
        self.calls.wait += 1;
        self.calls.wake += u64::from(self.sleeper.sleep(timeout)?);
        Ok(())
    }

    /// Ends a [`wait`](Self::wait) from another thread.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.recover_all();
        if self.memory.faults > 0 {
            warn!(faults = self.memory.faults, "the kernel returned descriptors that it never had");
        }
    }
}
