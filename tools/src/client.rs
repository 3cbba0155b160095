//! The node's socket, seen from the command line.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_api::node::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode, SocketError};

/// A control plane says who it is at once.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than anything a node waits for itself, connecting to a far peer included.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// A connection to a node's control plane, made when it is first needed and again when it was lost.
#[derive(Debug)]
pub struct NodeClient {
    path: PathBuf,
    stream: Option<UnixStream>,
}

impl NodeClient {
    /// A client of the node that serves `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stream: None,
        }
    }

    /// The node's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a request.
    ///
    /// # Errors
    /// The node's refusal; [`ErrorCode::PlaneDown`] when nobody serves the socket.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ApiError> {
        match self.exchange(request) {
            Ok(Reply::Error(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(error) => {
                self.stream = None;
                Err(self.refusal(&error))
            }
        }
    }

    fn exchange(&mut self, request: &Request) -> Result<Reply, SocketError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(connect(&self.path)?),
        };
        dwcp_api::send(stream, request, &[])?;
        Ok(dwcp_api::receive(stream)?.0)
    }

    fn refusal(&self, error: &SocketError) -> ApiError {
        let path = self.path.display();
        match error {
            SocketError::Connection(error) if is_timeout(error) => {
                let message = format!("{path}: the control plane does not answer");
                ApiError::new(ErrorCode::PlaneDown, message).with_hint(
                    "it is there, but stopped or stuck: see its log, and `ps -o pid,stat,wchan -C \
                     dwcp-controlplane` (T: stopped, kill -CONT lets it go on); a restart does no \
                     harm to migrations",
                )
            }
            SocketError::Io { source, .. } => {
                let message = format!("{path}: no control plane: {source}");
                ApiError::new(ErrorCode::PlaneDown, message).with_hint(
                    "start dwcp-controlplane, or name its socket by --node-socket or \
                     DWCP_NODE_SOCKET",
                )
            }
            SocketError::Codec(error) => ApiError::new(ErrorCode::System, error.to_string()),
            other => {
                let message = format!("{path}: the control plane went away: {other}");
                ApiError::new(ErrorCode::PlaneDown, message)
            }
        }
    }
}

/// One that does not say who it is would let the first request wait for very long.
fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    let mut stream = dwcp_api::connect(path, GREETING_TIMEOUT)?;
    dwcp_api::send(&mut stream, &Request::Node, &[])?;
    dwcp_api::receive::<Reply>(&mut stream)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}
