//! Half-done migrations: what is told of them, and what an operator decides.

use serde::{Deserialize, Serialize};

use crate::node::id_as_hex;
use crate::{MigrationId, Role};

/// What is asked about half-done migrations of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecoverRequest {
    /// All of them.
    List,
    /// Try now what is tried by itself anyway: ask the other node, or the VM's own VMM.
    Try {
        /// VM name.
        vm: String,
    },
    /// An operator decides who owns a VM, since the other node is gone for good.
    Settle {
        /// VM name.
        vm: String,
        /// Who.
        owner: SettledOwner,
        /// Say what would be done, and do nothing.
        dry_run: bool,
    },
    /// A person has looked after a migration that asked for it: it is not shown any more.
    Close {
        /// VM name.
        vm: String,
    },
}

/// Who owns a VM by an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SettledOwner {
    /// This node.
    Here,
    /// Not this node: what it has of the guest is ended.
    There,
}

/// Answer to a [`RecoverRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// What came of it, in words; empty for a list.
    pub said: String,
    /// What is half done now: all, or that of the VM that was named.
    pub half_done: Vec<HalfDone>,
}

/// A migration that has not reached its end at this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfDone {
    /// VM name.
    pub vm: String,
    /// Which migration.
    #[serde(with = "id_as_hex")]
    pub migration: MigrationId,
    /// This node's part in it.
    pub role: Role,
    /// How it stands.
    pub state: HalfDoneState,
    /// How far the journal says it got, in words.
    pub reached: String,
    /// The other node: name, and address where it is known.
    pub peer: String,
    /// Wall clock of its newest record, milliseconds since 1970.
    pub since_ms: u64,
    /// Where the guest is, in words.
    pub guest: String,
    /// What is being done about it without a person.
    pub doing: String,
    /// Why it is not finished, as far as that is known; empty otherwise.
    pub why: String,
    /// What a person can do.
    pub advice: String,
}

/// How a half-done migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HalfDoneState {
    /// It is being carried out.
    UnderWay,
    /// Source: the handover was sent, and its answer is not known.
    InDoubt,
    /// Post-copy: the link between guest and missing pages is lost.
    CutOff,
    /// The VM's own VMM does not say what its guest does.
    Silent,
    /// Nobody carries it out: it could not be ended in the journal, or what was loaded could not be ended.
    Stuck,
    /// Taken back by an operator; the other node does not know it yet.
    Untold,
    /// The VM is a newer migration's; only the record is open.
    Superseded,
    /// It has failed, and said that a person must look.
    Failed,
}

impl HalfDoneState {
    /// Whether it waits for something that does not come by itself: another node, a VMM, a person.
    #[must_use]
    pub const fn needs_someone(self) -> bool {
        match self {
            Self::InDoubt
            | Self::CutOff
            | Self::Silent
            | Self::Stuck
            | Self::Untold
            | Self::Failed => true,
            Self::UnderWay | Self::Superseded => false,
        }
    }
}
