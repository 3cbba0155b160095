//! A worker at the source: dirty pages in, frames out on its streams.

use std::sync::Arc;
use std::time::Duration;

use dwcp_api::SendChoice;
use dwcp_simd::RamRoot;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};

use super::adapting::Adapting;
use super::busy_poll::BusyPoll;
use super::send_stream::{SendStream, State};
use super::waits::Turns;
use super::worker::{WorkerEvent, WorkerHandle, WorkerSettings, tell};
use super::{Mailbox, Session};
use crate::path::{Outgoing, OutgoingCounts, RoundWork, StreamCredit};
use crate::transport::{
    self, Completion, Link, ReceiveInto, Sealing, SendFrame, SendMethod, Slot, Transport,
    TransportOptions, Wait,
};

/// Frame buffers of a worker, beside one per stream for acknowledgements.
const SEND_BUFFERS: usize = 6;

/// What a source worker is told.
#[derive(Debug)]
pub enum SourceCommand {
    /// Send on this stream too, or, if it is one that was lost, go on with it.
    AddStream {
        /// Index.
        index: u16,
        /// Connected, its hello said.
        stream: Link,
    },
    /// The first streams of the migration, so many, carry pages. Every worker has one of them.
    Use(u16),
    /// Take part in a round.
    Round(Arc<RoundWork>),
    /// End.
    Stop,
}

/// A worker's part of a round.
#[derive(Clone, Copy, Debug)]
pub struct WorkerRound {
    /// The worker's number. What it says of a round takes the place of what it said before.
    pub worker: usize,
    /// Round.
    pub round: u32,
    /// Marks that were lost with their stream, and sent again.
    pub marks_again: u32,
    /// What it did.
    pub counts: OutgoingCounts,
    /// Change of the root.
    pub root: RamRoot,
    /// How guest pages left, once that was chosen.
    pub send_method: Option<&'static str>,
    /// Transport's name, which says whether an adapter placed pages.
    pub transport: &'static str,
}

/// Starts a worker that sends pages of `session`.
///
/// # Errors
/// When the system has no thread or descriptor left.
pub fn spawn_source_worker<E: From<WorkerEvent> + Send + 'static>(
    settings: WorkerSettings,
    session: Arc<Session>,
    events: Mailbox<E>,
) -> std::io::Result<WorkerHandle<SourceCommand>> {
    let name = format!("dwcp-send-{}", settings.index);
    WorkerHandle::spawn(
        name,
        settings.cpu,
        events,
        || SourceCommand::Stop,
        move |inbox, events| {
            let bell = inbox.bell().map_err(|error| error.to_string())?;
            let opened = transport::open(TransportOptions {
                io: settings.io,
                send: settings.send,
                buffers: settings.streams + SEND_BUFFERS,
                sealed: settings.sealed,
                kernel_tls: settings.kernel_tls,
                node: settings.node,
                stock: settings.stock.clone(),
                ram: Some(Arc::clone(&session.layout)),
                rdma: settings.rdma.clone(),
                bell,
            })
            .map_err(|error| format!("transport: {error}"))?;
            let transport = opened.transport.name();
            tell(
                events,
                WorkerEvent::Started {
                    transport,
                    notes: opened.notes,
                },
            );
            let may_refer =
                settings.send != SendChoice::Copy && opened.transport.takes_references();
            let adapting = Adapting::new(session.codec, may_refer, settings.shuffles);
            let (layout, digests) = (&session.layout, &session.digests);
            let line = Outgoing::new(layout, digests, &session.key, adapting.refers_at_first())
                .near(settings.node)
                .remembering(session.remembered.as_ref());
            let mut worker = SourceWorker {
                settings: &settings,
                session: &session,
                transport: opened.transport,
                line,
                streams: vec![],
                work: None,
                drained: false,
                told: false,
                in_flight_bytes: 0,
                in_use: 0,
                adapting,
            };
            worker.run(inbox, events)
        },
    )
}

