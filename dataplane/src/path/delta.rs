//! Part of stages 3 and 7: pages that changed, as what they are against what they were.
//!
//! The destination has the old pages in RAM. Changed pages of a frame are compressed in groups, each as one
//! zstd frame behind all its old pages, so that a page finds itself again, and its neighbours, where xbzrle
//! looks at one page alone. An end that is wrong about an old page yields pages that are
//! not what their fingerprints say: those are sent again, without this.

use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_wire::limits::{DELTA_GROUP_PAGES, FRAME_DATA_PAGES_MAX};
use zstd_safe::{CCtx, DCtx};

/// In front of the old pages: zstd takes a prefix for a dictionary of its own format if it begins as one, and
/// guests may begin a page with anything.
const LEAD: [u8; 8] = [0; 8];

/// Lower levels remember too little of the old pages to find a page again.
const LEVEL_MIN: i32 = 3;

/// Old pages, behind [`LEAD`].
#[derive(Debug)]
struct OldPages(Vec<u8>);

impl OldPages {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(LEAD.len() + DELTA_GROUP_PAGES * PAGE_BYTES);
        bytes.extend(LEAD);
        Self(bytes)
    }

    fn restart(&mut self) {
        self.0.clear();
        self.0.extend(LEAD);
    }

    fn pages(&self) -> usize {
        (self.0.len() - LEAD.len()) / PAGE_BYTES
    }

    fn push(&mut self, page: &Page) {
        self.0.extend_from_slice(page);
    }
}

/// The sending end.
pub(super) struct DeltaEncoder {
    context: CCtx<'static>,
    level: i32,
    old: OldPages,
    new: Vec<u8>,
    /// Groups that are full.
    compressed: Vec<u8>,
    /// Bytes of them.
    filled: usize,
}

impl DeltaEncoder {
    pub(super) fn new(level: i32) -> Self {
        let group_most = zstd_safe::compress_bound(DELTA_GROUP_PAGES * PAGE_BYTES);
        let most = FRAME_DATA_PAGES_MAX.div_ceil(DELTA_GROUP_PAGES) * group_most;
        let mut encoder = Self {
            context: CCtx::create(),
            level: level.max(LEVEL_MIN),
            old: OldPages::new(),
            new: Vec::with_capacity(DELTA_GROUP_PAGES * PAGE_BYTES),
            compressed: vec![0; most],
            filled: 0,
        };
        // zstd takes the memory for the largest group now: later it cannot fail.
        for _ in 0..DELTA_GROUP_PAGES {
            encoder.push(&[0; PAGE_BYTES], &[0; PAGE_BYTES]);
        }
        encoder.filled = 0;
        encoder
    }

    /// Compresses at another level.
    pub(super) fn set_level(&mut self, level: i32) {
        self.level = level.max(LEVEL_MIN);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.new.is_empty() && self.filled == 0
    }

    /// Keeps a page for the frame's delta, with what it was.
    pub(super) fn push(&mut self, old: &Page, new: &Page) {
        self.old.push(old);
        self.new.extend_from_slice(new);
        if self.old.pages() == DELTA_GROUP_PAGES {
            self.compress();
        }
    }

    /// Puts the pages that were kept to `out`; returns the bytes.
    ///
    /// # Panics
    /// When `out` has less room than the pages and `DELTA_OVERHEAD_BYTES_MAX` take.
    pub(super) fn finish(&mut self, out: &mut [u8]) -> usize {
        if !self.new.is_empty() {
            self.compress();
        }
        let bytes = std::mem::take(&mut self.filled);
        out[..bytes].copy_from_slice(&self.compressed[..bytes]);
        bytes
    }

    fn compress(&mut self) {
        let written = self.context.compress_using_dict(
            &mut self.compressed[self.filled..],
            &self.new,
            &self.old.0,
            self.level,
        );
        self.old.restart();
        self.new.clear();
        self.filled +=
            written.expect("zstd has its memory, and room for what cannot be compressed");
    }
}

/// The receiving end.
pub(super) struct DeltaDecoder {
    /// Made when the first data comes: most streams have none.
    context: Option<DCtx<'static>>,
    old: OldPages,
    /// Of the frame, as far as its data has come.
    new: Vec<u8>,
}

impl DeltaDecoder {
    pub(super) const fn new() -> Self {
        Self {
            context: None,
            old: OldPages(vec![]),
            new: vec![],
        }
    }

    /// What `count` pages are now, if the data yields exactly those; `old` says what they were, in order. The
    /// output is bounded: no bomb goes off.
    pub(super) fn decode(
        &mut self,
        mut data: &[u8],
        count: usize,
        mut old: impl FnMut(&mut Page),
    ) -> Option<&[Page]> {
        self.new.resize(count * PAGE_BYTES, 0);
        let mut page = [0; PAGE_BYTES];
        for group in self.new.chunks_mut(DELTA_GROUP_PAGES * PAGE_BYTES) {
            self.old.restart();
            for _ in 0..group.len() / PAGE_BYTES {
                old(&mut page);
                self.old.push(&page);
            }
            let bytes = zstd_safe::find_frame_compressed_size(data).ok()?;
            let (frame, rest) = data.split_at_checked(bytes)?;
            let context = self.context.get_or_insert_with(DCtx::create);
            let written = context.decompress_using_dict(&mut *group, frame, &self.old.0);
            if written != Ok(group.len()) {
                return None;
            }
            data = rest;
        }
        data.is_empty().then(|| self.new.as_chunks().0)
    }
}

