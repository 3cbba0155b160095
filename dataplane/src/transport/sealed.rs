//! TLS over another transport: frames leave sealed, and what comes is opened.
//!
//! ```text
//! send     frame in a buffer --seal--> sealed in a buffer of ours --> transport below
//! receive  transport below --> sealed in a buffer of ours --open--> record --> where it was asked for
//! ```
//! The buffers are the worker's own kind, taken once. A page is copied by the cipher, and once more into
//! the buffer that it was asked for in.
//!
//! Where the kernel takes a stream's keys ([`KernelStream`]) the transport below has it whole: frames and
//! requests go through here as they are.

mod stream;

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use dwcp_simd::{PAGE_BYTES, Page};

use super::{
    BufferId, Buffers, Completion, ReceiveInto, Sealing, SendFrame, SendMethod, Slot, Transport,
    Wait, put,
};
use crate::ram::RamLayout;
use crate::tls::{HandedOver, KernelStream, KernelTls, Sealed, SealedStream, TlsError};
use stream::{Stream, seal_into};

/// TLS over the transport below.
#[derive(Debug)]
pub struct SealedTransport {
    below: Box<dyn Transport>,
    /// What the kernel seals, if it may.
    kernel: Option<KernelTls>,
    ram: Option<Arc<RamLayout>>,
    streams: Vec<Place>,
    /// Buffers of ours that hold nothing.
    free: Vec<BufferId>,
    /// What the transport below says; kept to be filled again.
    done: Vec<Completion>,
}

/// A stream's place.
#[derive(Debug)]
enum Place {
    /// Sealed and opened here.
    Here(Box<Stream>),
    /// Of the transport below alone.
    Below,
}

