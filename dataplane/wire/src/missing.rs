//! Post-copy: which pages are missing at the destination, how it asks for them, and what that took.

use serde::{Deserialize, Serialize};

use crate::PageRange;
use crate::limits::{REQUEST_PAGES_MAX, REQUEST_RANGES_MAX};

/// Pages of a piece of one RAM block, those that are missing marked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MissingPages {
    /// RAM block index.
    pub ram_block: u32,
    /// First page of the piece.
    pub page: u32,
    /// A bit for each page from there on, the lowest first, as one zstd frame.
    pub zstd: Vec<u8>,
}

/// What fetching the missing pages took, seen from the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FetchSummary {
    /// Pages that were missing.
    pub pages: u64,
    /// Faults that the guest, or its VMM, waited for.
    pub faults: u64,
    /// Half of them took no longer; microseconds.
    pub fault_p50_us: u64,
    /// 99 of 100 took no longer; microseconds.
    pub fault_p99_us: u64,
    /// The longest; microseconds.
    pub fault_max_us: u64,
    /// From the first page to the last, milliseconds.
    pub fetch_ms: u64,
    /// How often the connections broke and came again.
    pub breaks: u32,
}

/// What a destination's adapter has read out of the source's RAM, for those who waited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PagesRead {
    /// Pages that were read and placed.
    pub pages: u64,
    /// By so many answers to faults.
    pub reads: u64,
    /// Half of them took no longer, from the request to the page's place; microseconds.
    pub p50_us: u64,
    /// 99 of 100 took no longer; microseconds.
    pub p99_us: u64,
    /// Why pages were asked for by TCP again, from some time on.
    pub broke: Option<String>,
}

/// Pages that the destination wants, in the order in which it wants them: the payload of a `PageRequest`
/// frame. They come as page frames, in that order.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 4 | RAM block index |
/// | 4 | 4 | first page |
/// | 8 | 4 | pages, 1 or more |
/// | 12 | 12 | the next run, and so on: 1 to 64 runs, of 128 pages together at most |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Runs of pages.
    pub ranges: Vec<PageRange>,
}

/// Why a payload is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not a whole number of runs, or too many.
    #[error("page request of {0} bytes")]
    Bytes(usize),
    /// No pages, or too many.
    #[error("page request for {0} pages, allowed are 1 to {REQUEST_PAGES_MAX}")]
    Pages(u64),
}

impl PageRequest {
    /// Bytes of a run.
    pub const RANGE_BYTES: usize = 12;

    /// Longest payload.
    pub const BYTES_MAX: usize = REQUEST_RANGES_MAX * Self::RANGE_BYTES;

    /// Its bytes. The runs must be within the limits.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        debug_assert!(self.check().is_ok(), "{self:?}");
        let words = self.ranges.iter();
        words
            .flat_map(|range| [range.ram_block, range.page, range.count])
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    /// Reads one. Whether there are such pages is for the source to say.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RequestError> {
        let (runs, rest) = bytes.as_chunks::<{ Self::RANGE_BYTES }>();
        if !rest.is_empty() || runs.is_empty() || runs.len() > REQUEST_RANGES_MAX {
            return Err(RequestError::Bytes(bytes.len()));
        }
        let range = |run: &[u8; Self::RANGE_BYTES]| {
            let (words, _) = run.as_chunks();
            let [ram_block, page, count] = [0, 1, 2].map(|at: usize| u32::from_le_bytes(words[at]));
            PageRange {
                ram_block,
                page,
                count,
            }
        };
        let request = Self {
            ranges: runs.iter().map(range).collect(),
        };
        request.check()?;
        Ok(request)
    }

    /// Pages asked for.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.count)).sum()
    }

    fn check(&self) -> Result<(), RequestError> {
        let pages = self.pages();
        let any_empty = self.ranges.iter().any(|range| range.count == 0);
        if any_empty || pages == 0 || pages > u64::from(REQUEST_PAGES_MAX) {
            return Err(RequestError::Pages(pages));
        }
        Ok(())
    }
}
