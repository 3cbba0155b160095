//! The instruction sets. `generic` holds each page algorithm once, over 64-byte lines; every other
//! folder holds the line operations of one instruction set, its checksum, and its table.

mod generic;
mod scalar;

use crate::kernels::Table;

/// Every table this build knows, from portable to best.
pub(crate) static TABLES: &[&Table] = &[&scalar::TABLE];
