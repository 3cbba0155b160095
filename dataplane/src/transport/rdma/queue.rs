//! A stream's queue pair: how it is made, connected, posted to and polled.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, Buffer, CompletedOperation, CompletionQueue, CompletionStatus, ConnectParameters,
    ConnectionEventKind, ConnectionId, EventChannel, Init, MemoryRegion, Notify, Patience, Payload,
    ProtectionDomain, QueuePair, QueuePairOptions, RdmaError, ReadyToSend, ReceiveRequest,
    RegisteredMemory, RemoteAddress, Reset, SendRequest, WorkCompletion,
};
use dwcp_wire::HEADER_BYTES;
use dwcp_wire::rdma::{QueueHello, QueueMessage, READS_WANTED_MAX, RECORDS_MAX, REPLIES_MAX};

use super::memory::{invalid, words};

/// Requests of a send queue. A frame takes one for each run of its pages, one more where a run is in two pieces, and one for
/// its head.
pub(super) const SENDS_MAX: usize = 320;

/// Bytes that are copied into a request: an acknowledgement, a mark.
pub(super) const INLINE_BYTES: usize = HEADER_BYTES;

/// A request that nobody asks after.
pub(super) const UNNAMED: u64 = 0;

/// One request in so many says when it is complete.
const SIGNAL_EVERY: u32 = 16;

/// A connection that is asked for is there within this time, or given up: the other end answers once all streams have asked.
const CONNECT_TIME: Duration = Duration::from_secs(15);

/// When nothing has come for so long, a source looks whether the other end is there: an end that has nothing under way hears
/// of no loss.
pub(super) const QUIET: Duration = Duration::from_millis(250);

/// A pair that has failed says why within this time.
pub(super) const REASON_TIME: Duration = Duration::from_millis(100);

/// Bytes of a receive: a frame without payload, or a message.
const RECEIVE_BYTES: usize = HEADER_BYTES;

const _: () = assert!(QueueMessage::BYTES <= INLINE_BYTES && RECEIVE_BYTES >= INLINE_BYTES);

/// Half a second, and an error: a peer that is told what is free for it, and sends more, is broken.
const PATIENCE: Patience = Patience {
    timeout_exponent: 14,
    retries: 6,
    receiver_not_ready_retries: 2,
};

/// What an end takes of the other one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takes {
    /// Records and messages that may be under way to it.
    receives: u32,
    /// What the other end's adapter may do with regions that allow it.
    access: Access,
}

impl Takes {
    /// The source's end of a stream: the other one sends messages alone.
    pub(super) const SENDER: Self = Self {
        receives: REPLIES_MAX,
        access: Access::SOURCE,
    };
    /// The destination's end of a stream.
    pub(super) const RECEIVER: Self = Self {
        receives: RECORDS_MAX,
        access: Access::REMOTE_WRITE,
    };
    /// The source's end, where the destination reads.
    pub(super) const GRANTER: Self = Self {
        receives: READS_WANTED_MAX,
        access: Access::REMOTE_READ,
    };
    /// The destination's end there: two messages answer one.
    pub(super) const READER: Self = Self {
        receives: 2 * READS_WANTED_MAX,
        access: Access::SOURCE,
    };
}

/// What has come.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A record of the source, and its number.
    Record(u32),
    /// A SEND: so many bytes are those of a message or a frame.
    Message([u8; RECEIVE_BYTES], usize),
    /// A READ that was to say so is complete, and those posted before it: what it was called.
    Read(u64),
}

#[derive(Debug)]
enum Pair {
    /// The other end has yet to answer.
    Asking(QueuePair<Init>, Instant),
    Ready(QueuePair<ReadyToSend>),
}

/// The queue pair of one stream. Dropping it ends the connection: nothing is read or written by it any more.
#[derive(Debug)]
pub(super) struct Queue {
    // Goes first: the other end hears it by the id, behind.
    pair: Option<Pair>,
    id: ConnectionId,
    completions: Arc<CompletionQueue>,
    inbox: Arc<Buffer>,
    inbox_region: Arc<MemoryRegion>,
    polled: Vec<WorkCompletion>,
    /// Requests since one that says when it is complete.
    unsignalled: u32,
    is_armed: bool,
    /// Requests were flushed: it has failed.
    flushed: Option<Instant>,
    /// Of the last completion, or the last look at whether there will be any.
    seen: Instant,
}

