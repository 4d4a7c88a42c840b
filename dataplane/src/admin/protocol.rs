//! What control and daemon say to each other: JSON messages over a Unix stream socket, each after its length in bytes
//! (32 bits, big endian).
//!
//! One connection carries any number of requests, one after the other. Each gets one [`Response`], except
//! [`Request::Connections`], [`Request::Flows`] and [`Request::Capture`], which get as many as it takes; who follows flows gets them until it closes
//! the connection, and at least one every [`HEARTBEAT`]. The socket is its owner's alone (mode 0600): whoever can connect may do
//! everything.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::counters::{Stage, StageCounters};
use crate::flows::{DropRow, Flow, Query};
use crate::model::{NodeState, PodPort};

/// Bytes of the longest message: the state of a cluster of 10,000 services and 150,000 pods has about a tenth of it.
pub const MESSAGE_MAX_BYTES: u32 = 512 << 20;

/// Connections in one [`Response::Connections`] at most.
pub const CONNECTIONS_PER_MESSAGE: usize = 4096;

/// Flows in one [`Response::Flows`] at most.
pub const FLOWS_PER_MESSAGE: usize = 1024;

/// How often a follower hears from the daemon though nothing happens: so each notices when the other has gone.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often who captures hears from the daemon though nothing happens.
pub const CAPTURE_HEARTBEAT: Duration = Duration::from_millis(200);

/// What the daemon is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "request")]
pub enum Request {
    /// Put this state in force. Answered by [`Response::Applied`] or [`Response::Refused`].
    Apply {
        /// The whole desired state.
        state: Box<NodeState>,
        /// Answer only when every worker has taken it over.
        wait: bool,
        /// How long to wait for that, milliseconds.
        timeout_ms: u64,
    },
    /// How it goes. Answered by [`Response::Status`].
    Status,
    /// Where the workers' time goes. Answered by [`Response::Runtime`].
    Runtime {
        /// Count from zero again afterwards.
        clear: bool,
    },
    /// The state in force. Answered by [`Response::State`].
    State,
    /// Connections. Answered by one or more [`Response::Connections`].
    Connections {
        /// Only those with a packet in so many milliseconds past.
        #[serde(default)]
        active_within_ms: Option<u32>,
    },
    /// What was discarded and refused since the daemon started. Answered by [`Response::Drops`].
    Drops,
    /// What became of packets. Answered by one or more [`Response::Flows`].
    Flows {
        /// Which ones.
        query: Box<Query>,
    },
    /// Frames as they come in and leave, with what became of them. Answered by [`Response::Captured`] until the connection is
    /// closed.
    Capture {
        /// Names of ports: a pod's (`namespace/name`), an interface's, `uplink`, `host`; none = all.
        ports: Vec<String>,
        /// Bytes kept of a frame.
        snaplen: u32,
    },
    /// Take up a pod's port. Answered by [`Response::Done`].
    AttachPod {
        /// Which pod, behind which interface.
        port: PodPort,
    },
    /// Give a pod's port up. Answered by [`Response::Done`], also where there is none.
    DetachPod {
        /// `namespace/name`.
        pod: String,
    },
    /// End, as by SIGTERM. Answered by [`Response::Done`]; the connection is closed when nothing of the daemon is left.
    Stop,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "response")]
pub enum Response {
    /// The state was accepted.
    Applied {
        /// Its number.
        generation: u32,
        /// How many workers have it in force.
        workers: u32,
        /// All of them have.
        in_force: bool,
    },
    /// The state was not accepted; nothing has changed.
    Refused {
        /// Each thing that is wrong with it.
        faults: Vec<String>,
    },
    /// How it goes.
    Status {
        /// The figures.
        status: Box<Status>,
    },
    /// Where the workers' time goes.
    Runtime {
        /// The figures.
        runtime: Box<Runtime>,
    },
    /// The state in force.
    State {
        /// Its number; 0 before the first one.
        generation: u32,
        /// The state; empty before the first one.
        state: Box<NodeState>,
    },
    /// Some of the connections.
    Connections {
        /// At most [`CONNECTIONS_PER_MESSAGE`].
        connections: Vec<Connection>,
        /// No more messages follow.
        last: bool,
    },
    /// What was discarded and refused.
    Drops {
        /// The ledger.
        drops: Box<DropCounts>,
    },
    /// Some of the flows.
    Flows {
        /// At most [`FLOWS_PER_MESSAGE`], in order of time.
        flows: Vec<Arc<Flow>>,
        /// Events that were lost since the message before, for a slow reader, wanted or not.
        lost: u64,
        /// No more messages follow.
        last: bool,
    },
    /// Some of the captured frames. The first message says that the capture has begun; one comes every [`CAPTURE_HEARTBEAT`].
    Captured {
        /// Ports that were not named before, or whose number is another one's now.
        interfaces: Vec<CapturedInterface>,
        /// In order of time.
        packets: Vec<CapturedPacket>,
        /// Frames that were lost since the message before, wanted or not.
        lost: u64,
    },
    /// It is done.
    Done,
    /// It cannot be done.
    Error {
        /// Why, in an operator's words.
        message: String,
    },
}

