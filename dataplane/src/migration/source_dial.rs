//! How the source makes its further connections: each on a thread of its own, some before it is known which is which.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dwcp_api::Codec;
use dwcp_wire::{AbortCode, StreamHello, StreamRole};

use super::dial::{self, Route};
use super::early::{EARLY_MAX, Early, EarlyConnection};
use super::peer::{self, PeerError};
use super::source::{SourceDriver, SourceInput};
use super::source_rdma::is_required;
use crate::tls::Connection;
use crate::transport::{QueueLink, find_route};

/// A connection that was made, or was not.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) hello: StreamHello,
    pub(super) outcome: Result<Joined, PeerError>,
}

#[derive(Debug)]
pub(super) struct Joined {
    pub(super) link: Joining,
    /// What could not be had: an option of its socket, or a queue pair.
    pub(super) note: Option<String>,
}

#[derive(Debug)]
pub(super) enum Joining {
    Connection(Connection),
    Queue(QueueLink),
}

/// Makes a connection, on a thread of its own.
type Join = Box<dyn FnOnce() -> Result<Joined, PeerError> + Send>;

impl SourceDriver {
    /// Makes the first connections of the streams while the offer is considered: a round trip less. What TLS needs
    /// to begin shortly comes with the answer; over a long way it does not wait for that.
    pub(super) fn connect_early(&mut self, is_long: bool) {
        let settings = &self.request.settings;
        // Those of several paths are each for one stream.
        if self.request.dry_run || !settings.paths.is_empty() || self.streams.early.has_begun() {
            return;
        }
        let Some(to) = self.peer else { return };
        let time = Duration::from_millis(settings.connect_timeout_ms.into());
        for _ in 0..(self.request.settings.streams + 1).min(EARLY_MAX) {
            let connect = self.connecting((None, to));
            let (node, way) = (Arc::clone(&self.node), self.way.clone());
            let connect = move || {
                let (socket, note) = connect()?;
                let early = match is_long {
                    true => Early::Connection(way.secure(&node, socket, time)?),
                    false => Early::Socket(socket),
                };
                Ok((early, note))
            };
            self.streams.early.connect(connect, &self.recorder.meter);
        }
    }

    fn connecting(
        &self,
        route: Route,
    ) -> impl FnOnce() -> Result<(TcpStream, Option<String>), PeerError> + Send + 'static {
        let settings = &self.request.settings;
        let time = Duration::from_millis(settings.connect_timeout_ms.into());
        let congestion_control = settings.congestion_control.clone();
        move || dial::connect_stream(route, time, congestion_control.as_deref())
    }

    /// Makes a connection on a thread of its own, after `pause`.
    pub(super) fn dial(&mut self, role: StreamRole, index: u16, pause: Duration) {
        let Some(to) = self.peer else { return };
        let generation = match role {
            StreamRole::Data => self.streams.data[usize::from(index)].generation,
            StreamRole::Device => 0,
            StreamRole::Missing => self.serving.generation(index),
        };
        let hello = StreamHello {
            token: self.streams.token(),
            index,
            role,
            generation,
        };
        let by_queue =
            (role == StreamRole::Data && generation == 0).then(|| self.streams.rdma.address());
        let join = match by_queue.flatten() {
            Some(address) => self.joining_by_queue(to, hello, address),
            None => {
                let early = self.streams.early.take();
                Box::new(self.joining(self.route(hello, to), hello, early)) as Join
            }
        };
        let (stop, mailbox) = (Arc::clone(&self.vm_stop), self.mailbox.clone());
        let run = move || {
            if !waited(pause, &stop) {
                return;
            }
            let outcome = join();
            // A driver that has ended needs no connection.
            let _ = mailbox.push(SourceInput::Dialled(Dialled { hello, outcome }));
        };
        let thread = std::thread::Builder::new().name("dwcp-dial".into());
        if let Err(error) = thread.spawn(run) {
            self.fail(AbortCode::Other, format!("no thread: {error}"));
        }
    }

    /// Opens a further connection of the migration, which says what it is.
    fn joining(
        &self,
        route: Route,
        hello: StreamHello,
        early: Option<EarlyConnection>,
    ) -> impl FnOnce() -> Result<Joined, PeerError> + Send + 'static {
        let settings = &self.request.settings;
        let time = Duration::from_millis(settings.connect_timeout_ms.into());
        let patience = self.patience();
        let connect = self.connecting(route);
        let is_encoded = settings.codec != Codec::Raw;
        let (node, way) = (Arc::clone(&self.node), self.way.clone());
        let meter = Arc::clone(&self.recorder.meter);
        move || {
            let _helper = meter.helper();
            let early = early.and_then(EarlyConnection::dialled);
            let connect = || connect().map(|(socket, note)| (Early::Socket(socket), note));
            let (early, note) = early.map_or_else(connect, Ok)?;
            let mut connection = match early {
                Early::Socket(socket) => way.secure(&node, socket, time)?,
                Early::Connection(connection) => connection,
            };
            let socket = connection.socket();
            dial::bound_silence(socket, patience);
            if is_encoded && hello.role != StreamRole::Device {
                dial::bound_unsent(socket);
            }
            peer::say_stream_hello(&mut connection, hello, &meter)?;
            Ok(Joined {
                link: Joining::Connection(connection),
                note,
            })
        }
    }

    /// The same by a queue pair, where there is a way for one; otherwise by TCP, unless that is not wanted. Nothing has been
    /// said to the other node then.
    fn joining_by_queue(&self, to: SocketAddr, hello: StreamHello, address: SocketAddr) -> Join {
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        let is_required = is_required(&self.request.settings);
        let by_tcp = self.joining((None, to), hello, None);
        Box::new(move || match find_route(address, time) {
            Ok(id) => Ok(Joined {
                link: Joining::Queue(QueueLink::Ask { id, hello }),
                note: None,
            }),
            Err(source) if is_required => Err(PeerError::Connect {
                address: format!("{address} by RDMA"),
                source,
            }),
            Err(error) => by_tcp().map(|joined| Joined {
                note: Some(format!("no RDMA to {address}: {error}; TCP is used")),
                ..joined
            }),
        })
    }
}

/// Sleeps for `pause`; false when the migration was over before.
fn waited(pause: Duration, stop: &AtomicBool) -> bool {
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
    !stop.load(Ordering::Acquire)
}
