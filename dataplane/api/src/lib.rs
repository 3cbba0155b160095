//! What the planes, and the tools, say to each other on one node.
//!
//! | socket | server | client | requests |
//! |---|---|---|---|
//! | `dataplane.sock` | `dwcp-dataplane` | `dwcp-controlplane` | [`dataplane::Request`] |
//! | `node.sock` | `dwcp-controlplane` | `dwcp` | [`node::Request`] |
//!
//! Both carry [`codec`] frames: postcard bodies behind a length and a version byte. Counters that
//! change fast are not asked for: they are read from a [`counters`] page in shared memory.

pub mod codec;
pub mod counters;
pub mod dataplane;
mod heap;
mod name;
pub mod node;
mod path;
mod recover;
mod report;
mod socket;
mod store;
mod stream_path;
mod text;
mod transfer;

pub use heap::use_few_heaps;
pub use name::{NAME_RULE, is_name, parse_node_name};
pub use path::{PathMode, PathSample, Tune};
pub use recover::{HalfDone, HalfDoneState, RecoverRequest, Recovery, SettledOwner};
pub use report::{
    DowntimePartsMs, Forecast, Limit, MigrationReport, MigrationStatus, PageCounts, PhaseName,
    PostcopyReport, Progress, Prospect, Role, RoundReport, RunResult, TlsReport,
};
pub use socket::{Listener, SocketError, connect, receive, send};
pub use store::{StoreEntry, StoreKind, StoreRequest, StoreState};
pub use stream_path::{PATHS_MAX, StreamPath};
pub use text::{in_words, stderr_takes_colours};
pub use transfer::{
    Codec, IoPath, KernelTlsChoice, NotConverged, Prefer, RdmaChoice, STREAMS_MAX, SendChoice,
    TlsChoice, TrackerChoice, TransferSettings, Verify,
};

use serde::{Deserialize, Serialize};

/// Names one migration on every node it touches. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationId(pub u128);

impl std::fmt::Display for MigrationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MigrationId({self})")
    }
}

impl std::str::FromStr for MigrationId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// How the data plane reaches a VM. Paths are absolute, on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// QEMU by its QMP monitor; `uffd_socket` is where the preload library hands out the
    /// userfaultfd, when the library is loaded.
    Qemu {
        /// The monitor's Unix socket.
        qmp_socket: String,
        /// The preload library's Unix socket.
        uffd_socket: Option<String>,
    },
    /// A process that shares its RAM as memfds and obeys the synthetic guest's protocol.
    Process {
        /// The process' Unix socket.
        socket: String,
    },
}

/// What a node calls itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Operator's name for the node, unique among its peers.
    pub name: String,
    /// Made once at first start and kept; 32 hex digits.
    pub id: String,
}

/// A refusal that a person can act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct ApiError {
    /// Which kind of refusal.
    pub code: ErrorCode,
    /// What was wrong and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Kinds of refusal; the command line maps each to an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request itself makes no sense.
    BadRequest,
    /// No VM or migration of that name.
    NotFound,
    /// The name is taken, or the VM is being moved.
    Busy,
    /// The VM cannot be moved as it was started; the hint says which argument to change.
    VmUnsuitable,
    /// The other daemon of this node does not answer.
    PlaneDown,
    /// The other node refused or cannot be reached.
    Peer,
    /// A system call failed.
    System,
    /// It is decided already, or decided elsewhere.
    TooLate,
}

/// A VM that a node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Operator's name, unique on the node, the same on both nodes of a migration.
    pub name: String,
    /// How it is reached.
    pub attachment: Attachment,
    /// `running`, `paused`, `incoming` (waits for a migration), `postmigrate`; `moving`, `in doubt`,
    /// `attaching` while somebody has it to himself; `no answer`, `gone`; `not attached` when it is
    /// known to the control plane only.
    pub state: String,
    /// Size of its migratable RAM; 0 while that is not known.
    pub ram_bytes: u64,
    /// The dirty tracker that would be used now: `userfaultfd`, `soft-dirty` or `fingerprint`.
    pub tracker: String,
    /// Which VMM: `qemu 7.2.22`, `process`.
    pub vmm: String,
    /// Why it is not attached, in words; empty otherwise.
    pub note: String,
}
