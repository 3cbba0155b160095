//! Why verbs failed.

use std::io;

/// Why a verbs call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// There is no device, no driver, or no permission to see either.
    #[error("no RDMA device on this node")]
    NoRdma,
    /// A device is listed but cannot be opened.
    #[error("Cannot open RDMA device {device}")]
    Open {
        /// The device's name.
        device: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An open device does not answer a query.
    #[error("Cannot query {what} of RDMA device {device}")]
    Query {
        /// The device's name.
        device: String,
        /// What was asked: `attributes`, `port 1`.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl RdmaError {
    /// Returns whether the node simply has no RDMA: use another transport and do not complain.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NoRdma)
    }
}
