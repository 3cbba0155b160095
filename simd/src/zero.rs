//! Zero test: the cheapest page is the one that is not sent.

use crate::{Kernels, Page};

/// Returns whether every byte of the page is zero.
pub(crate) type IsZero = unsafe fn(&Page) -> bool;

impl Kernels {
    /// Returns whether every byte of `page` is zero.
    ///
    /// Stops at the first line that is not: a page with data in its first bytes costs a few
    /// nanoseconds, a zero page one read of 4 KiB.
    #[inline]
    pub fn is_zero(&self, page: &Page) -> bool {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.is_zero)(page) }
    }
}
