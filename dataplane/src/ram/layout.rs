//! All RAM blocks of a VM.

use dwcp_simd::PAGE_BYTES;
use dwcp_wire::limits::RAM_BLOCKS_MAX;

use super::bitmap::{DirtyBitmap, RamBitmap};
use super::block::{RamBlock, RamError};

/// The RAM blocks of a VM. Pages are numbered through all blocks for the whole-RAM proof.
#[derive(Debug)]
pub struct RamLayout {
    blocks: Vec<RamBlock>,
    first_page: Vec<u64>,
    pages: u64,
}

impl RamLayout {
    /// A layout of blocks in the VMM's order.
    ///
    /// # Errors
    /// [`RamError::Blocks`].
    pub fn new(blocks: Vec<RamBlock>) -> Result<Self, RamError> {
        if blocks.is_empty() || blocks.len() > RAM_BLOCKS_MAX {
            return Err(RamError::Blocks(blocks.len()));
        }
        let mut pages = 0;
        let mut first_page = Vec::with_capacity(blocks.len());
        for block in &blocks {
            first_page.push(pages);
            pages += u64::from(block.pages());
        }
        Ok(Self {
            blocks,
            first_page,
            pages,
        })
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Pages of all blocks.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of all blocks.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// Number of a page through all blocks.
    #[must_use]
    pub fn global_page(&self, block: usize, page: u32) -> u64 {
        self.first_page[block] + u64::from(page)
    }

    /// Marks every page that may hold something else than zeros.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn mark_data(&self, bitmap: &mut RamBitmap) -> Result<(), RamError> {
        for (block, bitmap) in self.blocks.iter().zip(&mut bitmap.blocks) {
            block.mark_data(bitmap)?;
        }
        Ok(())
    }

    /// A bitmap of the right shape, empty.
    #[must_use]
    pub fn empty_bitmap(&self) -> RamBitmap {
        RamBitmap {
            blocks: self
                .blocks
                .iter()
                .map(|b| DirtyBitmap::new(b.pages()))
                .collect(),
        }
    }
}
