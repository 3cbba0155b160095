//! Guest RAM, as an adapter may use it.

use std::ops::Range;
use std::sync::Arc;

use dwcp_rdma::RegisteredMemory;
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;

use crate::ram::RamLayout;

/// One RAM block.
#[derive(Debug)]
pub(super) struct GuestBlock {
    ram: Arc<RamLayout>,
    block: usize,
}

impl GuestBlock {
    /// All blocks, in their order.
    pub(super) fn all(ram: &Arc<RamLayout>) -> Vec<Arc<Self>> {
        let of = |block| {
            let ram = Arc::clone(ram);
            Arc::new(Self { ram, block })
        };
        (0..ram.blocks().len()).map(of).collect()
    }

    /// Runs of pages in a range of bytes that have no memory.
    pub(super) fn holes(&self, range: &Range<usize>) -> Vec<PageRange> {
        let first = (range.start / PAGE_BYTES) as u32;
        let count = (range.len() / PAGE_BYTES) as u32;
        let holes = self.ram.blocks()[self.block].holes_in(first, count);
        let run = |(page, count)| PageRange {
            ram_block: self.block as u32,
            page,
            count,
        };
        holes.unwrap_or_default().into_iter().map(run).collect()
    }
}

// SAFETY: the span is a block's whole mapping, shared, readable and writable. It stays mapped at its place while the layout
// lives, which this keeps. Guests write it all the time: `ram` forms no reference to it, and depends on none of its bytes.
unsafe impl RegisteredMemory for GuestBlock {
    fn address(&self) -> *mut u8 {
        let block = &self.ram.blocks()[self.block];
        block.span(0, block.pages()).0
    }

    fn length(&self) -> usize {
        // It is mapped here, so it fits.
        self.ram.blocks()[self.block].bytes() as usize
    }
}
