//! Migrations over queue pairs, run for real: in Linux guests with soft-RoCE, or on this machine.
//!
//! The tests that move a VM are ignored; [`guests`] packs this program into guests by `tools/testbed/rxe` and runs them there.
//! On a machine that has an RDMA device, with its address in `DWCP_RXE_OWN`:
//! ```text
//! cargo test -p dwcp-dataplane --test rdma -- --ignored --test-threads 1 one_node
//! ```

#[path = "../common/mod.rs"]
mod common;
mod guests;
mod no_device;
mod one_node;
mod small_memlock;
mod two_nodes;
