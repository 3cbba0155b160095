//! A TCP link between two data planes that stops at one moment of a migration, and can then be harmed: cut, held
//! one way, a bit changed. Only plain text is understood.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_wire::{
    Control, FrameHeader, FrameKind, HEADER_BYTES, StreamHello, StreamRole, decode_control,
};
use serde::Serialize;

use super::LabError;

/// Bytes that go on at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// As pages do.
    ToDestination,
    /// As answers do.
    ToSource,
}

/// A moment of a migration at which the link stops.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// A control message is to go on.
    Message {
        /// Its way.
        way: Way,
        /// Whether it is the one.
        is_it: fn(&Control) -> bool,
        /// It goes on before the link stops.
        after: bool,
    },
    /// So many bytes have gone to the destination on data streams.
    Pages(u64),
    /// So many bytes have gone to the destination on connections for missing pages.
    Missing(u64),
}

/// The link. Dropping it ends all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    link: Arc<Link>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Link {
    destination: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where it is to stop; taken when it has.
    stop_at: Option<Moment>,
    has_stopped: bool,
    is_stopped: bool,
    pages_bytes: u64,
    missing_bytes: u64,
    /// Nothing goes on to the destination, to the source.
    held: [bool; 2],
    /// A bit of the next bytes that go this way is to be changed.
    flip: Option<(Way, u64)>,
    has_flipped: bool,
    is_cut: bool,
    is_over: bool,
    sockets: Vec<TcpStream>,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    Control,
    Pages,
    Missing,
    Other,
}

impl Proxy {
    /// A link to the data plane at `destination`.
    ///
    /// # Errors
    /// [`LabError::System`].
    pub fn start(destination: &str, stop_at: Option<Moment>) -> Result<Self, LabError> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(LabError::system("proxy"))?;
        let address = listener.local_addr().map_err(LabError::system("proxy"))?;
        let link = Arc::new(Link {
            destination: destination.to_owned(),
            state: Mutex::new(State {
                stop_at,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&link);
        let accepting = std::thread::spawn(move || serving.accept(&listener));
        Ok(Self {
            address,
            link,
            accepting: Some(accepting),
        })
    }

    /// What the source is to connect to.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Waits until the link has stopped; false when the time is over, or `is_over` says that it never will.
    pub fn wait_stopped(&self, time: Duration, mut is_over: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + time;
        loop {
            let state = self.link.lock();
            let waited =
                self.link
                    .changed
                    .wait_timeout_while(state, Duration::from_millis(20), |state| {
                        !state.has_stopped
                    });
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.has_stopped {
                return true;
            }
            drop(state);
            if Instant::now() >= until || is_over() {
                return self.link.lock().has_stopped;
            }
        }
    }

    /// Lets go on what was stopped.
    pub fn go_on(&self) {
        let mut state = self.link.lock();
        state.stop_at = None;
        state.is_stopped = false;
        self.link.changed.notify_all();
    }

    /// Ends all connections; others are ended as soon as they are made, until [`Self::mend`].
    pub fn cut(&self) {
        let mut state = self.link.lock();
        state.is_cut = true;
        state.end_connections();
        self.link.changed.notify_all();
    }

    /// Nothing goes on this way, and nobody says so, until [`Self::mend`].
    pub fn hold(&self, way: Way) {
        self.link.lock().held[way as usize] = true;
    }

    /// One bit of the next bytes that go this way is changed.
    pub fn flip(&self, way: Way, seed: u64) {
        self.link.lock().flip = Some((way, seed));
    }

    /// Whether a bit was changed.
    #[must_use]
    pub fn has_flipped(&self) -> bool {
        self.link.lock().has_flipped
    }

    /// It carries again.
    pub fn mend(&self) {
        let mut state = self.link.lock();
        state.is_cut = false;
        state.held = [false; 2];
        state.flip = None;
        self.link.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.link.lock();
            state.is_over = true;
            state.end_connections();
            self.link.changed.notify_all();
        }
        // Wakes the one that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl State {
    fn end_connections(&mut self) {
        for socket in self.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for source in listener.incoming() {
            if self.lock().is_over {
                return;
            }
            let Ok(source) = source else { continue };
            let link = Arc::clone(self);
            std::thread::spawn(move || {
                // An error is a connection that a node has ended.
                let _ = link.connect(source);
            });
        }
    }

    fn connect(self: &Arc<Self>, source: TcpStream) -> io::Result<()> {
        if self.lock().is_cut {
            return Ok(());
        }
        let carries = carries(&source)?;
        let target = TcpStream::connect(&self.destination)?;
        target.set_nodelay(true)?;
        source.set_nodelay(true)?;
        {
            let mut state = self.lock();
            if state.is_cut || state.is_over {
                return Ok(());
            }
            state.sockets.push(source.try_clone()?);
            state.sockets.push(target.try_clone()?);
        }
        let link = Arc::clone(self);
        let (from, to) = (target.try_clone()?, source.try_clone()?);
        std::thread::spawn(move || link.carry(from, to, (Way::ToSource, carries)));
        self.carry(source, target, (Way::ToDestination, carries));
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, what: (Way, Carries)) {
        let carried = match what.1 {
            Carries::Control => self.carry_frames(&mut from, &mut to, what),
            _ => self.carry_bytes(&mut from, &mut to, what),
        };
        // The end of one way is told; what went wrong ends both.
        let how = if carried.is_ok() {
            Shutdown::Write
        } else {
            Shutdown::Both
        };
        let _ = to.shutdown(how);
    }

    fn carry_frames(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        what: (Way, Carries),
    ) -> io::Result<()> {
        loop {
            let mut frame = vec![0; HEADER_BYTES];
            if let Err(error) = from.read_exact(&mut frame) {
                return match error.kind() {
                    io::ErrorKind::UnexpectedEof => Ok(()),
                    _ => Err(error),
                };
            }
            let header = FrameHeader::from_bytes(frame.first_chunk().unwrap_or(&[0; HEADER_BYTES]));
            let header = header.map_err(io::Error::other)?;
            frame.resize(HEADER_BYTES + header.payload_len(), 0);
            from.read_exact(&mut frame[HEADER_BYTES..])?;
            let message = (header.kind == FrameKind::Control)
                .then(|| decode_control(&frame[HEADER_BYTES..]).ok())
                .flatten();
            let stops = message.and_then(|message| self.stops_at(what.0, &message));
            if stops == Some(true) {
                to.write_all(&frame)?;
                self.stop();
            } else {
                if stops.is_some() {
                    self.stop();
                }
                self.go(what.0, &mut frame)?;
                to.write_all(&frame)?;
            }
        }
    }

    fn carry_bytes(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        (way, carries): (Way, Carries),
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut chunk)?;
            if read == 0 {
                return Ok(());
            }
            let bytes = &mut chunk[..read];
            if way == Way::ToDestination && self.count(carries, read as u64) {
                self.stop();
            }
            self.go(way, bytes)?;
            to.write_all(bytes)?;
        }
    }

