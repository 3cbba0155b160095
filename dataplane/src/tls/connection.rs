//! A connection between nodes that blocks: the plain socket, or TLS over it.
//!
//! One thread may read while another writes, so neither waits in the socket with the session in its
//! hands: two nodes that both write would wait for each other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwcp_pki::CertificateFacts;
use socket2::SockRef;

use super::handshake::Rest;
use super::session::{missing_bytes, sealed_bytes};
use super::{Sealed, Session, TlsError};

/// Bytes of a record, sealed, and of the next one's beginning.
const READ_BYTES: usize = 32 * 1024;

/// Plain bytes that are sealed together.
const WRITE_BYTES: usize = 64 * 1024;

/// A connection to another node.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    channel: Option<Arc<Channel>>,
}

#[derive(Debug)]
struct Channel {
    session: Mutex<Session>,
    reading: Mutex<Reading>,
    /// Who has it writes to the socket; what is sealed is in it.
    writing: Mutex<Vec<u8>>,
    peer_names: Vec<String>,
}

#[derive(Debug)]
struct Reading {
    received: Vec<u8>,
    plain: Vec<u8>,
    /// Of the plain bytes, those that were read.
    taken: usize,
    ended: bool,
    /// Bytes behind the record that comes stay in the socket.
    by_record: bool,
}

/// A data stream, for a worker's transport.
#[derive(Debug)]
pub struct DataStream {
    /// The socket.
    pub socket: TcpStream,
    /// Its keys, and what came already, when it is sealed.
    pub sealed: Option<SealedStream>,
}

/// TLS of a data stream, and what came already.
#[derive(Debug)]
pub struct SealedStream {
    /// The session.
    pub session: Session,
    /// Sealed bytes.
    pub received: Vec<u8>,
    /// Opened bytes.
    pub plain: Vec<u8>,
}

impl From<TcpStream> for DataStream {
    fn from(socket: TcpStream) -> Self {
        let sealed = None;
        Self { socket, sealed }
    }
}

impl From<TcpStream> for Connection {
    /// Without TLS.
    fn from(socket: TcpStream) -> Self {
        let channel = None;
        Self { socket, channel }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    pub(super) fn sealed(socket: TcpStream, session: Session, rest: Rest) -> Self {
        let own = session.peer_certificates().first();
        let facts = own.and_then(|own| CertificateFacts::from_der(own).ok());
        let by_record = session.is_server();
        let channel = Channel {
            session: Mutex::new(session),
            reading: Mutex::new(Reading {
                received: rest.received,
                plain: rest.plain,
                taken: 0,
                ended: false,
                by_record,
            }),
            writing: Mutex::default(),
            peer_names: facts.map(|facts| facts.dns_names).unwrap_or_default(),
        };
        Self {
            socket,
            channel: Some(Arc::new(channel)),
        }
    }

    /// Whether it is TLS.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.channel.is_some()
    }

