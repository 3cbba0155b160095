//! What one stream wants to receive: guest pages straight into RAM, then bytes into a worker's
//! buffer, in one call.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use dwcp_wire::PageRange;
use dwcp_wire::limits::FRAME_DATA_PAGES_MAX;

use super::spans::Spans;
use super::{BufferId, Buffers, ReceiveInto};
use crate::ram::RamLayout;

/// A request under way: filled front to back, any number of bytes at a time.
#[derive(Clone, Debug)]
pub(super) struct Inbound {
    buffer: BufferId,
    range: Range<usize>,
    runs: Vec<PageRange>,
    /// Bytes of the runs that are there already.
    skip: usize,
}

impl Inbound {
    /// A request for nothing, whose list of runs is used again and again.
    pub(super) fn new() -> Self {
        Self {
            buffer: BufferId(0),
            range: 0..0,
            runs: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            skip: 0,
        }
    }

    pub(super) fn set(&mut self, wanted: &ReceiveInto<'_>) {
        self.buffer = wanted.buffer;
        self.range = wanted.range.clone();
        self.skip = wanted.placed;
        self.runs.clear();
        self.runs.extend_from_slice(wanted.pages);
    }

    /// The range alone, when no guest pages come before it: for the ring's own read.
    pub(super) fn plain(&self) -> Option<(BufferId, Range<usize>)> {
        let pages_bytes: usize = self.runs.iter().map(PageRange::bytes).sum();
        (self.skip >= pages_bytes).then(|| (self.buffer, self.range.clone()))
    }

    /// Sets `spans` to the memory to fill. Valid while `ram` is mapped and `buffers` live.
    pub(super) fn spans(&self, buffers: &mut Buffers, ram: Option<&RamLayout>, spans: &mut Spans) {
        spans.clear();
        if let Some(ram) = ram {
            spans.add(ram, &self.runs, self.skip);
        }
        if !self.range.is_empty() {
            let base = buffers.address(self.buffer).wrapping_add(self.range.start);
            spans.push(base, self.range.len());
        }
    }
}

/// Reads what is there. `Ok(None)` when nothing is.
pub(super) fn read_spans(socket: BorrowedFd<'_>, spans: &Spans) -> io::Result<Option<usize>> {
    let mut message = spans.message();
    // SAFETY: the pieces are guest RAM, mapped while the caller holds its layout, and one buffer of
    // the caller's arena that nobody else uses while it is asked to be filled; the kernel writes
    // them only during the call.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    match result {
        0 => Err(super::closed_by_peer()),
        bytes if bytes > 0 => Ok(Some(bytes as usize)),
        _ => {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            }
        }
    }
}
