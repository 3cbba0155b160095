//! One io_uring per worker, its buffers registered.
//!
//! A stream has one send and one receive under way at most: two sends of one stream in the ring may
//! change places, and a stream's bytes must not.
//!
//! The ring carries what has no guest pages in it (acknowledgements, compressed frames), every
//! receive, and every wait. Guest pages leave by the calls of `outbound.rs`, or by the ring's own zero
//! copy where that copies nothing. A splice stays a call: the ring would hand it to a kernel thread,
//! which costs more than it saves.

mod entry;
mod sends;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use entry::{Answer, Tag, tagged};
use stream::Stream;

use super::experience::Ladders;
use super::outbound::Progress;
use super::poll::drain_bell;
use super::{
    Buffers, Completion, ReceiveInto, SendFrame, SendMethod, Slot, Transport, Wait, closed_by_peer,
    put,
};
use crate::ram::RamLayout;
use crate::tls::KernelStream;

/// Two operations per stream, the bell, and room.
const RING_ENTRIES: u32 = 128;

/// io_uring with registered buffers.
pub struct UringTransport {
    ring: IoUring,
    streams: Vec<Stream>,
    buffers: Buffers,
    ram: Option<Arc<RamLayout>>,
    ladders: Ladders,
    bell: OwnedFd,
    registered: bool,
    has_zero_copy: bool,
    in_kernel: usize,
    backlog: VecDeque<squeue::Entry>,
    /// Taken out of the ring, not yet acted on; kept to be filled again.
    done: Vec<cqueue::Entry>,
}

impl std::fmt::Debug for UringTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringTransport")
            .field("streams", &self.streams.len())
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