    /// Whether the link stops with this message, and then whether after it.
    fn stops_at(&self, at: Way, message: &Control) -> Option<bool> {
        match self.lock().stop_at {
            Some(Moment::Message { way, is_it, after }) if way == at && is_it(message) => {
                Some(after)
            }
            _ => None,
        }
    }

    /// Counts what is carried; whether the link is to stop at it.
    fn count(&self, carries: Carries, bytes: u64) -> bool {
        let mut state = self.lock();
        match carries {
            Carries::Pages => state.pages_bytes += bytes,
            Carries::Missing => state.missing_bytes += bytes,
            _ => {}
        }
        match state.stop_at {
            Some(Moment::Pages(most)) => carries == Carries::Pages && state.pages_bytes >= most,
            Some(Moment::Missing(most)) => {
                carries == Carries::Missing && state.missing_bytes >= most
            }
            _ => false,
        }
    }

    /// Stops what goes by here until it may go on. Other connections carry on meanwhile.
    fn stop(&self) {
        let mut state = self.lock();
        if state.stop_at.take().is_none() {
            return;
        }
        (state.has_stopped, state.is_stopped) = (true, true);
        self.changed.notify_all();
        drop(self.wait_while(state, |state| state.is_stopped));
    }

    /// Waits while its way is held; changes a bit if one is to be changed.
    fn go(&self, way: Way, bytes: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let mut state = self.wait_while(state, |state| state.held[way as usize]);
        if state.is_over || state.is_cut {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some((wanted, seed)) = state.flip
            && wanted == way
        {
            let at = (seed >> 3) as usize % bytes.len();
            bytes[at] ^= 1 << (seed & 7);
            (state.flip, state.has_flipped) = (None, true);
        }
        Ok(())
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        mut stays: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_while(state, |state| {
            stays(state) && !state.is_over && !state.is_cut
        });
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection carries, by its first words; they stay unread.
fn carries(source: &TcpStream) -> io::Result<Carries> {
    let mut first = [0; HEADER_BYTES + StreamHello::BYTES];
    loop {
        let seen = source.peek(&mut first)?;
        if seen == 0 {
            return Ok(Carries::Other);
        }
        let header = first.first_chunk().map(FrameHeader::from_bytes);
        if let Some(Ok(header)) = header.filter(|_| seen >= HEADER_BYTES) {
            if header.kind != FrameKind::StreamHello {
                return Ok(Carries::Control);
            }
            if seen == first.len() {
                let hello = first.last_chunk().map(StreamHello::from_bytes);
                return Ok(match hello {
                    Some(Ok(hello)) if hello.role == StreamRole::Data => Carries::Pages,
                    Some(Ok(hello)) if hello.role == StreamRole::Missing => Carries::Missing,
                    _ => Carries::Other,
                });
            }
        } else if seen >= HEADER_BYTES {
            return Ok(Carries::Other);
        }
        // The rest of it is on its way.
        std::thread::sleep(Duration::from_millis(1));
    }
}
