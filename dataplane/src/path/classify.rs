//! Stage 2 of 8: what kind of page is this.
//!
//! In: the fingerprint of a page, from one read of it, and that of what the destination holds. Out:
//! its kind.

use dwcp_simd::{Fingerprint, FingerprintKey};

/// Kind of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Zero, and the destination holds zeros already.
    ZeroHeld,
    /// Zero, to be sent as a mark.
    Zero,
    /// The destination holds this content.
    Unchanged,
    /// To be sent.
    Data(Fingerprint),
}

/// Decides by the fingerprint alone. `held` is what the destination holds (`None`: zeros); a
/// `forced` page is sent in any case, since the destination may not hold what it was sent.
#[must_use]
pub fn classify(
    key: &FingerprintKey,
    fingerprint: Fingerprint,
    held: Option<Fingerprint>,
    forced: bool,
) -> PageKind {
    if key.is_zero(fingerprint) {
        return if held.is_none() && !forced {
            PageKind::ZeroHeld
        } else {
            PageKind::Zero
        };
    }
    if held == Some(fingerprint) && !forced {
        return PageKind::Unchanged;
    }
    PageKind::Data(fingerprint)
}