impl UringTransport {
    /// A ring over `buffers` and `ram` that watches `bell`, and what had to be given up. To be made
    /// on the worker's own thread: the ring has a single issuer.
    ///
    /// # Errors
    /// When the kernel refuses io_uring.
    pub fn new(
        mut buffers: Buffers,
        ram: Option<Arc<RamLayout>>,
        ladders: Ladders,
        bell: OwnedFd,
    ) -> io::Result<(Self, Vec<String>)> {
        let mut notes = vec![];
        let ring = match IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(RING_ENTRIES)
        {
            Ok(ring) => ring,
            // Kernels before 6.1 know the ring but not these flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(RING_ENTRIES)?,
            Err(error) => return Err(error),
        };
        let regions = buffers.regions();
        let bytes: usize = regions.iter().map(|(_, len)| len).sum();
        let spans: Vec<_> = regions
            .into_iter()
            .map(|(base, len)| libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            })
            .collect();
        // SAFETY: the spans are the transport's own arena, mapped until the ring is gone: `Drop`
        // waits for every operation, and fields drop in order, the ring first.
        let registered = match unsafe { ring.submitter().register_buffers(&spans) } {
            Ok(()) => true,
            Err(error) => {
                notes.push(format!(
                    "buffers are not registered with io_uring ({error}): raise the memlock limit \
                     to {} KiB",
                    bytes / 1024
                ));
                false
            }
        };
        let mut probe = Probe::new();
        let has_zero_copy = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::SendMsgZc::CODE);
        let mut transport = Self {
            ring,
            streams: vec![],
            buffers,
            ram,
            ladders,
            bell,
            registered,
            has_zero_copy,
            in_kernel: 0,
            backlog: VecDeque::new(),
            done: vec![],
        };
        transport.watch_bell();
        Ok((transport, notes))
    }

    /// Ways for pages to leave: zero copy where this kernel's ring has it.
    const fn methods(&self) -> &'static [SendMethod] {
        if self.has_zero_copy {
            &SendMethod::ALL
        } else {
            &SendMethod::BY_CALL
        }
    }

    fn watch_bell(&mut self) {
        let entry = entry::poll(&self.bell, libc::POLLIN);
        self.push(tagged(entry, Tag::Bell, 0));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
    }

    /// Puts as many entries into the ring as it takes.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry names a descriptor that this transport owns and memory that outlives
            // the operation (see `Drop`): a buffer of its arena, or pieces of guest RAM that it
            // holds, listed in a box of the stream's, which changes only between two operations.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
            self.in_kernel += 1;
        }
    }

    fn watch(&mut self, slot: Slot, events: libc::c_short, tag: Tag) {
        let entry = entry::poll(&self.streams[slot].socket, events);
        self.push(tagged(entry, tag, slot));
    }

    /// Hands the stream's request to the ring.
    fn start_receive(&mut self, slot: Slot) {
        let stream = &mut self.streams[slot];
        let entry = if let Some((buffer, range)) = stream.receive.plain() {
            let address = self.buffers.address(buffer).wrapping_add(range.start);
            let registered = self.registered.then_some(buffer.0);
            entry::receive(&stream.socket, address, range.len() as u32, registered)
        } else {
            let ram = self.ram.as_deref();
            stream
                .receive
                .spans(&mut self.buffers, ram, &mut stream.spans);
            entry::receive_spans(&stream.socket, &stream.spans)
        };
        self.push(tagged(entry, Tag::Receive, slot));
    }

    fn complete(&mut self, answer: &Answer, completions: &mut Vec<Completion>) {
        let slot = answer.slot;
        if answer.is_notification {
            if answer.was_copied() {
                self.streams[slot].sends.ladder.copied(SendMethod::ZeroCopy);
            }
            return;
        }
        self.in_kernel -= 1;
        if answer.tag != Tag::Bell && self.streams[slot].closed {
            return self.end_operation(answer, completions);
        }
        match answer.tag {
            Tag::Send => self.complete_send(slot, answer.result, completions),
            Tag::Pages => self.complete_pages(slot, answer.outcome(), completions),
            Tag::Receive => self.complete_receive(slot, answer.result, completions),
            // What goes wrong on the socket is told by the next call on it.
            Tag::Room => self.streams[slot].sending = false,
            Tag::Bytes => self.start_receive(slot),
            Tag::Bell => {
                drain_bell(&self.bell);
                completions.push(Completion::Rung);
                self.watch_bell();
            }
        }
    }

    fn complete_receive(&mut self, slot: Slot, result: i32, completions: &mut Vec<Completion>) {
        if result == -libc::EAGAIN {
            return self.watch(slot, libc::POLLIN, Tag::Bytes);
        }
        let stream = &mut self.streams[slot];
        if result <= 0 {
            let heard = stream.kernel.not_received(&stream.socket, error_of(result));
            let Err(error) = heard else {
                return self.start_receive(slot);
            };
            stream.receiving = false;
            return self.close(slot, error, completions);
        }
        stream.receiving = false;
        completions.push(Completion::Received {
            slot,
            bytes: result as usize,
        });
    }

    fn close(&mut self, slot: Slot, error: io::Error, completions: &mut Vec<Completion>) {
        let error = self.streams[slot].kernel.in_words(error);
        self.shut(slot, error);
        self.tell_end(slot, completions);
    }

    /// An operation of a stream that is over has ended.
    fn end_operation(&mut self, answer: &Answer, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[answer.slot];
        match answer.tag {
            Tag::Receive | Tag::Bytes => stream.receiving = false,
            Tag::Send | Tag::Room | Tag::Pages | Tag::Bell => stream.sending = false,
        }
        self.tell_end(answer.slot, completions);
    }

    /// Tells that a stream is over once nothing of it is under way.
    fn tell_end(&mut self, slot: Slot, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[slot];
        if stream.sending || stream.receiving {
            return;
        }
        if let Some(error) = stream.end.take() {
            completions.push(Completion::Closed { slot, error });
        }
    }

    fn put(
        &mut self,
        (socket, kernel): (TcpStream, Option<KernelStream>),
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        // A splice that must wait waits inside the call, unless the socket says otherwise.
        socket.set_nonblocking(true)?;
        let (place, ram) = ((&socket, kernel.is_some()), self.ram.as_deref());
        let ladder = self.ladders.for_stream(place, ram, self.methods());
        let stream = Stream::new(socket, kernel, ladder);
        put(&mut self.streams, instead_of, Stream::is_over, stream)
    }

    /// Hands over what is queued and lets the kernel post completions, which it does only inside a
    /// call that asks for them.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let outcome = match wait {
            Wait::No => {
                let queue = self.ring.submission();
                if queue.is_empty() && !queue.taskrun() {
                    return Ok(());
                }
                drop(queue);
                let arguments = types::SubmitArgs::new();
                self.ring.submitter().submit_with_args(0, &arguments)
            }
            Wait::Upto(time) => {
                let time = types::Timespec::from(time);
                let arguments = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

/// What a result that is not a number of bytes says.
fn error_of(result: i32) -> io::Error {
    match result {
        0 => closed_by_peer(),
        errno => io::Error::from_raw_os_error(-errno),
    }
}

impl Transport for UringTransport {
    fn name(&self) -> &'static str {
        "tcp-uring"
    }

    fn add(&mut self, stream: TcpStream, instead_of: Option<Slot>) -> io::Result<Slot> {
        self.put((stream, None), instead_of)
    }

    fn add_kernel(
        &mut self,
        stream: TcpStream,
        kernel: KernelStream,
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        self.put((stream, Some(kernel)), instead_of)
    }

    fn shut(&mut self, slot: Slot, why: io::Error) {
        let stream = &mut self.streams[slot];
        if stream.closed {
            return;
        }
        stream.closed = true;
        stream.end = Some(why);
        stream.say_end();
        let _ = stream.socket.shutdown(Shutdown::Both);
    }

    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn send(&mut self, slot: Slot, frame: SendFrame<'_>) {
        let stream = &mut self.streams[slot];
        if !stream.closed
            && let Err(error) = stream.kernel.count_frame(&stream.socket)
        {
            return self.shut(slot, error);
        }
        stream.sends.push(&frame);
    }

    fn receive(&mut self, slot: Slot, wanted: ReceiveInto<'_>) {
        let stream = &mut self.streams[slot];
        if stream.closed {
            return;
        }
        debug_assert!(!stream.receiving);
        stream.receiving = true;
        stream.receive.set(&wanted);
        self.start_receive(slot);
    }

    fn send_method(&self, slot: Slot) -> Option<SendMethod> {
        self.streams[slot].sends.ladder.chosen()
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.progress_sends(completions);
        self.fill();
        let ready = !completions.is_empty() || !self.ring.completion().is_empty();
        self.enter(if ready { Wait::No } else { wait })?;
        let mut done = std::mem::take(&mut self.done);
        done.extend(self.ring.completion());
        for entry in done.drain(..) {
            self.complete(&Answer::of(&entry), completions);
        }
        self.done = done;
        Ok(())
    }
}

impl Drop for UringTransport {
    /// Ends every operation before the buffers go: the kernel must not write into freed memory.
    fn drop(&mut self) {
        self.backlog.clear();
        for stream in &self.streams {
            if !stream.closed {
                stream.say_end();
            }
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
        let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
        let mut tries = 0;
        while self.in_kernel > 0 && tries < 1000 {
            tries += 1;
            if self
                .enter(Wait::Upto(std::time::Duration::from_millis(10)))
                .is_err()
            {
                break;
            }
            // Notifications end nothing: the kernel holds the pages that they are about by itself.
            let ended = |entry: &cqueue::Entry| !Answer::of(entry).is_notification;
            let ended = self.ring.completion().filter(ended).count();
            self.in_kernel = self.in_kernel.saturating_sub(ended);
        }
        if self.in_kernel > 0 {
            self.buffers.keep_from_stock();
        }
    }
}
