//! What the daemon tells of itself: how it goes, what it discarded, where its time goes, what it tracks. Plain data, whose JSON is that
//! of `weir status`, `drops`, `runtime` and `conntrack`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::counters::{Stage, StageCounters};
use crate::flows::DropRow;

/// How the daemon does; the JSON of `weir status -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The Node that this daemon serves.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Drawn when the daemon starts: whoever watches it tells by this that it is another one now.
    pub instance: String,
    /// Number of the state in force; 0 before the first one.
    pub generation: u32,
    /// Seconds since the daemon started.
    pub uptime_secs: u64,
    /// The threads that move packets.
    pub workers: Vec<WorkerStatus>,
    /// The attached ports.
    pub ports: Vec<PortStatus>,
    /// How packets ended: received = forward + host + reply + drop.
    pub packets: PacketCounts,
    /// Dropped packets by [`DropReason`](crate::verdict::DropReason) name; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
    /// Refusals (answers that are an RST or an ICMP error) by reason, likewise; part of `packets.reply`.
    pub rejects: BTreeMap<String, u64>,
    /// The connection table.
    pub connections: ConnectionCounts,
    /// The frames of all workers' memory.
    pub frames: FrameCounts,
    /// What was lost in front of the workers.
    pub kernel: KernelCounts,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// The core it is pinned to.
    pub core: u16,
    /// Packets received.
    pub rx: u64,
    /// Packets sent.
    pub tx: u64,
    /// Batches that were not empty.
    pub batches: u64,
    /// Number of the state that it works by.
    pub generation: u32,
    /// Flow events that it had no room for, because nobody read them in time.
    pub events_lost: u64,
    /// What it asked of the kernel.
    pub system_calls: SystemCallCounts,
}

/// System calls of a worker that moves packets and sleeps, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemCallCounts {
    /// To have a port send (`sendto`).
    pub send: u64,
    /// To tell the kernel of new frames to receive into (`poll`).
    pub fill: u64,
    /// To sleep (`epoll_wait`).
    pub wait: u64,
    /// To have a port's next packet end the sleep, or no longer (`epoll_ctl`).
    pub watch: u64,
    /// After a sleep that the daemon ended (`read`).
    pub wake: u64,
}

impl SystemCallCounts {
    /// Each count with its name.
    pub fn by_name(&self) -> [(&'static str, u64); 5] {
        let Self { send, fill, wait, watch, wake } = *self;
        [("send", send), ("fill", fill), ("wait", wait), ("watch", watch), ("wake", wake)]
    }
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.by_name().iter().map(|(_, count)| count).sum()
    }
    /// What was counted since `before`; 0 where that is more.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            send: self.send.saturating_sub(before.send),
            fill: self.fill.saturating_sub(before.fill),
            wait: self.wait.saturating_sub(before.wait),
            watch: self.watch.saturating_sub(before.watch),
            wake: self.wake.saturating_sub(before.wake),
        }
    }
}

impl From<weir_xsk::SystemCalls> for SystemCallCounts {
    fn from(calls: weir_xsk::SystemCalls) -> Self {
        let weir_xsk::SystemCalls { send, fill, wait, watch, wake } = calls;
        Self { send, fill, wait, watch, wake }
    }
}

/// What was discarded and refused, taken at one moment. Rows without `refused` sum up to `dropped`, the others to `refused`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCounts {
    /// Packets discarded, as [`PacketCounts::drop`] says.
    pub dropped: u64,
    /// Packets refused with an answer, as the sum of [`Status::rejects`] says.
    pub refused: u64,
    /// By cause, most packets first.
    pub rows: Vec<DropRow>,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortStatus {
    /// Interface.
    pub name: String,
    /// `uplink`, `host` or `pod`.
    pub kind: String,
    /// `zerocopy`, `copy` or `skb`.
    pub mode: String,
    /// `namespace/name` of a pod port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Packets that came in by it, since it was attached.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that left by it.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

/// How packets ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketCounts {
    /// All that came in.
    pub received: u64,
    /// To a pod or out by the uplink.
    pub forward: u64,
    /// To the node's own stack.
    pub host: u64,
    /// Answered.
    pub reply: u64,
    /// Discarded.
    pub drop: u64,
}

/// The connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionCounts {
    /// Entries in use.
    pub used: u64,
    /// Entries in all.
    pub max: u64,
}

/// Frames of all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameCounts {
    /// All there are.
    pub total: u64,
    /// Neither in a ring nor in work.
    pub free: u64,
    /// With the kernel, for packets to come.
    pub fill: u64,
    /// Received and not yet fetched.
    pub rx: u64,
    /// With the kernel, to be sent.
    pub tx: u64,
    /// Sent and not yet taken back.
    pub completion: u64,
    /// Not accounted for; always 0: total = free + fill + rx + tx + completion.
    pub lost: u64,
}

/// What the kernel could not hand over at the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelCounts {
    /// Packets for which the receive ring had no room.
    pub rx_ring_full: u64,
    /// Packets for which no frame waited, or that were too long.
    pub rx_dropped: u64,
    /// Descriptors that the kernel refused; always 0.
    pub invalid_descriptors: u64,
}

/// Where the workers' time goes; the JSON of `weir runtime -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Seconds that the figures cover: since the daemon started, or since they were cleared.
    pub secs: f64,
    /// By worker.
    pub workers: Vec<WorkerRuntime>,
}

/// Where one worker's time goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerRuntime {
    /// The core it is pinned to.
    pub core: u16,
    /// Packets received.
    pub rx: u64,
    /// Packets sent.
    pub tx: u64,
    /// Packets discarded.
    pub drop: u64,
    /// Clocks of all batches. Those of their stages are of a part of them: under load one in some is measured.
    pub busy: u64,
    /// What it asked of the kernel.
    #[serde(default)]
    pub system_calls: SystemCallCounts,
    /// Every stage, in the order in which a batch meets them.
    pub stages: Vec<StageRuntime>,
}

/// What one stage took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageRuntime {
    /// Which one.
    pub stage: Stage,
    /// How often, for how many packets, how long.
    #[serde(flatten)]
    pub counters: StageCounters,
}

/// One tracked connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP state as conntrack-tools write it (`ESTABLISHED`); `None` for other protocols.
    pub state: Option<String>,
    /// Seconds since its first packet.
    #[serde(default)]
    pub age_secs: u64,
    /// Seconds until it is forgotten.
    pub timeout_secs: u64,
    /// What the opener sent.
    pub original: ConnectionSide,
    /// What the answer looks like where it enters: the inverse of `original`, were nothing translated.
    pub reply: ConnectionSide,
    /// An answer was seen.
    pub replied: bool,
    /// Established, and not evicted early.
    pub assured: bool,
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionSide {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Destination port; the identifier of an ICMP echo.
    pub dport: u16,
    /// Packets seen.
    pub packets: u64,
    /// Bytes seen, from the network header on.
    pub bytes: u64,
}
