//! Data streams and the device connection at the source: all are opened at once, and given to those who use them.
//!
//! | file | what |
//! |---|---|
//! | `source_dial.rs` | how they are connected |
//! | `source_replace.rs` | what breaks, and is taken up again |

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::Codec;
use dwcp_proto::SourceEvent;
use dwcp_wire::{AbortCode, Capabilities, StreamHello, StreamRole};
use socket2::SockRef;

use super::control_writer::ControlWriter;
use super::early::EarlyConnections;
use super::peer::PeerError;
use super::placement::{WorkersOf, place};
use super::relay::Relay;
use super::source::{SourceDriver, SourceInput};
use super::source_dial::{Dialled, Joined, Joining};
use super::source_rdma::SourceRdma;
use super::source_replace::Break;
use crate::engine::{SourceCommand, spawn_source_worker};
use crate::tls::Connection;
use crate::transport::Link;

/// The further connections of a migration.
#[derive(Debug, Default)]
pub(super) struct Streams {
    token: u128,
    /// By index.
    pub(super) data: Vec<DataStream>,
    /// Connections without which nothing begins, and that are not there yet.
    missing: usize,
    /// Made for them before it is known which is which.
    pub(super) early: EarlyConnections,
    /// Connections of data streams that are over.
    pub(super) ended: Vec<EndedConnection>,
    /// What there is for queue pairs.
    pub(super) rdma: SourceRdma,
    /// Tries to replace a stream.
    pub(super) tries: u32,
    /// Why and when the device connection ended.
    pub(super) device_lost: Option<(Instant, String)>,
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
pub(super) struct DataStream {
    pub(super) generation: u16,
    /// It has had a connection.
    was_there: bool,
    /// Its connection is a queue pair.
    pub(super) is_queue: bool,
    /// Another descriptor of its socket, to ask and to set.
    pub(super) socket: Option<TcpStream>,
    pub(super) broken: Option<Break>,
}

impl SourceDriver {
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
                shuffles: self
                    .can
                    .is_some_and(|can| can.contains(Capabilities::SHUFFLE)),
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
}