/// A port that frames are captured at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedInterface {
    /// Its number.
    pub port: u16,
    /// A pod's `namespace/name`, else the interface.
    pub name: String,
}

/// One frame at one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapturedPacket {
    /// When, nanoseconds since 1970.
    pub time: u64,
    /// Where.
    pub port: u16,
    /// On its way out, else in.
    pub out: bool,
    /// Number of the packet; its copies at several ports share it.
    pub id: u64,
    /// Length of the frame, of which `bytes` may have less.
    pub wire_len: u32,
    /// The frame, base64.
    pub bytes: String,
    /// What became of the packet; in its first copy alone.
    pub flow: Option<Box<Flow>>,
}

/// How the daemon does; the JSON of `weir status -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The Node that this daemon serves.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
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

/// Why the daemon could not be asked, or did not answer. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("no daemon at {0}: there is no such socket\n  try: systemctl status weir-dataplane    or: --socket PATH")]
    Missing(PathBuf),
    /// There is a socket, but nobody listens.
    #[error("no daemon at {0}: the socket is there, but nobody listens\n  try: systemctl restart weir-dataplane")]
    Refused(PathBuf),
    /// The socket is not ours to use.
    #[error("no permission to use {0}: only its owner (root) may talk to the daemon\n  try: sudo weir …")]
    Permission(PathBuf),
    /// No answer in time.
    #[error("the daemon at {0} did not answer within {1:?}\n  try: a longer --timeout    or: journalctl -u weir-dataplane")]
    Timeout(PathBuf, Duration),
    /// The daemon said no.
    #[error("the daemon at {0} says: {1}")]
    Daemon(PathBuf, String),
    /// An answer to another question.
    #[error("the daemon at {0} answered something else than was asked; are `weir` and `weir-dataplane` of one version?")]
    Unexpected(PathBuf),
    /// Anything else.
    #[error("cannot talk to the daemon at {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Connects to the socket at `path`. Every later answer must come within `timeout`.
    ///
    /// # Errors
    /// Says which of the usual reasons it is.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ClientError::Missing(path.into()),
            io::ErrorKind::ConnectionRefused => ClientError::Refused(path.into()),
            io::ErrorKind::PermissionDenied => ClientError::Permission(path.into()),
            _ => ClientError::Io(path.into(), error),
        })?;
        let client = Self { stream, path: path.into(), timeout };
        let bounded = Some(timeout.max(Duration::from_millis(1)));
        client.stream.set_read_timeout(bounded).and_then(|()| client.stream.set_write_timeout(bounded)).map_err(|e| client.fault(e))?;
        Ok(client)
    }

    /// Sends `request` and waits for the (first) answer. A [`Response::Error`] becomes [`ClientError::Daemon`].
    ///
    /// # Errors
    /// As the daemon or the socket says.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        send(&mut self.stream, request).map_err(|e| self.fault(e))?;
        self.receive()
    }

    /// Asks how it goes.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.call(&Request::Status)? {
            Response::Status { status } => Ok(*status),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks where the workers' time goes; with `clear` the figures begin anew afterwards.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn runtime(&mut self, clear: bool) -> Result<Runtime, ClientError> {
        match self.call(&Request::Runtime { clear })? {
            Response::Runtime { runtime } => Ok(*runtime),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks what was discarded and refused.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn drops(&mut self) -> Result<DropCounts, ClientError> {
        match self.call(&Request::Drops)? {
            Response::Drops { drops } => Ok(*drops),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks for the state in force and its number.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn state(&mut self) -> Result<(u32, NodeState), ClientError> {
        match self.call(&Request::State)? {
            Response::State { generation, state } => Ok((generation, *state)),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks for all connections, or those with a packet in this time past, and hands them to `each` as they come.
    ///
    /// # Errors
    /// As [`call`](Self::call); then some may have been handed over.
    pub fn connections(&mut self, active_within: Option<Duration>, mut each: impl FnMut(Connection)) -> Result<(), ClientError> {
        let active_within_ms = active_within.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        self.stream(&Request::Connections { active_within_ms }, |response| match response {
            Response::Connections { connections, last } => {
                connections.into_iter().for_each(&mut each);
                Some(if last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            }
            _ => None,
        })
    }

    /// Asks for flows and hands them to `each` with the number of events lost before them, as they come; the last of them, unless
    /// the query follows. Ends early where `each` says so.
    ///
    /// # Errors
    /// As [`call`](Self::call); then some may have been handed over.
    pub fn flows(&mut self, query: Query, mut each: impl FnMut(Vec<Arc<Flow>>, u64) -> ControlFlow<()>) -> Result<(), ClientError> {
        self.stream(&Request::Flows { query: Box::new(query) }, |response| match response {
            Response::Flows { flows, lost, last } => {
                let on = each(flows, lost);
                Some(if last { ControlFlow::Break(()) } else { on })
            }
            _ => None,
        })
    }

    /// Sends a request that is answered by many messages, each of which must come in time, and hands them to `each` until it
    /// breaks off; `None` of it says that the answer is to another question.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn stream(&mut self, request: &Request, mut each: impl FnMut(Response) -> Option<ControlFlow<()>>) -> Result<(), ClientError> {
        let mut response = self.call(request)?;
        while each(response).ok_or_else(|| ClientError::Unexpected(self.path.clone()))?.is_continue() {
            response = self.receive()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Response, ClientError> {
        match receive(&mut self.stream) {
            Ok(Some(Response::Error { message })) => Err(ClientError::Daemon(self.path.clone(), message)),
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.fault(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer"))),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn fault(&self, error: io::Error) -> ClientError {
        match error.kind() {
            // A socket's timeout shows as EAGAIN.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout(self.path.clone(), self.timeout),
            _ => ClientError::Io(self.path.clone(), error),
        }
    }
}

/// Writes one message.
///
/// # Errors
/// What the stream says; `InvalidInput` where the message is longer than [`MESSAGE_MAX_BYTES`].
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let len = u32::try_from(bytes.len() - 4).ok().filter(|len| *len <= MESSAGE_MAX_BYTES);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes is too long", bytes.len())))?;
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// What the stream says; `InvalidData` where the bytes are no such message; `UnexpectedEof` where it is cut.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    // The end of the stream is good only in front of a message.
    loop {
        match stream.read(&mut len[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.read_exact(&mut len[1..])?;
    let len = u32::from_be_bytes(len);
    if len > MESSAGE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes is too long")));
    }
    // Why not allocate `len` at once: the length is the sender's word; memory grows with what really arrives.
    let mut bytes = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut bytes)?;
    if bytes.len() < len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_a_cut_one_is_an_error() {
        let request = Request::Apply { state: Box::default(), wait: true, timeout_ms: 10_000 };
        let mut wire = Vec::new();
        send(&mut wire, &request).unwrap();
        send(&mut wire, &Request::Status).unwrap();
        let mut stream = wire.as_slice();
        assert_eq!(receive::<Request>(&mut stream).unwrap(), Some(request));
        assert_eq!(receive::<Request>(&mut stream).unwrap(), Some(Request::Status));
        assert_eq!(receive::<Request>(&mut stream).unwrap(), None);
        for cut in 1..wire.len() - 4 {
            let mut stream = &wire[..cut];
            let mut last = receive::<Request>(&mut stream);
            if matches!(last, Ok(Some(_))) && !stream.is_empty() {
                last = receive::<Request>(&mut stream);
            }
            assert!(!matches!(last, Ok(None)), "cut at {cut} was not noticed");
        }
    }

    #[test]
    fn a_lying_length_and_foreign_bytes_are_errors() {
        assert_eq!(receive::<Request>(&mut &b"\xff\xff\xff\xff{}"[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive::<Request>(&mut &b"\x00\x00\x00\x02{}"[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_missing_and_a_dead_socket_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let timeout = Duration::from_secs(1);
        assert!(matches!(Client::connect(&path, timeout), Err(ClientError::Missing(_))));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::connect(&path, timeout), Err(ClientError::Refused(_))));
    }

    #[test]
    fn a_silent_daemon_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path, Duration::from_millis(20)).unwrap();
        assert!(matches!(client.status(), Err(ClientError::Timeout(..))));
    }
}
