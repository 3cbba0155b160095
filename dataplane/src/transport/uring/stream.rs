//! A stream of the ring's.

use std::io;
use std::net::TcpStream;

use crate::tls::KernelStream;
use crate::transport::inbound::Inbound;
use crate::transport::kernel_seal::KernelSeal;
use crate::transport::ladder::Ladder;
use crate::transport::outbound::Outbound;
use crate::transport::spans::{Message, Spans};

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    /// TLS, where the kernel seals.
    pub(super) kernel: KernelSeal,
    pub(super) sends: Outbound,
    /// The ring sends, or waits for room.
    pub(super) sending: bool,
    /// Guest pages that the ring sends.
    pub(super) pages: Message,
    pub(super) receive: Inbound,
    /// The ring receives into `receive`, or waits for bytes.
    pub(super) receiving: bool,
    /// The pieces of `receive`, where the kernel looks for them.
    pub(super) spans: Box<Spans>,
    pub(super) closed: bool,
    /// Why it is over, until that is told: when the ring has nothing of it any more.
    pub(super) end: Option<io::Error>,
}

impl Stream {
    pub(super) fn new(socket: TcpStream, kernel: Option<KernelStream>, ladder: Ladder) -> Self {
        Self {
            sends: Outbound::new(ladder, kernel.is_some()),
            socket,
            kernel: kernel.into(),
            sending: false,
            pages: Message::new(),
            receive: Inbound::new(),
            receiving: false,
            spans: Box::new(Spans::new()),
            closed: false,
            end: None,
        }
    }

    /// Whether nothing of it is under way, nor to be told.
    pub(super) fn is_over(&self) -> bool {
        self.closed && self.end.is_none() && !self.sending && !self.receiving
    }

    /// Says that nothing more will come, where the kernel seals and nothing is under way.
    pub(super) fn say_end(&self) {
        if !self.sending && self.sends.is_empty() {
            self.kernel.say_end(&self.socket);
        }
    }
}
