//! Moving bytes of frames: one trait, several ways, one suite that tests them all.
//!
//! | transport | how | when |
//! |---|---|---|
//! | [`UringTransport`] | one io_uring per worker, registered buffers | the kernel allows it |
//! | [`PollTransport`] | non-blocking sockets and poll(2) | it does not, or a switch says so |
//! | [`SealedTransport`] | TLS over one of them, by itself or by the kernel | the migration is sealed |
//! | [`RdmaTransport`] | queue pairs, one of them beside | both nodes have RDMA, and the profile allows it |
//!
//! Frames leave as a head from a worker's buffer and, behind it, guest pages straight from RAM, by the
//! cheapest [`SendMethod`] of the socket; they arrive straight in RAM, unless TLS of our own is between. A transport belongs to one
//! worker thread. It owns the worker's buffers and holds the guest's RAM: what the kernel may still
//! read or write can therefore not be freed under it.

mod buffers;
mod calls;
mod experience;
mod inbound;
mod kernel_seal;
mod ladder;
mod outbound;
mod poll;
mod rdma;
mod sealed;
mod spans;
#[cfg(test)]
mod suite;
mod tcp_info;
mod tcp_options;
mod uring;

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

pub use buffers::{BUFFER_BYTES, BufferId, BufferStock, Buffers};
use dwcp_api::{IoPath, KernelTlsChoice, SendChoice};
use dwcp_wire::PageRange;
pub use poll::PollTransport;
pub use rdma::{
    Ending, PageReader, PagesCame, PieceGranter, QueueLink, READ_PAGES_MAX, RdmaListener,
    RdmaMemory, RdmaRequest, RdmaTransport, find_route,
};
pub use sealed::SealedTransport;
pub use tcp_info::{SHORT_RTT, TcpInfo};
pub use tcp_options::{hasten_losses, set_pacing_rate};
pub use uring::UringTransport;

use crate::ram::RamLayout;
use crate::tls::{DataStream, KernelStream, KernelTls, SealedStream};
use experience::{Experience, Ladders};

/// Bytes of a stream that the kernel takes before it can send them. More would hide how fast the link is;
/// with fewer the socket may run dry between two frames.
pub const UNSENT_BYTES_MAX: u32 = 2 << 20;

/// How guest pages get into a socket without a copy of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendMethod {
    /// References by the ring: io_uring's SENDMSG_ZC. Only where the kernel says that it does not copy,
    /// and by the ring alone.
    ZeroCopy,
    /// References in a pipe, moved to the socket: vmsplice(2), splice(2). The kernel copies nothing.
    Vmsplice,
    /// From the memory's file: sendfile(2), a call per run. Not from hugetlbfs.
    Sendfile,
    /// One gathering write: sendmsg(2). The kernel copies; works everywhere.
    Write,
}

impl SendMethod {
    /// Those that need no ring.
    const BY_CALL: [Self; 3] = [Self::Vmsplice, Self::Sendfile, Self::Write];

    /// All of them, the most promising first.
    pub const ALL: [Self; 4] = [Self::ZeroCopy, Self::Vmsplice, Self::Sendfile, Self::Write];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Vmsplice => "vmsplice",
            Self::Sendfile => "sendfile",
            Self::Write => "write",
        }
    }
}

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
    /// The stream is over. Said once, when the kernel has nothing of it any more: the buffers given to it
    /// are the worker's again.
    Closed {
        /// Stream.
        slot: Slot,
        /// Why; an orderly end by the peer is `UnexpectedEof`.
        error: io::Error,
    },
    /// Somebody rang the worker's bell.
    Rung,
}

/// What to send.
#[derive(Clone, Debug)]
pub struct SendFrame<'a> {
    /// Buffer of the head.
    pub buffer: BufferId,
    /// The head in it.
    pub head: Range<usize>,
    /// Guest pages that follow. They are read when they leave, and perhaps again until they are
    /// acknowledged.
    pub pages: &'a [PageRange],
    /// Whether another frame will follow on this stream: then the end of this one may wait for it,
    /// to fill a segment.
    pub more: bool,
}

/// Where received bytes go: first to guest pages, then to a buffer.
#[derive(Clone, Debug)]
pub struct ReceiveInto<'a> {
    /// Guest pages, filled front to back.
    pub pages: &'a [PageRange],
    /// Bytes of them that are there already.
    pub placed: usize,
    /// The buffer.
    pub buffer: BufferId,
    /// Where in it.
    pub range: Range<usize>,
}

