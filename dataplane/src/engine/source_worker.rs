//! A worker at the source: dirty pages in, frames out on its streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::SendChoice;
use dwcp_simd::RamRoot;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};

use super::adapting::Adapting;
use super::busy_poll::BusyPoll;
use super::worker::{WorkerEvent, WorkerHandle, WorkerSettings, tell};
use super::{Mailbox, Session};
use crate::path::{Encoder, Outgoing, OutgoingCounts, RoundWork, StreamCredit};
use crate::tls::DataStream;
use crate::transport::{
    self, BufferId, Completion, ReceiveInto, SendFrame, SendMethod, Slot, Transport,
    TransportOptions, Wait,
};

/// Frame buffers of a worker, beside one per stream for acknowledgements.
const SEND_BUFFERS: usize = 6;

/// Frames of one stream that wait for the kernel. More would grow cold in the cache.
const QUEUED_FRAMES_MAX: usize = 2;

/// What a source worker is told.
#[derive(Debug)]
pub enum SourceCommand {
    /// Send on this stream too.
    AddStream {
        /// Index.
        index: u16,
        /// Connected, its hello said.
        stream: DataStream,
    },
    /// Take part in a round.
    Round(Arc<RoundWork>),
    /// End.
    Stop,
}

/// A worker's part of a round.
#[derive(Clone, Copy, Debug)]
pub struct WorkerRound {
    /// Round.
    pub round: u32,
    /// What it did.
    pub counts: OutgoingCounts,
    /// Change of the root.
    pub root: RamRoot,
    /// How guest pages left, once that was chosen.
    pub send_method: Option<&'static str>,
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
                node: settings.node,
                stock: settings.stock.clone(),
                ram: Some(Arc::clone(&session.layout)),
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
            // A cipher reads a page once: it must not change under it.
            let may_refer = settings.send != SendChoice::Copy && !settings.sealed;
            let adapting = Adapting::new(session.codec, may_refer, settings.streams);
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
                marked: 0,
                in_flight_bytes: 0,
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
    work: Option<Arc<RoundWork>>,
    /// No more pages in the round; what follows are marks.
    drained: bool,
    /// Streams that have their mark of the round, from the first on.
    marked: usize,
    in_flight_bytes: u64,
    adapting: Adapting,
}

struct SendStream {
    index: u16,
    encoder: Encoder,
    credit: StreamCredit,
    queued: VecDeque<BufferId>,
    ack_buffer: BufferId,
    ack_filled: usize,
}

