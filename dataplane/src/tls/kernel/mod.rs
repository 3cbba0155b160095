//! TLS of a page stream by the kernel: after the handshake the keys are the socket's, and what is written to
//! it leaves sealed (kernel TLS, `tls.ko`).
//!
//! | file | what |
//! |---|---|
//! | `keys.rs` | keys as the kernel takes them, and how many records they have sealed |
//! | `words.rs` | records that are no data: alerts, tickets, key updates |
//!
//! Both directions are handed over together, or none. What the kernel cannot do ends the stream, and the
//! migration puts another in its place: keys are not renewed, neither its own near the cipher's limit nor
//! the peer's (that takes Linux 6.14).

mod keys;
#[cfg(test)]
mod tests;
mod words;

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx};
use rustls::AlertDescription;

pub use keys::Cipher;
use words::Word;

use super::session::Tickets;
use super::{SealedStream, TlsError};

/// Records that a frame may become at most: each of its pages one, its head, and a part wherever the socket
/// was full in between.
const RECORDS_PER_FRAME_MAX: u64 = 512;

/// Messages of TLS itself that wait for their rest.
const SAID_BYTES_MAX: usize = 64 * 1024;

/// What this kernel can seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTls {
    ciphers: Vec<Cipher>,
}

impl KernelTls {
    /// Tries it, on a connection of this machine with itself.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find() -> Result<Self, String> {
        let release = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
        let release = release.release().to_string_lossy();
        if !wakes_for_whole_records(&release) {
            return Err(format!(
                "Linux {release} wakes whoever waits for a record at each piece of it; 6.5 does not"
            ));
        }
        let why = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT) => "it has no module tls, or has not loaded it".to_owned(),
            _ => error.to_string(),
        };
        let mut refusal = None;
        let mut takes = |cipher: &Cipher| match is_taken(*cipher) {
            Ok(()) => true,
            Err(error) => {
                refusal = Some(format!("{}: {error}", cipher.name()));
                false
            }
        };
        let ends = own_connection().map_err(why)?;
        keys::prepare(&ends[0]).map_err(why)?;
        let ciphers: Vec<_> = Cipher::ALL.into_iter().filter(|c| takes(c)).collect();
        match refusal {
            Some(why) if ciphers.is_empty() => Err(why),
            _ => Ok(Self { ciphers }),
        }
    }

    /// The ciphers, by name.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.ciphers.iter().map(|cipher| cipher.name())
    }

    fn has(&self, cipher: Cipher) -> bool {
        self.ciphers.contains(&cipher)
    }
}

/// Whether a socket that has part of a record is not one that can be read. Before Linux 6.5 it is, and a
/// worker that waits for the rest never sleeps ("tls: suppress wakeups unless we have a full record").
fn wakes_for_whole_records(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    (number(), number()) >= (Some(6), Some(5))
}

/// Both ends of a connection.
fn own_connection() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    Ok([one, listener.accept()?.0])
}

fn is_taken(cipher: Cipher) -> io::Result<()> {
    let [socket, _other] = own_connection()?;
    keys::prepare(&socket)?;
    setsockopt(&socket, TcpTlsRx, &cipher.blank())?;
    setsockopt(&socket, TcpTlsTx, &cipher.blank())?;
    Ok(())
}

/// What became of a stream that was to be the kernel's.
#[derive(Debug)]
pub enum HandedOver {
    /// It is.
    Kernel(Box<KernelStream>),
    /// It is what it was: this reason.
    Kept(Box<SealedStream>, String),
    /// Its keys are nowhere any more.
    Lost(TlsError),
}

/// TLS of a stream whose keys the kernel has.
pub struct KernelStream {
    cipher: Cipher,
    /// Records that may be sealed with one key.
    limit: u64,
    /// Frames that may be given to the kernel before it is asked again how many records it has sealed.
    frames_unseen: u64,
    /// Takes the tickets that come, where this end is the client.
    tickets: Option<Tickets>,
    said: Vec<u8>,
}

impl std::fmt::Debug for KernelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelStream")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}

/// What a record that is no data comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// There may be data behind it.
    GoOn,
    /// The peer sends nothing more, and has said so.
    End,
}

