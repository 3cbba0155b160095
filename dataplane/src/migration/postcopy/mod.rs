//! Post-copy: the guest runs at the destination, and pages of it are still at the source.
//!
//! ```text
//! guest ──fault──► userfaultfd ─► faults ──┐            ┌─► serve ─► RAM, which stands still
//!                                          ├─ requests ─┤
//!               what is missing ─► order ──┘            └── frames ─► place ─► UFFDIO_COPY
//! ```
//! The destination asks, and the source answers in the order asked: so it is the destination alone that
//! decides what is urgent, and a source that was started anew needs to know nothing. Connection 0 carries
//! what somebody waits for; the others carry the rest, and ask for no more while somebody waits
//! (`docs/adr/0023-post-copy-asks-for-pages.md`). Where data streams are queue pairs, what somebody waits for is read
//! out of the source's RAM by the adapter instead (`read`, `grant`), as long as that works.

mod fetch;
mod flow;
mod grant;
mod link;
mod missing;
mod order;
mod place;
mod read;
mod serve;
mod waiting;

pub(super) use fetch::{Fetch, FetchEvent, FetchOptions};
pub(super) use grant::fingerprints;
pub(super) use missing::{note_missing, tell_missing};
pub(super) use serve::serve;

/// Connections for missing pages: one for those that somebody waits for.
pub(super) const LINKS: u16 = 3;

/// The connection for pages that somebody waits for.
pub(super) const DEMAND: u16 = 0;
