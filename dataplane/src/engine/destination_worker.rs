//! A worker at the destination: frames in on its streams, pages into RAM.

use std::sync::Arc;
use std::time::Duration;

use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};

use super::busy_poll::BusyPoll;
use super::worker::{WorkerEvent, WorkerHandle, WorkerSettings, tell};
use super::{Mailbox, Session};
use crate::path::{Applied, Decoder, Incoming, PageTable, Received, Receiver};
use crate::transport::{
    self, BufferId, Completion, Link, ReceiveInto, Sealing, SendFrame, Slot, Transport,
    TransportOptions,
};

/// What a destination worker is told.
#[derive(Debug)]
pub enum DestinationCommand {
    /// Receive from this stream too. If it is there already, this connection takes the place of the one
    /// before, of which nothing more is taken.
    AddStream {
        /// Index.
        index: u16,
        /// Of the connection, as its hello said.
        generation: u16,
        /// Connected, its hello said.
        stream: Link,
    },
    /// End.
    Stop,
}

/// What a stream brought in a round.
#[derive(Clone, Debug)]
pub struct StreamRound {
    /// Stream index.
    pub stream: u16,
    /// Round of the mark.
    pub round: u32,
    /// What was applied.
    pub applied: Applied,
    /// Transport's name, which says whether an adapter placed pages.
    pub transport: &'static str,
}

