//! Records of one connection: plain bytes in, sealed bytes out, and back. No socket, no clock.
//!
//! rustls keeps the keys, counts the records, and renews the keys long before a cipher's limit; the bytes
//! are the caller's. It allocates a record's worth of memory for each record, not for each page.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error, ExtractedSecrets, HandshakeKind, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, ServerName};

use super::{Cipher, Identity, TlsError};

/// Plain bytes of a full record.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What sealing adds to a record: its header, its kind, its tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// What may leave before the records asked for: a key update, an alert.
const ASIDE_BYTES_MAX: usize = 256;

/// What `plain_bytes` take when they are sealed, at most.
#[must_use]
pub const fn sealed_bytes(plain_bytes: usize) -> usize {
    let records = plain_bytes.div_ceil(RECORD_BYTES_MAX);
    plain_bytes + records * RECORD_OVERHEAD_BYTES + ASIDE_BYTES_MAX
}

/// What of a client's session takes the server's tickets when its keys are elsewhere.
pub(super) type Tickets = KernelConnection<ClientConnectionData>;

/// One side of a TLS connection.
#[derive(Debug)]
pub struct Session {
    side: Side,
    /// Encoded, not yet given to the caller: it leaves before the next records.
    aside: Vec<u8>,
    /// rustls is not to be asked again: it has lost its place in the bytes.
    broken: bool,
    /// It has said that nothing more will come.
    ended: bool,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl std::fmt::Debug for Side {
    /// Which side: what else there is are keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

/// What looking at received bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes that are used up, from the front.
    pub used: usize,
    /// What there is.
    pub what: Sealed,
}

/// What there is in received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// A record was opened; there may be more.
    Record,
    /// Something is to be sent before anything else: [`Session::take_aside`].
    Answer,
    /// Less than a record.
    Part,
    /// The peer has said that it sends nothing more.
    End,
}

impl Session {
    pub(super) fn client(identity: &Identity, name: ServerName<'static>) -> Result<Self, TlsError> {
        let connection = UnbufferedClientConnection::new(identity.client.clone(), name);
        let connection = connection.map_err(TlsError::Handshake)?;
        Ok(Self::new(Side::Client(Box::new(connection))))
    }