impl Queue {
    /// Asks for a connection, by an id that knows its route.
    pub(super) fn ask(
        id: ConnectionId,
        domain: &Arc<ProtectionDomain>,
        hello: QueueHello,
        takes: Takes,
    ) -> io::Result<Self> {
        let queue = Self::new(id, domain, takes)?;
        let Some(Pair::Asking(pair, _)) = &queue.pair else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let number = pair.number();
        let connect = queue.id.connect(&parameters(number, &hello.to_bytes()));
        connect.map_err(|error| words(&error))?;
        Ok(queue)
    }

    /// Accepts a request, in these words. The message that establishes the connection may get lost: the manager accepts again then, and until it
    /// hears of that, data comes as well. (To tell it by [`ConnectionId::peer_has_sent`] has it go on accepting for a minute,
    /// for which whoever destroys the id waits: Linux 6.12.)
    pub(super) fn answer(
        id: ConnectionId,
        domain: &Arc<ProtectionDomain>,
        reply: &[u8],
        takes: Takes,
    ) -> io::Result<Self> {
        let channel = EventChannel::new().map_err(|error| words(&error))?;
        let id = id.move_to(&channel).map_err(|error| words(&error))?;
        let mut queue = Self::new(id, domain, takes)?;
        let number = queue.get_ready()?;
        let accept = queue.id.accept(&parameters(number, reply));
        accept.map_err(|error| words(&error))?;
        Ok(queue)
    }

    fn new(id: ConnectionId, domain: &Arc<ProtectionDomain>, takes: Takes) -> io::Result<Self> {
        Self::build(id, domain, takes).map_err(|error| words(&error))
    }

    fn build(
        id: ConnectionId,
        domain: &Arc<ProtectionDomain>,
        Takes { receives, access }: Takes,
    ) -> Result<Self, RdmaError> {
        // One place for each request, and for those that are posted again while completions are looked at.
        let capacity = SENDS_MAX as u32 + 2 * receives;
        let completions = CompletionQueue::new(domain.context(), capacity)?;
        let options = QueuePairOptions {
            send_completions: &completions,
            receive_completions: &completions,
            shared_receives: None,
            sends_max: SENDS_MAX as u32,
            receives_max: receives,
            spans_max: 1,
            inline_bytes_max: INLINE_BYTES as u32,
        };
        let pair: QueuePair<Reset> = QueuePair::new(domain, &options)?;
        let mut pair = pair.init(id.to_init(access)?)?;
        let (inbox, inbox_region) = registered(
            domain,
            receives as usize * RECEIVE_BYTES,
            Access::LOCAL_WRITE,
        )?;
        for place in 0..receives {
            pair.post_receive(&ReceiveRequest {
                id: place.into(),
                spans: &[inbox_region.span(place_of(place as usize))?],
            })?;
        }
        Ok(Self {
            pair: Some(Pair::Asking(pair, Instant::now() + CONNECT_TIME)),
            id,
            completions,
            inbox,
            inbox_region,
            polled: vec![],
            unsignalled: 0,
            is_armed: false,
            flushed: None,
            seen: Instant::now(),
        })
    }

    /// Whether it is connected.
    pub(super) const fn is_ready(&self) -> bool {
        matches!(self.pair, Some(Pair::Ready(_)))
    }

    /// Whether it has failed, and has yet to say why.
    pub(super) const fn is_failing(&self) -> bool {
        self.flushed.is_some()
    }

    /// Brings the pair up; returns its number.
    fn get_ready(&mut self) -> io::Result<u32> {
        let Some(Pair::Asking(pair, _)) = self.pair.take() else {
            return Err(invalid("a queue pair is connected twice"));
        };
        let ready = || -> Result<_, RdmaError> {
            let pair = pair.ready_to_receive(self.id.to_ready_to_receive()?)?;
            pair.ready_to_send(self.id.to_ready_to_send()?.with_patience(PATIENCE))
        };
        let pair = ready().map_err(|error| words(&error))?;
        let number = pair.number();
        self.pair = Some(Pair::Ready(pair));
        Ok(number)
    }

