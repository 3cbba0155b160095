//! The system calls by which bytes get into a socket. None of them waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;

use super::spans::Spans;
use crate::ram::RamLayout;

/// `Ok(None)` for a call that would have had to wait.
fn outcome(result: isize) -> io::Result<Option<usize>> {
    if result > 0 {
        return Ok(Some(result as usize));
    }
    if result == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(None),
        io::ErrorKind::Interrupted => Ok(Some(0)),
        _ => Err(error),
    }
}

const fn more_flag(more: bool) -> libc::c_int {
    if more { libc::MSG_MORE } else { 0 }
}

pub(super) fn send_head(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    more: bool,
) -> io::Result<Option<usize>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more_flag(more);
    // SAFETY: `bytes` is readable for the call, which is all the time that the kernel looks at it.
    outcome(unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    })
}

pub(super) fn write_spans(
    socket: BorrowedFd<'_>,
    spans: &Spans,
    more: bool,
) -> io::Result<Option<usize>> {
    let message = spans.message();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more_flag(more);
    // SAFETY: the pieces lie in the mappings of a `RamLayout` that the caller borrows, so they stay
    // mapped during the call; the kernel copies them before it returns.
    outcome(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

pub(super) fn vmsplice_spans(pipe: &OwnedFd, spans: &Spans) -> io::Result<usize> {
    let pieces = spans.pieces();
    // SAFETY: as in `write_spans`; the kernel takes references to the pages, which then live without
    // the mapping.
    let result = unsafe {
        libc::vmsplice(
            pipe.as_raw_fd(),
            pieces.as_ptr(),
            pieces.len(),
            libc::SPLICE_F_NONBLOCK,
        )
    };
    // The pipe is empty: it has room.
    outcome(result)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

pub(super) fn send_file(
    socket: BorrowedFd<'_>,
    ram: &RamLayout,
    run: PageRange,
    skip: usize,
) -> io::Result<Option<usize>> {
    let file: RawFd = ram.blocks()[run.ram_block as usize].as_raw_fd();
    let mut offset = (run.page as usize * PAGE_BYTES + skip) as libc::off_t;
    let bytes = run.bytes() - skip;
    // SAFETY: both descriptors are open, borrowed for the call; `offset` is ours.
    outcome(unsafe { libc::sendfile(socket.as_raw_fd(), file, &raw mut offset, bytes) })
}

/// Whether a kernel says so of what it cannot do, rather than of a socket that is over.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::ENOSYS
                | libc::EOPNOTSUPP
                | libc::EPERM
                | libc::EBADF
                | libc::EMFILE
                | libc::ENFILE
                // References are counted against RLIMIT_MEMLOCK and the socket's option memory.
                | libc::ENOMEM
                | libc::ENOBUFS
        )
    )
}
