//! Requests of the command line to a node's control plane.

use serde::{Deserialize, Serialize};

use crate::{
    ApiError, Attachment, MigrationId, MigrationStatus, NodeIdentity, PathSample, RecoverRequest,
    Recovery, StoreEntry, StoreRequest, TransferSettings, VmInfo, dataplane::Finding,
};

/// A request, answered by one [`Reply`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Who are you.
    Node,
    /// Attach a VM.
    AttachVm {
        /// Name.
        name: String,
        /// How to reach it.
        attachment: Attachment,
    },
    /// Forget a VM.
    DetachVm {
        /// Name.
        name: String,
        /// Only if it is attached so: somebody else may have given the name to another VM.
        attached_as: Option<Attachment>,
    },
    /// All VMs.
    ListVms,
    /// Move a VM to another node.
    Migrate {
        /// VM name.
        vm: String,
        /// Peer's name from the node's configuration, or `host:port` of its data plane.
        to: String,
        /// How.
        settings: TransferSettings,
        /// Check everything, negotiate, then stop.
        dry_run: bool,
    },
    /// Cancel by migration id or VM name.
    Cancel {
        /// 32 hex digits, or a VM name.
        which: String,
    },
    /// Change how a VM is moved away, by migration id or VM name.
    Tune {
        /// 32 hex digits, or a VM name.
        which: String,
        /// Bits that are sent in a second at most, in millions; 0 is no limit.
        bandwidth_limit_mbit: Option<u32>,
        /// Run the guest at the destination after this round, before its pages are there.
        post_copy: bool,
    },
    /// Look at the path to another node, and say what kind of path it is.
    Probe {
        /// Peer's name, or `host:port` of its data plane.
        to: String,
    },
    /// One migration by id or VM name (the newest), or all.
    Status {
        /// `None` for all.
        which: Option<String>,
    },
    /// What the node has.
    Doctor,
    /// The node's store.
    Store(StoreRequest),
    /// The handover journal's view of who owns what.
    Ownership,
    /// Half-done migrations.
    Recover(RecoverRequest),
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// The node.
    Node(NodeStatus),
    /// Done.
    Done,
    /// A VM.
    Vm(VmInfo),
    /// All VMs.
    Vms(Vec<VmInfo>),
    /// A migration that was started.
    Started {
        /// Its id.
        id: MigrationId,
    },
    /// Migrations.
    Migrations(Vec<MigrationStatus>),
    /// A path, and the mode that it is of.
    Path {
        /// What was seen.
        sample: PathSample,
        /// `datacenter`, `hybrid`, `internet`.
        mode: String,
        /// By what, for a person.
        why: String,
    },
    /// Findings of the data plane and of the control plane.
    Doctor(Vec<Finding>),
    /// Entries of the store.
    Store(Vec<StoreEntry>),
    /// Ownership records.
    Ownership(Vec<Ownership>),
    /// Half-done migrations.
    Recovery(Recovery),
    /// Refused.
    Error(ApiError),
}

/// A node as its control plane sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Identity.
    pub node: NodeIdentity,
    /// Control plane's package version.
    pub version: String,
    /// Where the data plane listens, or `None` while it is down.
    pub dataplane: Option<String>,
    /// Data plane's process id, when up.
    pub dataplane_pid: Option<u32>,
    /// Known peers: name and `host:port`.
    pub peers: Vec<(String, String)>,
    /// The profile that migrations take which name none, resolved.
    pub default_settings: TransferSettings,
}

/// Who owns a VM, by this node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// VM name.
    pub vm: String,
    /// Grows with each handover.
    pub epoch: u64,
    /// `here`, `away` (handed over to `peer`), `in-doubt` (handover sent, answer unknown).
    pub owner: String,
    /// The other node of the newest record.
    pub peer: String,
    /// Migration of the newest record.
    #[serde(with = "id_as_hex")]
    pub migration: MigrationId,
    /// Plain words.
    pub note: String,
}

/// A [`MigrationId`] as 32 hex digits where people read (JSON numbers above 2^53 lose digits in
/// most readers), as it is in frames: `#[serde(with = "dwcp_api::node::id_as_hex")]`.
pub mod id_as_hex {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::MigrationId;

    /// Writes the id.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(id: &MigrationId, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(id)
        } else {
            id.serialize(serializer)
        }
    }

    /// Reads the id.
    ///
    /// # Errors
    /// The deserializer's, and text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<MigrationId, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        } else {
            MigrationId::deserialize(deserializer)
        }
    }
}
