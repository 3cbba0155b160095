//! The handshake on a socket, within a time, before anything else is done with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;

use super::session::missing_bytes;
use super::{Connection, Identity, Sealed, Session, TlsError};

/// First byte of a TLS connection: a record of the handshake.
pub const RECORD_HANDSHAKE: u8 = 0x16;

/// Time for a peer that is refused to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A peer's part of a handshake is a few kilobytes; a record of it no more than this.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

const fn alert(description: u8) -> [u8; 7] {
    const ALERT: u8 = 0x15;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, description]
}

/// Tells a peer that speaks TLS that this node does not: `access_denied`.
pub fn say_no_tls(socket: &mut TcpStream) {
    const ACCESS_DENIED: u8 = 49;
    last_words(socket, &alert(ACCESS_DENIED));
}

/// Makes a connection to the node `name` secure, within `time`.
///
/// # Errors
/// [`TlsError`] says what about the peer is not as it must be.
pub fn connect(
    identity: &Identity,
    socket: TcpStream,
    name: &ServerName<'static>,
    time: Duration,
) -> Result<Connection, TlsError> {
    let mut session = Session::client(identity, name.clone())?;
    let check = |session: &Session| identity.check_server(session.peer_certificates(), name);
    shake(&mut session, socket, time, check)
        .map(|(socket, rest)| rest.into_connection(socket, session))
}

/// Takes a connection that begins with TLS, within `time`.
///
/// # Errors
/// [`TlsError`] says what about the peer is not as it must be.
pub fn accept(
    identity: &Identity,
    socket: TcpStream,
    time: Duration,
) -> Result<Connection, TlsError> {
    let mut session = Session::server(identity)?;
    let check = |session: &Session| identity.check_client(session.peer_certificates());
    shake(&mut session, socket, time, check)
        .map(|(socket, rest)| rest.into_connection(socket, session))
}

/// What came behind the handshake.
pub(super) struct Rest {
    pub(super) received: Vec<u8>,
    pub(super) plain: Vec<u8>,
}

impl Rest {
    fn into_connection(self, socket: TcpStream, session: Session) -> Connection {
        Connection::sealed(socket, session, self)
    }
}

fn shake(
    session: &mut Session,
    mut socket: TcpStream,
    time: Duration,
    check: impl Fn(&Session) -> Result<(), TlsError>,
) -> Result<(TcpStream, Rest), TlsError> {
    let limits = (socket.read_timeout()?, socket.write_timeout()?);
    let shaken = exchange(session, &mut socket, time).and_then(|rest| {
        if session.is_resumed() {
            check(session)?;
        }
        Ok(rest)
    });
    let rest = shaken.inspect_err(|_| {
        let words = session.take_aside();
        last_words(&mut socket, &words);
    })?;
    socket.set_read_timeout(limits.0)?;
    socket.set_write_timeout(limits.1)?;
    Ok((socket, rest))
}

fn exchange(
    session: &mut Session,
    socket: &mut TcpStream,
    time: Duration,
) -> Result<Rest, TlsError> {
    let deadline = Instant::now() + time;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero())
            .then_some(left)
            .ok_or(TlsError::TooLong(time))
    };
    let mut rest = Rest {
        received: vec![],
        plain: vec![],
    };
    loop {
        let opened = session.open(&mut rest.received, &mut rest.plain)?;
        rest.received.drain(..opened.used);
        match opened.what {
            Sealed::Answer => say(session, socket, left()?, time)?,
            Sealed::Part if !session.is_handshaking() => {
                // Tickets, when data came right behind the peer's last word.
                say(session, socket, left()?, time)?;
                return Ok(rest);
            }
            Sealed::Record => {}
            Sealed::Part => {
                socket.set_read_timeout(Some(left()?))?;
                let mut bytes = [0; 4096];
                // No more than belongs to it: what comes behind may be the kernel's to open.
                let wanted = missing_bytes(&rest.received).min(bytes.len());
                let count = match socket.read(&mut bytes[..wanted]) {
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(slow(error, time)),
                };
                if count == 0 {
                    return Err(TlsError::Closed);
                }
                rest.received.extend_from_slice(&bytes[..count]);
                if rest.received.len() > HANDSHAKE_BYTES_MAX {
                    return Err(TlsError::NoRoom(rest.received.len()));
                }
            }
            Sealed::End => return Err(TlsError::Closed),
        }
    }
}

fn say(
    session: &mut Session,
    socket: &mut TcpStream,
    left: Duration,
    time: Duration,
) -> Result<(), TlsError> {
    let answer = session.take_aside();
    if answer.is_empty() {
        return Ok(());
    }
    socket.set_write_timeout(Some(left))?;
    socket.write_all(&answer).map_err(|error| slow(error, time))
}

fn slow(error: std::io::Error, time: Duration) -> TlsError {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => TlsError::TooLong(time),
        ErrorKind::ConnectionReset => TlsError::Closed,
        _ => error.into(),
    }
}

/// Says why, and waits until that is read: a socket that is closed over unread bytes takes back what it
/// has sent.
pub(super) fn last_words(socket: &mut TcpStream, words: &[u8]) {
    let deadline = Instant::now() + LAST_WORDS;
    let said = socket
        .set_write_timeout(Some(LAST_WORDS))
        .and_then(|()| socket.write_all(words))
        .and_then(|()| socket.shutdown(Shutdown::Write))
        .and_then(|()| socket.set_read_timeout(Some(LAST_WORDS)));
    if said.is_err() {
        return;
    }
    let mut bytes = [0; 4096];
    while Instant::now() < deadline && socket.read(&mut bytes).is_ok_and(|count| count > 0) {}
}
