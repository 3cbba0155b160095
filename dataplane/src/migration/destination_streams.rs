//! Data streams and the device connection at the destination: who joins, and what becomes of one that ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_proto::DestinationEvent;
use dwcp_wire::{AbortCode, Capabilities, StreamRole};

use super::destination::{DestinationDriver, DestinationInput};
use super::peer::LAST_WORDS;
use super::placement::{WorkersOf, place};
use super::relay::Relay;
use crate::engine::{DestinationCommand, spawn_destination_worker};
use crate::tls::Connection;
use crate::transport::{Link, QueueLink, RdmaRequest};

/// A further connection of the source that knows the token.
#[derive(Debug)]
pub(super) struct StreamJoin {
    pub(super) role: StreamRole,
    pub(super) index: u16,
    pub(super) generation: u16,
    pub(super) link: JoinLink,
}

/// What it is over.
#[derive(Debug)]
pub(super) enum JoinLink {
    /// TCP, perhaps with TLS.
    Connection(Connection),
    /// A queue pair, to be accepted by the stream's worker.
    Queue(RdmaRequest),
}

/// A connection that ended.
#[derive(Debug)]
pub(super) struct LostConnection {
    /// Of a data stream, which the source may replace.
    stream: Option<u16>,
    reason: String,
    /// Then the source is lost, if nothing else is heard.
    until: Instant,
}

impl DestinationDriver {
    pub(super) fn expect_streams(&mut self, token: u128, streams: u16) {
        self.recorder.accepted = true;
        self.expected = Some((token, streams));
        self.generations = vec![0; streams.into()];
        self.node.expect_joins(token, self.mailbox.clone());
    }

    /// Takes a stream that joins; with the last one the workers begin. A later one takes the place of one
    /// that broke.
    pub(super) fn join(&mut self, join: StreamJoin) {
        let Some((_, streams)) = self.expected else {
            return;
        };
        let is_data = join.role == StreamRole::Data;
        let known = self.generations.get(usize::from(join.index)).copied();
        let replaces = is_data && known.is_some_and(|known| join.generation > known);
        // It was overtaken by one that the source made after it.
        let is_stale = is_data && known.is_some_and(|known| join.generation < known);
        let is_missing = join.role == StreamRole::Missing;
        let again = !replaces && !is_stale && !is_missing && self.has_joined(&join);
        if again || (is_data && join.index >= streams) {
            let reason = format!(
                "{:?} stream {} joins twice or unasked",
                join.role, join.index
            );
            return self.failed(AbortCode::Protocol, reason);
        }
        // A token alone does not let anybody in who could not have made the offer.
        if !self.may_join(&join) {
            let reason = format!(
                "{:?} stream {} comes from elsewhere than the offer",
                join.role, join.index
            );
            return self.failed(AbortCode::Protocol, reason);
        }
        if is_stale {
            tracing::debug!(stream = join.index, "a connection that was given up");
            return;
        }
        if let JoinLink::Connection(connection) = &join.link {
            self.recorder.count_resumed(connection.is_resumed());
        }
        if join.role == StreamRole::Missing {
            return self.join_missing(join);
        }
        if is_data {
            self.generations[usize::from(join.index)] = join.generation;
            self.lost.retain(|lost| lost.stream != Some(join.index));
        }
        if !self.workers.is_empty() {
            self.recorder.streams_replaced += 1;
            if let Err(error) = self.give_to_worker(join) {
                self.failed(AbortCode::Other, error.to_string());
            }
            return;
        }
        self.joined
            .retain(|old| (old.role, old.index) != (join.role, join.index));
        self.joined.push(join);
        if self.joined.len() < usize::from(streams) + 1 {
            return;
        }
        match self.start_workers(streams) {
            Ok(()) => self.pending.push_back(DestinationEvent::StreamsJoined),
            Err(error) => self.failed(AbortCode::Other, error.to_string()),
        }
    }

