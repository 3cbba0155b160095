//! A TCP proxy between two nodes that does one kind of harm, at a place that the test chooses.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dwcp_wire::{
    Control, FrameHeader, FrameKind, HEADER_BYTES, StreamHello, StreamRole, decode_control,
};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToDestination,
    ToSource,
}

/// Where in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Header,
    /// What the header's checksum of the payload covers.
    Table,
    /// Page data.
    Data,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// A bit is changed in the first frame from number `frame` on that has such a part. Frames of
    /// all connections aimed at are counted together: which of the data streams takes the pages
    /// is a matter of chance. The hello of a data stream is left alone: such a stream is replaced, as one that
    /// breaks.
    Flip {
        frame: usize,
        part: Part,
        /// Chooses byte and bit within the part.
        seed: u64,
    },
    /// The connection ends, both ways, after so many bytes. One that takes its place is not harmed.
    Cut { bytes: u64 },
    /// The connection ends after so many bytes, and no other is made; those that are there stay.
    Last { bytes: u64 },
    /// All connections end after so many bytes of one, and no other is made: the link is gone until
    /// [`Proxy::restore`].
    Sever { bytes: u64 },
    /// Nothing of the connection is carried any more after so many bytes, either way, and nobody says so.
    Swallow { bytes: u64 },
    /// A bit of one control message is changed.
    Spoil { message: fn(&Control) -> bool },
    /// Something is done before one control message goes on.
    Before {
        message: fn(&Control) -> bool,
        act: fn(&Progress),
    },
}

/// Harm, done once, to one of these connections, by what they are: [`CONTROL`], [`data`], [`DEVICE`]. Under
/// TLS, where that cannot be seen, they have these numbers in the order of their making.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) connections: Range<usize>,
    pub(crate) way: Way,
    pub(crate) harm: Harm,
}

/// The control connection.
pub(crate) const CONTROL: usize = 0;

/// The connection for device state.
pub(crate) const DEVICE: usize = 100;

/// The first connection of a link for missing pages.
pub(crate) const fn missing(index: u16) -> usize {
    150 + index as usize
}

/// A connection that takes the place of one that broke: it is not harmed.
const REPLACEMENT: usize = 200;

/// The first connection of a data stream.
pub(crate) const fn data(index: u16) -> usize {
    1 + index as usize
}

/// What a connection is.
fn number(source: &TcpStream, order: usize) -> usize {
    let mut first = [0; HEADER_BYTES + StreamHello::BYTES];
    loop {
        let seen = source.peek(&mut first).unwrap_or(0);
        let header = first.first_chunk().map(FrameHeader::from_bytes);
        let Some(Ok(header)) = header.filter(|_| seen >= HEADER_BYTES) else {
            // TLS, a stranger, or nobody any more.
            if seen == 0 || !first.starts_with(&dwcp_wire::MAGIC[..seen.min(4)]) {
                return order;
            }
            continue;
        };
        if header.kind != FrameKind::StreamHello {
            return CONTROL;
        }
        if seen == first.len() {
            let hello = first.last_chunk().map(StreamHello::from_bytes);
            return match hello {
                Some(Ok(hello)) if hello.generation > 0 => REPLACEMENT,
                Some(Ok(hello)) if hello.role == StreamRole::Device => DEVICE,
                Some(Ok(hello)) if hello.role == StreamRole::Missing => missing(hello.index),
                Some(Ok(hello)) => data(hello.index),
                _ => order,
            };
        }
    }
}

/// A running proxy. It serves until the process ends.
pub(crate) struct Proxy {
    pub(crate) address: String,
    progress: Arc<Progress>,
}

#[derive(Default)]
pub(crate) struct Progress {
    connections: AtomicUsize,
    /// What each is, and the source's end of it.
    sources: Mutex<Vec<(usize, TcpStream)>>,
    /// Frames that were carried where the harm is to be done.
    frames: AtomicUsize,
    harmed: AtomicBool,
    severed: AtomicBool,
}

impl Progress {
    /// Ends all connections, for ever.
    fn sever(&self) {
        self.severed.store(true, Ordering::Release);
        self.close(|_| true);
    }

    /// Takes no other connection; those that are there stay.
    pub(crate) fn refuse(&self) {
        self.severed.store(true, Ordering::Release);
    }

    /// Ends all connections but the control connection.
    pub(crate) fn close_streams(&self) {
        self.close(|number| number != CONTROL);
    }

