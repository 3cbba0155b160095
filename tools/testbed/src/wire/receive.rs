//! The ways out of a socket into memory, blocking, a unit at a time.

use std::io::{self, Read};
use std::net::TcpStream;
use std::num::Wrapping;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use dwcp_simd::FingerprintKey;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::uio::pwrite;

use super::UNIT_BYTES;
use super::memory::Memory;
use super::methods::{moved, pipe, prove};

/// How bytes get from the socket into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Read straight into it.
    InPlace,
    /// Read into a buffer, and written to the memory's file: not on hugetlbfs.
    Written,
    /// Spliced to a pipe, and on to the memory's file: not on hugetlbfs.
    Spliced,
}

impl Receive {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::InPlace, Self::Written, Self::Spliced];
}

/// Receives a range of memory. Returns its proof, where there is a key for one.
pub(super) fn receive(
    how: Receive,
    memory: &Memory,
    range: Range<usize>,
    socket: &TcpStream,
    key: Option<&FingerprintKey>,
) -> io::Result<u64> {
    let (mut proof, mut proven) = (Wrapping(0), range.start);
    let mut buffer = match how {
        Receive::Written => vec![0; UNIT_BYTES],
        _ => vec![],
    };
    let pipe = match how {
        Receive::Spliced => Some(pipe()?),
        _ => None,
    };
    let mut at = range.start;
    while at < range.end {
        let unit = at..range.end.min(at + UNIT_BYTES);
        at += match &pipe {
            Some(pipe) => by_pipe(memory, unit, socket, pipe)?,
            None if buffer.is_empty() => in_place(memory, unit, socket)?,
            None => by_buffer(memory, unit, socket, &mut buffer)?,
        };
        if let Some(key) = key {
            proof += prove(memory, &mut proven, at, key);
        }
    }
    Ok(proof.0)
}

fn in_place(memory: &Memory, unit: Range<usize>, socket: &TcpStream) -> io::Result<usize> {
    let piece = memory.piece(unit);
    // SAFETY: the piece lies in the mapping, which outlives the call; this thread alone writes it.
    let result = unsafe { libc::read(socket.as_raw_fd(), piece.iov_base, piece.iov_len) };
    some(moved(result)?)
}

fn some(bytes: usize) -> io::Result<usize> {
    match bytes {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        bytes => Ok(bytes),
    }
}

fn by_buffer(
    memory: &Memory,
    unit: Range<usize>,
    mut socket: &TcpStream,
    buffer: &mut [u8],
) -> io::Result<usize> {
    // Whole units: the file is written page by page.
    let buffer = &mut buffer[..unit.len()];
    socket.read_exact(buffer)?;
    let mut written = 0;
    while written < buffer.len() {
        let offset = (unit.start + written) as i64;
        written += pwrite(memory.file(), &buffer[written..], offset)?;
    }
    Ok(written)
}

fn by_pipe(
    memory: &Memory,
    unit: Range<usize>,
    socket: &TcpStream,
    (out, into): &(OwnedFd, OwnedFd),
) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE;
    let bytes = some(splice(socket, None, into, None, unit.len(), flags)?)?;
    let mut offset = unit.start as i64;
    let mut left = bytes;
    while left > 0 {
        left -= splice(out, None, memory.file(), Some(&mut offset), left, flags)?;
    }
    Ok(bytes)
}
