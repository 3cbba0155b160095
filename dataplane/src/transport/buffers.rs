//! A worker's buffers: equal pieces of one arena, in huge pages and near the worker where the
//! machine has them.

use std::io;

use dwcp_numa::{Arena, ArenaOptions, BufferSlots};

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
    slots: BufferSlots,
    free: Vec<BufferId>,
}

impl Buffers {
    /// `count` buffers or a few more, all free, on NUMA node `node` if one is named.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(count: usize, node: Option<usize>) -> io::Result<Self> {
        let bytes = count.clamp(1, usize::from(u16::MAX)) * BUFFER_BYTES;
        let arena = Arena::new(bytes, node, ArenaOptions::default()).map_err(io::Error::other)?;
        let slots = arena.split(BUFFER_BYTES).map_err(io::Error::other)?;
        let free = (0..slots.len().min(count) as u16)
            .rev()
            .map(BufferId)
            .collect();
        Ok(Self { slots, free })
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

    /// The bytes of a buffer.
    pub fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        self.slots.get_mut(usize::from(buffer.0))
    }

    /// Address of a buffer, for the kernel.
    pub(super) fn address(&mut self, buffer: BufferId) -> *mut u8 {
        self.bytes_mut(buffer).as_mut_ptr()
    }

    /// Address and length of every buffer in the order of their numbers, for registration.
    pub(super) fn regions(&mut self) -> Vec<(*mut u8, usize)> {
        self.slots.regions()
    }
}
