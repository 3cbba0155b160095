//! JSON lines with descriptors over a Unix socket: what the synthetic guest and its clients speak.

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest line accepted, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 10;

/// Most descriptors kept until somebody takes them; more are closed at once.
const DESCRIPTORS_MAX: usize = 16;

/// The kernel passes no more descriptors in one message (`SCM_MAX_FD`).
const DESCRIPTORS_PER_MESSAGE_MAX: usize = 253;

/// How much is asked of the kernel at a time, in bytes.
const READ_BYTES: usize = 4 << 10;

/// Shortest socket timeout that the kernel does not take for "forever".
const WAIT_MIN: Duration = Duration::from_millis(1);

/// What one attempt to get a line gave.
#[derive(Debug)]
pub(crate) enum Received {
    /// One line without its end mark.
    Line(Vec<u8>),
    /// The deadline passed first.
    Late,
    /// The peer closed.
    End,
    /// The line has more than [`LINE_BYTES_MAX`] bytes.
    TooLong,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// Sends one line; the descriptors travel with its first byte.
    pub(crate) fn send(
        &self,
        value: &Value,
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> io::Result<()> {
        let mut stream = &self.stream;
        stream.set_write_timeout(Some(timeout.max(WAIT_MIN)))?;
        let line = format!("{value}\n");
        if descriptors.is_empty() {
            return stream.write_all(line.as_bytes());
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let sent = loop {
            let data = [IoSlice::new(line.as_bytes())];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match socket::sendmsg::<()>(stream.as_raw_fd(), &data, &rights, flags, None) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        stream.write_all(&line.as_bytes()[sent..])
    }

    /// Returns the next line, waiting for it until `deadline` at most.
    pub(crate) fn receive(&mut self, deadline: Instant) -> io::Result<Received> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Received::Line(line));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Ok(Received::TooLong);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Received::Late);
            }
            self.stream
                .set_read_timeout(Some((deadline - now).max(WAIT_MIN)))?;
            match self.read_some() {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(Received::End),
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The oldest descriptor that came and was not taken.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Closes what came unasked, so that it is not taken for part of the next command.
    pub(crate) fn drop_descriptors(&mut self) {
        self.descriptors.clear();
    }

    fn read_some(&mut self) -> Result<usize, Errno> {
        let mut bytes = [0; READ_BYTES];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_PER_MESSAGE_MAX]);
        let message = socket::recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            let ControlMessageOwned::ScmRights(raw) = control else {
                continue;
            };
            for fd in raw {
                // SAFETY: the kernel made this descriptor for us in the call above; this is its only
                // owner.
                let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
                if self.descriptors.len() < DESCRIPTORS_MAX {
                    self.descriptors.push_back(descriptor);
                }
            }
        }
        let count = message.bytes;
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}