    /// The cipher suite, when it is TLS.
    #[must_use]
    pub fn cipher_suite(&self) -> Option<&'static str> {
        lock(&self.channel.as_ref()?.session).cipher_suite()
    }

    /// Whether its handshake was a short one, by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| lock(&channel.session).is_resumed())
    }

    /// Whether the peer's certificate names it so. Without TLS a peer is whoever it says.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        let Some(channel) = &self.channel else {
            return true;
        };
        let mut names = channel.peer_names.iter();
        names.any(|known| known.eq_ignore_ascii_case(name))
    }

    /// What the peer's certificate names it.
    #[must_use]
    pub fn peer_names(&self) -> &[String] {
        let channel = self.channel.as_ref();
        channel.map_or(&[], |channel| &channel.peer_names)
    }

    /// Reads as many bytes at once as there are. A server does not at first: what comes behind the first words
    /// of a data stream may be the kernel's to open, which cannot be given what was read.
    pub fn read_ahead(&self) {
        if let Some(channel) = &self.channel {
            lock(&channel.reading).by_record = false;
        }
    }

    /// Another handle on the same connection.
    ///
    /// # Errors
    /// From the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            channel: self.channel.clone(),
        })
    }

    /// For a worker.
    ///
    /// # Errors
    /// When there is another handle on it.
    pub fn into_data_stream(self) -> io::Result<DataStream> {
        let Some(channel) = self.channel else {
            return Ok(self.socket.into());
        };
        let channel = Arc::into_inner(channel)
            .ok_or_else(|| io::Error::other("the stream is in use elsewhere"))?;
        let session = channel.session.into_inner();
        let reading = channel.reading.into_inner();
        let mut reading = reading.unwrap_or_else(PoisonError::into_inner);
        reading.plain.drain(..reading.taken);
        Ok(DataStream {
            socket: self.socket,
            sealed: Some(SealedStream {
                session: session.unwrap_or_else(PoisonError::into_inner),
                received: reading.received,
                plain: reading.plain,
            }),
        })
    }

    /// The socket below.
    #[must_use]
    pub const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Time limit of each read.
    ///
    /// # Errors
    /// From the system.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(time)
    }

    /// Time limit of each write.
    ///
    /// # Errors
    /// From the system.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(time)
    }

    /// The other end's address.
    ///
    /// # Errors
    /// From the system.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// The address of this end.
    #[must_use]
    pub fn local_ip(&self) -> Option<IpAddr> {
        Some(self.socket.local_addr().ok()?.ip())
    }

    /// Ends it, both ways; by word where nobody is writing. Whatever comes then resets it, and what was written and got lost on
    /// its way is not sent again.
    pub fn shut(&self) {
        self.say_end();
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends what is written; the other end may still be heard out.
    pub fn end_writing(&self) {
        self.say_end();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn say_end(&self) {
        if let Some(channel) = &self.channel
            && let Ok(mut sealed) = channel.writing.try_lock()
        {
            sealed.resize(sealed_bytes(0), 0);
            if let Ok(bytes) = lock(&channel.session).seal_end(&mut sealed) {
                // A peer that takes nothing more does not hear it.
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                let socket = SockRef::from(&self.socket);
                let _ = socket.send_with_flags(&sealed[..bytes], flags);
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.channel {
            None => self.socket.read(bytes),
            Some(channel) => channel.read(&self.socket, bytes),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.channel {
            None => self.socket.write(bytes),
            Some(channel) => channel.write(&self.socket, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Channel {
    fn read(&self, mut socket: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
        let mut reading = lock(&self.reading);
        let reading = &mut *reading;
        loop {
            let ready = &reading.plain[reading.taken..];
            if !ready.is_empty() || bytes.is_empty() || reading.ended {
                let count = ready.len().min(bytes.len());
                bytes[..count].copy_from_slice(&ready[..count]);
                reading.taken += count;
                return Ok(count);
            }
            reading.plain.clear();
            reading.taken = 0;
            let opened = lock(&self.session).open(&mut reading.received, &mut reading.plain)?;
            reading.received.drain(..opened.used);
            match opened.what {
                Sealed::Record | Sealed::Answer => {}
                Sealed::End => reading.ended = true,
                Sealed::Part => {
                    let filled = reading.received.len();
                    let wanted = match reading.by_record {
                        true => missing_bytes(&reading.received),
                        false => READ_BYTES,
                    };
                    reading.received.resize(filled + wanted, 0);
                    let outcome = socket.read(&mut reading.received[filled..]);
                    let count = *outcome.as_ref().unwrap_or(&0);
                    reading.received.truncate(filled + count);
                    if outcome? == 0 {
                        return Err(TlsError::Cut.into());
                    }
                }
            }
        }
    }

    fn write(&self, mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        let mut sealed = lock(&self.writing);
        sealed.resize(sealed_bytes(bytes.len()), 0);
        let count = lock(&self.session).seal(bytes, &mut sealed)?;
        socket.write_all(&sealed[..count])?;
        Ok(bytes.len())
    }
}
