//! Blocking ends of the node's Unix sockets: peer credentials checked, descriptors passed.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{self, CodecError, PREFIX_BYTES};

/// Why a local socket does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another daemon serves this path.
    #[error("{path}: socket is in use by another process; stop it or choose another state folder")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The other process runs as a user that may not talk to this one.
    #[error("peer has uid {uid}, allowed are root and the daemon's own user")]
    Forbidden {
        /// Its uid.
        uid: u32,
    },
    /// The other side closed.
    #[error("connection closed")]
    Closed,
    /// Reading or writing failed.
    #[error("connection: {0}")]
    Connection(#[from] std::io::Error),
    /// The bytes are not a message.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Listens on a path, mode 0600; the path goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`. A left-over socket that nobody serves is replaced.
    ///
    /// # Errors
    /// [`SocketError::InUse`] when a process answers there.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        if path.exists() {
            match UnixStream::connect(path) {
                Ok(_) => {
                    return Err(SocketError::InUse {
                        path: path.to_owned(),
                    });
                }
                Err(_) => std::fs::remove_file(path).map_err(io)?,
            }
        }
        let socket = UnixListener::bind(path).map_err(io)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// Waits for a client; one that may not talk to us is refused.
    ///
    /// # Errors
    /// [`SocketError::Forbidden`] names the client's uid.
    pub fn accept(&self) -> Result<UnixStream, SocketError> {
        let (stream, _) = self.socket.accept()?;
        check_peer(&stream)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects to a daemon's socket.
///
/// # Errors
/// [`SocketError::Io`] with the path when nobody serves it.
pub fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, SocketError> {
    let stream = UnixStream::connect(path).map_err(|source| SocketError::Io {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

fn check_peer(stream: &UnixStream) -> Result<(), SocketError> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(std::io::Error::from)?;
    let own = nix::unistd::geteuid().as_raw();
    if credentials.uid() == 0 || credentials.uid() == own {
        return Ok(());
    }
    Err(SocketError::Forbidden {
        uid: credentials.uid(),
    })
}

/// Sends one message, with descriptors beside its first byte.
///
/// # Errors
/// [`SocketError::Connection`] when the peer is gone.
pub fn send<T: Serialize>(
    stream: &mut UnixStream,
    message: &T,
    descriptors: &[RawFd],
) -> Result<(), SocketError> {
    let frame = codec::encode(message)?;
    let control = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &control[..0]
    } else {
        &control[..]
    };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&frame)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(std::io::Error::from)?;
    stream.write_all(&frame[sent..])?;
    Ok(())
}

/// Receives one message and the descriptors sent with it (four at most; more are refused).
///
/// # Errors
/// [`SocketError::Closed`] at the end of the stream.
pub fn receive<T: DeserializeOwned>(
    stream: &mut UnixStream,
) -> Result<(T, Vec<OwnedFd>), SocketError> {
    let mut prefix = [0; PREFIX_BYTES];
    let (read, descriptors) = receive_first(stream, &mut prefix)?;
    if read == 0 {
        return Err(SocketError::Closed);
    }
    stream.read_exact(&mut prefix[read..])?;
    let mut body = vec![0; codec::body_bytes(prefix)?];
    stream.read_exact(&mut body)?;
    Ok((codec::decode(&body)?, descriptors))
}

fn receive_first(
    stream: &UnixStream,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), SocketError> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other.map_err(std::io::Error::from)?,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs().map_err(std::io::Error::from)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process alone, and each
            // is taken exactly once.
            descriptors.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((message.bytes, descriptors))
}
