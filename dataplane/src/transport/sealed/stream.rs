//! One stream that the transport seals by itself.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use crate::tls::{Sealed, SealedStream, Session, TlsError, sealed_bytes};
use crate::transport::{BUFFER_BYTES, BufferId, Buffers};

/// A stream whose records the transport seals and opens.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) session: Session,
    /// Sealed bytes that came are at `start..end` of this buffer.
    pub(super) received: BufferId,
    pub(super) start: usize,
    pub(super) end: usize,
    /// A request is under way below.
    pub(super) asked: bool,
    /// Opened, and not all taken yet.
    pub(super) plain: Vec<u8>,
    pub(super) taken: usize,
    pub(super) wanted: Option<(BufferId, Range<usize>)>,
    /// Sealed frames below: the frame's own buffer, and ours.
    pub(super) leaving: VecDeque<(BufferId, BufferId)>,
    /// Frames that wait for a buffer of ours.
    pub(super) waiting: VecDeque<(BufferId, Range<usize>)>,
    pub(super) over: bool,
    /// Why it is over, if not for what the transport below will say.
    pub(super) why: Option<io::Error>,
    /// The transport below has nothing of it any more.
    pub(super) closed: bool,
}

impl Stream {
    /// A stream of whose bytes `sealed` has the first; `received` holds them.
    pub(super) fn new(sealed: SealedStream, received: BufferId) -> Self {
        Self {
            session: sealed.session,
            received,
            start: 0,
            end: sealed.received.len(),
            asked: false,
            plain: sealed.plain,
            taken: 0,
            wanted: None,
            leaving: VecDeque::new(),
            waiting: VecDeque::new(),
            over: false,
            why: None,
            closed: false,
        }
    }

    /// Moves opened bytes to where they are wanted.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
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
    pub(super) fn open(&mut self, buffers: &mut Buffers) -> Result<Sealed, TlsError> {
        let bytes = &mut buffers.bytes_mut(self.received)[self.start..self.end];
        let opened = self.session.open(bytes, &mut self.plain)?;
        self.start += opened.used;
        Ok(opened.what)
    }

    /// Where the next sealed bytes go: behind those that are there, which are moved to the front.
    pub(super) fn room(&mut self, buffers: &mut Buffers) -> Range<usize> {
        let bytes = buffers.bytes_mut(self.received);
        bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.end..BUFFER_BYTES
    }
}

/// Seals `range` of one buffer into another.
pub(super) fn seal_into(
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
