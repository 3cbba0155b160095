//! The whole-memory proof: one 128-bit sum that two ends can compare.
//!
//! Every page contributes a term that depends on its index and its content; the sum does not depend
//! on the order of pages, so any number of workers can keep their own part and add the parts up.
//! Replacing a page is one subtraction and one addition. Two memories of equal roots hold the same
//! page at every index, up to a chance collision. This is a proof against mistakes, not against an
//! adversary who chooses page contents: sums of terms can be solved for.

use std::fmt;

use crate::Fingerprint;

/// Spreads the page index over 64 bits: 2^64 divided by the golden ratio, which is odd.
const INDEX_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns the term of page `index` with content `fp` in a [`RamRoot`].
///
/// `low = mix(fp.lo ^ index * INDEX_FACTOR)`, `high = mix(fp.hi + low)`, term = `high : low`; `mix`
/// is a 64-bit finaliser that is a bijection. The high half depends on everything, the low half on
/// the index and half the fingerprint. Part of the wire protocol: the golden values in the tests
/// must not change.
#[inline]
pub fn page_hash(index: u64, fp: Fingerprint) -> u128 {
    let low = mix(fp.lo ^ index.wrapping_mul(INDEX_FACTOR));
    let high = mix(fp.hi.wrapping_add(low));
    u128::from(high) << 64 | u128::from(low)
}

/// Mixes 64 bits so that each input bit changes each output bit with chance one half (Stafford's
/// variant 13 of the murmur3 finaliser).
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Sum modulo 2^128 of the terms of all pages counted so far. Zero when no page is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RamRoot(pub u128);

impl RamRoot {
    /// Counts page `index` with content `fp`. Each index must be counted once: counting it again
    /// is what [`RamRoot::replace`] is for.
    #[inline]
    pub fn add(&mut self, index: u64, fp: Fingerprint) {
        self.0 = self.0.wrapping_add(page_hash(index, fp));
    }

    /// Changes the content of page `index`, counted before as `old`, to `new`.
    #[inline]
    pub fn replace(&mut self, index: u64, old: Fingerprint, new: Fingerprint) {
        self.0 = self
            .0
            .wrapping_sub(page_hash(index, old))
            .wrapping_add(page_hash(index, new));
    }

    /// Uncounts page `index`, counted before as `old`.
    #[inline]
    pub fn remove(&mut self, index: u64, old: Fingerprint) {
        self.0 = self.0.wrapping_sub(page_hash(index, old));
    }

    /// Adds the part that another worker kept, starting from `RamRoot::default()`. A part may be a
    /// pure change (replacements only), in any order.
    #[inline]
    pub fn merge(&mut self, delta: Self) {
        self.0 = self.0.wrapping_add(delta.0);
    }
}

impl fmt::Display for RamRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
