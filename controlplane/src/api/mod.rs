//! The socket that the `dwcp` command talks to.

mod codec;
mod listener;
mod session;

pub use listener::{ListenError, Server};

pub(crate) use codec::frames;
