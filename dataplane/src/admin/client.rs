//! Who asks the daemon: one connection, one request after the other.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::figures::{Connection, DropCounts, Runtime, Status};
use super::protocol::{Request, Response, receive, send};
use crate::flows::{Flow, Query};
use crate::model::NodeState;

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

#[cfg(test)]
mod tests {
    use super::*;

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
