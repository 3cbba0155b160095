//! Why a move by QEMU could not be measured.

use std::time::Duration;

use dwcp_qmp::{MigrationStatus, QmpError};

use crate::guests::GuestError;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The guests did not run.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// QEMU's monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The migration ended otherwise than completed.
    #[error("The migration is {status:?} after {after:?}: {detail}")]
    NotCompleted {
        /// Where it stood.
        status: MigrationStatus,
        /// Since its start.
        after: Duration,
        /// QEMU's reason.
        detail: String,
        /// Bytes that the destination had received by then.
        wire_bytes: u64,
        /// Processor time of both QEMUs by then.
        cpu_s: f64,
    },
    /// The destination listens nowhere.
    #[error("The destination does not say where it listens: {detail}")]
    NoAddress {
        /// What it said.
        detail: String,
    },
}

impl PeerError {
    /// What a migration that did not end has cost.
    pub(super) fn having_used(mut self, received: u64, cpu: f64) -> Self {
        if let Self::NotCompleted {
            wire_bytes, cpu_s, ..
        } = &mut self
        {
            (*wire_bytes, *cpu_s) = (received, cpu);
        }
        self
    }
}
