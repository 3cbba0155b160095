//! One stream over a queue pair, from the first words of its connection to its end.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use dwcp_rdma::ConnectionId;
use dwcp_wire::rdma::{QueueHello, QueueReply};

use super::memory::{RdmaMemory, invalid, piece_bytes_max};
use super::queue::{Arrival, QUIET, Queue, REASON_TIME, Takes};
use super::receiver::{Receiver, Wanted};
use super::route::refuse;
use super::sender::Sender;
use crate::ram::RamLayout;
use crate::transport::{Buffers, Completion, ReceiveInto, SendFrame, Slot};

/// A connection on its way, for a worker to take.
#[derive(Debug)]
pub enum QueueLink {
    /// Source: the way to the other end is known; it is to be asked.
    Ask {
        /// Knows its route.
        id: ConnectionId,
        /// Which stream it is for.
        hello: dwcp_wire::StreamHello,
    },
    /// Destination: the source has asked.
    Answer {
        /// The request.
        id: ConnectionId,
        /// What came with it.
        hello: QueueHello,
    },
}

#[derive(Debug)]
enum End {
    Source(Sender),
    Destination(Receiver),
}

/// What a stream needs while it lives.
#[derive(Debug)]
struct Live {
    queue: Queue,
    end: End,
    wanted: Option<Wanted>,
    /// The connection manager may have something to say.
    is_rung: bool,
}

/// A stream in a transport.
#[derive(Debug)]
pub(super) struct QueueStream {
    live: Option<Live>,
    /// Why it is over, until that is told.
    ended: Option<io::Error>,
    memory: Arc<RdmaMemory>,
    /// It was connected once.
    pub(super) was_ready: bool,
}

impl QueueStream {
    /// Begins to connect. Whatever fails is told as the stream's end.
    pub(super) fn new(link: QueueLink, memory: &Arc<RdmaMemory>, ram: &Arc<RamLayout>) -> Self {
        let (live, ended) = match Live::new(link, memory, ram) {
            Ok(live) => (Some(live), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            live,
            ended,
            memory: Arc::clone(memory),
            was_ready: false,
        }
    }

    /// How long to wait at most: a source looks for its peer now and then, and a queue pair that fails is about to say why.
    pub(super) fn most(&self) -> Option<Duration> {
        let live = self.live.as_ref()?;
        if live.queue.is_failing() {
            return Some(REASON_TIME);
        }
        matches!(live.end, End::Source(_)).then_some(QUIET)
    }

    pub(super) const fn is_over(&self) -> bool {
        self.live.is_none() && self.ended.is_none()
    }

    /// Ends it: when this returns nothing is written by it any more, in either RAM.
    pub(super) fn shut(&mut self, why: io::Error) {
        let Some(live) = self.live.take() else {
            return;
        };
        let stream = match &live.end {
            End::Destination(receiver) => Some(receiver.stream()),
            End::Source(_) => None,
        };
        drop(live);
        if let Some(stream) = stream {
            self.memory.left(stream);
        }
        self.ended = Some(why);
    }

    pub(super) fn push(&mut self, frame: &SendFrame<'_>) {
        match self.live.as_mut().map(|live| &mut live.end) {
            Some(End::Source(sender)) => sender.push(frame),
            Some(End::Destination(receiver)) => receiver.push(frame),
            None => {}
        }
    }

    pub(super) fn receive(&mut self, wanted: &ReceiveInto<'_>) {
        if let Some(live) = &mut self.live {
            live.wanted = Some(Wanted::new(wanted));
        }
    }

    /// Whether the data of the frame whose head is being read lies in RAM.
    pub(super) fn is_placed(&self) -> bool {
        let end = self.live.as_ref().map(|live| &live.end);
        matches!(end, Some(End::Destination(receiver)) if receiver.is_placed())
    }

    /// Does what can be done at once.
    pub(super) fn progress(
        &mut self,
        slot: Slot,
        buffers: &mut Buffers,
        completions: &mut Vec<Completion>,
    ) {
        if let Some(live) = &mut self.live {
            let outcome = live.progress(slot, buffers, completions);
            self.was_ready |= live.queue.is_ready();
            if let Err(error) = outcome {
                self.shut(error);
            }
        }
        if let Some(error) = self.ended.take() {
            completions.push(Completion::Closed { slot, error });
        }
    }

    /// Makes what comes next ring.
    pub(super) fn arm(&mut self) {
        let Some(live) = self.live.as_mut().filter(|live| live.queue.is_ready()) else {
            return;
        };
        if let Err(error) = live.queue.arm() {
            self.shut(error);
        }
    }

    /// Something rang.
    pub(super) fn rung(&mut self) {
        let outcome = self.live.as_mut().map(|live| {
            live.is_rung = true;
            live.queue.take_rings()
        });
        if let Some(Err(error)) = outcome {
            self.shut(error);
        }
    }

    pub(super) fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some(self.live.as_ref()?.queue.descriptors())
    }
}

