//! Reading files with holes.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

/// Where the next data of a file begins; `None` behind the last.
pub(super) fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match lseek(file, from as i64, Whence::SeekData) {
        Ok(data) => Ok(Some(data as u64)),
        Err(Errno::ENXIO) => Ok(None),
        // A file system that cannot tell.
        Err(Errno::EINVAL) => Ok(Some(from)),
        Err(errno) => Err(errno.into()),
    }
}

/// Fills `out` with what is at `at`. A file that ends before is an error.
pub(super) fn read_whole(file: BorrowedFd<'_>, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match pread(file, out, at as i64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                out = &mut out[bytes..];
                at += bytes as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
