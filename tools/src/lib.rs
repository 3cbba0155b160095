//! What the command line and the load tools share.
#![forbid(unsafe_code)]

mod client;
pub mod lab;

pub use client::NodeClient;
