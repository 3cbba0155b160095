//! What one stream has to send: frames in order, each a head in a worker's buffer and runs of guest
//! pages behind it.
//!
//! The head is copied into the socket. The pages go by one of the [`SendMethod`]s; none of them makes
//! a copy of our own, so the bytes that leave are those of the moment the kernel reads them, which
//! may be later than the fingerprint in the head. The destination compares (ADR 0010).
//!
//! Every call is non-blocking, so the poll path and the ring share this file; they differ in how they
//! wait for room.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;
use dwcp_wire::limits::FRAME_DATA_PAGES_MAX;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};

use super::calls::{is_unsupported, send_file, send_head, vmsplice_spans, write_spans};
use super::ladder::{Ladder, Moment};
use super::spans::Spans;
use super::{BufferId, Buffers, SendFrame, SendMethod};
use crate::ram::RamLayout;

/// A frame on its way.
#[derive(Debug)]
struct Frame {
    buffer: BufferId,
    head: Range<usize>,
    runs: Vec<PageRange>,
    /// Another frame follows.
    more: bool,
    /// The end of this one may wait for it in the socket.
    may_wait: bool,
    /// Bytes of the runs that the socket, or the pipe, has taken.
    taken_bytes: usize,
    /// Set when its first page leaves.
    method: Option<SendMethod>,
}

impl Frame {
    fn page_bytes(&self) -> usize {
        self.runs.iter().map(PageRange::bytes).sum()
    }
}

/// What an attempt to send came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The frame is in the kernel's hands, its buffer free.
    Sent(BufferId),
    /// Its pages are to leave by the ring: [`Outbound::pages_for_ring`].
    ByRing,
    /// The socket has no room.
    Blocked,
    /// Nothing is queued.
    Idle,
}

/// The queue of a stream.
#[derive(Debug)]
pub(super) struct Outbound {
    frames: VecDeque<Frame>,
    /// Emptied lists of runs, to be filled again: nothing is allocated once a stream is under way.
    spare_runs: Vec<Vec<PageRange>>,
    pipe: Option<Pipe>,
    /// The socket seals records: it would keep the end of one that is to be continued for as long as nothing
    /// continues it, and what is acknowledged are whole frames.
    is_sealed: bool,
    pub(super) ladder: Ladder,
}

/// Bytes of guest pages in a frame at most.
const FRAME_DATA_BYTES_MAX: usize = FRAME_DATA_PAGES_MAX * PAGE_BYTES;

/// A pipe that carries references to pages from `vmsplice` to `splice`.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// In it, on their way to the socket.
    bytes: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A frame's pages take a slot each. A smaller pipe, where that is not allowed, needs more turns.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(FRAME_DATA_BYTES_MAX as i32));
        Ok(Self {
            read,
            write,
            bytes: 0,
        })
    }
}

