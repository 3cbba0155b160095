//! What is told of a migration, while it runs and afterwards.

use serde::{Deserialize, Serialize};

use crate::{MigrationId, PathSample};

/// Which end of a migration this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The guest leaves this node.
    Source,
    /// The guest comes to this node.
    Destination,
}

/// Phase of a migration, as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PhaseName {
    /// Waiting for its turn: few migrations leave a node at a time. The guest runs.
    Queued,
    /// Connecting and agreeing on version and capabilities.
    Negotiate,
    /// Arming the tracker, opening streams.
    Setup,
    /// Rounds while the guest runs.
    Precopy,
    /// The guest is paused.
    Switchover,
    /// Handover was sent, the connection is lost, and its answer is not known.
    InDoubt,
    /// The guest runs at the destination.
    Complete,
    /// The guest runs on at the source.
    Aborted,
    /// Something broke that a person must look at; `reason` says where the guest is.
    Failed,
    /// Handover was sent: the destination decides, within moments.
    Handover,
    /// The guest runs at the destination, and pages of it follow.
    Postcopy,
    /// The same, and the connection is lost: the guest waits for the pages it needs until there is another.
    PostcopyPaused,
    /// A dry run found that both nodes agree; the guest runs on at the source.
    DryRun,
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunResult {
    /// The guest runs at the destination.
    Completed,
    /// The guest runs at the source, as before.
    Aborted,
    /// Neither is certain; `reason` says which side holds the guest.
    Failed,
    /// It was a dry run, and both nodes agree; the guest runs at the source, as before.
    DryRun,
}

/// Pages by class, counted once per time they were visited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Sent as a mark.
    pub zero: u64,
    /// Not sent: the destination holds the same content.
    pub unchanged: u64,
    /// Sent by name: the destination knows the content from elsewhere.
    pub known: u64,
    /// Sent as a difference.
    pub delta: u64,
    /// Sent compressed.
    pub compressed: u64,
    /// Sent as they are.
    pub raw: u64,
}

impl PageCounts {
    /// Pages visited.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.zero + self.unchanged + self.known + self.delta + self.compressed + self.raw
    }
}

impl std::ops::AddAssign for PageCounts {
    fn add_assign(&mut self, other: Self) {
        // By name: a kind that is new cannot be left out.
        let Self {
            zero,
            unchanged,
            known,
            delta,
            compressed,
            raw,
        } = other;
        self.zero += zero;
        self.unchanged += unchanged;
        self.known += known;
        self.delta += delta;
        self.compressed += compressed;
        self.raw += raw;
    }
}

/// The pause, part by part, in order. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DowntimePartsMs {
    /// From the decision until the vCPUs stand.
    pub pause: f64,
    /// Last dirty pages sent and acknowledged.
    pub last_dirty_pages: f64,
    /// Device state saved, moved, loaded.
    pub device_state: f64,
    /// Proof of the whole RAM.
    pub verify: f64,
    /// The durable commit at the destination.
    pub handover: f64,
    /// Until the destination's vCPUs run.
    pub resume: f64,
}

/// One pre-copy round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// 0 is the first pass over all of RAM.
    pub round: u32,
    /// Pages the tracker named.
    pub pages: u64,
    /// Pages by class.
    pub classes: PageCounts,
    /// Bytes put on the wire.
    pub wire_bytes: u64,
    /// Duration.
    pub ms: f64,
    /// Time the tracker took.
    pub scan_ms: f64,
    /// Pages that arrived damaged or torn and were sent again in the next round.
    pub suspect_pages: u64,
}

/// Whether the rounds lead to a pause that fits, if the guest goes on writing as it does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// It was made when this round had been sent.
    pub after_round: u32,
    /// The pause will fit `switchover.downtime_limit`.
    pub converges: bool,
    /// Rounds to come while the guest runs.
    pub rounds: u32,
    /// From then until the pause: expected.
    pub ms: f64,
    /// The same if every page takes 1.3 times as long.
    pub ms_p90: f64,
    /// The pause, without device state: that at the end, or the shortest that can be had.
    pub downtime_ms: f64,
    /// The same if every page takes 1.3 times as long.
    pub downtime_ms_p90: f64,
}

