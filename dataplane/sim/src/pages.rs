//! Pages, frames and sums, as far as the simulation needs them: a page is a number.

use dwcp_wire::limits::PAGE_BYTES;
use dwcp_wire::{HEADER_BYTES, PageRange, RoundSummary, table_bytes};

use crate::rng::mix;

/// What a page holds: a version that names the write that made it; 0 is a page of zeroes.
pub(crate) type Content = u64;

/// Set in what a torn read of a live page yields: equal to no version.
const TORN: Content = 1 << 63;

/// Set in what damage on the way makes of a page.
const DAMAGED: Content = 1 << 62;

/// Pages in one frame at most.
pub(crate) const FRAME_PAGES_MAX: usize = 8;

/// Bytes of the largest frame.
pub(crate) const FRAME_BYTES_MOST: u64 = frame_bytes(FRAME_PAGES_MAX, FRAME_PAGES_MAX);

/// Bytes of a frame of so many entries, so many of them with data.
pub(crate) const fn frame_bytes(entries: usize, with_data: usize) -> u64 {
    (HEADER_BYTES + table_bytes(entries, with_data) + with_data * PAGE_BYTES) as u64
}

/// One page in a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageInFrame {
    pub(crate) page: usize,
    /// What its fingerprint says.
    pub(crate) announced: Content,
    /// What its bytes are.
    pub(crate) carried: Content,
}

/// A page frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) round: u32,
    pub(crate) pages: Vec<PageInFrame>,
    pub(crate) table_damaged: bool,
    pub(crate) header_damaged: bool,
}

impl Frame {
    /// Its bytes on the wire.
    pub(crate) fn bytes(&self) -> u64 {
        let with_data = self.pages.iter().filter(|page| page.announced != 0).count();
        frame_bytes(self.pages.len(), with_data)
    }

    /// What it adds to a round's summary.
    pub(crate) fn summary(&self) -> RoundSummary {
        RoundSummary {
            frames: 1,
            wire_bytes: self.bytes(),
            pages: self.pages.len() as u64,
            marks_again: 0,
        }
    }
}

/// Adds one frame's numbers.
pub(crate) const fn add(sum: &mut RoundSummary, frame: RoundSummary) {
    sum.frames += frame.frames;
    sum.wire_bytes += frame.wire_bytes;
    sum.pages += frame.pages;
    sum.marks_again += frame.marks_again;
}

/// Takes one frame's numbers back.
pub(crate) const fn take_back(sum: &mut RoundSummary, frame: RoundSummary) {
    sum.frames -= frame.frames;
    sum.wire_bytes -= frame.wire_bytes;
    sum.pages -= frame.pages;
}

/// What a read of a page yields that was written since its fingerprint was taken.
pub(crate) const fn torn(before: Content, after: Content) -> Content {
    TORN | mix(before ^ after.rotate_left(17)) >> 2
}

/// What damage makes of a page.
pub(crate) const fn damaged(content: Content) -> Content {
    DAMAGED | mix(content) >> 2
}

/// 128-bit sum over pages of a hash of place and content.
pub(crate) fn root(pages: &[Content]) -> u128 {
    pages.iter().enumerate().fold(0, |sum, (page, &content)| {
        let low = mix(content ^ mix(page as u64 + 1));
        let high = mix(low ^ content.rotate_left(32));
        sum.wrapping_add(u128::from(high) << 64 | u128::from(low))
    })
}

/// Pages as ranges of blocks; the first block holds `first_block` pages.
pub(crate) fn to_ranges(
    pages: impl IntoIterator<Item = usize>,
    first_block: usize,
) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = vec![];
    for page in pages {
        let (ram_block, page) = if page < first_block {
            (0, page as u32)
        } else {
            (1, (page - first_block) as u32)
        };
        match ranges.last_mut() {
            Some(last) if last.ram_block == ram_block && last.page + last.count == page => {
                last.count += 1;
            }
            _ => ranges.push(PageRange {
                ram_block,
                page,
                count: 1,
            }),
        }
    }
    ranges
}

/// The pages of ranges.
pub(crate) fn from_ranges(
    ranges: &[PageRange],
    first_block: usize,
) -> impl Iterator<Item = usize> + '_ {
    ranges.iter().flat_map(move |range| {
        let base = if range.ram_block == 0 { 0 } else { first_block };
        let first = base + range.page as usize;
        first..first + range.count as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_cross_blocks_and_come_back_as_they_were() {
        let pages = [0, 1, 2, 3, 7, 8];
        let ranges = to_ranges(pages, 3);
        assert_eq!(ranges.len(), 3);
        assert!(from_ranges(&ranges, 3).eq(pages));
    }

    #[test]
    fn the_root_tells_contents_and_places_apart() {
        assert_eq!(root(&[1, 2, 0]), root(&[1, 2, 0]));
        assert_ne!(root(&[1, 2, 0]), root(&[2, 1, 0]));
        assert_ne!(root(&[1, 2, 0]), root(&[1, 2, torn(0, 3)]));
    }
}