#[cfg(test)]
mod tests {
    use dwcp_wire::limits::DELTA_OVERHEAD_BYTES_MAX;
    use proptest::prelude::*;

    use super::*;
    use crate::path::testing::noise;

    fn encoded(encoder: &mut DeltaEncoder, pages: &[(Page, Page)]) -> Vec<u8> {
        let mut out = vec![0; pages.len() * PAGE_BYTES + DELTA_OVERHEAD_BYTES_MAX];
        pages.iter().for_each(|(old, new)| encoder.push(old, new));
        let bytes = encoder.finish(&mut out);
        out.truncate(bytes);
        out
    }

    fn decoded(decoder: &mut DeltaDecoder, old: &[Page], data: &[u8]) -> Option<Vec<Page>> {
        let mut pages = old.iter();
        let next = |page: &mut Page| page.copy_from_slice(pages.next().unwrap());
        let new = decoder.decode(data, old.len(), next);
        new.map(<[Page]>::to_vec)
    }

    #[test]
    fn a_few_bytes_of_a_page_cost_a_few_bytes() {
        let changed = |seed| {
            let (old, mut new) = (noise(seed), noise(seed));
            new[1000..1016].fill(7);
            (old, new)
        };
        let pages: Vec<_> = (0..FRAME_DATA_PAGES_MAX as u64).map(changed).collect();
        let data = encoded(&mut DeltaEncoder::new(1), &pages);
        assert!(data.len() < pages.len() * 64, "{} bytes", data.len());
        let (old, new): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
        let mut decoder = DeltaDecoder::new();
        assert!(decoded(&mut decoder, &old, &data) == Some(new));
    }

    #[test]
    fn what_cannot_be_compressed_fits_in_a_frame() {
        let pages: Vec<_> = (0..FRAME_DATA_PAGES_MAX as u64)
            .map(|n| (noise(n), noise(n + 1000)))
            .collect();
        for level in [1, 3, 9] {
            encoded(&mut DeltaEncoder::new(level), &pages);
        }
    }

    /// zstd's magic number of dictionaries, and the rest as it comes.
    #[test]
    fn a_page_that_begins_like_a_dictionary_is_a_page() {
        let mut old = noise(1);
        old[..4].copy_from_slice(&[0x37, 0xA4, 0x30, 0xEC]);
        let mut new = old;
        new[9] = 9;
        let data = encoded(&mut DeltaEncoder::new(1), &[(old, new)]);
        let mut decoder = DeltaDecoder::new();
        assert!(decoded(&mut decoder, &[old], &data) == Some(vec![new]));
    }

    #[test]
    fn other_pages_than_the_data_was_made_for_yield_nothing_or_something_else() {
        let pages: Vec<_> = (0..4).map(|n| (noise(n), noise(n))).collect();
        let data = encoded(&mut DeltaEncoder::new(1), &pages);
        let (old, new): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
        let mut decoder = DeltaDecoder::new();
        assert!(decoded(&mut decoder, &old[..3], &data).is_none(), "too few");
        assert!(decoded(&mut decoder, &[&old[..], &old[..]].concat(), &data).is_none());
        let other = [old[0], noise(77), old[2], old[3]];
        assert!(decoded(&mut decoder, &other, &data) != Some(new));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pages_come_out_as_they_went_in(
            pages in prop::collection::vec((0u64..20, 0u64..20, any::<prop::sample::Index>(), 0usize..600), 1..=FRAME_DATA_PAGES_MAX),
            level in -7i32..=9,
        ) {
            let page = |(old, new, at, len): &(u64, u64, prop::sample::Index, usize)| {
                let mut page = noise(*old);
                let from = at.index(PAGE_BYTES);
                let upto = (from + len).min(PAGE_BYTES);
                page[from..upto].copy_from_slice(&noise(*new)[from..upto]);
                (noise(*old), page)
            };
            let pages: Vec<_> = pages.iter().map(page).collect();
            let data = encoded(&mut DeltaEncoder::new(level), &pages);
            let (old, new): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
            prop_assert!(decoded(&mut DeltaDecoder::new(), &old, &data) == Some(new));
        }

        #[test]
        fn hostile_data_gives_the_pages_asked_for_or_none(
            data in prop::collection::vec(any::<u8>(), 0..600),
            count in 0usize..8,
        ) {
            let old = vec![noise(1); count];
            if let Some(pages) = decoded(&mut DeltaDecoder::new(), &old, &data) {
                prop_assert_eq!(pages.len(), count);
            }
        }
    }
}
