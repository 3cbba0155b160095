//! Stages 1 to 4 for pages that the destination asks for, in post-copy: its order, not the bitmap's.
//!
//! In: runs of pages that no guest writes any more. Out: frames that name each of them once, as zero or with
//! its data, in the order asked for.

use dwcp_simd::{FingerprintKey, Kernels, kernels};
use dwcp_wire::PageRange;

use super::encode::Encoder;
use super::frame::{FrameBuilder, ReadyFrame};
use crate::ram::RamLayout;

/// Builds answers.
#[derive(Debug)]
pub struct Asked<'a> {
    layout: &'a RamLayout,
    key: &'a FingerprintKey,
    kernels: &'static Kernels,
    builder: FrameBuilder,
}

impl<'a> Asked<'a> {
    /// Answers from `layout`.
    #[must_use]
    pub fn new(layout: &'a RamLayout, key: &'a FingerprintKey) -> Self {
        Self {
            layout,
            key,
            kernels: kernels(),
            builder: FrameBuilder::new(),
        }
    }

    /// Whether there are such pages.
    #[must_use]
    pub fn has(&self, range: &PageRange) -> bool {
        let end = u64::from(range.page) + u64::from(range.count);
        let block = self.layout.blocks().get(range.ram_block as usize);
        block.is_some_and(|block| end <= block.pages().into())
    }

    /// Builds a frame of the run in `buffer`, by `encoder`. It must be one that there is
    /// ([`Self::has`]), and no longer than a frame.
    pub fn frame(
        &mut self,
        range: &PageRange,
        buffer: &mut [u8],
        encoder: &mut Encoder,
        stream: u16,
        sequence: u64,
    ) -> ReadyFrame {
        let block = &self.layout.blocks()[range.ram_block as usize];
        self.builder.start(range.ram_block);
        for page in range.page..range.page + range.count {
            let copy = self.builder.slot(buffer);
            block.read_page_once(page, copy);
            let fingerprint = self.kernels.fingerprint(self.key, copy);
            if self.key.is_zero(fingerprint) {
                self.builder.push_zero(page, encoder, buffer);
            } else {
                self.builder.push_data(page, fingerprint, encoder, buffer);
            }
        }
        self.builder.finish(encoder, buffer, stream, sequence, 0)
    }
}