    /// What the connection manager says. Private data of the acceptance, once.
    ///
    /// # Errors
    /// The connection is over, or will never be.
    pub(super) fn next_event(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let event = self.id.channel().next_event();
            let Some(event) = event.map_err(|error| words(&error))? else {
                return self.check_time().map(|()| None);
            };
            match event.kind {
                ConnectionEventKind::ConnectResponse => {
                    self.get_ready()?;
                    self.id.establish().map_err(|error| words(&error))?;
                    return Ok(Some(event.private_data));
                }
                ConnectionEventKind::Disconnected => return Err(super::super::closed_by_peer()),
                ConnectionEventKind::Rejected => {
                    return Err(refused(&event.private_data, event.status));
                }
                kind if kind.is_end() => {
                    return Err(io::Error::other(format!(
                        "queue pair: {kind:?} ({})",
                        event.status
                    )));
                }
                _ => {}
            }
        }
    }

    fn check_time(&self) -> io::Result<()> {
        match &self.pair {
            Some(Pair::Asking(_, until)) if Instant::now() > *until => {
                Err(io::ErrorKind::TimedOut.into())
            }
            _ => Ok(()),
        }
    }

    /// Hands over what has come. A request that failed ends the connection.
    ///
    /// # Errors
    /// Why it is over.
    pub(super) fn poll(
        &mut self,
        take: &mut dyn FnMut(Arrival) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let mut polled = std::mem::take(&mut self.polled);
            let count = self.completions.poll(&mut polled);
            let outcome = count.map_err(|error| words(&error)).and_then(|count| {
                for completion in &polled {
                    if completion.is_success() {
                        self.complete(completion, take)?;
                    } else {
                        self.failed(completion.status)?;
                    }
                }
                Ok(count)
            });
            polled.clear();
            self.polled = polled;
            if outcome? == 0 {
                return self.check_flush();
            }
        }
    }

    /// A request has failed. Those that were flushed for it may be told first, and say less.
    fn failed(&mut self, status: CompletionStatus) -> io::Result<()> {
        self.flushed.get_or_insert_with(Instant::now);
        match status {
            CompletionStatus::Flushed => Ok(()),
            status => Err(broken(status)),
        }
    }

    /// Nobody says why.
    fn check_flush(&self) -> io::Result<()> {
        match self.flushed {
            Some(since) if since.elapsed() > REASON_TIME => Err(broken(CompletionStatus::Flushed)),
            _ => Ok(()),
        }
    }

    fn complete(
        &mut self,
        completion: &WorkCompletion,
        take: &mut dyn FnMut(Arrival) -> io::Result<()>,
    ) -> io::Result<()> {
        self.seen = Instant::now();
        let arrival = match completion.operation {
            Some(CompletedOperation::Receive) => {
                let length = (completion.bytes as usize).min(RECEIVE_BYTES);
                let mut bytes = [0; RECEIVE_BYTES];
                let from = place_of(completion.id as usize).start;
                let read = self.inbox.read(from, &mut bytes[..length]);
                read.map_err(|error| words(&error))?;
                Arrival::Message(bytes, length)
            }
            Some(CompletedOperation::ReceiveWriteImmediate) => {
                Arrival::Record(completion.immediate.unwrap_or_default())
            }
            Some(CompletedOperation::Read) if completion.id != UNNAMED => {
                return take(Arrival::Read(completion.id));
            }
            _ => return Ok(()),
        };
        self.post_receive_again(completion.id)?;
        take(arrival)
    }

    fn post_receive_again(&mut self, id: u64) -> io::Result<()> {
        let span = self.inbox_region.span(place_of(id as usize));
        let spans = [span.map_err(|error| words(&error))?];
        let Some(Pair::Ready(pair)) = &mut self.pair else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let posted = pair.post_receive(&ReceiveRequest { id, spans: &spans });
        posted.map_err(|error| words(&error))
    }

    /// Requests that have room in the send queue.
    pub(super) fn room(&self) -> usize {
        match &self.pair {
            Some(Pair::Ready(pair)) if self.flushed.is_none() => {
                SENDS_MAX - pair.sends_outstanding()
            }
            _ => 0,
        }
    }

    /// Posts requests together, in their order. With `tells` the last of them says when it is complete.
    pub(super) fn post(&mut self, requests: &[SendRequest<'_>], tells: bool) -> io::Result<()> {
        let Some(Pair::Ready(pair)) = &mut self.pair else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut batch = pair.send_batch();
        for (index, request) in requests.iter().enumerate() {
            self.unsignalled += 1;
            let is_last = tells && index + 1 == requests.len();
            let mut request = *request;
            if is_last || self.unsignalled >= SIGNAL_EVERY {
                self.unsignalled = 0;
                request = request.signalled();
            }
            batch.push(&request).map_err(|error| words(&error))?;
        }
        batch.post().map_err(|error| words(&error))
    }

    /// Sends a few bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.post(&[SendRequest::send(Payload::Inline(bytes))], true)
    }

    /// Writes nothing to the other end, if that has been quiet: when it is gone, this fails, and all that is under way with it.
    pub(super) fn look_for_peer(&mut self, at: RemoteAddress) -> io::Result<()> {
        if self.seen.elapsed() < QUIET || self.room() == 0 {
            return Ok(());
        }
        self.seen = Instant::now();
        self.post(&[SendRequest::write(Payload::Spans(&[]), at)], true)
    }

    /// Makes the next completion ring.
    pub(super) fn arm(&mut self) -> io::Result<()> {
        if !self.is_armed {
            let armed = self.completions.arm(Notify::All);
            armed.map_err(|error| words(&error))?;
            self.is_armed = true;
        }
        Ok(())
    }

    /// It has rung.
    pub(super) fn take_rings(&mut self) -> io::Result<()> {
        let rings = self.completions.take_events();
        if rings.map_err(|error| words(&error))? > 0 {
            self.is_armed = false;
        }
        Ok(())
    }

    /// Readable when something is complete, or the connection manager has something to say.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        use std::os::fd::AsFd;
        [self.completions.as_fd(), self.id.channel().as_fd()]
    }
}