impl SourceWorker<'_> {
    fn run<E: From<WorkerEvent>>(
        &mut self,
        inbox: &Mailbox<SourceCommand>,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        let mut completions = Vec::with_capacity(64);
        let mut busy_poll = BusyPoll::new(self.settings.busy_poll);
        loop {
            let is_busy = self.send_one_frame();
            let transport = &mut *self.transport;
            let waited = if is_busy {
                transport.wait(Wait::No, &mut completions)
            } else {
                let most = Duration::from_secs(1);
                let since = self.adapting.waits();
                let waited = busy_poll.wait(transport, most, &mut completions);
                self.adapting.waited(since);
                waited
            };
            waited.map_err(|error| format!("{}: {error}", self.transport.name()))?;
            for completion in completions.drain(..) {
                match completion {
                    Completion::Sent { slot, buffer } => {
                        self.transport.buffers().give(buffer);
                        self.streams[slot].queued.pop_front();
                    }
                    Completion::Received { slot, bytes } => self.acknowledged(slot, bytes, events),
                    Completion::Closed { slot, error } => {
                        let stream = self.streams[slot].index;
                        let reason = format!("stream {stream}: {error}");
                        tell(events, WorkerEvent::StreamLost { stream, reason });
                    }
                    Completion::Rung => {}
                }
            }
            while let Some(command) = inbox.pop() {
                match command {
                    SourceCommand::AddStream { index, stream } => self.add(index, stream)?,
                    SourceCommand::Round(work) => self.begin(work),
                    SourceCommand::Stop => return Ok(()),
                }
            }
            self.finish_round(events);
        }
    }

    fn add(&mut self, index: u16, stream: DataStream) -> Result<(), String> {
        let encoder =
            self.adapting
                .encoder(&stream.socket, self.settings.streams_in_all, &mut self.line);
        let slot = self
            .transport
            .add_stream(stream)
            .map_err(|error| format!("stream {index}: {error}"))?;
        let ack_buffer = self
            .transport
            .buffers()
            .take()
            .ok_or("no buffer for a stream")?;
        self.streams.push(SendStream {
            index,
            encoder,
            credit: StreamCredit::new(self.settings.stream_window_bytes),
            queued: VecDeque::new(),
            ack_buffer,
            ack_filled: 0,
        });
        self.transport
            .receive(slot, ReceiveInto::buffer(ack_buffer, 0..HEADER_BYTES));
        Ok(())
    }

    fn begin(&mut self, work: Arc<RoundWork>) {
        self.line.begin(&work);
        self.adapting.paused();
        if work.resends() {
            self.streams.iter_mut().for_each(|s| s.encoder.restart());
        }
        self.work = Some(work);
        self.drained = false;
        self.marked = 0;
    }

    /// Builds a frame and queues it on the stream with the most room. Returns whether there may be
    /// more to do at once.
    fn send_one_frame(&mut self) -> bool {
        let Some(work) = &self.work else { return false };
        if self.drained {
            return self.send_one_mark();
        }
        let ready = self.streams.iter_mut().enumerate().filter(|(_, stream)| {
            stream.credit.has_credit() && stream.queued.len() < QUEUED_FRAMES_MAX
        });
        let Some((slot, stream)) = ready.min_by_key(|(_, stream)| stream.credit.in_flight_bytes())
        else {
            return false;
        };
        let Some(buffer) = self.transport.buffers().take() else {
            return false;
        };
        let bytes = self.transport.buffers().bytes_mut(buffer);
        let sequence = stream.credit.next_sequence();
        let visited = self.line.counts.visited;
        let (encoder, index) = (&mut stream.encoder, stream.index);
        let frame = self.line.next_frame(work, bytes, encoder, index, sequence);
        let pages = self.line.counts.visited - visited;
        let Some(frame) = frame else {
            self.session.count(0, pages);
            self.transport.buffers().give(buffer);
            self.drained = true;
            return true;
        };
        self.session.count(frame.bytes(), pages);
        let wire_bytes = frame.bytes();
        stream.credit.sent(wire_bytes);
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

    /// A frame of so many bytes was built.
    fn adapt(&mut self, wire_bytes: u64) {
        if let Some(effort) = self.adapting.built(wire_bytes, &mut self.line) {
            for stream in &mut self.streams {
                stream.encoder.set_effort(effort);
            }
        }
    }

    /// Queues the mark of the next stream that has none. Returns whether there may be more to do at
    /// once; a worker with more streams than buffers goes on when a buffer comes back.
    fn send_one_mark(&mut self) -> bool {
        let slot = self.marked;
        let (Some(work), Some(stream)) = (&self.work, self.streams.get_mut(slot)) else {
            return false;
        };
        let Some(buffer) = self.transport.buffers().take() else {
            return false;
        };
        let sequence = stream.credit.next_sequence();
        let mut header = FrameHeader::empty(FrameKind::RoundMark, stream.index, sequence);
        header.round = work.round;
        let bytes = self.transport.buffers().bytes_mut(buffer);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        stream.credit.sent(HEADER_BYTES as u64);
        stream.queued.push_back(buffer);
        self.marked += 1;
        self.transport
            .send(slot, SendFrame::alone(buffer, 0..HEADER_BYTES));
        self.session.count(HEADER_BYTES as u64, 0);
        true
    }

    /// A round is sent when its last mark is in the kernel's hands.
    fn finish_round<E: From<WorkerEvent>>(&mut self, events: &Mailbox<E>) {
        let is_marked = self.drained && self.marked == self.streams.len();
        if !is_marked || self.streams.iter().any(|stream| !stream.queued.is_empty()) {
            return;
        }
        if let Some(work) = self.work.take() {
            self.drained = false;
            let round = WorkerRound {
                round: work.round,
                counts: self.line.counts,
                root: self.line.root,
                send_method: (0..self.streams.len())
                    .find_map(|slot| self.transport.send_method(slot))
                    .filter(|_| self.line.is_by_reference())
                    .map(SendMethod::name),
            };
            tell(events, WorkerEvent::RoundSent(round));
        }
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
            let buffer = self.transport.buffers().bytes_mut(stream.ack_buffer);
            let header = buffer.first_chunk().map(FrameHeader::from_bytes);
            let outcome = match header {
                Some(Ok(header)) => stream
                    .credit
                    .acknowledge(&header)
                    .map_err(|e| e.to_string()),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("short acknowledgement".to_owned()),
            };
            if let Err(reason) = outcome {
                tell(
                    events,
                    WorkerEvent::PeerBroke {
                        stream: stream.index,
                        reason,
                    },
                );
                return;
            }
        }
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
