//! Stage 8 of 8: pages reach the destination's RAM.
//!
//! In: decoded pages. Out: RAM written, digests and root moved on, suspects noted. A page whose
//! content is not what its fingerprint says is not written: it is suspect, and will be sent again.

use dwcp_simd::{FingerprintKey, Kernels, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::{FrameHeader, PageRange, RoundSummary};

use super::decode::{DecodeError, Decoder, PageSink};
use crate::ram::{Digests, RamLayout};

/// What a stream brought in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Frames, bytes and pages named in them.
    pub summary: RoundSummary,
    /// Pages that did not arrive as they were sent.
    pub suspects: Vec<PageRange>,
    /// Change of the root.
    pub root: RamRoot,
}

/// Stages 7 and 8 of one worker.
#[derive(Debug)]
pub struct Incoming<'a> {
    decoder: Decoder,
    block_pages: Vec<u32>,
    applier: Applier<'a>,
}

#[derive(Debug)]
struct Applier<'a> {
    layout: &'a RamLayout,
    digests: &'a Digests,
    key: &'a FingerprintKey,
    kernels: &'static Kernels,
    suspects: Vec<PageRange>,
    root: RamRoot,
}

impl<'a> Incoming<'a> {
    /// A line into `layout`, whose RAM is empty.
    #[must_use]
    pub fn new(layout: &'a RamLayout, digests: &'a Digests, key: &'a FingerprintKey) -> Self {
        Self {
            decoder: Decoder::new(),
            block_pages: layout
                .blocks()
                .iter()
                .map(crate::ram::RamBlock::pages)
                .collect(),
            applier: Applier {
                layout,
                digests,
                key,
                kernels: kernels(),
                suspects: vec![],
                root: RamRoot::default(),
            },
        }
    }

    /// Applies one frame and adds it to what its stream has brought.
    ///
    /// # Errors
    /// [`DecodeError`]: the frame is refused and nothing of it was applied.
    pub fn apply(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        applied: &mut Applied,
    ) -> Result<(), DecodeError> {
        let named = self
            .decoder
            .decode(header, payload, &self.block_pages, &mut self.applier)?;
        applied.summary.frames += 1;
        applied.summary.pages += named;
        applied.summary.wire_bytes += (dwcp_wire::HEADER_BYTES + payload.len()) as u64;
        applied.suspects.append(&mut self.applier.suspects);
        applied.root.merge(std::mem::take(&mut self.applier.root));
        Ok(())
    }
}

impl PageSink for Applier<'_> {
    fn zero(&mut self, block: u32, page: u32, count: u32) {
        const ZERO: Page = [0; PAGE_BYTES];
        for page in page..page + count {
            let global = self.layout.global_page(block as usize, page);
            if self.digests.get(global).is_some() {
                self.layout.blocks()[block as usize].write_page(page, &ZERO);
                self.digests.set(global, None, &mut self.root);
            }
        }
    }

    fn page(&mut self, block: u32, page: u32, data: &Page, fingerprint_low: u64) {
        let fingerprint = self.kernels.fingerprint(self.key, data);
        if fingerprint.lo != fingerprint_low {
            self.damaged(block, page, 1);
            return;
        }
        self.layout.blocks()[block as usize].write_page(page, data);
        let global = self.layout.global_page(block as usize, page);
        self.digests.set(global, Some(fingerprint), &mut self.root);
    }

    fn damaged(&mut self, block: u32, page: u32, count: u32) {
        if let Some(last) = self.suspects.last_mut()
            && last.ram_block == block
            && last.page + last.count == page
        {
            last.count += count;
            return;
        }
        self.suspects.push(PageRange {
            ram_block: block,
            page,
            count,
        });
    }
}
