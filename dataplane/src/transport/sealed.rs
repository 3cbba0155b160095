//! TLS over another transport: frames leave sealed, and what comes is opened.
//!
//! ```text
//! send     frame in a buffer --seal--> sealed in a buffer of ours --> transport below
//! receive  transport below --> sealed in a buffer of ours --open--> record --> where it was asked for
//! ```
//! The buffers are the worker's own kind, taken once. A page is copied by the cipher, and once more into
//! the buffer that it was asked for in.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::ops::Range;

use super::{
    BUFFER_BYTES, BufferId, Buffers, Completion, ReceiveInto, SendFrame, SendMethod, Slot,
    Transport, Wait, put,
};
use crate::tls::{Sealed, SealedStream, Session, TlsError, sealed_bytes};

/// TLS over the transport below.
#[derive(Debug)]
pub struct SealedTransport {
    below: Box<dyn Transport>,
    streams: Vec<Stream>,
    /// Buffers of ours that hold nothing.
    free: Vec<BufferId>,
    /// What the transport below says; kept to be filled again.
    done: Vec<Completion>,
}

#[derive(Debug)]
struct Stream {
    session: Session,
    /// Sealed bytes that came are at `start..end` of this buffer.
    received: BufferId,
    start: usize,
    end: usize,
    /// A request is under way below.
    asked: bool,
    /// Opened, and not all taken yet.
    plain: Vec<u8>,
    taken: usize,
    wanted: Option<(BufferId, Range<usize>)>,
    /// Sealed frames below: the frame's own buffer, and ours.
    leaving: VecDeque<(BufferId, BufferId)>,
    /// Frames that wait for a buffer of ours.
    waiting: VecDeque<(BufferId, Range<usize>)>,
    over: bool,
    /// Why it is over, if not for what the transport below will say.
    why: Option<io::Error>,
    /// The transport below has nothing of it any more.
    closed: bool,
}

impl SealedTransport {
    /// Takes half of the buffers of the transport below for what is sealed.
    #[must_use]
    pub fn new(mut below: Box<dyn Transport>) -> Self {
        let buffers = below.buffers();
        let free = (0..buffers.free() / 2).filter_map(|_| buffers.take());
        let free = free.collect();
        Self {
            below,
            streams: vec![],
            free,
            done: Vec::with_capacity(64),
        }
    }

    fn add_stream(
        &mut self,
        socket: TcpStream,
        sealed: SealedStream,
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        self.below.add(socket, instead_of)?;
        let none = || io::Error::other("no buffer for what is sealed");
        let received = match instead_of.and_then(|slot| self.streams.get(slot)) {
            Some(old) => old.received,
            None => self.free.pop().ok_or_else(none)?,
        };
        let bytes = sealed.received.len();
        let into = self.below.buffers().bytes_mut(received).get_mut(..bytes);
        into.ok_or_else(none)?.copy_from_slice(&sealed.received);
        let stream = Stream {
            session: sealed.session,
            received,
            start: 0,
            end: bytes,
            asked: false,
            plain: sealed.plain,
            taken: 0,
            wanted: None,
            leaving: VecDeque::new(),
            waiting: VecDeque::new(),
            over: false,
            why: None,
            closed: false,
        };
        put(&mut self.streams, instead_of, |old| old.closed, stream)
    }

    /// Ends a stream for a reason of this end's; the transport below tells when it has nothing of it.
    fn end(&mut self, slot: Slot, error: io::Error) {
        let stream = &mut self.streams[slot];
        stream.over = true;
        let why = io::Error::new(error.kind(), "ended here");
        stream.why.get_or_insert(error);
        self.below.shut(slot, why);
    }

    /// The transport below has nothing of a stream any more: what was sealed for it is free.
    fn closed(&mut self, slot: Slot, error: io::Error, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[slot];
        stream.over = true;
        stream.closed = true;
        stream.waiting.clear();
        self.free
            .extend(stream.leaving.drain(..).map(|(_, sealed)| sealed));
        let error = match (stream.why.take(), error.kind()) {
            (Some(error), _) => error,
            // It would have said so by a record.
            (None, io::ErrorKind::UnexpectedEof) => TlsError::Cut.into(),
            (None, _) => error,
        };
        completions.push(Completion::Closed { slot, error });
    }

    /// Seals what waits, as far as there are buffers.
    fn seal(&mut self, slot: Slot) {
        let stream = &mut self.streams[slot];
        while !stream.over
            && let Some((buffer, _)) = stream.waiting.front()
            && let Some(sealed) = self.free.pop()
        {
            let buffer = *buffer;
            let range = stream.waiting.pop_front().map_or(0..0, |(_, range)| range);
            let buffers = self.below.buffers();
            match seal_into(&mut stream.session, buffers, buffer, &range, sealed) {
                Ok(bytes) => {
                    stream.leaving.push_back((buffer, sealed));
                    self.below.send(slot, SendFrame::alone(sealed, 0..bytes));
                }
                Err(error) => {
                    self.free.push(sealed);
                    return self.end(slot, error.into());
                }
            }
        }
    }

