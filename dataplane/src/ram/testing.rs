//! RAM to test with.

use dwcp_simd::PAGE_BYTES;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{RamBlock, RamLayout};

/// RAM of zeros, of blocks of so many pages.
pub(crate) fn ram(block_pages: &[u32]) -> RamLayout {
    let block = |(index, &pages): (usize, &u32)| {
        let file = memfd_create("dwcp-test-ram", MFdFlags::MFD_CLOEXEC).unwrap();
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        nix::unistd::ftruncate(&file, bytes as i64).unwrap();
        RamBlock::map(format!("block{index}"), file, bytes, 0).unwrap()
    };
    RamLayout::new(block_pages.iter().enumerate().map(block).collect()).unwrap()
}