/// What would come of a migration, told by a dry run that looked at its guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prospect {
    /// The guest was looked at for so long.
    pub looked_ms: f64,
    /// Its pages that have memory: as many are sent at first, those of them that are zero as such.
    pub pages: u64,
    /// Pages that it wrote while it was looked at.
    pub dirty_pages: u64,
    /// Guest pages that are expected to leave, in millions of bits a second; `None` when nothing is known of the way.
    pub mbit: Option<f64>,
    /// Whence that is known, or why it is not.
    pub basis: String,
    /// What would come of it then, from the beginning on: `after_round` is 0.
    pub forecast: Option<Forecast>,
    /// What keeps that from being better.
    pub limited_by: Limit,
    /// The least of such rates, to a hundredth, with which it converges; `None` when none does.
    pub least_mbit: Option<u64>,
}

/// What keeps a migration from being faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Not known yet.
    #[default]
    Unknown,
    /// The link: workers wait until it takes more.
    Link,
    /// The operator's limit on bandwidth.
    Bandwidth,
    /// The source's cores are.
    Cpu,
    /// The guest writes faster than pages leave.
    DirtyRate,
    /// Device state.
    Device,
    /// The destination does not keep up.
    Destination,
}

/// Live numbers of a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Round under way.
    pub round: u32,
    /// Pages of this round not yet sent; in post-copy, those that are missing.
    pub pages_left: u64,
    /// Pages of this round; in post-copy, those that were missing.
    pub pages_in_round: u64,
    /// Wire bytes so far.
    pub wire_bytes: u64,
    /// Wire rate over the last second or so.
    pub bytes_per_s: f64,
    /// Pages the guest dirtied per second in the last round.
    pub dirty_pages_per_s: f64,
    /// Time left, low and high estimate: by the pace until RAM was sent once, then by the forecast. `None` until there is
    /// a basis, and while the guest outruns its link.
    pub eta_ms: Option<(u64, u64)>,
    /// What limits the rate.
    pub limit: Limit,
    /// Whether it converges, once that can be told, and until the pause.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// What carries pages, as in the report; empty until that is decided.
    #[serde(default)]
    pub transport: String,
    /// Destination, in post-copy: pages that its network adapter has read out of the source's RAM so far.
    #[serde(default)]
    pub read_pages: u64,
}

/// A migration as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// Which.
    #[serde(with = "crate::node::id_as_hex")]
    pub id: MigrationId,
    /// VM name.
    pub vm: String,
    /// This node's part.
    pub role: Role,
    /// The other node, as `name` or `host:port`.
    pub peer: String,
    /// Phase.
    pub phase: PhaseName,
    /// Numbers.
    pub progress: Progress,
    /// Source: the path to the destination, once there are streams over it.
    pub path: Option<PathSample>,
    /// Finished rounds.
    pub rounds: Vec<RoundReport>,
    /// The end, when it has come.
    pub report: Option<MigrationReport>,
}

/// Post-copy: what fetching the missing pages took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostcopyReport {
    /// Pages that were missing when the guest ran at the destination.
    pub pages: u64,
    /// Faults that the guest, or its VMM, waited for.
    pub faults: u64,
    /// Half of them took no longer.
    pub fault_p50_us: u64,
    /// 99 of 100 took no longer.
    pub fault_p99_us: u64,
    /// The longest.
    pub fault_max_us: u64,
    /// From the first page to the last.
    pub fetch_ms: u64,
    /// How often the connections broke and came again.
    pub breaks: u32,
    /// Pages that were read out of the source's RAM by the destination's network adapter, for somebody who waited.
    pub read_pages: u64,
}

