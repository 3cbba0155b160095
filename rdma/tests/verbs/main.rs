//! Verbs, run for real: in Linux guests with soft-RoCE, or on this machine.
//!
//! [`guests`] packs this program into guests by `tools/testbed/rxe` and runs the ignored tests there. On a machine that has
//! an RDMA device:
//! ```text
//! cargo test -p dwcp-rdma --test verbs -- --ignored --test-threads 1 one_node
//! ```

mod common;
mod guests;
mod one_node;
mod small_memlock;
mod two_nodes;