    /// Gives a stream's reader what there is, or asks below for more.
    fn serve(&mut self, slot: Slot, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[slot];
        let Some((buffer, range)) = stream.wanted.clone().filter(|_| !stream.over) else {
            return;
        };
        let buffers = self.below.buffers();
        let mut given = 0;
        while given < range.len() {
            let into = &mut buffers.bytes_mut(buffer)[range.start + given..range.end];
            let taken = stream.take(into);
            given += taken;
            if taken > 0 {
                continue;
            }
            match stream.open(buffers) {
                Ok(Sealed::Record | Sealed::Answer) => {}
                Ok(Sealed::Part) => break,
                // What came before the end is told first.
                Ok(Sealed::End) if given > 0 => break,
                Ok(Sealed::End) => return self.end(slot, super::closed_by_peer()),
                Err(error) => return self.end(slot, error.into()),
            }
        }
        if given > 0 {
            stream.wanted = None;
            completions.push(Completion::Received { slot, bytes: given });
        } else if !stream.asked {
            stream.asked = true;
            let range = stream.room(buffers);
            let wanted = ReceiveInto::buffer(stream.received, range);
            self.below.receive(slot, wanted);
        }
    }

    fn complete(&mut self, done: Completion, completions: &mut Vec<Completion>) {
        match done {
            Completion::Sent { slot, .. } => {
                if let Some((buffer, sealed)) = self.streams[slot].leaving.pop_front() {
                    self.free.push(sealed);
                    completions.push(Completion::Sent { slot, buffer });
                }
            }
            Completion::Received { slot, bytes } => {
                let stream = &mut self.streams[slot];
                stream.asked = false;
                stream.end += bytes;
            }
            Completion::Closed { slot, error } => self.closed(slot, error, completions),
            Completion::Rung => completions.push(Completion::Rung),
        }
    }

    fn go_on(&mut self, completions: &mut Vec<Completion>) {
        for slot in 0..self.streams.len() {
            self.seal(slot);
            self.serve(slot, completions);
        }
    }
}

fn seal_into(
    session: &mut Session,
    buffers: &mut Buffers,
    buffer: BufferId,
    range: &Range<usize>,
    sealed: BufferId,
) -> Result<usize, TlsError> {
    let (plain, into) = buffers
        .pair_mut(buffer, sealed)
        .ok_or_else(|| TlsError::NoRoom(sealed_bytes(range.len())))?;
    session.seal(&plain[range.clone()], into)
}

impl Stream {
    /// Moves opened bytes to where they are wanted.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let ready = &self.plain[self.taken..];
        let count = ready.len().min(into.len());
        into[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
        count
    }

    /// Opens the next record.
    fn open(&mut self, buffers: &mut Buffers) -> Result<Sealed, TlsError> {
        let bytes = &mut buffers.bytes_mut(self.received)[self.start..self.end];
        let opened = self.session.open(bytes, &mut self.plain)?;
        self.start += opened.used;
        Ok(opened.what)
    }

    /// Where the next sealed bytes go: behind those that are there, which are moved to the front.
    fn room(&mut self, buffers: &mut Buffers) -> Range<usize> {
        let bytes = buffers.bytes_mut(self.received);
        bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.end..BUFFER_BYTES
    }
}

impl Drop for SealedTransport {
    /// Says on each stream that nothing more will come, where nothing is under way: otherwise its end looks
    /// as if somebody had cut it.
    fn drop(&mut self) {
        for (slot, stream) in self.streams.iter_mut().enumerate() {
            if stream.over || !stream.leaving.is_empty() || !stream.waiting.is_empty() {
                continue;
            }
            let Some(sealed) = self.free.pop() else {
                break;
            };
            let bytes = self.below.buffers().bytes_mut(sealed);
            if let Ok(bytes) = stream.session.seal_end(bytes) {
                self.below.send(slot, SendFrame::alone(sealed, 0..bytes));
            }
        }
        let _ = self.below.wait(Wait::No, &mut self.done);
    }
}

impl Transport for SealedTransport {
    fn name(&self) -> &'static str {
        self.below.name()
    }

    fn add(&mut self, _: TcpStream, _: Option<Slot>) -> io::Result<Slot> {
        Err(io::Error::other("a stream without TLS among those with it"))
    }

    fn add_sealed(
        &mut self,
        socket: TcpStream,
        sealed: SealedStream,
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        self.add_stream(socket, sealed, instead_of)
    }

    fn shut(&mut self, slot: Slot, why: io::Error) {
        if !self.streams[slot].over {
            self.end(slot, why);
        }
    }

    fn buffers(&mut self) -> &mut Buffers {
        self.below.buffers()
    }

    fn send(&mut self, slot: Slot, frame: SendFrame<'_>) {
        debug_assert!(frame.pages.is_empty(), "sealed pages are copied first");
        self.streams[slot]
            .waiting
            .push_back((frame.buffer, frame.head));
    }

    fn receive(&mut self, slot: Slot, wanted: ReceiveInto<'_>) {
        debug_assert!(wanted.pages.is_empty(), "sealed pages are opened apart");
        self.streams[slot].wanted = Some((wanted.buffer, wanted.range));
    }

    fn send_method(&self, _: Slot) -> Option<SendMethod> {
        None
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.go_on(completions);
        let ready = completions.len() > before;
        let mut done = std::mem::take(&mut self.done);
        let waited = self
            .below
            .wait(if ready { Wait::No } else { wait }, &mut done);
        for one in done.drain(..) {
            self.complete(one, completions);
        }
        self.done = done;
        waited?;
        self.go_on(completions);
        Ok(())
    }
}