fn broken(status: CompletionStatus) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("queue pair: {status}"),
    )
}

/// The bytes of a receive.
const fn place_of(place: usize) -> std::ops::Range<usize> {
    place * RECEIVE_BYTES..(place + 1) * RECEIVE_BYTES
}

/// New memory of this process, known to the adapter.
pub(super) fn registered(
    domain: &Arc<ProtectionDomain>,
    bytes: usize,
    access: Access,
) -> Result<(Arc<Buffer>, Arc<MemoryRegion>), RdmaError> {
    let buffer = Buffer::new(bytes).map_err(|source| RdmaError::Create {
        what: "buffer",
        source,
    })?;
    let buffer = Arc::new(buffer);
    let memory = Arc::clone(&buffer) as Arc<dyn RegisteredMemory>;
    let region = MemoryRegion::register(domain, memory, 0..buffer.len(), access)?;
    Ok((buffer, region))
}

const fn parameters(queue_pair: u32, private_data: &[u8]) -> ConnectParameters<'_> {
    ConnectParameters {
        queue_pair,
        shares_receives: false,
        private_data,
        retries: PATIENCE.retries,
        receiver_not_ready_retries: PATIENCE.receiver_not_ready_retries,
    }
}

/// The other end's words, behind which the network puts zeros.
fn refused(private_data: &[u8], status: i32) -> io::Error {
    let said = private_data.split(|byte| *byte == 0).next();
    // For terminals and logs: nothing in it may be a command to these.
    let said = String::from_utf8_lossy(said.unwrap_or_default()).replace(char::is_control, " ");
    let text = match said.is_empty() {
        true => format!("nobody takes queue pairs there ({status})"),
        false => format!("refused: {said}"),
    };
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}
