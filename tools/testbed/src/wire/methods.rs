//! The ways into a socket, blocking, a unit at a time.

use std::io;
use std::net::TcpStream;
use std::num::Wrapping;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use dwcp_simd::{FingerprintKey, PAGE_BYTES};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::sendfile::sendfile;

use super::UNIT_BYTES;
use super::memory::Memory;

/// How bytes get into the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// writev from memory: the kernel copies.
    Write,
    /// sendfile from the memory's file: by reference.
    Sendfile,
    /// splice from the memory's file to a pipe, and on: by reference.
    Splice,
    /// vmsplice from memory to a pipe, and on: by reference.
    Vmsplice,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Write, Self::Sendfile, Self::Splice, Self::Vmsplice];

    /// Name in tables and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "wire-write",
            Self::Sendfile => "wire-sendfile",
            Self::Splice => "wire-splice",
            Self::Vmsplice => "wire-vmsplice",
        }
    }
}

/// Sends a range of memory. Returns its proof, where there is a key for one.
pub(super) fn send(
    method: Method,
    memory: &Memory,
    range: Range<usize>,
    socket: &TcpStream,
    key: Option<&FingerprintKey>,
) -> io::Result<u64> {
    let (mut proof, mut proven) = (Wrapping(0), range.start);
    let pipe = match method {
        Method::Splice | Method::Vmsplice => Some(pipe()?),
        Method::Write | Method::Sendfile => None,
    };
    let mut at = range.start;
    while at < range.end {
        let unit = at..range.end.min(at + UNIT_BYTES);
        if let Some(key) = key.filter(|_| proven < unit.end) {
            proof += prove(memory, &mut proven, unit.end, key);
        }
        at += match (&pipe, method) {
            (Some(pipe), Method::Vmsplice) => {
                let bytes = vmsplice(&pipe.1, memory.piece(unit))?;
                drain(&pipe.0, socket, bytes)?;
                bytes
            }
            (Some(pipe), _) => {
                let mut offset = unit.start as i64;
                let flags = SpliceFFlags::empty();
                let (file, into) = (memory.file(), &pipe.1);
                let bytes = splice(file, Some(&mut offset), into, None, unit.len(), flags)?;
                drain(&pipe.0, socket, bytes)?;
                bytes
            }
            (None, Method::Sendfile) => {
                let mut offset = unit.start as i64;
                sendfile(socket, memory.file(), Some(&mut offset), unit.len())?
            }
            (None, _) => write(socket, memory.piece(unit))?,
        };
    }
    Ok(proof.0)
}

/// The proof of the whole pages from `proven` up to `end`.
pub(super) fn prove(
    memory: &Memory,
    proven: &mut usize,
    end: usize,
    key: &FingerprintKey,
) -> Wrapping<u64> {
    let end = end / PAGE_BYTES * PAGE_BYTES;
    let range = *proven..end.max(*proven);
    *proven = range.end;
    Wrapping(memory.proof(range, key))
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(UNIT_BYTES as i32))?;
    Ok((read, write))
}

fn drain(pipe: &OwnedFd, socket: &TcpStream, mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        bytes -= splice(pipe, None, socket, None, bytes, SpliceFFlags::SPLICE_F_MORE)?;
    }
    Ok(())
}

fn vmsplice(pipe: &OwnedFd, piece: libc::iovec) -> io::Result<usize> {
    // SAFETY: the piece lies in a mapping that outlives the call; the kernel then holds the pages.
    moved(unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const piece, 1, 0) })
}

fn write(socket: &TcpStream, piece: libc::iovec) -> io::Result<usize> {
    // SAFETY: the piece lies in a mapping that outlives the call, during which it is only read.
    moved(unsafe { libc::writev(socket.as_raw_fd(), &raw const piece, 1) })
}

pub(super) fn moved(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