    /// Ends some connections; what is on its way may be lost.
    pub(crate) fn close(&self, which: impl Fn(usize) -> bool) {
        for (number, stream) in self.sources.lock().unwrap().iter() {
            if which(*number) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Proxy {
    pub(crate) fn start(destination: &str, plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            progress: Arc::default(),
        };
        let progress = Arc::clone(&proxy.progress);
        let destination = destination.to_owned();
        std::thread::spawn(move || {
            for source in listener.incoming() {
                let order = progress.connections.fetch_add(1, Ordering::Relaxed);
                let source = source.unwrap();
                if progress.severed.load(Ordering::Acquire) {
                    continue;
                }
                let number = number(&source, order);
                let kept = source.try_clone().unwrap();
                progress.sources.lock().unwrap().push((number, kept));
                let Ok(target) = TcpStream::connect(&destination) else {
                    continue;
                };
                for way in [Way::ToDestination, Way::ToSource] {
                    let aimed = plan.connections.contains(&number) && plan.way == way;
                    let (from, to) = match way {
                        Way::ToDestination => (&source, &target),
                        Way::ToSource => (&target, &source),
                    };
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (harm, progress) = (aimed.then_some(plan.harm), Arc::clone(&progress));
                    std::thread::spawn(move || carry(from, to, harm, &progress));
                }
            }
        });
        proxy
    }

    /// Other connections are made again.
    pub(crate) fn restore(&self) {
        self.progress.severed.store(false, Ordering::Release);
    }

    /// Whether the harm was done: a short migration may not come to its place.
    pub(crate) fn has_harmed(&self) -> bool {
        self.progress.harmed.load(Ordering::Acquire)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, harm: Option<Harm>, progress: &Progress) {
    // An error here is a connection that one of the nodes has ended.
    let _ = match harm {
        Some(Harm::Flip { frame, part, seed }) => {
            flip(&mut from, &mut to, (frame, part, seed), progress)
        }
        Some(Harm::Cut { bytes }) => {
            let carried = io::copy(&mut (&from).take(bytes), &mut to);
            if carried.as_ref().is_ok_and(|carried| *carried == bytes) {
                progress.harmed.store(true, Ordering::Release);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
            carried.map(drop)
        }
        Some(Harm::Last { bytes }) => {
            let carried = io::copy(&mut (&from).take(bytes), &mut to);
            if carried.as_ref().is_ok_and(|carried| *carried == bytes) {
                progress.harmed.store(true, Ordering::Release);
                progress.severed.store(true, Ordering::Release);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
            carried.map(drop)
        }
        Some(Harm::Sever { bytes }) => {
            let carried = io::copy(&mut (&from).take(bytes), &mut to);
            if carried.as_ref().is_ok_and(|carried| *carried == bytes) {
                progress.harmed.store(true, Ordering::Release);
                progress.sever();
                let _ = to.shutdown(Shutdown::Both);
            }
            carried.map(drop)
        }
        Some(Harm::Swallow { bytes }) => {
            let carried = io::copy(&mut (&from).take(bytes), &mut to);
            if carried.as_ref().is_ok_and(|carried| *carried == bytes) {
                progress.harmed.store(true, Ordering::Release);
                // It stays open, and its socket fills up.
                std::mem::forget((from.try_clone(), to.try_clone()));
                return;
            }
            carried.map(drop)
        }
        Some(Harm::Before { message, act }) => {
            let act = |_: &mut [u8]| act(progress);
            at_message(&mut from, &mut to, message, &act, progress)
        }
        Some(Harm::Spoil { message }) => {
            let spoil = |frame: &mut [u8]| *frame.last_mut().unwrap() ^= 1;
            at_message(&mut from, &mut to, message, &spoil, progress)
        }
        None => io::copy(&mut from, &mut to).map(drop),
    };
    let _ = to.shutdown(Shutdown::Write);
}

fn flip(
    from: &mut TcpStream,
    to: &mut TcpStream,
    (first, part, seed): (usize, Part, u64),
    progress: &Progress,
) -> io::Result<()> {
    while !progress.harmed.load(Ordering::Acquire) {
        let (header, mut frame) = read_frame(from)?;
        if begins_data_stream(&header, &frame) {
            to.write_all(&frame)?;
            continue;
        }
        let number = progress.frames.fetch_add(1, Ordering::Relaxed);
        let place = place(&header, part);
        let ripe = number >= first && !place.is_empty();
        if ripe && !progress.harmed.swap(true, Ordering::AcqRel) {
            frame[place.start + (seed >> 3) as usize % place.len()] ^= 1 << (seed % 8);
        }
        to.write_all(&frame)?;
    }
    io::copy(from, to).map(drop)
}

fn begins_data_stream(header: &FrameHeader, frame: &[u8]) -> bool {
    let hello = frame[HEADER_BYTES..].first_chunk();
    header.kind == FrameKind::StreamHello
        && hello.is_some_and(|hello| {
            StreamHello::from_bytes(hello).is_ok_and(|hello| hello.role == StreamRole::Data)
        })
}

fn at_message(
    from: &mut TcpStream,
    to: &mut TcpStream,
    message: fn(&Control) -> bool,
    act: &dyn Fn(&mut [u8]),
    progress: &Progress,
) -> io::Result<()> {
    while !progress.harmed.load(Ordering::Acquire) {
        let (header, mut frame) = read_frame(from)?;
        let is_it = header.kind == FrameKind::Control
            && decode_control(&frame[HEADER_BYTES..]).is_ok_and(|control| message(&control));
        if is_it && !progress.harmed.swap(true, Ordering::AcqRel) {
            act(&mut frame);
        }
        to.write_all(&frame)?;
    }
    io::copy(from, to).map(drop)
}

fn read_frame(from: &mut TcpStream) -> io::Result<(FrameHeader, Vec<u8>)> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame)?;
    let header = FrameHeader::from_bytes(frame.first_chunk().unwrap());
    let header = header.map_err(io::Error::other)?;
    frame.resize(HEADER_BYTES + header.payload_len(), 0);
    from.read_exact(&mut frame[HEADER_BYTES..])?;
    Ok((header, frame))
}

fn place(header: &FrameHeader, part: Part) -> Range<usize> {
    let table_end = HEADER_BYTES + header.table_bytes as usize;
    match part {
        Part::Header => 0..HEADER_BYTES,
        Part::Table => HEADER_BYTES..table_end,
        Part::Data if header.kind == FrameKind::Pages => {
            table_end..HEADER_BYTES + header.payload_len()
        }
        Part::Data => 0..0,
    }
}
