//! Data streams and the device connection at the source: all are opened at once, each on a thread of its
//! own, and a data stream that breaks is taken up again by another connection.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_api::Codec;
use dwcp_proto::{Phase, SourceEvent};
use dwcp_wire::{AbortCode, StreamHello, StreamRole};
use socket2::SockRef;

use super::dial::{self, Route};
use super::early::{EARLY_MAX, Early, EarlyConnection, EarlyConnections};
use super::peer::{self, ControlWriter, LAST_WORDS, PeerError};
use super::placement::{WorkersOf, place};
use super::relay::Relay;
use super::source::{SourceDriver, SourceInput};
use super::source_paths::acked;
use super::source_rdma::{SourceRdma, is_required};
use crate::engine::{SourceCommand, spawn_source_worker};
use crate::tls::Connection;
use crate::transport::{Link, QueueLink, find_route};

/// Tries to replace a stream, in one migration: a peer does not make a source connect for ever.
const TRIES_MAX: u32 = 2048;

/// While the guest is paused a broken stream is waited for so long, or twice the pause that is accepted.
const PAUSE_PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries to replace a stream, at most; a quarter of it before the second.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A connection that was made, or was not.
#[derive(Debug)]
pub(super) struct Dialled {
    hello: StreamHello,
    outcome: Result<Joined, PeerError>,
}

#[derive(Debug)]
struct Joined {
    link: Joining,
    /// What could not be had: an option of its socket, or a queue pair.
    note: Option<String>,
}

#[derive(Debug)]
enum Joining {
    Connection(Connection),
    Queue(QueueLink),
}

/// Makes a connection, on a thread of its own.
type Join = Box<dyn FnOnce() -> Result<Joined, PeerError> + Send>;

/// The further connections of a migration.
#[derive(Debug, Default)]
pub(super) struct Streams {
    token: u128,
    /// By index.
    data: Vec<DataStream>,
    /// Connections without which nothing begins, and that are not there yet.
    missing: usize,
    /// Made for them before it is known which is which.
    early: EarlyConnections,
    /// Connections of data streams that are over.
    pub(super) ended: Vec<EndedConnection>,
    /// What there is for queue pairs.
    pub(super) rdma: SourceRdma,
    /// Tries to replace a stream.
    tries: u32,
    /// Why and when the device connection ended.
    device_lost: Option<(Instant, String)>,
}

impl Streams {
    /// Whether any data stream is a queue pair.
    pub(super) fn has_queues(&self) -> bool {
        self.data.iter().any(|stream| stream.is_queue)
    }

    pub(super) const fn token(&self) -> u128 {
        self.token
    }

    /// Where connections of this migration join.
    pub(super) const fn set_token(&mut self, token: u128) {
        self.token = token;
    }

    /// The data streams' sockets that are there.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &TcpStream> {
        self.by_index().map(|(_, socket)| socket)
    }

    /// The same, with the streams' indexes and how often they were replaced.
    pub(super) fn by_generation(&self) -> impl Iterator<Item = (u16, u16, &TcpStream)> {
        let all = (0..).zip(&self.data);
        all.filter_map(|(index, stream)| Some((index, stream.generation, stream.socket.as_ref()?)))
    }

    /// The same, with the streams' indexes.
    pub(super) fn by_index(&self) -> impl Iterator<Item = (u16, &TcpStream)> {
        let all = self.by_generation();
        all.map(|(index, _, socket)| (index, socket))
    }
}

/// What a connection of a data stream had carried.
#[derive(Debug)]
pub(super) struct EndedConnection {
    pub(super) index: u16,
    pub(super) generation: u16,
    pub(super) bytes_acked: u64,
}

#[derive(Debug, Default)]
struct DataStream {
    generation: u16,
    /// It has had a connection.
    was_there: bool,
    /// Its connection is a queue pair.
    is_queue: bool,
    /// Another descriptor of its socket, to ask and to set.
    socket: Option<TcpStream>,
    broken: Option<Break>,
}

