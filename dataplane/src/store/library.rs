//! The pages of a store, found by their hashes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, kernels};

use super::baseline::Baseline;
use super::index::Index;
use crate::engine::PageLibrary;

/// A file of pages with its index.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) index: Index,
    pub(super) pages: File,
    /// Of its entry.
    pub(super) number: u64,
    /// In words.
    pub(super) name: String,
    /// Pages that were found by their hash and are something else now.
    pub(super) stale: AtomicU64,
}

/// All pages that a store had when it was opened. Each is hashed as it is read: one that was changed since,
/// or that rotted, is not found.
#[derive(Debug)]
pub struct Library {
    key: FingerprintKey,
    shelves: Vec<Shelf>,
    /// Where the last page was found: the next is likely to be there, too.
    last: AtomicUsize,
    /// RAM of the VM that comes, as it left, and the number of its entry.
    baseline: Option<(u64, Baseline)>,
}

impl Library {
    pub(super) fn new(seed: u64, shelves: Vec<Shelf>) -> Self {
        Self {
            key: FingerprintKey::new(seed),
            shelves,
            last: AtomicUsize::new(0),
            baseline: None,
        }
    }

    /// With the RAM of the VM that comes, as it left.
    pub(super) fn with_baseline(mut self, baseline: Option<(u64, Baseline)>) -> Self {
        self.baseline = baseline;
        self
    }

    /// The migration by which the VM left, when its RAM is here as it was then; and whether there are other pages, too.
    #[must_use]
    pub fn baseline(&self) -> Option<(u128, bool)> {
        let (number, baseline) = self.baseline.as_ref()?;
        let others = self.shelves.iter().any(|shelf| shelf.number != *number);
        Some((baseline.migration, others))
    }

    /// One without pages.
    #[must_use]
    pub fn empty(seed: u64) -> Self {
        Self::new(seed, vec![])
    }

    /// Seed of the hashes.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.key.seed()
    }

    /// Pages that may be found.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.shelves.iter().map(|shelf| shelf.index.pages()).sum()
    }

    /// The files some of whose pages are no longer what they were, in words.
    pub fn stale(&self) -> impl Iterator<Item = String> {
        let stale = |shelf: &Shelf| shelf.stale.load(Ordering::Relaxed);
        let shelves = self.shelves.iter().map(move |shelf| (stale(shelf), shelf));
        shelves
            .filter(|(stale, _)| *stale > 0)
            .map(|(stale, shelf)| format!("{stale} pages of {} have changed", shelf.name))
    }
}

impl PageLibrary for Library {
    fn find(&self, hash: u64, out: &mut Page) -> bool {
        let count = self.shelves.len();
        let last = self.last.load(Ordering::Relaxed);
        for at in (0..count).map(|n| (last + n) % count) {
            let shelf = &self.shelves[at];
            let Some(page) = shelf.index.find(hash) else {
                continue;
            };
            let offset = u64::from(page) * PAGE_BYTES as u64;
            let is_read = shelf.pages.read_exact_at(out, offset).is_ok();
            if is_read && kernels().fingerprint(&self.key, out).lo == hash {
                if at != last {
                    self.last.store(at, Ordering::Relaxed);
                }
                return true;
            }
            shelf.stale.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    fn read_as_it_left(&self, block: usize, page: u32, out: &mut [Page]) -> bool {
        let baseline = self.baseline.as_ref();
        baseline.is_some_and(|(_, baseline)| baseline.read(block, page, out))
    }
}
