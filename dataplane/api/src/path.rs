//! What a node sees of the path to another one.

use serde::{Deserialize, Serialize};

/// State of a path, from `TCP_INFO` of the connections over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSample {
    /// Round-trip time, smoothed by the kernel; of several connections the least, µs.
    pub rtt_us: u64,
    /// Mean deviation of the round-trip time of that connection, µs.
    pub rtt_var_us: u64,
    /// What the path has carried last, over all connections, bytes per second.
    pub delivery_bytes_per_s: u64,
    /// It could have carried more: there was nothing more to send.
    pub is_app_limited: bool,
    /// Bytes sent since the connections began, those sent again included.
    pub sent_bytes: u64,
    /// Bytes of them that were sent again.
    pub retransmitted_bytes: u64,
}

/// A mode that a path is found to be of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMode {
    /// `datacenter`, `hybrid`, `internet`.
    pub mode: String,
    /// By what, for a person.
    pub why: String,
    /// What its profile has the streams use.
    pub congestion_control: Option<String>,
}

/// What changes in a migration while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tune {
    /// As [`crate::TransferSettings::bandwidth_limit_mbit`].
    BandwidthLimitMbit(u32),
    /// The path is of another mode than it was.
    PathMode(PathMode),
    /// Run the guest at the destination after this round, before its pages are there.
    PostCopy,
}
