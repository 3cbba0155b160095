//! A worker's buffers: equal pieces of one arena, in huge pages and near the worker where the
//! machine has them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_numa::{Arena, ArenaOptions, BufferSlots};

use crate::path::{FRAME_BUFFER_BYTES, RECEIVE_BUFFER_BYTES};

/// Bytes of one buffer: a frame in either direction, also when it is sealed; whole pages.
pub const BUFFER_BYTES: usize = {
    let most = if FRAME_BUFFER_BYTES > RECEIVE_BUFFER_BYTES {
        FRAME_BUFFER_BYTES
    } else {
        RECEIVE_BUFFER_BYTES
    };
    crate::tls::sealed_bytes(most).next_multiple_of(4096)
};

/// Names a buffer of its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u16);

/// What a node keeps of its workers' buffers when they end, at most.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Arenas between two migrations: to clear 8 MiB for each would take milliseconds.
///
/// What an earlier worker left in them is never sent: a frame goes out as far as it was written.
#[derive(Clone, Debug, Default)]
pub struct BufferStock {
    kept: Arc<Mutex<Vec<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    slots: BufferSlots,
    node: Option<usize>,
}

impl BufferStock {
    /// The smallest arena for `count` buffers on `node`, out of the stock if it is there.
    fn take(&self, count: usize, node: Option<usize>) -> Option<BufferSlots> {
        let mut kept = self.lock();
        let fits = |kept: &Kept| kept.node == node && kept.slots.len() >= count;
        let fitting = kept.iter().enumerate().filter(|(_, kept)| fits(kept));
        let (index, _) = fitting.min_by_key(|(_, kept)| kept.slots.len())?;
        Some(kept.swap_remove(index).slots)
    }

    /// Keeps an arena, or gives its memory back when there is enough.
    fn give(&self, slots: BufferSlots, node: Option<usize>) {
        let bytes = |slots: &BufferSlots| slots.len() * slots.buffer_bytes();
        let mut kept = self.lock();
        let held: usize = kept.iter().map(|kept| bytes(&kept.slots)).sum();
        if held + bytes(&slots) <= KEPT_BYTES_MAX {
            kept.push(Kept { slots, node });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buffers and which of them are free.
#[derive(Debug)]
pub struct Buffers {
    /// There until the end.
    slots: Option<BufferSlots>,
    free: Vec<BufferId>,
    stock: BufferStock,
    node: Option<usize>,
}

impl Buffers {
    /// `count` buffers, all free, on NUMA node `node` if one is named: out of `stock`, or new. They go
    /// to the stock in the end.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(count: usize, node: Option<usize>, stock: BufferStock) -> io::Result<Self> {
        let count = count.clamp(1, usize::from(u16::MAX));
        let slots = match stock.take(count, node) {
            Some(slots) => slots,
            None => Arena::new(count * BUFFER_BYTES, node, ArenaOptions::default())
                .and_then(|arena| arena.split(BUFFER_BYTES))
                .map_err(io::Error::other)?,
        };
        let free = (0..slots.len().min(count) as u16)
            .rev()
            .map(BufferId)
            .collect();
        Ok(Self {
            slots: Some(slots),
            free,
            stock,
            node,
        })
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
    ///
    /// # Panics
    /// When these buffers have none of that number.
    pub fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        let slots = self.slots.as_mut().expect("there until the end");
        slots.get_mut(usize::from(buffer.0))
    }

    /// The bytes of two buffers; `None` when they are one.
    ///
    /// # Panics
    /// When these buffers have none of that number.
    pub(super) fn pair_mut(
        &mut self,
        one: BufferId,
        other: BufferId,
    ) -> Option<(&mut [u8], &mut [u8])> {
        let slots = self.slots.as_mut().expect("there until the end");
        slots.pair_mut(usize::from(one.0), usize::from(other.0))
    }

    /// Address of a buffer, for the kernel.
    pub(super) fn address(&mut self, buffer: BufferId) -> *mut u8 {
        self.bytes_mut(buffer).as_mut_ptr()
    }

    /// Address and length of every buffer in the order of their numbers, for registration.
    pub(super) fn regions(&mut self) -> Vec<(*mut u8, usize)> {
        self.slots
            .as_mut()
            .map(BufferSlots::regions)
            .unwrap_or_default()
    }

    /// The kernel may still write to them: nobody else gets their memory.
    pub(super) fn keep_from_stock(&mut self) {
        self.stock = BufferStock::default();
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            self.stock.give(slots, self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_address(buffers: &mut Buffers) -> usize {
        buffers.regions()[0].0 as usize
    }

    #[test]
    fn the_next_worker_gets_the_buffers_of_the_one_before() {
        let stock = BufferStock::default();
        let new = |count, node| Buffers::new(count, node, stock.clone()).unwrap();
        let mut first = new(4, None);
        let mut beside = new(2, None);
        let (large, small) = (first_address(&mut first), first_address(&mut beside));
        assert_ne!(large, small);
        drop((first, beside));
        let mut next = new(2, None);
        assert_eq!(
            first_address(&mut next),
            small,
            "the smallest that is enough"
        );
        assert_eq!(next.free(), 2);
        let mut more = new(3, None);
        assert_eq!(first_address(&mut more), large);
        assert_eq!(more.free(), 3, "no more than was asked for");
    }

    #[test]
    fn what_the_kernel_may_still_write_to_goes_to_nobody() {
        let stock = BufferStock::default();
        let mut buffers = Buffers::new(2, None, stock.clone()).unwrap();
        buffers.keep_from_stock();
        drop(buffers);
        assert!(stock.lock().is_empty());
    }

    #[test]
    fn the_stock_is_bounded_and_keeps_the_nodes_apart() {
        let stock = BufferStock::default();
        let all: Vec<_> = (0..8)
            .map(|_| Buffers::new(8, Some(0), stock.clone()).unwrap())
            .collect();
        drop(all);
        let kept = stock.lock().len();
        assert_eq!(kept, KEPT_BYTES_MAX / (8 * BUFFER_BYTES));
        let other = Buffers::new(8, Some(1), stock.clone()).unwrap();
        assert_eq!(stock.lock().len(), kept);
        drop(other);
    }
}
