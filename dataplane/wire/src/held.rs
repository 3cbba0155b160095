//! What a destination holds already, told page by page.

use dwcp_simd::Fingerprint;
use serde::{Deserialize, Serialize};

/// Bytes of a whole fingerprint: both halves, the low one first.
pub(crate) const FINGERPRINT_BYTES: usize = 16;

/// The fingerprints of pages that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPages {
    /// RAM block index.
    pub ram_block: u32,
    /// First page.
    pub page: u32,
    /// 16 bytes for each page.
    bytes: Vec<u8>,
}

impl HeldPages {
    /// Of pages from `page` on. A zero page has the fingerprint 0.
    #[must_use]
    pub fn new(ram_block: u32, page: u32, fingerprints: &[Fingerprint]) -> Self {
        let halves = fingerprints.iter().flat_map(|held| [held.lo, held.hi]);
        Self {
            ram_block,
            page,
            bytes: halves.flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// Pages told of.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.bytes.len() / FINGERPRINT_BYTES
    }

    /// Their fingerprints, in order.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        let (halves, _) = self.bytes.as_chunks::<8>();
        let (pairs, _) = halves.as_chunks::<2>();
        pairs.iter().map(|[lo, hi]| Fingerprint {
            lo: u64::from_le_bytes(*lo),
            hi: u64::from_le_bytes(*hi),
        })
    }

    /// Whether its bytes are whole fingerprints.
    pub(crate) const fn is_whole(&self) -> bool {
        self.bytes.len().is_multiple_of(FINGERPRINT_BYTES)
    }
}
