//! Page kernels: the few loops every page of guest memory goes through.
//!
//! In: whole pages of [`PAGE_BYTES`], or any bytes for the checksum. Out: per page, one small
//! answer or another page.
//! Every kernel exists once as an algorithm over 64-byte lines (`arch/generic`), and once per
//! instruction set as the handful of line operations it needs; [`kernels`] picks the table for this
//! processor at run time.
//!
//! | operation | file | question |
//! |---|---|---|
//! | [`Kernels::is_zero`] | `zero.rs` | is the page all zero? |
//! | [`Kernels::fingerprint`] | `fingerprint.rs` | which content is this? |
//! | [`Kernels::fingerprint_live`], [`FingerprintKey::is_zero`] | `fingerprint.rs` | both of these in one read of live memory |
//! | [`Kernels::equal`], [`Kernels::differing_bytes`] | `compare.rs` | did it change, how much? |
//! | [`Kernels::xor`] | `delta.rs` | what changed? |
//! | [`Kernels::shuffle`], [`Kernels::unshuffle`], [`Kernels::shuffle_gain`] | `shuffle.rs` | what repeats byte by byte? |
//! | [`Kernels::crc32c`] | `checksum.rs` | did the wire damage it? |
//! | [`page_hash`], [`RamRoot`] | `root.rs` | do two memories hold the same pages? |
//!
//! ```
//! let kernels = dwcp_simd::kernels();
//! let page = [0u8; dwcp_simd::PAGE_BYTES];
//! assert!(kernels.is_zero(&page));
//! assert_eq!(kernels.crc32c(0, b"123456789"), 0xE306_9283);
//! ```
//!
//! Unsafe code lives in `arch/` (loads, stores and intrinsics), in `live.rs` (an address inside a
//! page) and in the calls through the table of `kernels.rs`.

mod arch;
mod checksum;
mod compare;
mod delta;
mod fingerprint;
mod kernels;
mod live;
mod root;
mod shuffle;
mod zero;

#[cfg(test)]
mod testing;

pub use fingerprint::{Fingerprint, FingerprintKey};
pub use kernels::{KERNELS_ENV, Kernels, kernels};
pub use live::LivePage;
pub use root::{RamRoot, page_hash};

/// Size of a page in bytes. The only size the kernels know.
pub const PAGE_BYTES: usize = 4096;

/// The content of one page, private to the caller: never live guest memory, which may change
/// between two loads. That is a [`LivePage`].
pub type Page = [u8; PAGE_BYTES];
