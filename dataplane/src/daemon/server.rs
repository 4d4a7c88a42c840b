//! The socket that control talks to: accepts, reads requests, answers. The messages are `admin::protocol`'s.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use crossbeam::channel::RecvTimeoutError;

use super::capture::capture;
use super::{Daemon, End};
use crate::admin::figures::{Connection, ConnectionSide};
use crate::admin::protocol::{CONNECTIONS_PER_MESSAGE, FLOWS_PER_MESSAGE, HEARTBEAT, Request, Response, receive, send};
use crate::conntrack::{ConnTable, FlowCounts, FlowRecord, FlowView, Ticks};
use crate::flows::{Hub, Query};

/// How long a daemon may take to end for another one.
const TAKEOVER_MAX: Duration = Duration::from_secs(10);

/// The listening socket; its file goes when dropped.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Makes the socket, for its owner alone. A file that a crashed daemon left is replaced; a live one is not.
    ///
    /// # Errors
    /// Where another daemon listens there, or the file cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let refused = |error: io::Error| {
            let folder = path.parent().unwrap_or(path).display();
            anyhow::anyhow!(
                "cannot listen at {}: {error}\n  try: run it as root, or another socket in node.yaml: {folder} must be ours to write",
                path.display()
            )
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(refused)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => anyhow::bail!(
                "cannot listen at {}: another weir-dataplane does\n  try: --takeover, or stop it first, or another socket in node.yaml",
                path.display()
            ),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let ours = std::fs::symlink_metadata(path).map_err(refused)?.file_type().is_socket();
                anyhow::ensure!(
                    ours,
                    "cannot listen at {}: there is a file that is no socket\n  try: another socket in node.yaml",
                    path.display()
                );
                std::fs::remove_file(path).map_err(refused)?;
            }
            Err(_) => {}
        }
        // Nobody else may connect, not even between bind and chmod: the mask is the process's, set once by main.
        let listener = UnixListener::bind(path).map_err(refused)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(refused)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Answers requests for ever, each connection on a thread of its own.
    pub fn serve(&self, daemon: &Weak<Daemon>) {
        for stream in self.listener.incoming() {
            match stream {
                Ok(stream) => {
                    let daemon = daemon.clone();
                    let serve = move || {
                        let end = converse(stream, &daemon);
                        if let Err(error) = end {
                            tracing::debug!(%error, "a conversation ended early");
                        }
                    };
                    if let Err(error) = std::thread::Builder::new().name("admin".into()).spawn(serve) {
                        tracing::error!(%error, "cannot answer a request");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// Asks the daemon that listens at `path` to end, and waits until it has. Fine where nobody listens.
///
/// # Errors
/// Where it does not answer or does not end in time.
pub fn take_over(path: &Path) -> anyhow::Result<()> {
    let Ok(mut stream) = UnixStream::connect(path) else { return Ok(()) };
    tracing::info!(socket = %path.display(), "asking the daemon there to end");
    stream.set_read_timeout(Some(TAKEOVER_MAX))?;
    let mut ask = || {
        send(&mut stream, &Request::Stop)?;
        // The answer, then the end of the stream when the process is gone.
        while receive::<Response>(&mut stream)?.is_some() {}
        io::Result::Ok(())
    };
    ask().with_context(|| format!("the daemon at {} does not make room\n  try: stop it by hand", path.display()))
}

impl Server {
    /// Removes the socket's file, so that nobody comes any more.
    pub fn remove(&self) {
        // Not there is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Answers the requests of one connection until it ends, or the daemon does. Holds the daemon only while it works for an
/// answer: a client that does not read keeps nobody from ending.
fn converse(mut stream: UnixStream, daemon: &Weak<Daemon>) -> io::Result<()> {
    while let Some(request) = understand(&mut stream)? {
        let Some(daemon) = daemon.upgrade() else { return Ok(()) };
        match request {
            Request::Connections { active_within_ms } => {
                let (table, now) = (daemon.connections.clone(), daemon.now());
                drop(daemon);
                connections(&mut stream, &table, now, active_within_ms.unwrap_or(u32::MAX))?;
            }
            Request::Flows { query } => {
                let hub = daemon.flows.clone();
                drop(daemon);
                flows(&mut stream, &hub, &query)?;
            }
            Request::Capture { ports, snaplen } => {
                let weak = Arc::downgrade(&daemon);
                drop(daemon);
                return capture(&mut stream, &weak, &ports, snaplen);
            }
            request => {
                let response = answer(&daemon, request);
                drop(daemon);
                send(&mut stream, &response)?;
            }
        }
    }
    Ok(())
}

/// The next request. What is none is answered by an error before the conversation ends: where the next message would begin
/// is not known any more.
fn understand(stream: &mut UnixStream) -> io::Result<Option<Request>> {
    let received = receive::<Request>(stream);
    if let Err(error) = &received
        && error.kind() == io::ErrorKind::InvalidData
    {
        let message = format!(
            "this is no request that this daemon knows: {error}\n  try: a weir of the same version ({})",
            env!("CARGO_PKG_VERSION")
        );
        send(stream, &Response::Error { message })?;
    }
    received
}

fn answer(daemon: &Daemon, request: Request) -> Response {
    let done = |result: anyhow::Result<()>| match result {
        Ok(()) => Response::Done,
        Err(error) => Response::Error { message: format!("{error:#}") },
    };
    match request {
        Request::Apply { state, wait, timeout_ms } => {
            let wait = wait.then(|| Duration::from_millis(timeout_ms));
            match daemon.apply(*state, wait) {
                Ok((generation, in_force)) => Response::Applied { generation, workers: daemon.workers.len() as u32, in_force },
                Err(faults) => Response::Refused { faults },
            }
        }
        Request::Status => Response::Status { status: Box::new(daemon.status()) },
        Request::Runtime { clear } => Response::Runtime { runtime: Box::new(daemon.runtime(clear)) },
        Request::Drops => Response::Drops { drops: Box::new(daemon.drops()) },
        Request::State => {
            let (generation, state) = daemon.state();
            Response::State { generation, state: Box::new((*state).clone()) }
        }
        Request::AttachPod { port } => done(daemon.attach_pod(&port)),
        Request::DetachPod { pod } => done(daemon.detach_pod(&pod)),
        Request::Stop => {
            daemon.end(End::Asked);
            Response::Done
        }
        // Answered in several messages by the caller.
        Request::Connections { .. } => Response::Connections { connections: Vec::new(), last: true },
        Request::Capture { .. } => Response::Captured { interfaces: Vec::new(), packets: Vec::new(), lost: 0 },
        Request::Flows { .. } => Response::Flows { flows: Vec::new(), lost: 0, last: true },
    }
}

/// Sends what was kept, and to a follower what comes, until it has gone.
fn flows(stream: &mut UnixStream, hub: &Hub, query: &Query) -> io::Result<()> {
    let (kept, following) = hub.ask(query);
    let mut parts = kept.chunks(FLOWS_PER_MESSAGE).peekable();
    while let Some(part) = parts.next() {
        let last = following.is_none() && parts.peek().is_none();
        send(stream, &Response::Flows { flows: part.to_vec(), lost: 0, last })?;
    }
    let Some(following) = following else {
        return if kept.is_empty() { send(stream, &Response::Flows { flows: Vec::new(), lost: 0, last: true }) } else { Ok(()) };
    };
    loop {
        let mut flows = Vec::new();
        match following.events.recv_timeout(HEARTBEAT) {
            Ok(flow) => flows.extend(std::iter::once(flow).chain(following.events.try_iter().take(FLOWS_PER_MESSAGE - 1))),
            Err(RecvTimeoutError::Timeout) => {}
            // The hub has ended.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        flows.retain(|flow| query.filter.wants(flow) && query.until.is_none_or(|until| flow.time <= until));
        send(stream, &Response::Flows { flows, lost: following.take_lost(), last: false })?;
    }
}

fn connections(stream: &mut UnixStream, table: &ConnTable, now: Ticks, active_within_ms: u32) -> io::Result<()> {
    let Some(mut reader) = table.reader() else {
        return send(stream, &Response::Error { message: "too many dumps of the connection table at a time".into() });
    };
    let mut next = Some(0);
    while let Some(from) = next {
        let mut found = Vec::new();
        next = table.dump(&mut reader, from, CONNECTIONS_PER_MESSAGE as u32, now, |flow| {
            if now.since(flow.details.last_seen) <= active_within_ms {
                found.push(connection(flow, now));
            }
        });
        if !found.is_empty() || next.is_none() {
            send(stream, &Response::Connections { connections: found, last: next.is_none() })?;
        }
    }
    Ok(())
}

/// A flow as people read it.
fn connection(flow: &FlowRecord, now: Ticks) -> Connection {
    let side = |view: &FlowView, counts: FlowCounts| ConnectionSide {
        src: view.tuple.src.to_std(),
        dst: view.tuple.dst.to_std(),
        sport: view.tuple.sport,
        dport: view.tuple.dport,
        packets: counts.packets,
        bytes: counts.bytes,
    };
    let [original, reply] = flow.details.counts;
    Connection {
        protocol: flow.original.tuple.proto,
        state: flow.original.state.name().map(Into::into),
        age_secs: u64::from(now.since(flow.details.created) / 1000),
        timeout_secs: u64::from(flow.details.remaining_ms / 1000),
        original: side(&flow.original, original),
        reply: side(&flow.reply, reply),
        replied: !flow.original.state.is_unreplied(),
        assured: flow.original.state.is_assured(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_no_request_is_answered_and_then_the_conversation_ends() {
        for wire in [
            &b"\x00\x00\x00\x02{}"[..],
            b"\x00\x00\x00\x05hello",
            b"\x00\x00\x00\x01{",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x16{\"request\":\"tomorrow\"}",
        ] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            ours.write_all(wire).unwrap();
            assert!(converse(theirs, &Weak::new()).is_err());
            let Some(Response::Error { message }) = receive(&mut ours).unwrap() else { panic!("no answer to {wire:?}") };
            assert!(message.contains("no request"), "{message}");
            assert_eq!(receive::<Response>(&mut ours).unwrap(), None);
        }
    }
}
