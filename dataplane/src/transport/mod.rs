//! Moving bytes of frames: one trait, several ways, one suite that tests them all.
//!
//! | transport | how | when |
//! |---|---|---|
//! | [`UringTransport`] | one io_uring per worker, registered buffers | the kernel allows it |
//! | [`PollTransport`] | non-blocking sockets and poll(2) | it does not, or a switch says so |
//!
//! A transport belongs to one worker thread. It owns the worker's buffers: what the kernel may still
//! read or write can therefore not be freed under it.

mod buffers;
mod poll;
#[cfg(test)]
mod suite;
mod uring;

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use buffers::{BUFFER_BYTES, BufferId, Buffers};
use dwcp_api::IoPath;
pub use poll::PollTransport;
pub use uring::UringTransport;

/// A stream's place in its transport.
pub type Slot = usize;

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// All bytes of the range are in the kernel's hands; the buffer is free.
    Sent {
        /// Stream.
        slot: Slot,
        /// Buffer that was sent.
        buffer: BufferId,
    },
    /// Bytes have come into the range asked for, one at least.
    Received {
        /// Stream.
        slot: Slot,
        /// How many.
        bytes: usize,
    },
    /// The stream is over. Said once per stream.
    Closed {
        /// Stream.
        slot: Slot,
        /// Why; an orderly end by the peer is `UnexpectedEof`.
        error: io::Error,
    },
    /// Somebody rang the worker's bell.
    Rung,
}

/// How long to wait for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Take what is there.
    No,
    /// Until one comes, or the time is over.
    Upto(Duration),
}

/// Sends from and receives into a worker's buffers.
pub trait Transport: std::fmt::Debug {
    /// Name for reports: `tcp-uring`, `tcp-poll`.
    fn name(&self) -> &'static str;

    /// Takes a connected stream.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    fn add(&mut self, stream: TcpStream) -> io::Result<Slot>;

    /// The worker's buffers. A buffer given to `send` or `receive` must not be touched until it
    /// comes back in a completion.
    fn buffers(&mut self) -> &mut Buffers;

    /// Queues a send; sends of one stream leave in order.
    fn send(&mut self, slot: Slot, buffer: BufferId, range: Range<usize>);

    /// Asks for bytes into a range, any number of them. One request per stream at a time.
    fn receive(&mut self, slot: Slot, buffer: BufferId, range: Range<usize>);

    /// Collects completions.
    ///
    /// # Errors
    /// When the transport as a whole has failed.
    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()>;
}

/// A transport that was opened, and what had to be given up for it.
#[derive(Debug)]
pub struct Opened {
    /// The transport.
    pub transport: Box<dyn Transport>,
    /// Fallbacks taken, in words; shown once.
    pub notes: Vec<String>,
}

/// Opens the transport that `path` asks for, with `buffers` buffers on NUMA node `node`, watching
/// `bell`.
///
/// # Errors
/// When the wanted one cannot be had; [`IoPath::Auto`] falls back to poll instead.
pub fn open(
    path: IoPath,
    buffers: usize,
    node: Option<usize>,
    bell: OwnedFd,
) -> io::Result<Opened> {
    if path == IoPath::Poll {
        let transport = Box::new(PollTransport::new(Buffers::new(buffers, node)?, bell));
        return Ok(Opened {
            transport,
            notes: vec![],
        });
    }
    match UringTransport::new(Buffers::new(buffers, node)?, bell.try_clone()?) {
        Ok((transport, notes)) => Ok(Opened {
            transport: Box::new(transport),
            notes,
        }),
        Err(error) if path == IoPath::Auto => {
            let transport = Box::new(PollTransport::new(Buffers::new(buffers, node)?, bell));
            let note = format!("io_uring is refused ({error}): using poll, at more CPU per byte");
            Ok(Opened {
                transport,
                notes: vec![note],
            })
        }
        Err(error) => Err(error),
    }
}
