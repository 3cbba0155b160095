//! How one migration is to be moved: what a profile resolves to.

use serde::{Deserialize, Serialize};

use crate::StreamPath;

/// Most data streams of a migration.
pub const STREAMS_MAX: u16 = 32;

/// Resolved settings of one migration; every number has its unit in its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferSettings {
    /// Profile or mode name that these came from: `datacenter`, `hybrid`, `internet`.
    pub mode: String,
    /// Data streams that are opened, 1..=[`STREAMS_MAX`].
    pub streams: u16,
    /// How many of them carry pages is found by measurement; otherwise all do.
    pub measure_streams: bool,
    /// Worker threads at each end; 0 lets the data plane choose from the topology.
    pub workers: u16,
    /// Migrations that leave the node at once at most while this one waits for its turn; 0 lets the
    /// data plane choose.
    pub at_once: u16,
    /// Its place in the line, and its share of a bandwidth that the node limits; higher is more.
    pub priority: u8,
    /// Whether the connections are TLS.
    pub tls: TlsChoice,
    /// Whether the kernel seals the data streams' records.
    pub kernel_tls: KernelTlsChoice,
    /// Whether pages are placed by network adapters.
    pub rdma: RdmaChoice,
    /// Which transport loop the workers run.
    pub io: IoPath,
    /// How guest pages that are sent as they are get into the socket.
    pub send: SendChoice,
    /// Bytes that may be sent and not yet acknowledged, over all streams.
    pub window_bytes: u64,
    /// How pages that are neither zero nor unchanged are encoded.
    pub codec: Codec,
    /// Send only what the destination does not hold already.
    pub reuse: bool,
    /// Memory for pages that were sent, so that those that change again are sent as what changed.
    pub remember_bytes: u64,
    /// Which dirty tracker to use.
    pub tracker: TrackerChoice,
    /// How much of RAM is read again before the guest runs at the destination.
    pub verify: Verify,
    /// Pages read again at the pause when `verify` is `Sample`.
    pub sample_pages: u32,
    /// Switch over only when the forecast pause fits this.
    pub downtime_limit_ms: u32,
    /// The pause that is accepted when the rounds are used up; in the second half of them the limit grows to it.
    pub downtime_limit_at_last_ms: u32,
    /// Pre-copy rounds before switching over, or giving up, at the latest.
    pub rounds_max: u32,
    /// What becomes of a guest that dirties its pages faster than they leave.
    pub if_not_converged: NotConverged,
    /// So much of the guest's CPU time may be taken, in percent, while rounds get no shorter; 0 takes none.
    pub throttle_percent_max: u8,
    /// So long after its turn has come a guest that is not paused yet is sent no further round; 0 is no limit.
    pub deadline_ms: u32,
    /// Time limit for connecting and negotiating.
    pub connect_timeout_ms: u32,
    /// A peer that says nothing for so long is lost.
    pub peer_silence_ms: u32,
    /// TCP congestion control for the data streams (`cubic`, `bbr`), or the host's default.
    pub congestion_control: Option<String>,
    /// Bits that the source sends in a second, over all streams, at most, in millions; 0 is no limit. Not
    /// while the guest is paused.
    pub bandwidth_limit_mbit: u32,
    /// Watch the path while the guest is moved, and change with its mode.
    pub follow_path: bool,
    /// Pin workers to cores.
    pub pin_workers: bool,
    /// How long a worker looks for completions before it sleeps for them, at most; 0 sleeps at once.
    pub busy_poll_us: u16,
    /// Ways that the data streams take in turn, and each another one when it breaks; none is the way of the
    /// control connection.
    #[serde(default)]
    pub paths: Vec<StreamPath>,
}

/// What becomes of a guest that dirties its pages faster than they leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotConverged {
    /// It stays at the source.
    #[default]
    Abort,
    /// It is paused for longer than wanted.
    SwitchOver,
    /// It runs at the destination before all of its pages are there.
    PostCopy,
}

/// Transport loop of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPath {
    /// io_uring when the kernel allows it, otherwise poll.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Non-blocking sockets and poll(2).
    Poll,
}

/// Whether a migration's connections are TLS. The other node has no say in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsChoice {
    /// When this node has a certificate.
    #[default]
    Auto,
    /// TLS or an error.
    On,
    /// Plain text. Not in mode `internet`.
    Off,
}

/// Whether the kernel seals and opens the records of data streams that are TLS. Each end chooses for itself: on the
/// wire it is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelTlsChoice {
    /// The data plane does.
    #[default]
    Off,
    /// Where it can; the data plane otherwise.
    Auto,
}

/// Whether data streams are RDMA queue pairs. Never under TLS, and not in mode `internet`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RdmaChoice {
    /// Where both nodes have a device on a common network; TCP otherwise, and after a break.
    #[default]
    Auto,
    /// TCP.
    Off,
    /// RDMA or an error.
    Required,
}

/// How guest pages that are sent as they are get into the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendChoice {
    /// Straight from guest RAM, by the way that costs least on this socket, measured on the first
    /// frames.
    #[default]
    Auto,
    /// By reference through the ring, also where the kernel copies.
    ZeroCopy,
    /// By reference through a pipe.
    Vmsplice,
    /// By reference from the memory's file.
    Sendfile,
    /// The kernel copies from guest RAM.
    Write,
    /// Each page is copied first and the copy sent: no page can change on its way.
    Copy,
}

/// Page codec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// Zero pages as marks, the rest as they are.
    #[default]
    Raw,
    /// zstd over runs of up to 16 pages, raw where that is no smaller.
    Zstd {
        /// zstd level, -7..=19.
        level: i32,
    },
    /// zstd over all that a stream carries, raw where a page would not get smaller.
    Window {
        /// zstd level, -7..=19.
        level: i32,
        /// How far back it looks, over all streams together.
        window_bytes: u64,
    },
    /// The same at a level, or raw, that follows the link.
    Auto {
        /// How far back it looks, over all streams together.
        window_bytes: u64,
        /// What it is chosen for.
        prefer: Prefer,
    },
}

impl Codec {
    /// Whether pages are encoded by what their stream has carried.
    #[must_use]
    pub const fn looks_back(self) -> bool {
        matches!(self, Self::Window { .. } | Self::Auto { .. })
    }
}

/// What counts where fewer bytes would take longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefer {
    /// Being done soon.
    #[default]
    Time,
    /// Few bytes: pages are never sent with less effort than level 1.
    Bytes,
}

/// Dirty tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerChoice {
    /// The best that works: userfaultfd, then soft-dirty, then fingerprints.
    #[default]
    Auto,
    /// userfaultfd write protection (asynchronous) and PAGEMAP_SCAN.
    Userfaultfd,
    /// /proc/PID/clear_refs and pagemap.
    SoftDirty,
    /// Compare page fingerprints with those last sent.
    Fingerprint,
}

/// How much of RAM is read again at the pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Equal roots, and a sample of pages read again at both ends.
    #[default]
    Sample,
    /// Equal roots, and every page read again at both ends.
    Full,
}
