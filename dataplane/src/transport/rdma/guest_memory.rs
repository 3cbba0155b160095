//! Guest RAM, as an adapter may use it.

use std::sync::Arc;

use dwcp_rdma::RegisteredMemory;

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
