//! The plain path: non-blocking sockets and poll(2). Works everywhere.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{BufferId, Buffers, Completion, Slot, Transport, Wait};

/// Non-blocking sockets and poll(2).
#[derive(Debug)]
pub struct PollTransport {
    buffers: Buffers,
    bell: OwnedFd,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    socket: TcpStream,
    sends: VecDeque<(BufferId, Range<usize>)>,
    receive: Option<(BufferId, Range<usize>)>,
    closed: bool,
}

impl PollTransport {
    /// A transport over `buffers` that watches `bell`, an eventfd.
    #[must_use]
    pub const fn new(buffers: Buffers, bell: OwnedFd) -> Self {
        Self {
            buffers,
            bell,
            streams: vec![],
        }
    }

    /// Does what can be done at once.
    fn progress(&mut self, completions: &mut Vec<Completion>) {
        for (slot, stream) in self.streams.iter_mut().enumerate() {
            if stream.closed {
                continue;
            }
            let outcome = stream
                .progress_sends(slot, &mut self.buffers, completions)
                .and_then(|()| stream.progress_receive(slot, &mut self.buffers, completions));
            if let Err(error) = outcome {
                stream.closed = true;
                let _ = stream.socket.shutdown(Shutdown::Both);
                completions.push(Completion::Closed { slot, error });
            }
        }
    }

    /// Sleeps until a stream or the bell is ready.
    fn sleep(&self, deadline: Instant, completions: &mut Vec<Completion>) -> io::Result<()> {
        let mut watched = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        for stream in self.streams.iter().filter(|stream| !stream.closed) {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, stream.receive.is_some());
            wanted.set(PollFlags::POLLOUT, !stream.sends.is_empty());
            watched.push(PollFd::new(stream.socket.as_fd(), wanted));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis().max(u128::from(!left.is_zero())))
            .unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let rung = watched[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN));
        if rung {
            drain_bell(&self.bell);
            completions.push(Completion::Rung);
        }
        Ok(())
    }
}

/// Resets an eventfd; it is non-blocking, so an empty one is no obstacle.
pub(super) fn drain_bell(bell: &OwnedFd) {
    let mut count = [0; 8];
    let _ = nix::unistd::read(bell, &mut count);
}

impl Stream {
    fn progress_sends(
        &mut self,
        slot: Slot,
        buffers: &mut Buffers,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        while let Some((buffer, range)) = self.sends.front_mut() {
            match self
                .socket
                .write(&buffers.bytes_mut(*buffer)[range.clone()])
            {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => range.start += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if range.start == range.end {
                completions.push(Completion::Sent {
                    slot,
                    buffer: *buffer,
                });
                self.sends.pop_front();
            }
        }
        Ok(())
    }

    fn progress_receive(
        &mut self,
        slot: Slot,
        buffers: &mut Buffers,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let Some((buffer, range)) = self.receive.clone() else {
            return Ok(());
        };
        match self.socket.read(&mut buffers.bytes_mut(buffer)[range]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                self.receive = None;
                completions.push(Completion::Received { slot, bytes });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Transport for PollTransport {
    fn name(&self) -> &'static str {
        "tcp-poll"
    }

    fn add(&mut self, stream: TcpStream) -> io::Result<Slot> {
        stream.set_nonblocking(true)?;
        self.streams.push(Stream {
            socket: stream,
            sends: VecDeque::new(),
            receive: None,
            closed: false,
        });
        Ok(self.streams.len() - 1)
    }

    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn send(&mut self, slot: Slot, buffer: BufferId, range: Range<usize>) {
        self.streams[slot].sends.push_back((buffer, range));
    }

    fn receive(&mut self, slot: Slot, buffer: BufferId, range: Range<usize>) {
        debug_assert!(self.streams[slot].receive.is_none());
        self.streams[slot].receive = Some((buffer, range));
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.progress(completions);
        let Wait::Upto(time) = wait else {
            return Ok(());
        };
        if completions.len() > before {
            return Ok(());
        }
        self.sleep(Instant::now() + time, completions)?;
        self.progress(completions);
        Ok(())
    }
}
