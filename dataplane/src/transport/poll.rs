//! The plain path: non-blocking sockets and poll(2). Works everywhere.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::experience::Ladders;
use super::inbound::{Inbound, read_spans};
use super::kernel_seal::KernelSeal;
use super::outbound::{Outbound, Progress};
use super::spans::Spans;
use super::{Buffers, Completion, ReceiveInto, SendFrame, SendMethod, Slot, Transport, Wait, put};
use crate::ram::RamLayout;
use crate::tls::KernelStream;

/// Records that are no data, of one stream, before the others have their turn.
const WORDS_AT_ONCE: usize = 64;

/// Non-blocking sockets and poll(2).
#[derive(Debug)]
pub struct PollTransport {
    buffers: Buffers,
    ram: Option<Arc<RamLayout>>,
    ladders: Ladders,
    bell: OwnedFd,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    socket: TcpStream,
    /// TLS, where the kernel seals.
    kernel: KernelSeal,
    sends: Outbound,
    receive: Inbound,
    receiving: bool,
    closed: bool,
    /// It was ended from here, for this reason, which is still to be told.
    shut: Option<io::Error>,
}

impl PollTransport {
    /// A transport over `buffers` and `ram` that watches `bell`, an eventfd.
    #[must_use]
    pub const fn new(
        buffers: Buffers,
        ram: Option<Arc<RamLayout>>,
        ladders: Ladders,
        bell: OwnedFd,
    ) -> Self {
        Self {
            buffers,
            ram,
            ladders,
            bell,
            streams: vec![],
        }
    }

    /// Does what can be done at once.
    fn progress(&mut self, completions: &mut Vec<Completion>) {
        for (slot, stream) in self.streams.iter_mut().enumerate() {
            if let Some(error) = stream.shut.take() {
                completions.push(Completion::Closed { slot, error });
            }
            if stream.closed {
                continue;
            }
            let ram = self.ram.as_deref();
            let outcome = stream
                .progress_sends(slot, &mut self.buffers, ram, completions)
                .and_then(|()| stream.progress_receive(slot, &mut self.buffers, ram, completions));
            if let Err(error) = outcome {
                stream.closed = true;
                let error = stream.kernel.in_words(error);
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
            wanted.set(PollFlags::POLLIN, stream.receiving);
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
        ram: Option<&RamLayout>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        while let Progress::Sent(buffer) = self.sends.progress(self.socket.as_fd(), buffers, ram)? {
            completions.push(Completion::Sent { slot, buffer });
        }
        Ok(())
    }

    fn progress_receive(
        &mut self,
        slot: Slot,
        buffers: &mut Buffers,
        ram: Option<&RamLayout>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if !self.receiving {
            return Ok(());
        }
        let mut spans = Spans::new();
        self.receive.spans(buffers, ram, &mut spans);
        // Who sends words without end has his turn again when the others had theirs.
        for _ in 0..WORDS_AT_ONCE {
            match read_spans(self.socket.as_fd(), &spans) {
                Ok(None) => return Ok(()),
                Ok(Some(bytes)) => {
                    self.receiving = false;
                    completions.push(Completion::Received { slot, bytes });
                    return Ok(());
                }
                Err(error) => self.kernel.not_received(&self.socket, error)?,
            }
        }
        Ok(())
    }

    /// Says that nothing more will come, where the kernel seals and nothing is under way.
    fn say_end(&self) {
        if self.sends.is_empty() {
            self.kernel.say_end(&self.socket);
        }
    }
}

impl PollTransport {
    fn put(
        &mut self,
        (socket, kernel): (TcpStream, Option<KernelStream>),
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        socket.set_nonblocking(true)?;
        let (place, ram) = ((&socket, kernel.is_some()), self.ram.as_deref());
        let ladder = self.ladders.for_stream(place, ram, &SendMethod::BY_CALL);
        let stream = Stream {
            sends: Outbound::new(ladder, kernel.is_some()),
            socket,
            kernel: kernel.into(),
            receive: Inbound::new(),
            receiving: false,
            closed: false,
            shut: None,
        };
        put(
            &mut self.streams,
            instead_of,
            |old| old.closed && old.shut.is_none(),
            stream,
        )
    }
}

impl Drop for PollTransport {
    fn drop(&mut self) {
        self.streams
            .iter()
            .filter(|stream| !stream.closed)
            .for_each(Stream::say_end);
    }
}

impl Transport for PollTransport {
    fn name(&self) -> &'static str {
        "tcp-poll"
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
        stream.shut = Some(why);
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
        debug_assert!(!stream.receiving || stream.closed);
        stream.receive.set(&wanted);
        stream.receiving = true;
    }

    fn send_method(&self, slot: Slot) -> Option<SendMethod> {
        self.streams[slot].sends.ladder.chosen()
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
