//! What a worker counts: plain numbers of its own, summed by whoever reads.
//!
//! Every frame is counted once by its verdict: `received = forward + host + reply + drop`. And every clock tick of a worker
//! is counted at one [`Stage`].

use serde::{Deserialize, Serialize};

use crate::io::PortId;
use crate::verdict::{DropReason, Verdict};

/// Packets and bytes through one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames that came in.
    pub rx_packets: u64,
    /// Frames that were sent out.
    pub tx_packets: u64,
    /// Bytes of those that came in.
    pub rx_bytes: u64,
    /// Bytes of those that were sent out.
    pub tx_bytes: u64,
}

impl PortCounters {
    /// Counts a frame that came in.
    #[inline(always)]
    pub(crate) fn rx(&mut self, bytes: usize) {
        self.rx_packets += 1;
        self.rx_bytes += bytes as u64;
    }
    /// Counts a frame that was sent out.
    #[inline(always)]
    pub(crate) fn tx(&mut self, bytes: usize) {
        self.tx_packets += 1;
        self.tx_bytes += bytes as u64;
    }
    /// Adds another worker's counters of the port to these.
    pub fn add(&mut self, other: &Self) {
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
    }
}

/// The counters of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in.
    pub received: u64,
    /// Forwarded, encapsulated ones included.
    pub forward: u64,
    /// Of those, encapsulated.
    pub encap: u64,
    /// To the node's own stack.
    pub host: u64,
    /// Answered, refusals included.
    pub reply: u64,
    /// Discarded.
    pub drop: u64,
    /// Discarded, by reason code.
    pub drops: [u64; 256],
    /// Refused with an answer, by reason code.
    pub rejects: [u64; 256],
    /// Batches worked on.
    pub batches: u64,
    /// By port.
    pub ports: Vec<PortCounters>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: 0,
            forward: 0,
            encap: 0,
            host: 0,
            reply: 0,
            drop: 0,
            drops: [0; 256],
            rejects: [0; 256],
            batches: 0,
            ports: Vec::new(),
        }
    }
}

impl Counters {
    /// Makes room for `count` ports. Allocates only when ports were added since.
    pub fn fit_ports(&mut self, count: usize) {
        if self.ports.len() < count {
            self.ports.resize(count, PortCounters::default());
        }
    }

    /// Counts a frame that came in.
    #[inline(always)]
    pub fn rx(&mut self, port: PortId, bytes: usize) {
        self.received += 1;
        if let Some(port) = self.ports.get_mut(usize::from(port.0)) {
            port.rx(bytes);
        }
    }

    /// Counts how a frame ended. `bytes` is its length as it leaves.
    #[inline]
    pub fn verdict(&mut self, verdict: Verdict, in_port: PortId, bytes: usize) {
        match verdict {
            Verdict::Forward(port) => {
                self.forward += 1;
                self.tx(port, bytes);
            }
            Verdict::Encap(port) => {
                self.forward += 1;
                self.encap += 1;
                self.tx(port, bytes);
            }
            Verdict::Host(port) => {
                self.host += 1;
                self.tx(port, bytes);
            }
            Verdict::Reply(reason) => {
                self.reply += 1;
                if let Some(reason) = reason {
                    self.rejects[usize::from(reason.code())] += 1;
                }
                self.tx(in_port, bytes);
            }
            Verdict::Drop(reason) => {
                self.drop += 1;
                self.drops[usize::from(reason.code())] += 1;
            }
        }
    }

    /// Counts frames that were counted by port already: forwarded plainly, encapsulated, and to the node's own stack.
    pub(crate) fn verdicts(&mut self, plain: u64, encap: u64, host: u64) {
        self.forward += plain + encap;
        self.encap += encap;
        self.host += host;
    }

