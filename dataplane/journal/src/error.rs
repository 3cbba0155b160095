//! Why the journal cannot be used, or refuses a record.

use std::path::PathBuf;

use dwcp_api::{MigrationId, Role};

/// Why the journal cannot be used, or refuses a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process writes this journal.
    #[error(
        "{path}: in use by another data plane; stop it, or give this one a state folder of its own"
    )]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {doing}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The failure.
        source: std::io::Error,
    },
    /// Bytes before the end of the file are damaged. Nothing is guessed.
    #[error(
        "{path}: line {line} is damaged (at byte {offset}: {why}); records after it \
         cannot be trusted. Keep a copy, \
         find out which node runs each VM, then remove the damaged lines"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The damaged line, from 1.
        line: u64,
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file was written by a release that this one does not know.
    #[error("{path}: not a journal of this release (it begins with {found:?})")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
    /// The record is larger than a line may be. Nothing was written.
    #[error("record of {bytes} bytes exceeds {limit}")]
    TooLarge {
        /// Encoded size.
        bytes: usize,
        /// [`crate::LINE_BYTES_MAX`].
        limit: usize,
    },
    /// The record would break an order or a promise that earlier records gave. Nothing was written.
    #[error("{role:?} may not write `{next}` for migration {migration}: {why}")]
    Forbidden {
        /// The migration.
        migration: MigrationId,
        /// This node's part.
        role: Role,
        /// The kind that was refused.
        next: &'static str,
        /// What stands against it.
        why: String,
    },
    /// A record numbered by the caller is not the next one. Nothing was written.
    #[error("record is numbered {found}, next is {expected}")]
    Sequence {
        /// Number given.
        found: u64,
        /// Number due.
        expected: u64,
    },
    /// An earlier failure could not be undone: what the disk holds is not known.
    #[error(
        "{path}: an earlier write failed and could not be undone; restart to read what is there"
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

impl JournalError {
    /// Whether the refused record is certainly not on disk. When `false`, a restart may find it or
    /// not: whoever wrote it must act on neither until then.
    #[must_use]
    pub const fn is_not_written(&self) -> bool {
        !matches!(self, Self::Poisoned { .. })
    }
}
