//! Delta of a page against an older content of it.

use crate::{Kernels, Page};

/// Writes `a ^ b` and returns how many of its bytes are not zero.
pub(crate) type Xor = unsafe fn(&Page, &Page, &mut Page) -> u32;

impl Kernels {
    /// Writes `a ^ b` to `out` and returns the number of differing bytes, in one pass.
    ///
    /// All of `out` is written, whatever the count. A caller that finds the count too high for a
    /// delta drops `out` and sends the page itself.
    #[inline]
    pub fn xor(&self, a: &Page, b: &Page, out: &mut Page) -> u32 {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.xor)(a, b, out) }
    }
}