/// A stream is broken, until another connection has taken its place.
#[derive(Debug)]
struct Break {
    since: Instant,
    reason: String,
    tries: u32,
}

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

    pub(super) fn open_streams(&mut self, token: u128, streams: u16) {
        if let Err(reason) = self.check_rdma() {
            return self.fail(AbortCode::Other, reason);
        }
        if let Err(error) = self.start_workers(streams) {
            return self.fail(AbortCode::Other, error.to_string());
        }
        self.streams = Streams {
            token,
            data: (0..streams).map(|_| DataStream::default()).collect(),
            missing: usize::from(streams) + 1,
            early: std::mem::take(&mut self.streams.early),
            rdma: std::mem::take(&mut self.streams.rdma),
            ..Streams::default()
        };
        for index in 0..streams {
            self.dial(StreamRole::Data, index, Duration::ZERO);
        }
        self.dial(StreamRole::Device, 0, Duration::ZERO);
        self.streams.early = EarlyConnections::default();
    }

    fn start_workers(&mut self, streams: u16) -> std::io::Result<()> {
        let settings = &self.request.settings;
        let local = self.control.as_ref().and_then(ControlWriter::local_address);
        let placement = place(settings, streams, &self.session.layout, local);
        let workers = placement.worker_settings(
            settings,
            &WorkersOf {
                stock: &self.node.stock,
                sealed: self.way.is_tls(),
                rdma: self.streams.rdma.memory().cloned(),
                streams,
                ack_bytes: 0,
            },
        );
        self.lanes = placement.lanes;
        if let Some(why) = placement.why {
            self.recorder.remark(why);
        }
        for worker in workers {
            let (session, mailbox) = (Arc::clone(&self.session), self.mailbox.clone());
            self.workers
                .push(spawn_source_worker(worker, session, mailbox)?);
        }
        self.recorder.streams = streams;
        Ok(())
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
            token: self.streams.token,
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
        let silence = Duration::from_millis(settings.peer_silence_ms.into());
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
            if hello.role != StreamRole::Device {
                dial::bound_silence(socket, silence);
                if is_encoded {
                    dial::bound_unsent(socket);
                }
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

    pub(super) fn dialled(&mut self, dialled: Dialled) {
        let Dialled { hello, outcome } = dialled;
        let taken = outcome.and_then(|joined| self.take_connection(hello, joined));
        match (taken, hello.role) {
            (Ok(()), _) if self.was_missing(hello) => self.connection_is_there(),
            (Ok(()), _) => {}
            (Err(error), StreamRole::Data) if self.is_broken(hello.index) => {
                tracing::info!(stream = hello.index, %error, "not replaced yet");
                self.replace(hello.index);
            }
            // It had not got so far as to be lost, or the destination has too many at once.
            (Err(error), StreamRole::Data) if error.is_loss() || self.has_another_path() => {
                self.data_stream_lost(hello.index, error.to_string());
            }
            (Err(error), StreamRole::Missing) => self.not_serving(hello, &error),
            (Err(error), _) => self.peer_lost(error.to_string()),
        }
    }

    fn take_connection(&mut self, hello: StreamHello, joined: Joined) -> Result<(), PeerError> {
        let Joined { link, note } = joined;
        if let Some(note) = note {
            self.recorder.note(note);
        }
        let connection = match link {
            Joining::Connection(connection) => connection,
            Joining::Queue(link) => {
                self.streams.data[usize::from(hello.index)].is_queue = true;
                self.give_to_worker(hello.index, Link::Queue(link));
                return Ok(());
            }
        };
        self.recorder.count_resumed(connection.is_resumed());
        match hello.role {
            StreamRole::Device => return self.take_device(connection),
            StreamRole::Missing => return self.serve_on(hello, connection),
            StreamRole::Data => {}
        }
        let (index, stream) = (hello.index, connection.into_data_stream()?);
        self.streams.data[usize::from(index)].socket = Some(stream.socket.try_clone()?);
        // It may have changed since the dialling began.
        if let Some(name) = &self.request.settings.congestion_control {
            let _ = SockRef::from(&stream.socket).set_tcp_congestion(name.as_bytes());
        }
        self.pace_stream(&stream.socket);
        self.give_to_worker(index, stream.into());
        Ok(())
    }

    fn give_to_worker(&self, index: u16, stream: Link) {
        let worker = &self.workers[usize::from(index) % self.workers.len()];
        worker.command(SourceCommand::AddStream { index, stream });
    }

    fn take_device(&mut self, connection: Connection) -> Result<(), PeerError> {
        let mailbox = self.mailbox.clone();
        let on_break = move |reason: String| {
            let _ = mailbox.push(SourceInput::DeviceLost(reason));
        };
        let relay = Relay::start(connection, Arc::new(on_break), &self.recorder.meter)?;
        if self.request.settings.codec != Codec::Raw {
            relay.warm()?;
        }
        self.relay = Some(relay);
        Ok(())
    }

    /// Whether this is the first connection of its stream: one in the place of another is not counted again.
    fn was_missing(&mut self, hello: StreamHello) -> bool {
        match hello.role {
            StreamRole::Device => true,
            StreamRole::Missing => false,
            StreamRole::Data => {
                let stream = &mut self.streams.data[usize::from(hello.index)];
                let was_missing = !std::mem::replace(&mut stream.was_there, true);
                if was_missing {
                    // There is nothing to resume.
                    stream.broken = None;
                }
                was_missing
            }
        }
    }

    fn connection_is_there(&mut self) {
        self.streams.missing -= 1;
        if self.streams.missing == 0 {
            self.begin_with_streams();
            self.pending.push_back(SourceEvent::StreamsOpen);
        }
    }

    fn is_broken(&self, index: u16) -> bool {
        self.streams.data[usize::from(index)].broken.is_some()
    }

    /// A data stream broke. After the handover no stream is needed.
    pub(super) fn data_stream_lost(&mut self, index: u16, reason: String) {
        if self.machine.phase() >= Phase::Handover {
            tracing::debug!(stream = index, reason, "after the handover");
            return;
        }
        tracing::warn!(vm = self.request.vm, stream = index, reason, "stream broke");
        let stream = &mut self.streams.data[usize::from(index)];
        // The last descriptor of a connection that is over.
        if let Some(socket) = stream.socket.take() {
            self.streams.ended.push(EndedConnection {
                index,
                generation: stream.generation,
                bytes_acked: acked(&socket),
            });
        }
        if std::mem::take(&mut stream.is_queue)
            && let Err(reason) = self.queue_lost(index, &reason)
        {
            return self.peer_lost(reason);
        }
        let stream = &mut self.streams.data[usize::from(index)];
        let broken = &mut stream.broken;
        broken.get_or_insert_with(|| Break {
            since: Instant::now(),
            reason,
            tries: 0,
        });
        self.replace(index);
    }

    /// Tries to connect in the place of a stream that is broken.
    fn replace(&mut self, index: u16) {
        let stream = &mut self.streams.data[usize::from(index)];
        let Some(broken) = &mut stream.broken else {
            return;
        };
        if self.streams.tries >= TRIES_MAX {
            let reason = format!(
                "stream {index} broke ({}): {TRIES_MAX} times a stream was to be replaced, and no more is",
                broken.reason
            );
            return self.peer_lost(reason);
        }
        let pause = match broken.tries {
            0 => Duration::ZERO,
            tries => (PAUSE_MAX / 8 * (1 << tries.min(3))).min(PAUSE_MAX),
        };
        broken.tries += 1;
        stream.generation += 1;
        self.streams.tries += 1;
        self.dial(StreamRole::Data, index, pause);
    }

    /// Another connection has taken the place of one that broke, and the destination has said that it has
    /// `carried` bytes of the stream: these pages, and bytes of frames, were lost.
    pub(super) fn stream_resumed(&mut self, index: u16, carried: u64, (pages, bytes): (u64, u64)) {
        let Some(broken) = self.streams.data[usize::from(index)].broken.take() else {
            return;
        };
        self.recorder.streams_replaced += 1;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let text = format!(
            "stream {index} broke after {:.1} MiB ({}) and was replaced in {:.0} ms; {pages} pages, \
             {:.1} MiB, sent again",
            mib(carried),
            broken.reason,
            broken.since.elapsed().as_secs_f64() * 1000.0,
            mib(bytes),
        );
        self.recorder.stream_broke(text);
    }

    /// How long a stream may stay broken: as long as a peer may be silent, but not where the guest waits for it.
    fn patience(&self) -> Duration {
        let settings = &self.request.settings;
        let silence = Duration::from_millis(settings.peer_silence_ms.into());
        let downtime = Duration::from_millis(settings.downtime_limit_ms.into());
        match self.recorder.pause.paused {
            None => silence,
            Some(_) => silence.min(PAUSE_PATIENCE.max(2 * downtime)),
        }
    }

    /// The guest is paused: a stream that carries nothing is known to be broken sooner.
    pub(super) fn hasten_streams(&self) {
        let patience = self.patience();
        for socket in self.streams.sockets() {
            dial::bound_silence(socket, patience);
        }
        if self.session.pace.bytes_per_s() > 0 {
            self.free_streams();
        }
    }

    /// The device connection ended. A destination that gives up says why on the control connection, which may
    /// be read later than the end of another.
    pub(super) fn device_lost(&mut self, reason: String) {
        let lost = &mut self.streams.device_lost;
        lost.get_or_insert_with(|| (Instant::now(), reason));
    }

    /// A stream that stays broken for too long is lost, and so is the device connection.
    pub(super) fn check_streams(&mut self) {
        let device = &mut self.streams.device_lost;
        if let Some((_, reason)) = device.take_if(|(since, _)| since.elapsed() > LAST_WORDS) {
            return self.peer_lost(reason);
        }
        let limit = self.patience();
        let over = self
            .streams
            .data
            .iter()
            .enumerate()
            .find_map(|(index, stream)| {
                let broken = stream.broken.as_ref()?;
                (broken.since.elapsed() > limit).then(|| (index, broken.reason.clone()))
            });
        if let Some((index, reason)) = over {
            self.peer_lost(format!(
                "stream {index} broke ({reason}) and could not be replaced in {} ms",
                limit.as_millis()
            ));
        }
    }
}

/// Sleeps for `pause`; false when the migration was over before.
fn waited(pause: Duration, stop: &AtomicBool) -> bool {
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
    !stop.load(Ordering::Acquire)
}
