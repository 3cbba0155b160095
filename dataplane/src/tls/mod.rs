//! TLS 1.3 between nodes: mutual, by rustls without buffers of its own, keys per node.
//!
//! | file | what |
//! |---|---|
//! | `files.rs` | a node's certificate, key and CA: read, and read again when they change |
//! | `identity.rs` | what rustls needs to be a client and a server with them |
//! | `tickets.rs` | resumption: the control connection's tickets let the streams in |
//! | `session.rs` | records, sealed and opened: bytes in, bytes out, no socket |
//! | `handshake.rs` | the handshake on a socket, within a time |
//! | `connection.rs` | a connection that blocks: control, device state, questions |
//! | `kernel/` | a page stream whose records the kernel seals and opens ([ADR 0029]) |
//! | `error.rs` | what went wrong, in words |
//!
//! Page streams do not block: once their handshake is done, a worker's transport seals and opens their
//! records ([`SealedTransport`](crate::transport::SealedTransport)), or has the kernel do it.
//!
//! [ADR 0029]: ../../../docs/adr/0029-kernel-tls-where-it-is-asked-for.md

mod connection;
mod error;
mod files;
mod handshake;
mod identity;
mod kernel;
mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tickets;

pub use connection::{Connection, DataStream, SealedStream};
pub use error::TlsError;
pub use files::{TlsFiles, TlsNode};
pub use handshake::{RECORD_HANDSHAKE, accept, connect, say_no_tls};
pub use identity::Identity;
pub use kernel::{Cipher, HandedOver, Heard, KernelStream, KernelTls};
pub use session::{Opened, Sealed, Session, sealed_bytes};
