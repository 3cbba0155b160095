//! Guest RAM as a mover sees it: blocks, dirty bitmaps, and what was last sent or applied.

mod access;
mod bitmap;
mod block;
mod digest;
mod fill;
mod layout;
mod nodes;
#[cfg(test)]
pub(crate) mod testing;

pub use bitmap::{DirtyBitmap, PAGES_PER_WORD, RamBitmap};
pub use block::{RamBlock, RamError, Room};
pub use digest::Digests;
pub use layout::RamLayout;
pub use nodes::{NodeStretch, RamNodes};