    /// Counts a frame that had a verdict and that its port then did not take: discarded after all.
    #[cold]
    pub fn undelivered(&mut self, verdict: Verdict, port: PortId, bytes: usize) {
        match verdict {
            Verdict::Forward(_) => self.forward -= 1,
            Verdict::Encap(_) => {
                self.forward -= 1;
                self.encap -= 1;
            }
            Verdict::Host(_) => self.host -= 1,
            Verdict::Reply(reason) => {
                self.reply -= 1;
                if let Some(reason) = reason {
                    self.rejects[usize::from(reason.code())] -= 1;
                }
            }
            Verdict::Drop(_) => return,
        }
        if let Some(port) = self.ports.get_mut(usize::from(port.0)) {
            port.tx_packets -= 1;
            port.tx_bytes -= bytes as u64;
        }
        self.drop += 1;
        self.drops[usize::from(DropReason::PortUnavailable.code())] += 1;
    }

    /// Discards by one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[usize::from(reason.code())]
    }

    /// Refusals by one reason.
    pub fn rejected(&self, reason: DropReason) -> u64 {
        self.rejects[usize::from(reason.code())]
    }

    /// Tells whether every frame that came in was counted by exactly one verdict.
    pub fn balanced(&self) -> bool {
        self.received == self.forward + self.host + self.reply + self.drop && self.drop == self.drops.iter().sum::<u64>()
    }

    /// Adds another worker's counters to these.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.forward += other.forward;
        self.encap += other.encap;
        self.host += other.host;
        self.reply += other.reply;
        self.drop += other.drop;
        self.batches += other.batches;
        self.drops.iter_mut().zip(other.drops).for_each(|(sum, count)| *sum += count);
        self.rejects.iter_mut().zip(other.rejects).for_each(|(sum, count)| *sum += count);
        self.fit_ports(other.ports.len());
        for (sum, port) in self.ports.iter_mut().zip(&other.ports) {
            sum.add(port);
        }
    }

    #[inline(always)]
    fn tx(&mut self, port: PortId, bytes: usize) {
        if let Some(port) = self.ports.get_mut(usize::from(port.0)) {
            port.tx(bytes);
        }
    }
}

/// What a worker spends its time on, in the order in which a batch meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Fetching a batch from the ports.
    Receive,
    /// Reading its headers; the guards.
    Parse,
    /// Finding its flows in the connection table.
    Lookup,
    /// Doing what was decided for each packet; deciding, for a flow's first one.
    Apply,
    /// Ending flows whose time is over, and other upkeep.
    Expire,
    /// Handing it to the ports, and their system calls.
    Transmit,
    /// What the daemon asked of the worker between two batches.
    Control,
    /// Looking at empty rings, pausing, sleeping.
    Idle,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 8] =
        [Self::Receive, Self::Parse, Self::Lookup, Self::Apply, Self::Expire, Self::Transmit, Self::Control, Self::Idle];
}

/// What one stage took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCounters {
    /// How often a worker went through it.
    pub calls: u64,
    /// Packets that it had in hand.
    pub vectors: u64,
    /// Ticks of the time stamp counter, over the batches that were measured; of [`Stage::Control`] and [`Stage::Idle`] all.
    pub clocks: u64,
}

/// What each stage took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    stages: [StageCounters; Stage::ALL.len()],
    /// Ticks of all batches, measured or not.
    pub busy: u64,
}

impl Stages {
    /// Counts one pass of a stage.
    #[inline]
    pub fn count(&mut self, stage: Stage, vectors: usize, clocks: u64) {
        let counters = &mut self.stages[stage as usize];
        counters.calls += 1;
        counters.vectors += vectors as u64;
        counters.clocks += clocks;
    }

    /// What a stage took.
    pub fn of(&self, stage: Stage) -> StageCounters {
        self.stages[stage as usize]
    }

    /// What was counted since `earlier`, an older copy.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        difference.busy -= earlier.busy;
        for (now, before) in difference.stages.iter_mut().zip(&earlier.stages) {
            now.calls -= before.calls;
            now.vectors -= before.vectors;
            now.clocks -= before.clocks;
        }
        difference
    }
}
