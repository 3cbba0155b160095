//! Two nodes on this machine, with real daemons and a guest that checks itself: what the demo, the
//! benchmarks and the fault loop are made of.
//!
//! | file | what |
//! |---|---|
//! | `binaries.rs` | where the daemons and the preload library are |
//! | `node.rs` | one node: two daemons, started, killed, started again |
//! | `break_stream.rs` | one data stream of a node ends |
//! | `proxy.rs` | a link that stops at one moment of a migration, and can be harmed |
//! | `limits.rs` | a small disk, and memory that is not there |
//! | `pki.rs` | certificates of its nodes, where the migrations are to be TLS |
//! | `guest.rs` | the guest at both ends: a process, or QEMU with our kernel or Debian's |
//! | `qemu_end.rs` | one end of a guest in QEMU |
//! | `held.rs` | what the destination has before a guest comes |
//! | `run.rs` | one migration from the boot to the guest's own verdict |
//! | `fleet.rs` | many synthetic guests moved at once |
//! | `usage.rs` | what a daemon holds: memory, descriptors, threads |

mod binaries;
mod break_stream;
mod fleet;
mod guest;
mod held;
mod limits;
mod node;
mod pki;
mod proxy;
mod qemu_end;
mod run;
mod usage;

pub use binaries::{Binaries, BinariesError};
pub use fleet::{Fleet, MovedFleet};
pub use guest::{GuestChoice, GuestPair, GuestSpec};
pub use limits::{MemoryCage, SmallDisk};
pub use node::{LabNode, Place, Plane};
pub use proxy::{Moment, Proxy, Way};
pub use qemu_end::QemuEnd;
pub use run::{Ends, Lab, MovedGuest, RunSpec};
pub use usage::Usage;

/// Why the lab cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program is missing.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// A guest did not start or went away.
    #[error(transparent)]
    Guest(#[from] dwcp_testbed::guests::GuestError),
    /// A synthetic guest did not answer.
    #[error(transparent)]
    Synthetic(#[from] dwcp_testbed::synthetic::ClientError),
    /// A daemon refused.
    #[error("node {node}: {error}")]
    Node {
        /// Which.
        node: String,
        /// Its refusal.
        error: dwcp_api::ApiError,
    },
    /// A daemon did not start.
    #[error("{what} did not start: {detail}")]
    Start {
        /// Which.
        what: String,
        /// The end of its log, or why.
        detail: String,
    },
    /// Something did not happen in time.
    #[error("{0} took too long")]
    Timeout(String),
    /// A node's certificate.
    #[error(transparent)]
    Pki(#[from] dwcp_pki::PkiError),
    /// A file or a process.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The failure.
        source: std::io::Error,
    },
}

impl LabError {
    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
