//! What seals a stream below the transport: the kernel, or nothing. For poll and the ring alike.

use std::io;
use std::net::TcpStream;

use super::closed_by_peer;
use crate::tls::{Heard, KernelStream};

/// The kernel's TLS of a stream, where there is some.
#[derive(Debug)]
pub(super) struct KernelSeal(Option<KernelStream>);

impl From<Option<KernelStream>> for KernelSeal {
    fn from(stream: Option<KernelStream>) -> Self {
        Self(stream)
    }
}

impl KernelSeal {
    /// Counts a frame that is to leave; an error ends the stream.
    pub(super) fn count_frame(&mut self, socket: &TcpStream) -> io::Result<()> {
        match &mut self.0 {
            Some(kernel) => Ok(kernel.count_frame(socket)?),
            None => Ok(()),
        }
    }

    /// Whether there may be data behind what could not be received; an error ends the stream.
    pub(super) fn not_received(&mut self, socket: &TcpStream, error: io::Error) -> io::Result<()> {
        let Some(kernel) = &mut self.0 else {
            return Err(error);
        };
        match kernel.not_received(socket, error)? {
            Heard::GoOn => Ok(()),
            Heard::End => Err(closed_by_peer()),
        }
    }

    /// An error of the socket's, as what seals it calls it.
    pub(super) fn in_words(&self, error: io::Error) -> io::Error {
        match &self.0 {
            Some(_) => KernelStream::in_words(error).into(),
            None => error,
        }
    }

    /// Says that nothing more will come. Only when nothing is under way.
    pub(super) fn say_end(&self, socket: &TcpStream) {
        if let Some(kernel) = &self.0 {
            kernel.say_end(socket);
        }
    }
}
