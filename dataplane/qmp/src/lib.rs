//! A small blocking client for the QEMU Machine Protocol (QMP).
//!
//! One [`QmpClient`] is one connection to the monitor of one QEMU. It is used by one thread, sends
//! one command at a time, and keeps the events that arrive meanwhile in a bounded queue.
//!
//! | file         | question it answers                                            |
//! |--------------|----------------------------------------------------------------|
//! | `line.rs`    | how are bytes cut into lines, with a limit and a deadline?     |
//! | `message.rs` | what may QEMU say? (greeting, return, error, event)            |
//! | `client.rs`  | who speaks when: connect, execute, events, descriptor passing  |
//! | `commands.rs`| the commands a migration needs, typed                          |
//!
//! QEMU is taken for a peer that may be broken or hostile: lines are limited, JSON depth is limited,
//! the event queue is limited, and nothing here panics on what was read.
//!
//! ```no_run
//! use dwcp_qmp::QmpClient;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), dwcp_qmp::QmpError> {
//! let mut qmp = QmpClient::connect("/run/vm.qmp", Duration::from_secs(5))?;
//! println!("QEMU {} is {:?}", qmp.version(), qmp.query_status()?.status);
//! # Ok(())
//! # }
//! ```

mod client;
mod commands;
mod error;
mod line;
mod message;

pub use client::QmpClient;
pub use commands::{
    MemoryBackend, MigrateInfo, MigrateRam, MigrateXbzrle, MigrationStatus, RunStatus,
};
pub use error::QmpError;
pub use message::{QemuVersion, QmpEvent};

/// Longest line accepted from QEMU, in bytes. `query-qmp-schema`, the longest useful answer, is below
/// 1 MiB in QEMU 10.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Most events kept while nobody asks for them; then the oldest is dropped and counted
/// (see [`QmpClient::events_lost`]).
pub const EVENTS_QUEUED_MAX: usize = 4096;