    /// Whether it comes from where the offer came from.
    fn may_join(&self, join: &StreamJoin) -> bool {
        match &join.link {
            JoinLink::Connection(connection) => {
                connection.is_sealed() == self.journal.tls
                    && connection.names(&self.offer.source_node)
            }
            // The token is all that it has; it was told where queue pairs are taken.
            JoinLink::Queue(_) => {
                let reads = self.source_can.contains(Capabilities::POSTCOPY_READ);
                self.rdma.is_some()
                    && match join.role {
                        StreamRole::Data => true,
                        StreamRole::Missing => reads,
                        StreamRole::Device => false,
                    }
            }
        }
    }

    /// Whether a connection of this kind is there already.
    fn has_joined(&self, join: &StreamJoin) -> bool {
        let of_its_kind = |old: &StreamJoin| (old.role, old.index) == (join.role, join.index);
        !self.workers.is_empty() || self.joined.iter().any(of_its_kind)
    }

    fn give_to_worker(&mut self, join: StreamJoin) -> std::io::Result<()> {
        let StreamJoin {
            index,
            generation,
            link,
            ..
        } = join;
        let worker = &self.workers[usize::from(index) % self.workers.len()];
        let stream = match link {
            JoinLink::Connection(connection) => connection.into_data_stream()?.into(),
            JoinLink::Queue(RdmaRequest { id, hello }) => {
                Link::Queue(QueueLink::Answer { id, hello })
            }
        };
        worker.command(DestinationCommand::AddStream {
            index,
            generation,
            stream,
        });
        Ok(())
    }

    fn start_workers(&mut self, streams: u16) -> std::io::Result<()> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let mut joined = self.joined.iter();
        let local = joined.find_map(|join| match &join.link {
            JoinLink::Connection(connection) => connection.local_ip(),
            JoinLink::Queue(_) => None,
        });
        let placement = place(&self.settings, streams, &session.layout, local);
        let workers = placement.worker_settings(
            &self.settings,
            &WorkersOf {
                stock: &self.node.stock,
                sealed: self.journal.tls,
                rdma: self.rdma.clone(),
                shuffles: false,
                streams,
                ack_bytes: self.offer.ack_bytes,
            },
        );
        if let Some(why) = placement.why {
            self.recorder.remark(why);
        }
        for worker in &workers {
            let (session, mailbox) = (Arc::clone(&session), self.mailbox.clone());
            self.workers
                .push(spawn_destination_worker(worker, session, mailbox)?);
        }
        self.recorder.streams = streams;
        for join in std::mem::take(&mut self.joined) {
            let connection = match join {
                StreamJoin {
                    role: StreamRole::Device,
                    link: JoinLink::Connection(connection),
                    ..
                } => connection,
                join => {
                    self.give_to_worker(join)?;
                    continue;
                }
            };
            let mailbox = self.mailbox.clone();
            let on_break = move |reason: String| {
                let _ = mailbox.push(DestinationInput::DeviceLost(reason));
            };
            self.relay = Some(Relay::start(
                connection,
                Arc::new(on_break),
                &self.recorder.meter,
            )?);
        }
        self.round_began = Instant::now();
        Ok(())
    }

    /// A connection of a data stream ended. One that was replaced meanwhile is nobody's concern.
    pub(super) fn stream_lost(&mut self, stream: u16, generation: u16, reason: String) {
        let newest = self.generations.get(usize::from(stream));
        if newest.is_some_and(|newest| generation < *newest) {
            tracing::debug!(stream, generation, reason, "it was replaced");
            return;
        }
        self.connection_lost(Some(stream), reason);
    }

    /// A source that gives up says why on the control connection, which may be read later than the
    /// end of another; and one that does not connects again where a data stream broke. It may see the break
    /// as much later as a peer may be silent, and is the one to give up and say why.
    pub(super) fn connection_lost(&mut self, stream: Option<u16>, reason: String) {
        let silence = Duration::from_millis(self.offer.peer_silence_ms.into());
        let time = LAST_WORDS + stream.map_or(Duration::ZERO, |_| 2 * silence);
        self.lost.push(LostConnection {
            stream,
            reason,
            until: Instant::now() + time,
        });
    }

    /// Why the source is lost: a connection that ended was not replaced, and nothing else was heard.
    pub(super) fn lost_for_good(&mut self) -> Option<String> {
        let now = Instant::now();
        let at = self.lost.iter().position(|lost| lost.until <= now)?;
        Some(self.lost.swap_remove(at).reason)
    }
}