impl Live {
    fn new(link: QueueLink, memory: &Arc<RdmaMemory>, ram: &Arc<RamLayout>) -> io::Result<Self> {
        let (queue, end) = match link {
            QueueLink::Ask { id, hello } => {
                let domain = memory.domain(&id)?;
                let sender = Sender::new(memory, ram, &domain)?;
                let hello = QueueHello {
                    stream: hello,
                    piece_bytes_max: piece_bytes_max(),
                };
                (
                    Queue::ask(id, &domain, hello, Takes::SENDER)?,
                    End::Source(sender),
                )
            }
            QueueLink::Answer { id, hello } => {
                let answered = answer(&id, hello, memory, ram);
                let (domain, receiver, reply) =
                    answered.inspect_err(|error| refuse(&id, &error.to_string()))?;
                (
                    Queue::answer(id, &domain, &reply.to_bytes(), Takes::RECEIVER)?,
                    End::Destination(receiver),
                )
            }
        };
        Ok(Self {
            queue,
            end,
            wanted: None,
            is_rung: true,
        })
    }

    fn progress(
        &mut self,
        slot: Slot,
        buffers: &mut Buffers,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        // What came before the end is taken first.
        let looks = std::mem::take(&mut self.is_rung) || !self.queue.is_ready();
        let event = match looks {
            true => self.queue.next_event(),
            false => Ok(None),
        };
        if let Ok(Some(words)) = &event
            && let End::Source(sender) = &mut self.end
        {
            let reply =
                QueueReply::from_bytes(words).map_err(|error| invalid(error.to_string()))?;
            sender.connected(reply)?;
        }
        let Self {
            queue, end, wanted, ..
        } = self;
        if queue.is_ready() {
            queue.poll(&mut |arrival| match (&mut *end, arrival) {
                (End::Source(sender), Arrival::Message(bytes, length)) => {
                    sender.message(&bytes[..length])
                }
                (End::Destination(receiver), Arrival::Message(bytes, length)) => {
                    receiver.message(&bytes[..length])
                }
                (End::Destination(receiver), Arrival::Record(number)) => receiver.record(number),
                (End::Source(_), Arrival::Record(_)) => Err(invalid("a record from a destination")),
                (_, Arrival::Read(_)) => Err(invalid("a stream reads nothing")),
            })?;
        }
        if let Some(request) = wanted {
            let bytes = match end {
                End::Source(sender) => {
                    let (buffer, range) = request.buffer();
                    sender.read(&mut buffers.bytes_mut(buffer)[range.clone()])
                }
                End::Destination(receiver) => receiver.fill(request, buffers)?,
            };
            if bytes > 0 {
                *wanted = None;
                completions.push(Completion::Received { slot, bytes });
            }
        }
        let mut sent = |buffer| completions.push(Completion::Sent { slot, buffer });
        match end {
            End::Source(sender) => sender.progress(queue, buffers, &mut sent)?,
            End::Destination(receiver) => receiver.progress(queue, buffers, &mut sent)?,
        }
        event.map(drop)
    }
}

type Answer = (Arc<dwcp_rdma::ProtectionDomain>, Receiver, QueueReply);

fn answer(
    id: &ConnectionId,
    hello: QueueHello,
    memory: &Arc<RdmaMemory>,
    ram: &Arc<RamLayout>,
) -> io::Result<Answer> {
    let domain = memory.domain(id)?;
    let piece_bytes = memory.agree_on_pieces(hello.piece_bytes_max)?;
    let receiver = Receiver::new(hello.stream.index, memory, ram, &domain)?;
    let reply = receiver.reply(piece_bytes)?;
    Ok((domain, receiver, reply))
}
