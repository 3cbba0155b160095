//! Memory that an adapter may use: who owns it, and a buffer that does.

use std::fmt;
use std::io;
use std::ops::Range;

use memmap2::{MmapOptions, MmapRaw};

use crate::RdmaError;

/// Memory that can be registered.
///
/// # Safety
/// From the first call of [`address`](Self::address) until the value is dropped, `length` bytes from there stay mapped, at
/// that place, readable and writable. The adapter, and through it a peer, may write any of them at any time: no reference to
/// them is ever formed, and nothing depends on what they hold.
pub unsafe trait RegisteredMemory: fmt::Debug + Send + Sync {
    /// Where it begins.
    fn address(&self) -> *mut u8;
    /// How many bytes.
    fn length(&self) -> usize;
}

/// Anonymous memory of this process, on whole pages, zero at first.
#[derive(Debug)]
pub struct Buffer {
    map: MmapRaw,
}

// SAFETY: the mapping stays where it is until drop, and is readable and writable. Bytes are only copied in and out, by raw
// pointers, and any value is valid for a byte.
unsafe impl RegisteredMemory for Buffer {
    fn address(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    fn length(&self) -> usize {
        self.map.len()
    }
}

impl Buffer {
    /// Maps `bytes` on pages of 4 KiB.
    ///
    /// # Errors
    /// When there is not that much address space, or `bytes` is 0.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon()?);
        Ok(Self { map })
    }

    /// Maps `bytes` on huge pages of 2 MiB.
    ///
    /// # Errors
    /// When the system has not that many set aside (`vm.nr_hugepages`).
    pub fn on_huge_pages(bytes: usize) -> io::Result<Self> {
        let map = MmapOptions::new()
            .len(bytes)
            .huge(Some(21))
            .populate()
            .map_anon()?;
        Ok(Self {
            map: MmapRaw::from(map),
        })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether it has none, which cannot be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Copies bytes in. Bytes that the adapter touches meanwhile are torn.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`]; nothing is copied then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), RdmaError> {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: `at` proved that the bytes lie in the mapping, which is writable and lives as long as `self`. `bytes` is a
        // shared reference to other memory: no reference to the mapping exists. The adapter may read or write the same bytes
        // meanwhile, from outside this program; each of them then is old or new.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out. Bytes that the adapter writes meanwhile are torn.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`]; `into` is untouched then.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), RdmaError> {
        let from = self.at(offset, into.len())?;
        // SAFETY: `at` proved that the bytes lie in the mapping, which is readable and lives as long as `self`. `into` is
        // exclusive and other memory. The adapter may write the same bytes meanwhile; each of them then is old or new.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies a range out.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`].
    pub fn bytes(&self, range: Range<usize>) -> Result<Vec<u8>, RdmaError> {
        let mut bytes = vec![0; range.len()];
        self.read(range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn at(&self, offset: usize, bytes: usize) -> Result<*mut u8, RdmaError> {
        check_range(offset, bytes, self.map.len())?;
        Ok(self.map.as_mut_ptr().wrapping_add(offset))
    }
}

/// Whether a range lies in memory of a length.
pub(crate) fn check_range(offset: usize, bytes: usize, length: usize) -> Result<(), RdmaError> {
    match offset.checked_add(bytes) {
        Some(end) if end <= length => Ok(()),
        _ => Err(RdmaError::OutsideMemory {
            offset,
            bytes,
            length,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_within_the_buffer_only() {
        let buffer = Buffer::new(8192).unwrap();
        buffer.write(4090, b"across").unwrap();
        assert_eq!(buffer.bytes(4090..4096).unwrap(), b"across");
        assert_eq!((buffer.len(), buffer.is_empty()), (8192, false));
        assert!(Buffer::new(0).map_or(true, |none| none.is_empty()));
        for (offset, bytes) in [(8192, 1), (0, 8193), (usize::MAX, 2)] {
            let error = buffer.read(offset, &mut vec![0; bytes]).unwrap_err();
            assert!(
                matches!(error, RdmaError::OutsideMemory { length: 8192, .. }),
                "{error}"
            );
            assert!(buffer.write(offset, &vec![0; bytes]).is_err());
        }
    }
}
