//! Requests to the data plane.

use serde::{Deserialize, Serialize};

use crate::{
    ApiError, Attachment, MigrationId, MigrationStatus, NodeIdentity, PathSample, RecoverRequest,
    Recovery, StoreEntry, StoreRequest, TransferSettings, Tune, VmInfo,
};

/// A request, answered in order by one [`Reply`] each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// First on every connection. The reply is [`Reply::Hello`] and carries the descriptor of the
    /// [`crate::counters`] page.
    Hello(NodeIdentity),
    /// Attach a VM; checks that it can be moved, and says what to change when it cannot.
    AttachVm {
        /// Name, unique on this node.
        name: String,
        /// How to reach it.
        attachment: Attachment,
    },
    /// Forget a VM. It goes on running.
    DetachVm {
        /// Name.
        name: String,
    },
    /// All attached VMs.
    ListVms,
    /// Move a VM away from this node.
    StartMigration {
        /// Chosen by the caller, unique.
        id: MigrationId,
        /// Attached VM.
        vm: String,
        /// `host:port` of the other node's data plane.
        destination: String,
        /// Name of the other node, where it was given by name.
        destination_name: Option<String>,
        /// How.
        settings: TransferSettings,
        /// Check everything, negotiate, then stop.
        dry_run: bool,
    },
    /// Give the VM back to the source, if it is not handed over yet.
    CancelMigration {
        /// Which.
        id: MigrationId,
    },
    /// Change how a migration that leaves this node is moved, from now on.
    TuneMigration {
        /// Which.
        id: MigrationId,
        /// What.
        tune: Tune,
    },
    /// One migration.
    Status {
        /// Which.
        id: MigrationId,
    },
    /// All migrations since the daemon started, newest last.
    ListMigrations,
    /// Look at the path to another node: a connection is opened, and closed.
    ProbePath {
        /// `host:port` of the other node's data plane.
        destination: String,
    },
    /// What this node has: one line each.
    Doctor,
    /// The node's store.
    Store(StoreRequest),
    /// Half-done migrations.
    Recover(RecoverRequest),
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// Answer to [`Request::Hello`].
    Hello {
        /// Version of the daemon's package.
        version: String,
        /// Where it listens for other nodes' data planes, `host:port`.
        listen: String,
        /// Process id.
        pid: u32,
    },
    /// Done, nothing to say.
    Done,
    /// The VM, as attached.
    Vm(VmInfo),
    /// All VMs.
    Vms(Vec<VmInfo>),
    /// One migration.
    Migration(Box<MigrationStatus>),
    /// All migrations.
    Migrations(Vec<MigrationStatus>),
    /// A path, seen once.
    Path(PathSample),
    /// What this node has.
    Doctor(Vec<Finding>),
    /// Entries of the store.
    Store(Vec<StoreEntry>),
    /// Half-done migrations.
    Recovery(Recovery),
    /// Refused.
    Error(ApiError),
}

/// One line of `dwcp doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `io_uring`, `huge pages`, `userfaultfd`, `memlock`, …
    pub subject: String,
    /// How it is.
    pub level: FindingLevel,
    /// What was found.
    pub found: String,
    /// What is lost without it and how to mend it; empty when all is well.
    pub advice: String,
}

/// How good a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingLevel {
    /// As it should be.
    Good,
    /// Works by another path, or not for long.
    Fallback,
    /// Something will not work.
    Missing,
}