impl SealedTransport {
    /// Takes half of the buffers of the transport below for what is sealed here. Pages that frames refer to
    /// are of `ram`.
    #[must_use]
    pub fn new(
        mut below: Box<dyn Transport>,
        kernel: Option<KernelTls>,
        ram: Option<Arc<RamLayout>>,
    ) -> Self {
        let buffers = below.buffers();
        let free = (0..buffers.free() / 2).filter_map(|_| buffers.take());
        let free = free.collect();
        Self {
            below,
            kernel,
            ram,
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
        let Some(kernel) = &self.kernel else {
            return self.add_here(socket, sealed, instead_of);
        };
        match KernelStream::hand_over(&socket, sealed, kernel) {
            HandedOver::Kernel(kernel) => {
                self.below.add_kernel(socket, *kernel, instead_of)?;
                self.put(instead_of, Place::Below)
            }
            HandedOver::Kept(sealed, why) => {
                tracing::info!(why, "the kernel does not seal this stream");
                self.add_here(socket, *sealed, instead_of)
            }
            HandedOver::Lost(error) => {
                // A stream that breaks is replaced, and the next one is sealed here.
                tracing::warn!(%error, "the kernel did not take a stream's keys");
                self.kernel = None;
                let slot = self.below.add(socket, instead_of)?;
                self.below.shut(slot, error.into());
                self.put(instead_of, Place::Below)
            }
        }
    }

    fn add_here(
        &mut self,
        socket: TcpStream,
        sealed: SealedStream,
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        self.below.add(socket, instead_of)?;
        let none = || io::Error::other("no buffer for what is sealed");
        let received = match instead_of.and_then(|slot| self.streams.get(slot)) {
            Some(Place::Here(old)) => old.received,
            _ => self.free.pop().ok_or_else(none)?,
        };
        let bytes = sealed.received.len();
        let into = self.below.buffers().bytes_mut(received).get_mut(..bytes);
        into.ok_or_else(none)?.copy_from_slice(&sealed.received);
        let stream = Box::new(Stream::new(sealed, received));
        self.put(instead_of, Place::Here(stream))
    }

    /// Puts a stream in its place, which the transport below has found to be free.
    fn put(&mut self, instead_of: Option<Slot>, place: Place) -> io::Result<Slot> {
        if let (Some(slot), Place::Below) = (instead_of, &place)
            && let Some(Place::Here(old)) = self.streams.get(slot)
        {
            self.free.push(old.received);
        }
        let is_over = |old: &Place| match old {
            Place::Here(stream) => stream.closed,
            Place::Below => true,
        };
        put(&mut self.streams, instead_of, is_over, place)
    }

    /// Copies the pages of a frame behind its head, where they were to be referred to and cannot be.
    fn gather(&mut self, frame: &SendFrame<'_>) -> Range<usize> {
        let bytes = self.below.buffers().bytes_mut(frame.buffer);
        let mut end = frame.head.end;
        for run in frame.pages {
            let Some(ram) = &self.ram else { break };
            let block = &ram.blocks()[run.ram_block as usize];
            for page in run.page..run.page + run.count {
                if let Some(into) = bytes.get_mut(end..).and_then(|b| b.first_chunk_mut()) {
                    let into: &mut Page = into;
                    block.read_page(page, into);
                }
                end += PAGE_BYTES;
            }
        }
        frame.head.start..end
    }

    /// Ends a stream for a reason of this end's; the transport below tells when it has nothing of it.
    fn end(&mut self, slot: Slot, error: io::Error) {
        let Place::Here(stream) = &mut self.streams[slot] else {
            return self.below.shut(slot, error);
        };
        if stream.over {
            return;
        }
        stream.over = true;
        let why = io::Error::new(error.kind(), "ended here");
        stream.why.get_or_insert(error);
        self.below.shut(slot, why);
    }

    /// The transport below has nothing of a stream any more: what was sealed for it is free.
    fn closed(&mut self, slot: Slot, error: io::Error, completions: &mut Vec<Completion>) {
        let Place::Here(stream) = &mut self.streams[slot] else {
            completions.push(Completion::Closed { slot, error });
            return;
        };
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
        let Place::Here(stream) = &mut self.streams[slot] else {
            return;
        };
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
        let Place::Here(stream) = &mut self.streams[slot] else {
            return;
        };
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
            Completion::Sent { slot, .. } => match &mut self.streams[slot] {
                Place::Below => completions.push(done),
                Place::Here(stream) => {
                    if let Some((buffer, sealed)) = stream.leaving.pop_front() {
                        self.free.push(sealed);
                        completions.push(Completion::Sent { slot, buffer });
                    }
                }
            },
            Completion::Received { slot, bytes } => match &mut self.streams[slot] {
                Place::Below => completions.push(done),
                Place::Here(stream) => {
                    stream.asked = false;
                    stream.end += bytes;
                }
            },
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

impl Drop for SealedTransport {
    /// Says on each stream that nothing more will come, where nothing is under way: otherwise its end looks
    /// as if somebody had cut it.
    fn drop(&mut self) {
        for (slot, place) in self.streams.iter_mut().enumerate() {
            let Place::Here(stream) = place else {
                continue;
            };
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
        self.end(slot, why);
    }

    fn buffers(&mut self) -> &mut Buffers {
        self.below.buffers()
    }

    fn send(&mut self, slot: Slot, frame: SendFrame<'_>) {
        if self.sealing(slot) == Sealing::Kernel {
            return self.below.send(slot, frame);
        }
        let range = self.gather(&frame);
        if let Place::Here(stream) = &mut self.streams[slot] {
            stream.waiting.push_back((frame.buffer, range));
        }
    }

    fn receive(&mut self, slot: Slot, wanted: ReceiveInto<'_>) {
        match &mut self.streams[slot] {
            Place::Below => self.below.receive(slot, wanted),
            Place::Here(stream) => {
                debug_assert!(wanted.pages.is_empty(), "sealed pages are opened apart");
                stream.wanted = Some((wanted.buffer, wanted.range));
            }
        }
    }

    fn sealing(&self, slot: Slot) -> Sealing {
        match self.streams.get(slot) {
            Some(Place::Below) => Sealing::Kernel,
            _ => Sealing::Transport,
        }
    }

    fn takes_references(&self) -> bool {
        self.kernel.is_some()
    }

    fn send_method(&self, slot: Slot) -> Option<SendMethod> {
        match &self.streams[slot] {
            Place::Below => self.below.send_method(slot),
            Place::Here(_) => None,
        }
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