struct SourceWorker<'a> {
    settings: &'a WorkerSettings,
    session: &'a Session,
    transport: Box<dyn Transport>,
    line: Outgoing<'a>,
    streams: Vec<SendStream>,
    /// The round, also once it is sent: what a stream loses later goes once more.
    work: Option<Arc<RoundWork>>,
    /// No more pages in the round; what follows are marks.
    drained: bool,
    /// The round was said to be sent.
    told: bool,
    in_flight_bytes: u64,
    /// Streams with a lower index carry pages; the others have marks only.
    in_use: u16,
    adapting: Adapting,
}

impl SourceWorker<'_> {
    fn run<E: From<WorkerEvent>>(
        &mut self,
        inbox: &Mailbox<SourceCommand>,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        let mut completions = Vec::with_capacity(64);
        let mut busy_poll = BusyPoll::new(self.settings.busy_poll);
        let mut turns = Turns::new(&self.session.waits);
        loop {
            let waited = match self.send_one_frame() {
                true => {
                    turns.worked();
                    self.transport.wait(Wait::No, &mut completions)
                }
                false => self.wait(&mut turns, &mut busy_poll, &mut completions),
            };
            waited.map_err(|error| format!("{}: {error}", self.transport.name()))?;
            for completion in completions.drain(..) {
                match completion {
                    Completion::Sent { slot, buffer } => {
                        self.transport.buffers().give(buffer);
                        self.streams[slot].queued.pop_front();
                    }
                    Completion::Received { slot, bytes } => self.acknowledged(slot, bytes, events),
                    Completion::Closed { slot, error } => self.lost(slot, &error, events),
                    Completion::Rung => {}
                }
            }
            while let Some(command) = inbox.pop() {
                match command {
                    SourceCommand::AddStream { index, stream } => {
                        let slot = self.add(index, stream)?;
                        if self.transport.sealing(slot) == Sealing::Kernel {
                            tell(events, WorkerEvent::KernelSeals);
                        }
                    }
                    SourceCommand::Use(streams) => self.use_streams(streams),
                    SourceCommand::Round(work) => self.begin(work),
                    SourceCommand::Stop => return Ok(()),
                }
            }
            self.finish_round(events);
        }
    }

    fn wait(
        &mut self,
        turns: &mut Turns<'_>,
        busy_poll: &mut BusyPoll,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        // Nothing tells when the limit on bandwidth allows more.
        let limit = self.session.pace.wait();
        let has_pages = self.work.is_some() && !self.drained;
        if has_pages {
            turns.worked();
        }
        let most = limit.unwrap_or(Duration::from_secs(1));
        let waited = busy_poll.wait(&mut *self.transport, most, completions);
        self.adapting.waited(match has_pages {
            true => turns.waited(limit.is_some()),
            false => turns.rested(),
        });
        waited
    }

    fn add(&mut self, index: u16, stream: Link) -> Result<Slot, String> {
        let broken = self.streams.iter().position(|old| old.index == index);
        if let (None, Link::Socket(stream)) = (broken, &stream) {
            self.adapting.look_at(&stream.socket);
        }
        let added = self.transport.add_stream(stream, broken);
        let slot = added.map_err(|error| format!("stream {index}: {error}"))?;
        if broken.is_none() {
            let buffer = self.transport.buffers().take();
            let credit = StreamCredit::new(self.settings.stream_window_bytes);
            let buffer = buffer.ok_or("no buffer for a stream")?;
            self.streams.push(SendStream::new(index, credit, buffer));
        } else {
            self.streams[slot].state = State::Resuming;
            self.streams[slot].ack_filled = 0;
        }
        let buffer = self.streams[slot].ack_buffer;
        self.transport
            .receive(slot, ReceiveInto::buffer(buffer, 0..HEADER_BYTES));
        Ok(slot)
    }

    /// A stream has an encoder, and its memory, once it carries pages.
    fn use_streams(&mut self, streams: u16) {
        self.in_use = streams;
        let in_use = self.streams.iter().filter(|s| s.index < streams);
        let (mine, line) = (in_use.count(), &mut self.line);
        self.adapting.use_streams(mine, streams.into(), line);
        for stream in self.streams.iter_mut().filter(|s| s.index < streams) {
            let encoder = || self.adapting.encoder(self.settings.streams_in_all);
            stream.encoder.get_or_insert_with(encoder);
        }
    }

    /// A stream's connection is over. What was under way on it stays known until there is another.
    fn lost<E: From<WorkerEvent>>(
        &mut self,
        slot: Slot,
        error: &std::io::Error,
        events: &Mailbox<E>,
    ) {
        let stream = &mut self.streams[slot];
        stream.state = State::Broken;
        for buffer in stream.queued.drain(..) {
            self.transport.buffers().give(buffer);
        }
        let lost = WorkerEvent::StreamLost {
            generation: 0,
            stream: stream.index,
            reason: error.to_string(),
            bytes: stream.credit.acked_bytes(),
        };
        tell(events, lost);
    }

    fn begin(&mut self, work: Arc<RoundWork>) {
        self.line.begin(&work);
        self.adapting.paused();
        let resends = work.resends();
        self.streams.iter_mut().for_each(|s| s.begin(resends));
        self.work = Some(work);
        self.drained = false;
        self.told = false;
    }

    /// Builds a frame and queues it on the stream with the most room. Returns whether there may be
    /// more to do at once.
    fn send_one_frame(&mut self) -> bool {
        let Some(work) = self.work.as_ref().filter(|_| !self.told) else {
            return false;
        };
        if self.drained {
            return self.send_one_mark(0);
        }
        // The guest waits for all marks, and the connections of these have been silent for long.
        if work.is_paused() && self.send_one_mark(self.in_use) {
            return true;
        }
        let Some(work) = &self.work else { return false };
        let Some(slot) = self.stream_with_room() else {
            return false;
        };
        let stream = &mut self.streams[slot];
        let Some(buffer) = self.transport.buffers().take() else {
            return false;
        };
        let bytes = self.transport.buffers().bytes_mut(buffer);
        let sequence = stream.credit.next_sequence();
        let visited = self.line.counts.visited;
        let index = stream.index;
        let new_encoder = || self.adapting.encoder(self.settings.streams_in_all);
        let encoder = stream.encoder.get_or_insert_with(new_encoder);
        let frame = self.line.next_frame(work, bytes, encoder, index, sequence);
        let pages = self.line.counts.visited - visited;
        let Some(frame) = frame else {
            self.session.count(0, pages);
            self.transport.buffers().give(buffer);
            self.drained = true;
            return true;
        };
        self.session.count(frame.bytes(), pages);
        self.session.pace.sent(frame.bytes());
        let (block, entries) = self.line.named();
        let wire_bytes = frame.bytes();
        stream.credit.sent(wire_bytes);
        stream
            .in_flight
            .sent(work.round, block, wire_bytes, entries);
        stream.queued.push_back(buffer);
        // A mark ends the round on every stream.
        let frame = SendFrame {
            buffer,
            head: frame.head,
            pages: self.line.pages(),
            more: true,
        };
        self.transport.send(slot, frame);
        self.publish_in_flight();
        self.adapt(wire_bytes);
        true
    }

    /// The stream that carries pages, takes a frame now, and has the least under way. What was lost with a
    /// stream that has carried pages before goes on that one again, once all others have their marks.
    fn stream_with_room(&self) -> Option<Slot> {
        if self.in_flight_bytes >= self.settings.window_bytes || self.session.pace.wait().is_some()
        {
            return None;
        }
        let streams = self.streams.iter().enumerate();
        let mut in_use = self.streams.iter().filter(|s| s.index < self.in_use);
        let are_marked = in_use.all(|stream| stream.is_marked);
        let ready = streams.filter(|(_, stream)| {
            (stream.index < self.in_use || are_marked) && stream.takes_pages()
        });
        let (slot, _) = ready.min_by_key(|(_, stream)| stream.credit.in_flight_bytes())?;
        Some(slot)
    }

    /// A frame of so many bytes was built.
    fn adapt(&mut self, wire_bytes: u64) {
        if let Some(effort) = self.adapting.built(wire_bytes, &mut self.line) {
            for stream in &mut self.streams {
                if let Some(encoder) = &mut stream.encoder {
                    encoder.set_effort(effort);
                }
            }
        }
    }

    /// Queues the mark of a stream that has none, with an index of `least` or more. Returns whether there may be
    /// more to do at once; a worker with more streams than buffers goes on when a buffer comes back.
    fn send_one_mark(&mut self, least: u16) -> bool {
        let mut streams = self.streams.iter_mut().enumerate();
        let unmarked = streams.find(|(_, s)| s.index >= least && s.takes_mark());
        let (Some(work), Some((slot, stream))) = (&self.work, unmarked) else {
            return false;
        };
        let Some(buffer) = self.transport.buffers().take() else {
            return false;
        };
        let sequence = stream.credit.next_sequence();
        let mut header = FrameHeader::empty(FrameKind::RoundMark, stream.index, sequence);
        header.round = work.round;
        header.position = stream.marks_again.into();
        let bytes = self.transport.buffers().bytes_mut(buffer);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        stream.credit.sent(HEADER_BYTES as u64);
        stream.in_flight.marked(work.round);
        stream.queued.push_back(buffer);
        stream.is_marked = true;
        self.transport
            .send(slot, SendFrame::alone(buffer, 0..HEADER_BYTES));
        self.session.count(HEADER_BYTES as u64, 0);
        true
    }

    /// A round is sent when its last mark is in the kernel's hands. It is so once more when a stream breaks
    /// later, and what was lost with it is sent.
    fn finish_round<E: From<WorkerEvent>>(&mut self, events: &Mailbox<E>) {
        let Some(work) = self.work.as_ref().filter(|_| self.drained && !self.told) else {
            return;
        };
        if !self.streams.iter().all(SendStream::has_sent) {
            return;
        }
        let round = WorkerRound {
            worker: self.settings.index,
            round: work.round,
            marks_again: self.streams.iter().map(|s| s.marks_again).sum(),
            counts: self.line.counts,
            root: self.line.root,
            send_method: (0..self.streams.len())
                .find_map(|slot| self.transport.send_method(slot))
                .filter(|_| self.line.is_by_reference())
                .map(SendMethod::name),
            transport: self.transport.name(),
        };
        self.told = true;
        tell(events, WorkerEvent::RoundSent(round));
    }

    /// An acknowledgement has come in full, perhaps the first of a stream that broke.
    fn take_acknowledgement(&mut self, slot: Slot) -> Result<Option<WorkerEvent>, String> {
        let stream = &mut self.streams[slot];
        stream.acknowledged(self.transport.buffers().bytes_mut(stream.ack_buffer))?;
        if stream.state != State::Resuming {
            return Ok(None);
        }
        let round = self.work.as_ref().map_or(0, |work| work.round);
        let lost = stream.resume(round, self.told)?;
        let (stream, carried) = (stream.index, stream.credit.acked_bytes());
        if lost.mark || !lost.pages.is_empty() {
            self.told = false;
        }
        self.drained &= lost.pages.is_empty();
        self.line.lost(&lost);
        Ok(Some(WorkerEvent::StreamResumed {
            stream,
            carried,
            pages: lost.counts.named,
            bytes: lost.counts.wire_bytes,
        }))
    }

    fn acknowledged<E: From<WorkerEvent>>(
        &mut self,
        slot: Slot,
        bytes: usize,
        events: &Mailbox<E>,
    ) {
        let stream = &mut self.streams[slot];
        stream.ack_filled += bytes;
        if stream.ack_filled == HEADER_BYTES {
            stream.ack_filled = 0;
            self.session.count(HEADER_BYTES as u64, 0);
            let index = stream.index;
            match self.take_acknowledgement(slot) {
                Ok(None) => {}
                Ok(Some(event)) => tell(events, event),
                Err(reason) => {
                    let stream = index;
                    return tell(events, WorkerEvent::PeerBroke { stream, reason });
                }
            }
        }
        let stream = &self.streams[slot];
        let (buffer, filled) = (stream.ack_buffer, stream.ack_filled);
        self.transport
            .receive(slot, ReceiveInto::buffer(buffer, filled..HEADER_BYTES));
        self.publish_in_flight();
    }

    fn publish_in_flight(&mut self) {
        let now = self
            .streams
            .iter()
            .map(|stream| stream.credit.in_flight_bytes())
            .sum();
        self.session.count_in_flight(self.in_flight_bytes, now);
        self.in_flight_bytes = now;
    }
}
