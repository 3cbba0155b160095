//! What the RAM of a VM was when it came to this node, known by 32 bits a page.
//!
//! A hint: a page that is taken for what it was, and is not, makes its part of the root another, and is sent.

use dwcp_simd::{FingerprintKey, Page, kernels};

use super::Session;

/// Fingerprints, cut short, of all pages as they came.
#[derive(Debug)]
pub struct AsItCame {
    key: FingerprintKey,
    /// By page of all RAM; 0 for one that was zero.
    words: Vec<u32>,
}

impl AsItCame {
    /// Of the pages that have come in a migration.
    #[must_use]
    pub fn of(session: &Session) -> Self {
        let pages = 0..session.digests.pages();
        let word = |page| session.digests.get(page).map_or(0, |held| held.lo as u32);
        Self::new(session.key.seed(), pages.map(word).collect())
    }

    /// As it was written down.
    #[must_use]
    pub fn new(seed: u64, words: Vec<u32>) -> Self {
        let key = FingerprintKey::new(seed);
        Self { key, words }
    }

    /// Seed of the fingerprints.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.key.seed()
    }

    /// 32 bits for each page of all RAM.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a page still holds what it came with, and that was not zero.
    pub(super) fn is_still(&self, page: u64, content: &Page) -> bool {
        let word = self.words.get(page as usize).copied().unwrap_or(0);
        word != 0 && kernels().fingerprint(&self.key, content).lo as u32 == word
    }
}