impl ReceiveInto<'_> {
    /// A range of a buffer alone.
    #[must_use]
    pub const fn buffer(buffer: BufferId, range: Range<usize>) -> Self {
        Self {
            pages: &[],
            placed: 0,
            buffer,
            range,
        }
    }
}

impl SendFrame<'_> {
    /// Bytes of a buffer, to leave at once.
    #[must_use]
    pub const fn alone(buffer: BufferId, head: Range<usize>) -> Self {
        Self {
            buffer,
            head,
            pages: &[],
            more: false,
        }
    }
}

/// An orderly end by the peer.
fn closed_by_peer() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the other side closed the connection",
    )
}

/// Who seals a stream's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// Nobody: it is plain text.
    None,
    /// The transport, which copies pages.
    Transport,
    /// The kernel: the socket takes and gives pages as one without TLS.
    Kernel,
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

    /// Takes a connected stream, if asked in the place of one that was closed.
    ///
    /// # Errors
    /// When the socket cannot be set up, or the place is taken.
    fn add(&mut self, stream: TcpStream, instead_of: Option<Slot>) -> io::Result<Slot>;

    /// Takes a connected stream whose TLS handshake is done.
    ///
    /// # Errors
    /// When this transport does not seal, the socket cannot be set up, or the place is taken.
    fn add_sealed(
        &mut self,
        _: TcpStream,
        _: SealedStream,
        _instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        Err(io::Error::other("a stream with TLS among those without"))
    }

    /// Takes a connected stream whose records the kernel seals and opens.
    ///
    /// # Errors
    /// When the socket cannot be set up, or the place is taken.
    fn add_kernel(
        &mut self,
        _: TcpStream,
        _: KernelStream,
        _instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        Err(io::Error::other("a stream of kernel TLS among others"))
    }

    /// Takes a stream that is a queue pair.
    ///
    /// # Errors
    /// When this transport has none of them, or the place is taken.
    fn add_queue(&mut self, _: QueueLink, _instead_of: Option<Slot>) -> io::Result<Slot> {
        Err(io::Error::other("a queue pair among TCP streams"))
    }

    /// Ends a stream. [`Completion::Closed`] follows, with `why`.
    fn shut(&mut self, slot: Slot, why: io::Error);

    /// The worker's buffers. A buffer given to `send` or `receive` must not be touched until it
    /// comes back in a completion.
    fn buffers(&mut self) -> &mut Buffers;

    /// Queues a frame; frames of one stream leave in order.
    fn send(&mut self, slot: Slot, frame: SendFrame<'_>);

    /// Asks for bytes, any number of them. One request per stream at a time.
    fn receive(&mut self, slot: Slot, wanted: ReceiveInto<'_>);

    /// Whether the data of the frame whose head is being received lies in guest RAM already: it was placed there by the
    /// other end, and `receive` into its pages finds it.
    fn is_placed(&self, _: Slot) -> bool {
        false
    }

    /// Who seals a stream's records.
    fn sealing(&self, _: Slot) -> Sealing {
        Sealing::None
    }

    /// Whether frames may refer to guest pages. A stream on which they cannot leave so copies them.
    fn takes_references(&self) -> bool {
        true
    }

    /// How guest pages leave on a stream, once that is chosen.
    fn send_method(&self, slot: Slot) -> Option<SendMethod>;

    /// Collects completions.
    ///
    /// # Errors
    /// When the transport as a whole has failed.
    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()>;
}

impl dyn Transport + '_ {
    /// Takes a data stream as it is.
    ///
    /// # Errors
    /// When it is not of the kind that this transport was opened for.
    pub fn add_stream(
        &mut self,
        stream: impl Into<Link>,
        instead_of: Option<Slot>,
    ) -> io::Result<Slot> {
        match stream.into() {
            Link::Queue(link) => self.add_queue(link, instead_of),
            Link::Socket(stream) => match stream.sealed {
                None => self.add(stream.socket, instead_of),
                Some(sealed) => self.add_sealed(stream.socket, sealed, instead_of),
            },
        }
    }
}

/// A data stream's connection.
#[derive(Debug)]
pub enum Link {
    /// TCP, perhaps with TLS.
    Socket(DataStream),
    /// A queue pair.
    Queue(QueueLink),
}

impl<S: Into<DataStream>> From<S> for Link {
    fn from(stream: S) -> Self {
        Self::Socket(stream.into())
    }
}

