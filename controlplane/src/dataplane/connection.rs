//! One connection: the greeting with its descriptor, then requests and replies in order.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use dwcp_api::counters::CountersPage;
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{NodeIdentity, SocketError, codec};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::client::Peer;
use crate::api::frames;

/// What is said of a data plane that is there and says nothing.
pub(super) const SILENT: &str = "it does not answer";

/// The greeting must be answered within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A request under way to the connection.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request,
    /// How long the data plane may take once it is this request's turn.
    pub(super) patience: Duration,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// A greeted connection.
#[derive(Debug)]
pub(super) struct Connection {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    writer: OwnedWriteHalf,
}

/// Callers that wait, in order, each with what it may have to wait.
pub(super) type Waiting = VecDeque<(Duration, oneshot::Sender<Reply>)>;

/// In words for who asked.
pub(super) fn why(error: &SocketError) -> String {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match error {
        // How a socket's timeout shows.
        SocketError::Connection(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
            SILENT.to_owned()
        }
        // Whoever tells it names the socket.
        SocketError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// Connects and greets. The reply carries a descriptor, so this part uses blocking sockets.
pub(super) async fn connect(
    path: &Path,
    identity: &NodeIdentity,
) -> Result<(Connection, Peer), SocketError> {
    let path = path.to_owned();
    let hello = Request::Hello(identity.clone());
    let greeted = tokio::task::spawn_blocking(move || greet(&path, &hello)).await;
    let (stream, peer) = greeted.map_err(|error| std::io::Error::other(error.to_string()))??;
    stream.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(stream)?.into_split();
    let frames = FramedRead::new(reader, frames());
    Ok((Connection { frames, writer }, peer))
}

fn greet(
    path: &Path,
    hello: &Request,
) -> Result<(std::os::unix::net::UnixStream, Peer), SocketError> {
    let mut stream = dwcp_api::connect(path, HELLO_TIMEOUT)?;
    dwcp_api::send(&mut stream, hello, &[])?;
    let (reply, descriptors) = dwcp_api::receive::<Reply>(&mut stream)?;
    let Reply::Hello {
        version,
        listen,
        pid,
    } = reply
    else {
        return Err(std::io::Error::other("the data plane did not greet").into());
    };
    let counters = match descriptors.into_iter().next().map(CountersPage::open) {
        Some(Ok(page)) => Some(page),
        Some(Err(error)) => {
            tracing::warn!(%error, "counters are read by request only");
            None
        }
        None => None,
    };
    let peer = Peer {
        version,
        listen,
        pid,
        counters,
    };
    Ok((stream, peer))
}

impl Connection {
    /// One request and its reply, on a connection without other calls.
    pub(super) async fn ask(&mut self, request: &Request) -> Result<Reply, String> {
        self.send(request).await?;
        let frame = self.frames.next().await;
        self.reply(frame)
    }

    /// Serves calls until the connection ends; says why it did. Calls that are not answered by
    /// then stay in `waiting`: dropped, they tell their callers.
    pub(super) async fn serve(
        mut self,
        calls: &mut mpsc::Receiver<Call>,
        waiting: &mut Waiting,
    ) -> String {
        let mut head_since = Instant::now();
        loop {
            let deadline = waiting.front().map(|(patience, _)| head_since + *patience);
            let too_late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = too_late => return SILENT.to_owned(),
                frame = self.frames.next() => match self.reply(frame) {
                    Ok(reply) => {
                        let Some((_, caller)) = waiting.pop_front() else {
                            return "it sent a reply that nobody asked for".to_owned();
                        };
                        head_since = Instant::now();
                        let _ = caller.send(reply);
                    }
                    Err(why) => return why,
                },
                call = calls.recv() => {
                    let Some(call) = call else {
                        return "this daemon ends".to_owned();
                    };
                    if waiting.is_empty() {
                        head_since = Instant::now();
                    }
                    if let Err(why) = self.send(&call.request).await {
                        return why;
                    }
                    waiting.push_back((call.patience, call.reply));
                }
            }
        }
    }

    fn reply(
        &self,
        frame: Option<std::io::Result<tokio_util::bytes::BytesMut>>,
    ) -> Result<Reply, String> {
        match frame {
            None => Err("it closed the connection".to_owned()),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(body)) => codec::decode(&body).map_err(|error| error.to_string()),
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), String> {
        let frame = codec::encode(request).map_err(|error| error.to_string())?;
        let sent = self.writer.write_all(&frame).await;
        sent.map_err(|error| error.to_string())
    }
}
