//! What control and daemon say to each other: JSON messages over a Unix stream socket, each after its length in bytes
//! (32 bits, big endian).
//!
//! One connection carries any number of requests, one after the other. Each gets one [`Response`], except
//! [`Request::Connections`], [`Request::Flows`] and [`Request::Capture`], which get as many as it takes; who follows flows gets them until it closes
//! the connection, and at least one every [`HEARTBEAT`]. The socket is its owner's alone (mode 0600): whoever can connect may do
//! everything.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::figures::{Connection, DropCounts, Runtime, Status};
use crate::flows::{Flow, Query};
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
}
