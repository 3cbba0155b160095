//! The data plane: moves guest memory between nodes.

pub mod path;
pub mod ram;
pub mod transport;
