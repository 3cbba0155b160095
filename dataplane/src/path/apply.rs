//! Stage 8 of 8: pages reach the destination's RAM.
//!
//! In: decoded pages, or pages that lie in RAM as they came. Out: RAM written, digests and root moved
//! on, suspects noted. A page whose content is not what its fingerprint says is suspect, and will be
//! sent again. A decoded one is not written. One that came straight into RAM is there: the digests
//! then say what it is, so that they always say what RAM holds.

use dwcp_simd::{Fingerprint, FingerprintKey, Kernels, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::limits::SUSPECT_RANGES_MAX;
use dwcp_wire::{FrameHeader, HEADER_BYTES, PageRange, RoundSummary, cover};

use super::decode::{DecodeError, Decoder, PageSink, PageTable};
use crate::ram::{Digests, RamError, RamLayout};

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
    /// A page that is held as zero may be something else.
    looks_at_zeros: bool,
    /// RAM that could not be written.
    failure: Option<RamError>,
}

impl<'a> Incoming<'a> {
    /// A line into `layout`; the digests say what it holds.
    #[must_use]
    pub fn new(layout: &'a RamLayout, digests: &'a Digests, key: &'a FingerprintKey) -> Self {
        Self {
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
                looks_at_zeros: false,
                failure: None,
            },
        }
    }

    /// Has pages that come as zero, and are held as zero, be looked at from now on: something may have been written there of
    /// which no frame has told.
    pub const fn look_at_zeros(&mut self, looks: bool) {
        self.applier.looks_at_zeros = looks;
    }

    /// Reads the table of a frame, before any of its data is asked for.
    ///
    /// # Errors
    /// [`DecodeError`]: the frame is refused.
    pub fn read_table(
        &self,
        header: &FrameHeader,
        bytes: &[u8],
        table: &mut PageTable,
    ) -> Result<(), DecodeError> {
        table.read(header, bytes, &self.block_pages)
    }

    /// Applies one frame, by its stream's decoder, and adds it to what the stream has brought. `data` is
    /// what came behind the table; `None` says that it was received in place.
    ///
    /// # Errors
    /// [`RamError`]: there is no memory left. The digests no longer say what RAM holds.
    pub fn apply(
        &mut self,
        header: &FrameHeader,
        table: &PageTable,
        data: Option<&[u8]>,
        decoder: &mut Decoder,
        applied: &mut Applied,
    ) -> Result<(), RamError> {
        match data {
            Some(data) => decoder.decode(table, data, &mut self.applier),
            None => table.placed(&mut self.applier),
        }
        applied.summary.frames += 1;
        applied.summary.pages += table.named();
        applied.summary.wire_bytes += (HEADER_BYTES + header.payload_len()) as u64;
        applied.suspects.append(&mut self.applier.suspects);
        // A source that sends damage for ever must not fill memory.
        if applied.suspects.len() > 2 * SUSPECT_RANGES_MAX {
            applied.suspects = cover(std::mem::take(&mut applied.suspects), SUSPECT_RANGES_MAX);
        }
        applied.root.merge(std::mem::take(&mut self.applier.root));
        self.applier.failure.take().map_or(Ok(()), Err)
    }

    /// Gives up a frame that did not come whole. What of it was received in place is in RAM: the digests say
    /// what that is. Its pages will come once more.
    pub fn give_up(&mut self, table: &PageTable, applied: &mut Applied) {
        table.placed(&mut self.applier);
        self.applier.suspects.clear();
        applied.root.merge(std::mem::take(&mut self.applier.root));
    }
}

impl Applier<'_> {
    fn write(&mut self, block: u32, first: u32, pages: &[Page]) {
        if let Err(error) = self.layout.blocks()[block as usize].write_pages(first, pages) {
            self.failure.get_or_insert(error);
        }
    }

    fn is_written_unseen(&self, block: u32, page: u32) -> bool {
        if !self.looks_at_zeros {
            return false;
        }
        let live = self.layout.blocks()[block as usize].live_page(page);
        let fingerprint = self.kernels.fingerprint_live(self.key, live);
        !self.key.is_zero(fingerprint)
    }

    fn hold(&mut self, block: u32, page: u32, fingerprint: Option<Fingerprint>) {
        let global = self.layout.global_page(block as usize, page);
        self.digests.set(global, fingerprint, &mut self.root);
    }
}

impl PageSink for Applier<'_> {
    fn held(&mut self, block: u32, page: u32, out: &mut Page) {
        self.layout.blocks()[block as usize].read_page(page, out);
    }

    fn zero(&mut self, block: u32, page: u32, count: u32) {
        const ZERO: Page = [0; PAGE_BYTES];
        for page in page..page + count {
            let global = self.layout.global_page(block as usize, page);
            if self.digests.get(global).is_some() || self.is_written_unseen(block, page) {
                self.layout.blocks()[block as usize].write_page(page, &ZERO);
                self.digests.set(global, None, &mut self.root);
            }
        }
    }

    fn pages(&mut self, block: u32, first: u32, data: &[Page], fingerprints_low: &[u64]) {
        // Pages that are what was sent, and not yet written.
        let mut good = 0..0;
        for (index, (page, low)) in data.iter().zip(fingerprints_low).enumerate() {
            let fingerprint = self.kernels.fingerprint(self.key, page);
            let number = first + index as u32;
            if fingerprint.lo == *low {
                self.hold(block, number, Some(fingerprint));
            } else {
                self.write(block, first + good.start as u32, &data[good]);
                good = index + 1..index + 1;
                self.damaged(block, number, 1);
                continue;
            }
            good.end = index + 1;
        }
        self.write(block, first + good.start as u32, &data[good]);
    }

    fn placed(&mut self, block: u32, page: u32, fingerprint_low: u64) {
        let live = self.layout.blocks()[block as usize].live_page(page);
        let fingerprint = self.kernels.fingerprint_live(self.key, live);
        if fingerprint.lo == fingerprint_low {
            return self.hold(block, page, Some(fingerprint));
        }
        let held = (!self.key.is_zero(fingerprint)).then_some(fingerprint);
        self.hold(block, page, held);
        self.damaged(block, page, 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::testing::ram;

    /// A queue pair wrote there and broke before the frame came; then the guest made the page zero.
    #[test]
    fn a_page_that_was_written_unseen_is_cleared_when_it_comes_as_zero() {
        let (layout, key) = (ram(&[4]), FingerprintKey::new(1));
        let digests = Digests::new(&layout);
        layout.blocks()[0].write_page(2, &[7; PAGE_BYTES]);
        let mut incoming = Incoming::new(&layout, &digests, &key);
        let mut copy = [0; PAGE_BYTES];
        incoming.applier.zero(0, 1, 3);
        layout.blocks()[0].read_page(2, &mut copy);
        assert_eq!(
            copy, [7; PAGE_BYTES],
            "it is looked at though nothing was written"
        );
        incoming.look_at_zeros(true);
        incoming.applier.zero(0, 1, 3);
        layout.blocks()[0].read_page(2, &mut copy);
        assert_eq!(copy, [0; PAGE_BYTES]);
        assert_eq!(digests.get(2), None);
    }
}
