//! Pieces of memory for one system call.

use dwcp_wire::PageRange;
use dwcp_wire::limits::FRAME_DATA_PAGES_MAX;

use crate::ram::RamLayout;

/// Pieces of guest memory for one system call.
#[derive(Debug)]
pub(super) struct Spans {
    pieces: [libc::iovec; FRAME_DATA_PAGES_MAX + 1],
    count: usize,
}

impl Spans {
    pub(super) const fn new() -> Self {
        const NONE: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            pieces: [NONE; FRAME_DATA_PAGES_MAX + 1],
            count: 0,
        }
    }

    /// Adds `runs` from byte `skip` on. The addresses are valid while `ram` is mapped.
    pub(super) fn add(&mut self, ram: &RamLayout, runs: &[PageRange], mut skip: usize) {
        for run in runs {
            let (base, bytes) = ram.blocks()[run.ram_block as usize].span(run.page, run.count);
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            self.push(base.wrapping_add(skip), bytes - skip);
            skip = 0;
        }
    }

    /// Forgets all pieces.
    pub(super) const fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds a piece.
    pub(super) fn push(&mut self, base: *mut u8, bytes: usize) {
        self.pieces[self.count] = libc::iovec {
            iov_base: base.cast(),
            iov_len: bytes,
        };
        self.count += 1;
    }

    pub(super) fn pieces(&self) -> &[libc::iovec] {
        &self.pieces[..self.count]
    }

    /// The pieces as a message; it points to them.
    pub(super) fn message(&self) -> libc::msghdr {
        let pieces = self.pieces();
        // SAFETY: `msghdr` is plain data, all zeros is a message of nothing.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len();
        message
    }
}

/// A message of guest pages for the ring, which looks at it until it answers: it stays where it is.
pub(super) struct Message(Box<(Spans, libc::msghdr)>);

impl Message {
    pub(super) fn new() -> Self {
        let spans = Spans::new();
        let message = spans.message();
        Self(Box::new((spans, message)))
    }

    /// The pieces, to be set while the ring has nothing to do with them.
    pub(super) fn spans_mut(&mut self) -> &mut Spans {
        &mut self.0.0
    }

    /// Makes it a message of its pieces.
    pub(super) fn seal(&mut self) {
        let message = self.0.0.message();
        self.0.1 = message;
    }

    pub(super) fn address(&self) -> *const libc::msghdr {
        &raw const self.0.1
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Message").field(&self.0.0).finish()
    }
}
