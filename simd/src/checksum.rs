//! CRC-32C of frames and headers.

use crate::Kernels;

/// Continues a CRC-32C over more bytes.
pub(crate) type Crc32c = unsafe fn(u32, &[u8]) -> u32;

/// The Castagnoli polynomial, bit-reflected, without its top term.
pub(crate) const POLYNOMIAL_REFLECTED: u32 = 0x82F6_3B78;

impl Kernels {
    /// Continues a CRC-32C (Castagnoli, reflected, initial and final inversion) over `bytes`.
    ///
    /// Start with `crc = 0`; feeding a buffer in pieces gives the value of the whole. Check value:
    /// `"123456789"` gives `0xE306_9283`.
    #[inline]
    pub fn crc32c(&self, crc: u32, bytes: &[u8]) -> u32 {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.crc32c)(crc, bytes) }
    }
}
