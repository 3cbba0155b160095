//! Everything needed to try DWCP for real on one machine.
//!
//! | module        | what                                                                        |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`synthetic`] | a process that plays a guest: shared RAM, a known dirty rate, checks itself |
//! | [`guests`]    | guests in a QEMU: a bare kernel of our own, or Linux with our own init       |
//! | [`peers`]     | QEMU's own migration of the same guests, measured                           |
//! | [`rxe`]       | tests of a program, run in guests that have an RDMA device                  |
//! | [`link`]      | two network namespaces joined by a veth pair                                |
//! | [`wire`]      | raw movers of memory over TCP: the limit of the machine                     |
//!
//! Every guest writes the pages of `dwcp-guest-page` and keeps a table of their generations, so that
//! it finds a lost, stale, torn or misplaced page by itself after it was moved.

mod channel;
pub mod guests;
pub mod link;
pub mod peers;
pub mod rxe;
pub mod synthetic;
pub mod wire;

pub use dwcp_guest_page::Kind;
