//! One io_uring per worker, its buffers registered.
//!
//! A stream has one send and one receive under way at most: two sends of one stream in the ring may
//! change places, and a stream's bytes must not.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::poll::drain_bell;
use super::{BufferId, Buffers, Completion, Slot, Transport, Wait};

/// Two operations per stream, the bell, and room.
const RING_ENTRIES: u32 = 128;

/// `user_data`: what completed, and for which stream.
#[derive(Clone, Copy)]
enum Tag {
    Send = 1,
    Receive = 2,
    Bell = 3,
}

const fn user_data(tag: Tag, slot: Slot) -> u64 {
    (tag as u64) << 32 | slot as u64
}

/// io_uring with registered buffers.
pub struct UringTransport {
    ring: IoUring,
    streams: Vec<Stream>,
    buffers: Buffers,
    bell: OwnedFd,
    registered: bool,
    in_kernel: usize,
    backlog: VecDeque<squeue::Entry>,
}

#[derive(Debug)]
struct Stream {
    socket: TcpStream,
    sends: VecDeque<(BufferId, Range<usize>)>,
    sending: bool,
    receive: Option<(BufferId, Range<usize>)>,
    closed: bool,
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
    /// A ring over `buffers` that watches `bell`, and what had to be given up. To be made on the
    /// worker's own thread: the ring has a single issuer.
    ///
    /// # Errors
    /// When the kernel refuses io_uring.
    pub fn new(mut buffers: Buffers, bell: OwnedFd) -> io::Result<(Self, Vec<String>)> {
        let mut notes = vec![];
        let ring = match IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
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
        let mut transport = Self {
            ring,
            streams: vec![],
            buffers,
            bell,
            registered,
            in_kernel: 0,
            backlog: VecDeque::new(),
        };
        transport.watch_bell();
        Ok((transport, notes))
    }

    fn watch_bell(&mut self) {
        let bell = types::Fd(self.bell.as_raw_fd());
        let entry = opcode::PollAdd::new(bell, libc::POLLIN as u32).build();
        self.push(entry.user_data(user_data(Tag::Bell, 0)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
    }

    /// Puts as many entries into the ring as it takes.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry names a buffer of this transport's arena, which outlives the
            // operation (see `Drop`), and a descriptor that this transport owns.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
            self.in_kernel += 1;
        }
    }

    fn start_send(&mut self, slot: Slot) {
        let stream = &mut self.streams[slot];
        if stream.sending || stream.closed {
            return;
        }
        let Some((buffer, range)) = stream.sends.front().cloned() else {
            return;
        };
        stream.sending = true;
        let socket = types::Fd(stream.socket.as_raw_fd());
        let address = self
            .buffers
            .address(buffer)
            .wrapping_add(range.start)
            .cast_const();
        let bytes = range.len() as u32;
        let entry = if self.registered {
            opcode::WriteFixed::new(socket, address, bytes, buffer.0).build()
        } else {
            opcode::Send::new(socket, address, bytes)
                .flags(libc::MSG_NOSIGNAL)
                .build()
        };
        self.push(entry.user_data(user_data(Tag::Send, slot)));
    }

    fn complete(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        self.in_kernel -= 1;
        let data = entry.user_data();
        let slot = (data & u64::from(u32::MAX)) as Slot;
        match data >> 32 {
            tag if tag == Tag::Send as u64 => self.complete_send(slot, entry.result(), completions),
            tag if tag == Tag::Receive as u64 => {
                self.complete_receive(slot, entry.result(), completions);
            }
            _ => {
                drain_bell(&self.bell);
                completions.push(Completion::Rung);
                self.watch_bell();
            }
        }
    }

    fn complete_send(&mut self, slot: Slot, result: i32, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[slot];
        stream.sending = false;
        if result <= 0 {
            return self.close(slot, result, completions);
        }
        if let Some((buffer, range)) = stream.sends.front_mut() {
            range.start += result as usize;
            if range.start == range.end {
                completions.push(Completion::Sent {
                    slot,
                    buffer: *buffer,
                });
                stream.sends.pop_front();
            }
        }
        self.start_send(slot);
    }

    fn complete_receive(&mut self, slot: Slot, result: i32, completions: &mut Vec<Completion>) {
        self.streams[slot].receive = None;
        if result <= 0 {
            return self.close(slot, result, completions);
        }
        completions.push(Completion::Received {
            slot,
            bytes: result as usize,
        });
    }

    fn close(&mut self, slot: Slot, result: i32, completions: &mut Vec<Completion>) {
        let stream = &mut self.streams[slot];
        if stream.closed {
            return;
        }
        stream.closed = true;
        let _ = stream.socket.shutdown(Shutdown::Both);
        let error = if result == 0 {
            io::ErrorKind::UnexpectedEof.into()
        } else {
            io::Error::from_raw_os_error(-result)
        };
        completions.push(Completion::Closed { slot, error });
    }

    fn enter(&self, wait: Wait) -> io::Result<()> {
        let outcome = match wait {
            Wait::No => self.ring.submit(),
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

impl Transport for UringTransport {
    fn name(&self) -> &'static str {
        "tcp-uring"
    }

    fn add(&mut self, stream: TcpStream) -> io::Result<Slot> {
        // A non-blocking socket would answer EAGAIN instead of letting the ring wait for it.
        stream.set_nonblocking(false)?;
        self.streams.push(Stream {
            socket: stream,
            sends: VecDeque::new(),
            sending: false,
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
        self.start_send(slot);
    }

    fn receive(&mut self, slot: Slot, buffer: BufferId, range: Range<usize>) {
        let stream = &mut self.streams[slot];
        if stream.closed {
            return;
        }
        debug_assert!(stream.receive.is_none());
        let socket = types::Fd(stream.socket.as_raw_fd());
        let address = self.buffers.address(buffer).wrapping_add(range.start);
        let bytes = range.len() as u32;
        let entry = if self.registered {
            opcode::ReadFixed::new(socket, address, bytes, buffer.0).build()
        } else {
            opcode::Recv::new(socket, address, bytes).build()
        };
        stream.receive = Some((buffer, range));
        self.push(entry.user_data(user_data(Tag::Receive, slot)));
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.fill();
        let ready = !self.ring.completion().is_empty();
        self.enter(if ready { Wait::No } else { wait })?;
        let entries: Vec<_> = self.ring.completion().collect();
        for entry in &entries {
            self.complete(entry, completions);
        }
        Ok(())
    }
}

impl Drop for UringTransport {
    /// Ends every operation before the buffers go: the kernel must not write into freed memory.
    fn drop(&mut self) {
        self.backlog.clear();
        for stream in &self.streams {
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
            let done = self.ring.completion().count();
            self.in_kernel = self.in_kernel.saturating_sub(done);
        }
    }
}