impl KernelStream {
    /// Hands the keys of a stream to the kernel. Not when bytes of it were read already: the kernel can be
    /// given none.
    #[must_use]
    pub fn hand_over(socket: &TcpStream, sealed: SealedStream, kernel: &KernelTls) -> HandedOver {
        let kept = |sealed, why: &str| HandedOver::Kept(Box::new(sealed), why.to_owned());
        let Some((cipher, limit)) = sealed.session.cipher() else {
            return kept(sealed, "its cipher is not one of the kernel's");
        };
        if !kernel.has(cipher) {
            return kept(sealed, "its cipher is not one that this kernel has");
        }
        if !sealed.session.is_quiet() || !sealed.received.is_empty() || !sealed.plain.is_empty() {
            return kept(sealed, "bytes of it were read already");
        }
        if let Err(error) = keys::prepare(socket) {
            return kept(sealed, &error.to_string());
        }
        let given = sealed.session.into_keys().and_then(|(secrets, tickets)| {
            keys::give(socket, &secrets)?;
            Ok(tickets)
        });
        match given {
            Ok(tickets) => HandedOver::Kernel(Box::new(Self {
                cipher,
                limit,
                frames_unseen: 0,
                tickets,
                said: vec![],
            })),
            Err(error) => HandedOver::Lost(error),
        }
    }

    /// Counts a frame that is to leave.
    ///
    /// # Errors
    /// [`TlsError::KeyUsed`] when the key has sealed nearly as much as it may: seven eighths, so that what is
    /// with the kernel already stays within the limit.
    pub fn count_frame(&mut self, socket: &TcpStream) -> Result<(), TlsError> {
        if self.limit == u64::MAX {
            return Ok(());
        }
        if let Some(unseen) = self.frames_unseen.checked_sub(1) {
            self.frames_unseen = unseen;
            return Ok(());
        }
        let records = keys::sealed_records(socket, self.cipher)?;
        let left = (self.limit - self.limit / 8).saturating_sub(records);
        if left == 0 {
            return Err(TlsError::KeyUsed(records));
        }
        self.frames_unseen = left / RECORDS_PER_FRAME_MAX;
        Ok(())
    }

    /// What it means that nothing could be received.
    ///
    /// # Errors
    /// [`TlsError`]: the stream is over, otherwise than by the peer's word.
    pub fn not_received(
        &mut self,
        socket: &TcpStream,
        error: io::Error,
    ) -> Result<Heard, TlsError> {
        match error.raw_os_error() {
            Some(libc::EIO) => self.hear(socket),
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Err(TlsError::Cut),
            _ => {
                let error = Self::in_words(error);
                if matches!(error, TlsError::Record(_)) {
                    let _ = words::alert(socket, AlertDescription::BadRecordMac);
                }
                Err(error)
            }
        }
    }

    fn hear(&mut self, socket: &TcpStream) -> Result<Heard, TlsError> {
        match words::hear(socket)? {
            None => Ok(Heard::GoOn),
            Some(Word::Alert(AlertDescription::CloseNotify)) => Ok(Heard::End),
            Some(Word::Alert(alert)) => Err(TlsError::Record(rustls::Error::AlertReceived(alert))),
            Some(Word::Handshake(said)) => {
                self.said.extend(said);
                for (kind, content) in words::messages(&mut self.said) {
                    self.take_message(kind, &content)?;
                }
                match self.said.len() {
                    ..=SAID_BYTES_MAX => Ok(Heard::GoOn),
                    _ => Err(TlsError::Unasked),
                }
            }
        }
    }

    fn take_message(&mut self, kind: u8, content: &[u8]) -> Result<(), TlsError> {
        const TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        match (kind, &mut self.tickets) {
            (TICKET, Some(tickets)) => tickets
                .handle_new_session_ticket(content)
                .map_err(TlsError::Record),
            (KEY_UPDATE, _) => Err(TlsError::KeyRenewed),
            _ => Err(TlsError::Unasked),
        }
    }

    /// An error of the socket's, as TLS calls it.
    #[must_use]
    pub fn in_words(error: io::Error) -> TlsError {
        match error.raw_os_error() {
            Some(libc::EBADMSG) => TlsError::Record(rustls::Error::DecryptError),
            Some(libc::EMSGSIZE | libc::EINVAL) => TlsError::NoRecord(error),
            _ => error.into(),
        }
    }

    /// Says that nothing more will come.
    pub fn say_end(&self, socket: &TcpStream) {
        // A peer that takes nothing more does not hear it.
        let _ = words::alert(socket, AlertDescription::CloseNotify);
    }
}
