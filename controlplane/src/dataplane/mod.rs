//! The connection to the data plane of this node.
//!
//! One connection, made again with growing pauses when it is lost. Requests are sent as they come
//! and answered in order; one that waits for a VMM gets a connection of its own. Without the first
//! connection a request fails at once: nobody waits for a daemon that is not there.

mod client;
mod connection;

pub use client::{Client, Link, Peer};
