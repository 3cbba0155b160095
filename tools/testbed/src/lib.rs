//! Everything needed to try DWCP for real on one machine.
//!
//! | module        | what                                                                        |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`synthetic`] | a process that plays a guest: shared RAM, a known dirty rate, checks itself |
//!
//! Every guest writes the pages of `dwcp-guest-page` and keeps a table of their generations, so that
//! it finds a lost, stale, torn or misplaced page by itself after it was moved.

mod channel;
pub mod synthetic;

pub use dwcp_guest_page::Kind;
