//! A worker's buffers: equal pieces of one arena.

use std::io;

use memmap2::MmapMut;

use crate::path::{FRAME_BUFFER_BYTES, RECEIVE_BUFFER_BYTES};

/// Bytes of one buffer: a frame in either direction, whole pages.
pub const BUFFER_BYTES: usize = {
    let most = if FRAME_BUFFER_BYTES > RECEIVE_BUFFER_BYTES {
        FRAME_BUFFER_BYTES
    } else {
        RECEIVE_BUFFER_BYTES
    };
    most.next_multiple_of(4096)
};

/// Names a buffer of its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u16);

/// The buffers and which of them are free.
#[derive(Debug)]
pub struct Buffers {
    arena: MmapMut,
    free: Vec<BufferId>,
    count: usize,
}

impl Buffers {
    /// `count` buffers, all free.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(count: usize) -> io::Result<Self> {
        let count = count.min(usize::from(u16::MAX));
        let arena = MmapMut::map_anon(count * BUFFER_BYTES)?;
        let free = (0..count as u16).rev().map(BufferId).collect();
        Ok(Self { arena, free, count })
    }

    /// Takes a free buffer.
    pub fn take(&mut self) -> Option<BufferId> {
        self.free.pop()
    }

    /// Gives one back.
    pub fn give(&mut self, buffer: BufferId) {
        debug_assert!(!self.free.contains(&buffer));
        self.free.push(buffer);
    }

    /// Free buffers.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All buffers.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The bytes of a buffer.
    pub fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        let start = usize::from(buffer.0) * BUFFER_BYTES;
        &mut self.arena[start..start + BUFFER_BYTES]
    }

    /// Address of a buffer, for the kernel.
    pub(super) fn address(&mut self, buffer: BufferId) -> *mut u8 {
        self.bytes_mut(buffer).as_mut_ptr()
    }

    /// Address and length of the whole arena, for registration.
    pub(super) fn span(&mut self) -> (*mut u8, usize) {
        (self.arena.as_mut_ptr(), self.arena.len())
    }
}