impl Outbound {
    pub(super) fn new(ladder: Ladder, is_sealed: bool) -> Self {
        Self {
            frames: VecDeque::new(),
            spare_runs: vec![],
            pipe: None,
            is_sealed,
            ladder,
        }
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, frame: &SendFrame<'_>) {
        let mut kept = self
            .spare_runs
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(FRAME_DATA_PAGES_MAX));
        kept.clear();
        kept.extend_from_slice(frame.pages);
        self.frames.push_back(Frame {
            buffer: frame.buffer,
            head: frame.head.clone(),
            runs: kept,
            more: frame.more,
            may_wait: frame.more && !self.is_sealed,
            taken_bytes: 0,
            method: None,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The rest of the front frame, when no guest pages follow its head: for the ring's own write.
    pub(super) fn plain_front(&self) -> Option<(BufferId, Range<usize>)> {
        let front = self.frames.front()?;
        (front.runs.is_empty()).then(|| (front.buffer, front.head.clone()))
    }

    /// Notes that `bytes` of the plain front frame were sent. Returns its buffer when that was all.
    pub(super) fn plain_sent(&mut self, bytes: usize) -> Option<BufferId> {
        let front = self.frames.front_mut()?;
        front.head.start += bytes;
        front.head.is_empty().then(|| self.pop())?
    }

    fn pop(&mut self) -> Option<BufferId> {
        let frame = self.frames.pop_front()?;
        if !frame.more {
            self.ladder.paused();
        }
        self.spare_runs.push(frame.runs);
        Some(frame.buffer)
    }

    /// Sends as much of the front frame as the socket takes.
    ///
    /// # Errors
    /// The socket's: the stream is over.
    pub(super) fn progress(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: &mut Buffers,
        ram: Option<&RamLayout>,
    ) -> io::Result<Progress> {
        let Some(frame) = self.frames.front_mut() else {
            return Ok(Progress::Idle);
        };
        while !frame.head.is_empty() {
            let more = frame.may_wait || !frame.runs.is_empty();
            let bytes = &buffers.bytes_mut(frame.buffer)[frame.head.clone()];
            match send_head(socket, bytes, more)? {
                None => return Ok(Progress::Blocked),
                Some(sent) => frame.head.start += sent,
            }
        }
        let total = frame.page_bytes();
        let method = *frame.method.get_or_insert_with(|| self.ladder.method());
        if method == SendMethod::ZeroCopy && total > 0 {
            return Ok(Progress::ByRing);
        }
        match send_pages(frame, method, &mut self.pipe, socket, ram) {
            Ok(true) => Ok(self.left(method, total)),
            Ok(false) => Ok(Progress::Blocked),
            // The kernel does not do it on this socket or this memory: the next rung goes on.
            Err(error) if is_unsupported(&error) && method != SendMethod::Write => {
                self.refused(method, &error);
                self.progress(socket, buffers, ram)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that the front frame is out.
    fn left(&mut self, method: SendMethod, total: usize) -> Progress {
        if self.ladder.is_probing() && total > 0 {
            self.ladder.left(method, total, Moment::now());
        }
        self.pop().map_or(Progress::Idle, Progress::Sent)
    }

    /// Notes that the front frame's pages cannot leave this way: the next method begins where it ended.
    fn refused(&mut self, method: SendMethod, error: &io::Error) {
        self.ladder.refused(method, error);
        // References that the socket did not take are given back.
        let back = self.pipe.take().map_or(0, |pipe| pipe.bytes);
        if let Some(frame) = self.frames.front_mut() {
            frame.taken_bytes -= back;
            frame.method = None;
        }
    }

    /// Sets `spans` to what is left of the front frame's pages. Returns whether more bytes will follow.
    pub(super) fn pages_for_ring(&self, ram: &RamLayout, spans: &mut Spans) -> bool {
        spans.clear();
        let Some(frame) = self.frames.front() else {
            return false;
        };
        spans.add(ram, &frame.runs, frame.taken_bytes);
        frame.more
    }

    /// Notes what the ring says of the front frame's pages: bytes taken, or an error.
    ///
    /// # Errors
    /// The socket's: the stream is over.
    pub(super) fn ring_took(&mut self, outcome: io::Result<usize>) -> io::Result<Progress> {
        let Some(frame) = self.frames.front_mut() else {
            return Ok(Progress::Idle);
        };
        match outcome {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                frame.taken_bytes += bytes;
                let total = frame.page_bytes();
                if frame.taken_bytes < total {
                    return Ok(Progress::ByRing);
                }
                Ok(self.left(SendMethod::ZeroCopy, total))
            }
            Err(error) if is_unsupported(&error) => {
                self.refused(SendMethod::ZeroCopy, &error);
                Ok(Progress::Idle)
            }
            Err(error) => Err(error),
        }
    }
}

/// Sends a frame's pages. Returns whether all of them are out.
fn send_pages(
    frame: &mut Frame,
    method: SendMethod,
    pipe: &mut Option<Pipe>,
    socket: BorrowedFd<'_>,
    ram: Option<&RamLayout>,
) -> io::Result<bool> {
    let total = frame.page_bytes();
    let Some(ram) = ram.filter(|_| total > 0) else {
        return Ok(true);
    };
    match method {
        SendMethod::Write => {
            while frame.taken_bytes < total {
                let mut spans = Spans::new();
                spans.add(ram, &frame.runs, frame.taken_bytes);
                match write_spans(socket, &spans, frame.may_wait)? {
                    None => return Ok(false),
                    Some(bytes) => frame.taken_bytes += bytes,
                }
            }
            Ok(true)
        }
        SendMethod::Sendfile => {
            while frame.taken_bytes < total {
                let Some((run, skip)) = at(&frame.runs, frame.taken_bytes) else {
                    break;
                };
                match send_file(socket, ram, run, skip)? {
                    None => return Ok(false),
                    Some(bytes) => frame.taken_bytes += bytes,
                }
            }
            Ok(true)
        }
        // The ring's: never asked for here.
        SendMethod::ZeroCopy => Err(io::ErrorKind::Unsupported.into()),
        SendMethod::Vmsplice => {
            let pipe = match pipe {
                Some(pipe) => pipe,
                None => pipe.insert(Pipe::new()?),
            };
            send_by_pipe(frame, pipe, socket, ram, total)
        }
    }
}

/// Fills the pipe with references and empties it into the socket, in turns.
fn send_by_pipe(
    frame: &mut Frame,
    pipe: &mut Pipe,
    socket: BorrowedFd<'_>,
    ram: &RamLayout,
    total: usize,
) -> io::Result<bool> {
    loop {
        if pipe.bytes == 0 {
            if frame.taken_bytes == total {
                return Ok(true);
            }
            let mut spans = Spans::new();
            spans.add(ram, &frame.runs, frame.taken_bytes);
            let bytes = vmsplice_spans(&pipe.write, &spans)?;
            frame.taken_bytes += bytes;
            pipe.bytes = bytes;
        }
        let mut flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        // More follows: no short segment yet.
        let more = frame.may_wait || frame.taken_bytes < total;
        flags.set(SpliceFFlags::SPLICE_F_MORE, more);
        match splice(&pipe.read, None, socket, None, pipe.bytes, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => pipe.bytes -= bytes,
            Err(nix::errno::Errno::EAGAIN) => return Ok(false),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The run that byte `offset` of `runs` lies in, and the bytes before it in that run.
fn at(runs: &[PageRange], mut offset: usize) -> Option<(PageRange, usize)> {
    for run in runs {
        let bytes = run.bytes();
        if offset < bytes {
            return Some((*run, offset));
        }
        offset -= bytes;
    }
    None
}