/// How a migration's connections were protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsReport {
    /// `TLS1.3`.
    pub version: String,
    /// Cipher suite of the control connection, by its registered name.
    pub cipher_suite: String,
    /// Further connections, the device state's included, whose handshake was a short one.
    pub resumed: u16,
    /// Connections of data streams whose records this node's kernel sealed and opened.
    pub kernel_streams: u16,
    /// What the other node's certificate names it.
    pub peer_names: Vec<String>,
}

/// The end of a migration: `dwcp.migration/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// Always `dwcp.migration/1`.
    pub schema: String,
    /// Which.
    #[serde(with = "crate::node::id_as_hex")]
    pub id: MigrationId,
    /// VM name.
    pub vm: String,
    /// Which end of it this node is.
    pub role: Role,
    /// The other node, as `name` or `host:port`.
    pub peer: String,
    /// Nothing was to be moved, however it ended.
    pub dry_run: bool,
    /// How it ended.
    pub result: RunResult,
    /// Mode.
    pub mode: String,
    /// The whole-RAM proof held.
    pub verified: bool,
    /// The guest's own check at the destination, where one was made.
    pub guest_verified: Option<bool>,
    /// Rounds, the last one under pause included.
    pub rounds: u32,
    /// Time that it waited for its turn: few migrations leave a node at once.
    pub queued_ms: f64,
    /// From its turn to the guest running at the destination, or to the abort.
    pub total_ms: f64,
    /// Pause of the guest, from its stop at the source to its resume at the destination. The source hears of the latter, and
    /// takes half of the shortest round trip for the way of that word.
    pub downtime_ms: f64,
    /// Its parts.
    pub downtime_parts_ms: DowntimePartsMs,
    /// Guest RAM.
    pub ram_bytes: u64,
    /// Bytes of all frames that this end sent and received, headers included: pages, marks,
    /// acknowledgements, control messages, device state.
    pub wire_bytes: u64,
    /// Pages by class.
    pub pages: PageCounts,
    /// Data streams.
    pub streams: u16,
    /// Source: those of them that carried pages in the end.
    #[serde(default)]
    pub streams_in_use: u16,
    /// How often another connection took the place of a data stream that broke.
    #[serde(default)]
    pub streams_replaced: u32,
    /// Source: the most that was taken of the guest's CPU time, in percent.
    #[serde(default)]
    pub throttle_percent: u8,
    /// Whether it was to converge, as it was told first.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// Dry run at the source: what would come of it, where that can be told.
    #[serde(default)]
    pub prospect: Option<Prospect>,
    /// What post-copy took, where there was any.
    #[serde(default)]
    pub postcopy: Option<PostcopyReport>,
    /// `tcp-uring`, `tcp-poll`, `memory`, `rdma`.
    pub transport: String,
    /// TLS of its connections; `None` when they were plain text.
    pub tls: Option<TlsReport>,
    /// How guest pages got into the sockets: `vmsplice`, `sendfile`, `write`; empty when copies of
    /// them did, or when too few were sent to choose.
    pub send_method: String,
    /// Dirty tracker in use.
    pub tracker: String,
    /// Why it ended so.
    pub reason: String,
    /// The other node could not be reached, speaks something else, or refused, before it accepted
    /// the migration. Only the source says so.
    pub refused: bool,
    /// It was aborted because the other node, or the way to it, was lost: it can be tried again. Only the
    /// source says so.
    pub connection_lost: bool,
    /// Whole-RAM root, 32 hex digits, when both ends agreed on it.
    pub ram_root: Option<String>,
    /// Who owns the VM now, by the journal: `source`, `destination`, `unknown`.
    pub owner: String,
    /// Ownership epoch after this migration.
    pub epoch: u64,
    /// Every round.
    pub round_reports: Vec<RoundReport>,
    /// CPU seconds that this node's data plane spent on it, in all threads that work for it.
    pub cpu_s: f64,
    /// Notes for a person: fallbacks taken, limits met.
    pub notes: Vec<String>,
}
