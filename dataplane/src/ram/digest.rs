//! Per page, the fingerprint of what was last sent (source) or applied (destination).

use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_simd::{Fingerprint, RamRoot};

use super::layout::RamLayout;

/// Fingerprints of all pages, 16 bytes each, shared by the workers.
///
/// A page that is zero has no entry (both words 0) and no term in the root: both ends begin with
/// empty RAM, empty digests and the root 0, and a page that never held anything costs nothing.
///
/// The destination's RAM may have been allocated beforehand, and hold anything. Such a page is
/// *unknown* until something is applied to it: it has no term in the root, and is not zero.
#[derive(Debug)]
pub struct Digests {
    words: Vec<[AtomicU64; 2]>,
}

/// Both words of an unknown page. A real fingerprint is this with a chance of 2^-128.
const UNKNOWN: u64 = u64::MAX;

impl Digests {
    /// Digests of empty RAM.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        Self {
            words: std::iter::repeat_with(Default::default)
                .take(pages)
                .collect(),
        }
    }

    /// The fingerprint held for a page, or `None` for a zero page.
    #[must_use]
    pub fn get(&self, page: u64) -> Option<Fingerprint> {
        let [lo, hi] = &self.words[page as usize];
        let (lo, hi) = (lo.load(Ordering::Relaxed), hi.load(Ordering::Relaxed));
        (lo | hi != 0).then_some(Fingerprint { lo, hi })
    }

    /// The fingerprint of a page that is neither zero nor unknown: it has a term in the root.
    #[must_use]
    pub fn known(&self, page: u64) -> Option<Fingerprint> {
        self.get(page).filter(|held| !is_unknown(*held))
    }

    /// Says that nobody knows what a page holds.
    pub fn set_unknown(&self, page: u64) {
        self.store(page, UNKNOWN, UNKNOWN);
    }

    /// Whether nobody knows what a page holds.
    #[must_use]
    pub fn is_unknown(&self, page: u64) -> bool {
        self.get(page).is_some_and(is_unknown)
    }

    /// Replaces a page's fingerprint (`None`: it is zero now) and moves `root` with it.
    ///
    /// One worker at a time touches a page; between rounds the workers synchronise through their
    /// mailboxes, which orders these relaxed stores.
    pub fn set(&self, page: u64, new: Option<Fingerprint>, root: &mut RamRoot) {
        match (self.known(page), new) {
            (None, None) => {}
            (None, Some(new)) => root.add(page, new),
            (Some(old), Some(new)) => root.replace(page, old, new),
            (Some(old), None) => root.remove(page, old),
        }
        let new = new.unwrap_or_default();
        self.store(page, new.lo, new.hi);
    }

    fn store(&self, page: u64, new_lo: u64, new_hi: u64) {
        let [lo, hi] = &self.words[page as usize];
        lo.store(new_lo, Ordering::Relaxed);
        hi.store(new_hi, Ordering::Relaxed);
    }

    /// Pages spoken of.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.words.len() as u64
    }

    /// The root, counted anew.
    #[must_use]
    pub fn root(&self) -> RamRoot {
        let mut root = RamRoot::default();
        for page in 0..self.pages() {
            if let Some(fingerprint) = self.known(page) {
                root.add(page, fingerprint);
            }
        }
        root
    }
}

fn is_unknown(held: Fingerprint) -> bool {
    held.lo == UNKNOWN && held.hi == UNKNOWN
}
