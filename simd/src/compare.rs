//! Comparison of two contents of one page.

use crate::{Kernels, Page};

/// Returns whether two pages hold the same bytes.
pub(crate) type Equal = unsafe fn(&Page, &Page) -> bool;

/// Returns how many byte positions differ.
pub(crate) type DifferingBytes = unsafe fn(&Page, &Page) -> u32;

impl Kernels {
    /// Returns whether `a` and `b` hold the same bytes. Stops at the first difference.
    #[inline]
    pub fn equal(&self, a: &Page, b: &Page) -> bool {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.equal)(a, b) }
    }

    /// Returns how many of the 4096 byte positions differ between `a` and `b`.
    #[inline]
    pub fn differing_bytes(&self, a: &Page, b: &Page) -> u32 {
        // SAFETY: as in `equal`: the features were detected before this table was handed out.
        unsafe { (self.table.differing_bytes)(a, b) }
    }
}