/// Puts a stream in the place of one that is over, or behind all.
fn put<S>(
    streams: &mut Vec<S>,
    instead_of: Option<Slot>,
    is_over: impl Fn(&S) -> bool,
    stream: S,
) -> io::Result<Slot> {
    let Some(slot) = instead_of else {
        streams.push(stream);
        return Ok(streams.len() - 1);
    };
    match streams.get_mut(slot).filter(|old| is_over(old)) {
        Some(old) => *old = stream,
        None => return Err(io::Error::other("the place of a stream that is not over")),
    }
    Ok(slot)
}

/// A transport that was opened, and what had to be given up for it.
#[derive(Debug)]
pub struct Opened {
    /// The transport.
    pub transport: Box<dyn Transport>,
    /// Fallbacks taken, in words; shown once.
    pub notes: Vec<String>,
}

/// What workers leave to those of the node's next migrations.
#[derive(Clone, Debug, Default)]
pub struct Stock {
    /// Their buffers.
    pub buffers: BufferStock,
    /// What they found out about the ways to send.
    experience: Experience,
}

/// What a transport is to be like.
#[derive(Debug)]
pub struct TransportOptions {
    /// Which one.
    pub io: IoPath,
    /// How guest pages leave.
    pub send: SendChoice,
    /// Buffers.
    pub buffers: usize,
    /// Whether its streams are TLS.
    pub sealed: bool,
    /// Whether the kernel is to seal them. Where it does not, nothing is sent from, or received in, guest
    /// RAM itself.
    pub kernel_tls: KernelTlsChoice,
    /// NUMA node of the buffers.
    pub node: Option<usize>,
    /// What earlier workers left to this one, and it leaves to later ones.
    pub stock: Stock,
    /// Guest RAM that `send` and `receive` may name.
    pub ram: Option<Arc<RamLayout>>,
    /// The same as the migration's adapter knows it, if its streams may be queue pairs.
    pub rdma: Option<Arc<RdmaMemory>>,
    /// An eventfd to watch.
    pub bell: OwnedFd,
}

/// Opens a transport.
///
/// # Errors
/// When the wanted one cannot be had; [`IoPath::Auto`] falls back to poll instead.
pub fn open(options: TransportOptions) -> io::Result<Opened> {
    if !options.sealed {
        return open_plain(options);
    }
    let (kernel, note) = match options.kernel_tls {
        KernelTlsChoice::Off => (None, None),
        KernelTlsChoice::Auto => match KernelTls::find() {
            Ok(kernel) => (Some(kernel), None),
            Err(why) => (None, Some(no_kernel_tls(&why))),
        },
    };
    let (buffers, ram) = (options.buffers * 2, options.ram.clone());
    let opened = open_plain(TransportOptions { buffers, ..options })?;
    let mut notes = opened.notes;
    notes.extend(note);
    let transport = SealedTransport::new(opened.transport, kernel, ram);
    Ok(Opened {
        transport: Box::new(transport),
        notes,
    })
}

/// A bell that nobody rings.
#[cfg(test)]
pub(crate) fn bell_for_tests() -> OwnedFd {
    suite::ends::bell().1
}

fn no_kernel_tls(why: &str) -> String {
    format!("no kernel TLS here ({why}): the data plane seals pages itself, and copies them")
}

fn open_plain(mut options: TransportOptions) -> io::Result<Opened> {
    if let (Some(memory), Some(ram)) = (options.rdma.take(), options.ram.clone()) {
        let bell = options.bell.try_clone()?;
        return RdmaTransport::open(ram, memory, bell, |bell| {
            open_plain(TransportOptions { bell, ..options })
        });
    }
    let TransportOptions {
        io,
        send,
        buffers,
        sealed: _,
        kernel_tls: _,
        node,
        stock,
        ram,
        rdma: _,
        bell,
    } = options;
    let buffers = || Buffers::new(buffers, node, stock.buffers.clone());
    let ladders = Ladders::new(send, stock.experience);
    let poll = |bell, notes| {
        let transport = PollTransport::new(buffers()?, ram.clone(), ladders.clone(), bell);
        let transport = Box::new(transport);
        Ok(Opened { transport, notes })
    };
    if io == IoPath::Poll {
        return poll(bell, vec![]);
    }
    let watched = bell.try_clone()?;
    match UringTransport::new(buffers()?, ram.clone(), ladders.clone(), watched) {
        Ok((transport, notes)) => Ok(Opened {
            transport: Box::new(transport),
            notes,
        }),
        Err(error) if io == IoPath::Auto => poll(
            bell,
            vec![format!(
                "io_uring is refused ({error}): using poll, at more CPU per byte"
            )],
        ),
        Err(error) => Err(error),
    }
}