    pub(super) fn server(identity: &Identity) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(identity.server.clone());
        let connection = connection.map_err(TlsError::Handshake)?;
        Ok(Self::new(Side::Server(Box::new(connection))))
    }

    const fn new(side: Side) -> Self {
        Self {
            side,
            aside: vec![],
            broken: false,
            ended: false,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Whether the handshake goes on.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// Whether the handshake was a short one, by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The cipher suite's name, once it is chosen.
    #[must_use]
    pub fn cipher_suite(&self) -> Option<&'static str> {
        self.state().negotiated_cipher_suite()?.suite().as_str()
    }

    /// The cipher, where the kernel may know it, and how many records one key of it may seal.
    pub(super) fn cipher(&self) -> Option<(Cipher, u64)> {
        let suite = self.state().negotiated_cipher_suite()?;
        let SupportedCipherSuite::Tls13(known) = suite;
        let cipher = Cipher::of_suite(suite.suite())?;
        Some((cipher, known.common.confidentiality_limit))
    }

    /// Whether nothing is to be said, and nothing is half heard.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_handshaking() && !self.broken && self.aside.is_empty()
    }

    /// Whether this end was connected to.
    pub(super) const fn is_server(&self) -> bool {
        matches!(self.side, Side::Server(_))
    }

    /// Gives the keys of both directions away, and what takes tickets at a client.
    pub(super) fn into_keys(self) -> Result<(ExtractedSecrets, Option<Tickets>), TlsError> {
        match self.side {
            Side::Client(connection) => {
                let (secrets, rest) = connection
                    .dangerous_into_kernel_connection()
                    .map_err(TlsError::Handshake)?;
                Ok((secrets, Some(rest)))
            }
            Side::Server(connection) => {
                let (secrets, _) = connection
                    .dangerous_into_kernel_connection()
                    .map_err(TlsError::Handshake)?;
                Ok((secrets, None))
            }
        }
    }

    pub(super) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.state().peer_certificates().unwrap_or_default()
    }

    /// Looks at received bytes, up to the end of the first record of data; its content is appended to
    /// `plain`. The bytes are overwritten.
    ///
    /// # Errors
    /// [`TlsError`]: nothing more can be opened. [`Self::take_aside`] has what to tell the peer.
    pub fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>) -> Result<Opened, TlsError> {
        if self.broken {
            return Err(TlsError::Broken);
        }
        let mut used = 0;
        let handshaking = self.is_handshaking();
        loop {
            let (discard, step) = self.step(&mut received[used..], plain);
            used += discard;
            let what = match step {
                Ok(Step::Record) => Sealed::Record,
                // Once a connection is open, what is aside waits for the next bytes that leave.
                Ok(Step::Answer) if handshaking => Sealed::Answer,
                Ok(Step::Again | Step::Answer) => continue,
                Ok(Step::Part) if !handshaking && has_record(&received[used..]) => {
                    self.broken = true;
                    return Err(TlsError::Pieces);
                }
                Ok(Step::Part) => Sealed::Part,
                Ok(Step::End) => Sealed::End,
                Err(error) => {
                    // The alert by which rustls tells the peer what is wrong. Once: it looks at bytes
                    // again when it has nothing to say.
                    let _ = self.step(&mut received[used..], plain);
                    self.broken = true;
                    return Err(match handshaking {
                        true => TlsError::Handshake(error),
                        false => TlsError::Record(error),
                    });
                }
            };
            return Ok(Opened { used, what });
        }
    }

    fn step(&mut self, received: &mut [u8], plain: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        let aside = &mut self.aside;
        match &mut self.side {
            Side::Client(client) => {
                step::<ClientConnectionData>(client.process_tls_records(received), plain, aside)
            }
            Side::Server(server) => {
                step::<ServerConnectionData>(server.process_tls_records(received), plain, aside)
            }
        }
    }

    /// What is to be sent before anything else.
    pub fn take_aside(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.aside)
    }

    /// Seals `plain` into `sealed`, of [`sealed_bytes`] at least. Returns the bytes to send.
    ///
    /// # Errors
    /// [`TlsError`]: nothing more can be sealed.
    pub fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, TlsError> {
        self.write(Write::Bytes(plain), sealed)
    }

    /// Says that nothing more will come.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn seal_end(&mut self, sealed: &mut [u8]) -> Result<usize, TlsError> {
        let bytes = self.write(Write::End, sealed)?;
        self.ended = true;
        Ok(bytes)
    }

    /// Takes new keys for what is sealed from now on; the peer is told in the next bytes that leave.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn renew_keys(&mut self) -> Result<(), TlsError> {
        self.write(Write::Keys, &mut []).map(drop)
    }

    fn write(&mut self, what: Write<'_>, sealed: &mut [u8]) -> Result<usize, TlsError> {
        if self.broken {
            return Err(TlsError::Broken);
        }
        // Of a connection that both ends have ended there is no state in which anything can be written.
        if self.ended {
            return Err(TlsError::Ended);
        }
        let mut plain = vec![];
        loop {
            let aside = &mut self.aside;
            let written = match &mut self.side {
                Side::Client(c) => write::<ClientConnectionData>(
                    c.process_tls_records(&mut []),
                    &what,
                    sealed,
                    aside,
                    &mut plain,
                ),
                Side::Server(s) => write::<ServerConnectionData>(
                    s.process_tls_records(&mut []),
                    &what,
                    sealed,
                    aside,
                    &mut plain,
                ),
            };
            if let Some(bytes) = written? {
                if !matches!(what, Write::Keys) {
                    self.aside.clear();
                }
                return Ok(bytes);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Write<'a> {
    Bytes(&'a [u8]),
    End,
    Keys,
}

enum Step {
    Record,
    Again,
    Answer,
    Part,
    End,
}

/// Bytes of a record before its content.
const HEADER_BYTES: usize = 5;

/// How many bytes of the record that `received` ends in are still to come; those of the next one's header where
/// it ends with one.
pub(super) fn missing_bytes(mut received: &[u8]) -> usize {
    loop {
        let Some(length) = received.get(3..HEADER_BYTES) else {
            return HEADER_BYTES - received.len();
        };
        let length = HEADER_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
        match received.get(length..) {
            Some(rest) => received = rest,
            None => return length - received.len(),
        }
    }
}

/// Whether there is a whole record. rustls has then looked at it and keeps its place in these bytes: it is
/// a piece of a message to rustls itself. Such messages are short, and come whole.
fn has_record(bytes: &[u8]) -> bool {
    bytes.get(3..HEADER_BYTES).is_some_and(|length| {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        bytes.len() >= HEADER_BYTES + length
    })
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    aside: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = state.and_then(|state| take(state, &mut discard, plain, aside));
    (discard, step)
}

fn take<Data>(
    state: ConnectionState<'_, '_, Data>,
    discard: &mut usize,
    plain: &mut Vec<u8>,
    aside: &mut Vec<u8>,
) -> Result<Step, Error> {
    let step = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                *discard += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Step::Record
        }
        ConnectionState::EncodeTlsData(mut data) => {
            encode(aside, |into| data.encode(into))?;
            Step::Again
        }
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Step::Answer
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Step::Part,
        ConnectionState::PeerClosed | ConnectionState::Closed => Step::End,
        // Early data, which is never offered.
        other => return Err(Error::General(format!("{other:?} was not asked for"))),
    };
    Ok(step)
}

/// Appends to `aside` whatever length `write` asks for.
fn encode(
    aside: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), Error> {
    let start = aside.len();
    loop {
        match write(&mut aside[start..]) {
            Ok(bytes) => {
                aside.truncate(start + bytes);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => aside.resize(start + size.required_size, 0),
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

/// A step on the way to writing; `None` when there are more.
fn write<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    what: &Write<'_>,
    sealed: &mut [u8],
    aside: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> Result<Option<usize>, TlsError> {
    let UnbufferedStatus { mut discard, state } = status;
    let state = state.map_err(TlsError::Record)?;
    let ConnectionState::WriteTraffic(mut traffic) = state else {
        take(state, &mut discard, plain, aside).map_err(TlsError::Record)?;
        return Ok(None);
    };
    if matches!(what, Write::Keys) {
        traffic.refresh_traffic_keys().map_err(TlsError::Record)?;
        return Ok(Some(0));
    }
    let before = aside.len();
    let Some(room) = sealed.get_mut(before..) else {
        return Err(TlsError::NoRoom(before));
    };
    let written = match what {
        Write::Bytes(plain) => traffic.encrypt(plain, room),
        Write::End | Write::Keys => traffic.queue_close_notify(room),
    };
    match written {
        Ok(bytes) => {
            sealed[..before].copy_from_slice(aside);
            Ok(Some(before + bytes))
        }
        Err(EncryptError::InsufficientSize(size)) => Err(TlsError::NoRoom(size.required_size)),
        Err(EncryptError::EncryptExhausted) => Err(TlsError::Record(Error::EncryptError)),
    }
}
