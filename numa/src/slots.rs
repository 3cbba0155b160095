//! An arena cut into equal buffers.

use crate::arena::{Arena, ArenaBacking, ArenaError, BASE_PAGE_BYTES};

/// Equal buffers in one arena, addressed by index; whoever owns the value owns them all.
///
/// The slices are for the worker's own reads and writes. While the kernel or an adapter has a buffer
/// (between submission and completion), the owner must not touch that slot: the addresses given out
/// by [`BufferSlots::regions`] do not borrow.
#[derive(Debug)]
pub struct BufferSlots {
    arena: Arena,
    buffer_bytes: usize,
    stride_bytes: usize,
}

impl BufferSlots {
    pub(crate) fn new(arena: Arena, buffer_bytes: usize) -> Result<Self, ArenaError> {
        let arena_bytes = arena.len();
        let stride_bytes = buffer_bytes.checked_next_multiple_of(BASE_PAGE_BYTES);
        match stride_bytes {
            Some(stride_bytes) if (1..=arena_bytes).contains(&stride_bytes) => Ok(Self {
                arena,
                buffer_bytes,
                stride_bytes,
            }),
            _ => Err(ArenaError::Split {
                buffer_bytes,
                arena_bytes,
            }),
        }
    }

    /// Returns the number of buffers; at least one.
    #[expect(clippy::len_without_is_empty, reason = "there is always a buffer")]
    pub fn len(&self) -> usize {
        self.arena.len() / self.stride_bytes
    }

    /// Returns the size of each buffer in bytes.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Returns what kind of pages the buffers are in.
    pub fn backing(&self) -> ArenaBacking {
        self.arena.backing()
    }

    /// Returns the node the buffers come from, when one was asked for and granted.
    pub fn bound_node(&self) -> Option<usize> {
        self.arena.bound_node()
    }

    /// Returns the buffer `slot`.
    ///
    /// # Panics
    /// When `slot >= self.len()`.
    pub fn get(&self, slot: usize) -> &[u8] {
        let start = self.start_of(slot);
        &self.arena.as_slice()[start..start + self.buffer_bytes]
    }

    /// Returns the buffer `slot`, to write.
    ///
    /// # Panics
    /// When `slot >= self.len()`.
    pub fn get_mut(&mut self, slot: usize) -> &mut [u8] {
        let start = self.start_of(slot);
        let end = start + self.buffer_bytes;
        &mut self.arena.as_mut_slice()[start..end]
    }

    /// Returns two buffers at once, to write; `None` when they are one.
    ///
    /// # Panics
    /// When one of them is not below `self.len()`.
    pub fn pair_mut(&mut self, one: usize, other: usize) -> Option<(&mut [u8], &mut [u8])> {
        if one == other {
            return None;
        }
        let (low, high) = (one.min(other), one.max(other));
        let (low_start, high_start) = (self.start_of(low), self.start_of(high));
        let bytes = self.buffer_bytes;
        let (front, back) = self.arena.as_mut_slice().split_at_mut(high_start);
        let (low, high) = (&mut front[low_start..low_start + bytes], &mut back[..bytes]);
        Some(if one < other {
            (low, high)
        } else {
            (high, low)
        })
    }

    /// Returns all buffers at once, to write, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let bytes = self.buffer_bytes;
        self.arena
            .as_mut_slice()
            .chunks_exact_mut(self.stride_bytes)
            .map(move |slot| &mut slot[..bytes])
    }

    /// Returns address and length of each buffer, by slot, for registration as fixed buffers. Valid
    /// while this value lives, wherever it is moved.
    pub fn regions(&mut self) -> Vec<(*mut u8, usize)> {
        self.iter_mut()
            .map(|buffer| (buffer.as_mut_ptr(), buffer.len()))
            .collect()
    }

    fn start_of(&self, slot: usize) -> usize {
        assert!(slot < self.len(), "slot {slot} of {}", self.len());
        slot * self.stride_bytes
    }
}
