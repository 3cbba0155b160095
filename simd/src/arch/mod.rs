//! The instruction sets. `generic` holds each page algorithm once, over 64-byte lines; every other
//! folder holds the line operations of one instruction set, what its checksum folds with, and its
//! table.

mod generic;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::kernels::Table;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::prefetch;

/// Every table this build knows, from portable to best.
#[cfg(target_arch = "x86_64")]
pub(crate) static TABLES: &[&Table] = &[
    &scalar::TABLE,
    &avx2::TABLE,
    &avx2::TABLE_VPCLMULQDQ,
    &avx512::TABLE,
];

/// Every table this build knows, from portable to best.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) static TABLES: &[&Table] = &[&scalar::TABLE];
