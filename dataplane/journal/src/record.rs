//! What is written.

use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_api::{Attachment, MigrationId, Role};
use serde::{Deserialize, Serialize};

/// One step of one migration, as this node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Grows by one with each record of the node; 0 lets [`crate::Journal::append`] choose.
    pub sequence: u64,
    /// Which migration.
    #[serde(with = "dwcp_api::node::id_as_hex")]
    pub migration: MigrationId,
    /// VM name.
    pub vm: String,
    /// This node's part in it.
    pub role: Role,
    /// Name of the other node.
    pub peer_node: String,
    /// `host:port` of its data plane; at a destination the host that it connected from.
    pub peer_address: String,
    /// Their connections are TLS: a question after a restart must be, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// Ownership epoch after this record: the old owner's until `Committed`, one more from there.
    pub epoch: u64,
    /// Wall clock, milliseconds since 1970. For people; nothing is decided by it.
    pub wall_ms: u64,
    /// What happened.
    pub kind: RecordKind,
}

impl Record {
    /// The other node, for people: name and address where both are known.
    #[must_use]
    pub fn peer(&self) -> String {
        let (name, address) = (&self.peer_node, &self.peer_address);
        if address.is_empty() || name == address {
            return name.clone();
        }
        format!("{name} ({address})")
    }
}

/// A guest's memory, as its VMM has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestMemory {
    /// Process id of the VMM.
    pub pid: i32,
    /// When that process began, in clock ticks since the boot: another of the same id is another.
    pub started_ticks: u64,
    /// Seed of the page fingerprints.
    pub fingerprint_seed: u64,
    /// RAM blocks in order.
    pub blocks: Vec<MemoryBlock>,
}

/// One RAM block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBlock {
    /// The VMM's name of it.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Where the VMM has mapped it.
    pub address: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecordKind {
    /// A migration began; the VM is reached so, also after a restart.
    Begin {
        /// How the VM is reached on this node.
        attachment: Attachment,
    },
    /// Source: the handover message may leave after this.
    Prepared,
    /// The same, for post-copy: what is handed over needs the guest's RAM here.
    PreparedPostcopy,
    /// Destination: the VM is owned here from now on. Source: learned that it is owned there.
    Committed,
    /// Source: learned that it is owned there by post-copy: the guest's RAM here is needed until `Committed`.
    Serving,
    /// Destination: if it is committed, pages of the guest are missing here until `Whole`.
    Fetching {
        /// How its memory is reached, also while its VMM waits for a page and answers nobody.
        memory: GuestMemory,
    },
    /// Destination: no page is missing.
    Whole,
    /// Destination: this migration will never be committed. Its copy of the guest may still be
    /// loaded until `Aborted` follows.
    Refused,
    /// Destination: the guest runs.
    Resumed,
    /// Source: the guest runs here again. Destination: gave up before the commit, for good, and
    /// holds no copy of the guest.
    Aborted {
        /// Why.
        reason: String,
    },
    /// Source: an operator has taken the guest back, since the destination is gone for good. The epoch is one
    /// more than was handed over: whatever the destination did, this node's ownership is the newer one.
    TakenBack {
        /// Why, for people.
        reason: String,
    },
    /// Source, after `TakenBack`: the destination knows it, and will not run the guest.
    Told,
    /// Destination, after its commit: the source's operator has taken the guest back, and no copy of it is loaded
    /// here any more. The epoch is that of the source's ownership.
    Yielded,
    /// Something broke that a person must look at. Changes nobody's ownership.
    Failed {
        /// What.
        reason: String,
    },
    /// A person has. Changes nobody's ownership.
    LookedAfter,
}

impl RecordKind {
    /// By how much the epoch of such a record is ahead of the source's before the move.
    #[must_use]
    pub const fn epochs_ahead(&self) -> u64 {
        match self {
            Self::Committed | Self::Serving | Self::Resumed | Self::Whole => 1,
            // Newer than what the destination may have committed.
            Self::TakenBack { .. } | Self::Told | Self::Yielded => 2,
            _ => 0,
        }
    }

    /// The kind's name as in the file.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "begin",
            Self::Prepared => "prepared",
            Self::PreparedPostcopy => "prepared-postcopy",
            Self::Committed => "committed",
            Self::Serving => "serving",
            Self::Fetching { .. } => "fetching",
            Self::Whole => "whole",
            Self::Refused => "refused",
            Self::Resumed => "resumed",
            Self::Aborted { .. } => "aborted",
            Self::TakenBack { .. } => "taken-back",
            Self::Told => "told",
            Self::Yielded => "yielded",
            Self::Failed { .. } => "failed",
            Self::LookedAfter => "looked-after",
        }
    }
}

/// The wall clock, as records carry it.
#[must_use]
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