/// Starts a worker that applies pages to `session`.
///
/// # Errors
/// When the system has no thread or descriptor left.
pub fn spawn_destination_worker<E: From<WorkerEvent> + Send + 'static>(
    settings: &WorkerSettings,
    session: Arc<Session>,
    events: Mailbox<E>,
) -> std::io::Result<WorkerHandle<DestinationCommand>> {
    let name = format!("dwcp-recv-{}", settings.index);
    let settings = settings.clone();
    let stop = || DestinationCommand::Stop;
    WorkerHandle::spawn(name, settings.cpu, events, stop, move |inbox, events| {
        let bell = inbox.bell().map_err(|error| error.to_string())?;
        // One buffer to receive into and one for acknowledgements, per stream.
        let opened = transport::open(TransportOptions {
            io: settings.io,
            send: settings.send,
            buffers: settings.streams * 2,
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
        let mut worker = DestinationWorker {
            ack_bytes: settings.ack_bytes,
            busy_poll: settings.busy_poll,
            session: &session,
            transport: opened.transport,
            line: Incoming::new(&session.layout, &session.digests, &session.key),
            streams: vec![],
            streams_in_all: settings.streams_in_all,
        };
        worker.run(inbox, events)
    })
}

struct DestinationWorker<'a> {
    ack_bytes: u64,
    busy_poll: Duration,
    session: &'a Session,
    transport: Box<dyn Transport>,
    line: Incoming<'a>,
    streams: Vec<ReceiveStream>,
    /// Of all workers.
    streams_in_all: usize,
}

struct ReceiveStream {
    index: u16,
    /// Of its connection.
    generation: u16,
    receiver: Receiver,
    buffer: BufferId,
    /// Of the frame that is coming.
    table: PageTable,
    decoder: Decoder,
    applied: Applied,
    ack_buffer: BufferId,
    /// An acknowledgement is on its way.
    is_acking: bool,
    sequence: u64,
    bytes: u64,
    acked_bytes: u64,
    is_broken: bool,
    /// Its connection is a queue pair: pages come before the frame that names them.
    is_queue: bool,
    /// The connection that takes the place of this one, once the kernel has nothing of it any more.
    next: Option<Link>,
}

impl DestinationWorker<'_> {
    fn run<E: From<WorkerEvent>>(
        &mut self,
        inbox: &Mailbox<DestinationCommand>,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        let mut completions = Vec::with_capacity(64);
        let mut busy_poll = BusyPoll::new(self.busy_poll);
        loop {
            busy_poll
                .wait(
                    &mut *self.transport,
                    Duration::from_secs(1),
                    &mut completions,
                )
                .map_err(|error| format!("{}: {error}", self.transport.name()))?;
            for completion in completions.drain(..) {
                match completion {
                    Completion::Sent { slot, buffer } => {
                        debug_assert_eq!(self.streams[slot].ack_buffer, buffer);
                        self.streams[slot].is_acking = false;
                        self.acknowledge(slot, self.ack_bytes);
                    }
                    Completion::Received { slot, bytes } => {
                        if let Err(reason) = self.received(slot, bytes, events) {
                            // Its position is lost: nothing more is read from it.
                            let stream = self.streams[slot].index;
                            tell(events, WorkerEvent::PeerBroke { stream, reason });
                        }
                    }
                    Completion::Closed { slot, error } => self.lost(slot, &error, events)?,
                    Completion::Rung => {}
                }
            }
            while let Some(command) = inbox.pop() {
                match command {
                    DestinationCommand::AddStream {
                        index,
                        generation,
                        stream,
                    } => self.add((index, generation), stream, events)?,
                    DestinationCommand::Stop => return Ok(()),
                }
            }
        }
    }

    fn add<E: From<WorkerEvent>>(
        &mut self,
        (index, generation): (u16, u16),
        stream: Link,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        let old = self.streams.iter().position(|old| old.index == index);
        if let Some(slot) = old {
            self.streams[slot].generation = generation;
            if self.streams[slot].is_broken {
                return self.resume(slot, stream, events);
            }
            // The source has seen it break.
            self.streams[slot].next = Some(stream);
            let why = std::io::Error::other("the source goes on with another connection");
            self.transport.shut(slot, why);
            return Ok(());
        }
        let is_queue = matches!(stream, Link::Queue(_));
        let added = self.transport.add_stream(stream, None);
        let slot = added.map_err(|error| format!("stream {index}: {error}"))?;
        self.tell_sealing(slot, events);
        let mut take = || {
            self.transport
                .buffers()
                .take()
                .ok_or("no buffer for a stream")
        };
        let (buffer, ack_buffer) = (take()?, take()?);
        self.streams.push(ReceiveStream {
            index,
            generation,
            receiver: Receiver::new(index),
            buffer,
            table: PageTable::new(),
            decoder: Decoder::new(self.streams_in_all),
            applied: Applied::default(),
            ack_buffer,
            is_acking: false,
            sequence: 0,
            bytes: 0,
            acked_bytes: 0,
            is_broken: false,
            is_queue,
            next: None,
        });
        if generation > 0 {
            // The source waits to hear where the stream goes on: at its beginning.
            self.acknowledge(slot, 0);
        }
        self.ask(slot);
        Ok(())
    }

    /// A stream's connection is over: nothing of it reaches RAM any more. What came in part is given up.
    fn lost<E: From<WorkerEvent>>(
        &mut self,
        slot: Slot,
        error: &std::io::Error,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        let stream = &mut self.streams[slot];
        stream.is_broken = true;
        stream.is_acking = false;
        if stream.is_queue {
            self.session.note_unseen_writes();
        }
        if stream.receiver.is_placing() {
            if !stream.table.in_place().is_empty() {
                self.line.give_up(&stream.table, &mut stream.applied);
            }
            self.session.placed();
        }
        // Whatever was given up is given up once.
        stream.receiver = Receiver::behind(stream.index, stream.sequence);
        if let Some(next) = stream.next.take() {
            return self.resume(slot, next, events);
        }
        let lost = WorkerEvent::StreamLost {
            generation: stream.generation,
            stream: stream.index,
            reason: error.to_string(),
            bytes: stream.bytes,
        };
        tell(events, lost);
        Ok(())
    }

    fn tell_sealing<E: From<WorkerEvent>>(&self, slot: Slot, events: &Mailbox<E>) {
        if self.transport.sealing(slot) == Sealing::Kernel {
            tell(events, WorkerEvent::KernelSeals);
        }
    }

    /// Goes on with a stream on another connection, and says first where: behind the last frame applied.
    fn resume<E: From<WorkerEvent>>(
        &mut self,
        slot: Slot,
        connection: Link,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        self.streams[slot].is_queue = matches!(connection, Link::Queue(_));
        let added = self.transport.add_stream(connection, Some(slot));
        added.map_err(|error| format!("stream {}: {error}", self.streams[slot].index))?;
        self.tell_sealing(slot, events);
        self.streams[slot].is_broken = false;
        self.acknowledge(slot, 0);
        self.ask(slot);
        Ok(())
    }

    fn received<E: From<WorkerEvent>>(
        &mut self,
        slot: Slot,
        bytes: usize,
        events: &Mailbox<E>,
    ) -> Result<(), String> {
        self.streams[slot].receiver.received(bytes);
        let mut marked = false;
        let transport = self.transport.name();
        loop {
            let stream = &mut self.streams[slot];
            let buffer = self.transport.buffers().bytes_mut(stream.buffer);
            match stream.receiver.next(buffer).map_err(text)? {
                Received::Nothing => break,
                Received::Table(header, range) => {
                    let table = &buffer[range];
                    self.line
                        .read_table(&header, table, &mut stream.table)
                        .map_err(text)?;
                    self.session.place().map_err(text)?;
                    let block = &self.session.layout.blocks()[header.ram_block as usize];
                    if self.transport.is_placed(slot) {
                        // There is nothing to prepare.
                    } else if self.transport.sealing(slot) == Sealing::Transport
                        || !block.is_filled_in_place()
                    {
                        stream.table.receive_apart();
                    } else if header.round == 0 {
                        self.populate(slot)?;
                    }
                    let stream = &mut self.streams[slot];
                    stream.receiver.place(stream.table.in_place());
                    continue;
                }
                Received::Frame(header, data) => {
                    if header.kind == FrameKind::RoundMark {
                        marked = true;
                        let round = stream.end_round(&header, transport);
                        tell(events, WorkerEvent::StreamRound(round));
                    } else {
                        let in_place = !stream.table.in_place().is_empty();
                        let data = (!in_place).then_some(&buffer[data]);
                        let (decoder, applied) = (&mut stream.decoder, &mut stream.applied);
                        let unseen = self.session.has_unseen_writes();
                        self.line.look_at_zeros(unseen);
                        self.line
                            .apply(&header, &stream.table, data, decoder, applied)
                            .map_err(text)?;
                        self.session.placed();
                        self.session.count(0, stream.table.named());
                    }
                    let wire_bytes = (HEADER_BYTES + header.payload_len()) as u64;
                    self.session.count(wire_bytes, 0);
                    stream.bytes += wire_bytes;
                    stream.sequence = header.sequence;
                    stream.receiver.consume(buffer);
                }
            }
        }
        self.ask(slot);
        self.acknowledge(slot, if marked { 1 } else { self.ack_bytes });
        Ok(())
    }

    /// Pages that are filled for the first time get their memory in one call a run.
    fn populate(&self, slot: Slot) -> Result<(), String> {
        let blocks = self.session.layout.blocks();
        self.streams[slot]
            .table
            .in_place()
            .iter()
            .try_for_each(|run| {
                let block = &blocks[run.ram_block as usize];
                block.populate(run.page, run.count).map_err(text)
            })
    }

    /// Asks for what the stream's receiver wants next.
    fn ask(&mut self, slot: Slot) {
        let stream = &self.streams[slot];
        let wanted = stream.receiver.wanted();
        let pages = match wanted.placed_bytes {
            0 => &[],
            _ => stream.table.in_place(),
        };
        let wanted = ReceiveInto {
            pages,
            placed: wanted.placed,
            buffer: stream.buffer,
            range: wanted.range,
        };
        self.transport.receive(slot, wanted);
    }

    /// Acknowledges by the running total once `least_bytes` are new.
    fn acknowledge(&mut self, slot: Slot, least_bytes: u64) {
        let stream = &mut self.streams[slot];
        if stream.bytes - stream.acked_bytes < least_bytes {
            return;
        }
        if stream.is_acking || stream.is_broken {
            return;
        }
        stream.is_acking = true;
        let buffer = stream.ack_buffer;
        stream.acked_bytes = stream.bytes;
        let mut header = FrameHeader::empty(FrameKind::Ack, stream.index, stream.sequence);
        header.position = stream.bytes;
        let bytes = self.transport.buffers().bytes_mut(buffer);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        self.transport
            .send(slot, SendFrame::alone(buffer, 0..HEADER_BYTES));
        self.session.count(HEADER_BYTES as u64, 0);
    }
}

impl ReceiveStream {
    fn end_round(&mut self, mark: &FrameHeader, transport: &'static str) -> StreamRound {
        let mut applied = std::mem::take(&mut self.applied);
        applied.summary.marks_again = u32::try_from(mark.position).unwrap_or(u32::MAX);
        StreamRound {
            stream: self.index,
            round: mark.round,
            applied,
            transport,
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
