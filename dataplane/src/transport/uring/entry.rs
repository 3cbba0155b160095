//! What is asked of the ring, and how its answers are told apart.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, squeue, types};

use crate::transport::Slot;
use crate::transport::spans::{Message, Spans};

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel copied.
const REPORT_USAGE: u16 = 1 << 3;

/// `IORING_NOTIF_USAGE_ZC_COPIED`: it did.
const COPIED: i32 = i32::MIN;

/// What completed. In the upper half of `user_data`; the stream is in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Send,
    Receive,
    Bell,
    /// Room in a socket, for what is sent without the ring.
    Room,
    /// Bytes in a socket, on kernels where the ring does not wait for a non-blocking one.
    Bytes,
    /// Guest pages by reference. Answered twice: when the socket has them, and when it needs them no
    /// more.
    Pages,
}

const TAGS: [Tag; 6] = [
    Tag::Send,
    Tag::Receive,
    Tag::Bell,
    Tag::Room,
    Tag::Bytes,
    Tag::Pages,
];

/// What the ring answers.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) tag: Tag,
    pub(super) slot: Slot,
    pub(super) result: i32,
    /// The second answer for pages, which ends no operation.
    pub(super) is_notification: bool,
}

impl Answer {
    pub(super) fn of(entry: &cqueue::Entry) -> Self {
        let data = entry.user_data();
        Self {
            tag: TAGS[(data >> 32) as usize % TAGS.len()],
            slot: (data & u64::from(u32::MAX)) as Slot,
            result: entry.result(),
            is_notification: cqueue::notif(entry.flags()),
        }
    }

    /// Whether the kernel copied the pages that it was to send by reference.
    pub(super) const fn was_copied(&self) -> bool {
        self.is_notification && self.result & COPIED != 0
    }

    /// Bytes, or the error.
    pub(super) fn outcome(&self) -> io::Result<usize> {
        match self.result {
            bytes if bytes >= 0 => Ok(bytes as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

pub(super) fn tagged(entry: squeue::Entry, tag: Tag, slot: Slot) -> squeue::Entry {
    entry.user_data((tag as u64) << 32 | slot as u64)
}

/// Waits for `events` of a descriptor.
pub(super) fn poll(descriptor: &impl AsRawFd, events: libc::c_short) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), events as u32).build()
}

/// Sends bytes of a buffer, registered under the index if there is one.
pub(super) fn send(
    socket: &TcpStream,
    address: *const u8,
    bytes: u32,
    registered: Option<u16>,
) -> squeue::Entry {
    let socket = types::Fd(socket.as_raw_fd());
    match registered {
        Some(index) => opcode::WriteFixed::new(socket, address, bytes, index).build(),
        None => opcode::Send::new(socket, address, bytes)
            .flags(libc::MSG_NOSIGNAL)
            .build(),
    }
}

/// Sends the pages of a message by reference.
pub(super) fn send_pages(socket: &TcpStream, message: &Message, more: bool) -> squeue::Entry {
    let more = if more { libc::MSG_MORE } else { 0 };
    opcode::SendMsgZc::new(types::Fd(socket.as_raw_fd()), message.address())
        .ioprio(REPORT_USAGE)
        .flags((libc::MSG_NOSIGNAL | more) as u32)
        .build()
}

/// Receives into a buffer, registered under the index if there is one.
pub(super) fn receive(
    socket: &TcpStream,
    address: *mut u8,
    bytes: u32,
    registered: Option<u16>,
) -> squeue::Entry {
    let socket = types::Fd(socket.as_raw_fd());
    match registered {
        Some(index) => opcode::ReadFixed::new(socket, address, bytes, index).build(),
        None => opcode::Recv::new(socket, address, bytes).build(),
    }
}

/// Receives into pieces of memory.
pub(super) fn receive_spans(socket: &TcpStream, spans: &Spans) -> squeue::Entry {
    let (socket, pieces) = (types::Fd(socket.as_raw_fd()), spans.pieces());
    opcode::Readv::new(socket, pieces.as_ptr(), pieces.len() as u32).build()
}
