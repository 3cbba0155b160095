//! What a node keeps for VMs that come, as it is asked for and told of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is asked of a node's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreRequest {
    /// Index a disk image of this node, or index it anew. It goes on after the reply.
    AddImage {
        /// Absolute.
        path: PathBuf,
    },
    /// All entries.
    List,
    /// Remove an entry; a disk image itself stays.
    Remove {
        /// Which.
        number: u64,
    },
    /// Remove what there is of a disk image, also that it could not be indexed.
    RemoveImage {
        /// Absolute, as it was added.
        path: PathBuf,
    },
}

/// One entry of a node's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreEntry {
    /// The newest has the highest; `None` while it is not there.
    pub number: Option<u64>,
    /// What it is.
    pub kind: StoreKind,
    /// How far it is.
    pub state: StoreState,
    /// Different pages that it has.
    pub pages: u64,
    /// What it takes in the store.
    pub disk_bytes: u64,
}

impl StoreEntry {
    /// The entry for something: what is under way with it stands behind what an earlier time has left.
    #[must_use]
    pub fn newest<'a>(entries: &'a [Self], kind: &StoreKind) -> Option<&'a Self> {
        entries.iter().rev().find(|entry| entry.kind == *kind)
    }
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// The RAM of a VM that left this node.
    Baseline {
        /// Its name.
        vm: String,
    },
    /// A disk image.
    Image {
        /// Where it is.
        path: PathBuf,
    },
    /// What the RAM of a VM was when it came to this node: by it the way back is short.
    Arrival {
        /// Its name.
        vm: String,
    },
}

/// How far an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreState {
    /// Its pages are found.
    Ready,
    /// It is being read.
    Indexing {
        /// Read so far.
        done_bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// It is not there.
    Failed {
        /// Why.
        reason: String,
    },
}
