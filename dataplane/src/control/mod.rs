//! The Unix socket on which the control plane, and nobody else, gives orders.

mod server;

pub use server::serve;
