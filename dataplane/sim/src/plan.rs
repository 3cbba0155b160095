//! Everything that a seed decides before the run begins.

use dwcp_proto::{IfNotConverged, RoundLimits};

use crate::faults::{Fault, PlannedFault};
use crate::rng::Rng;
use crate::shape::Shape;

/// One millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// Faults come before this time, and an end must come after it within [`LIVENESS_NS`].
pub(crate) const FAULTS_END_NS: u64 = 40_000 * MS;

/// Time to reach an end once nothing fails any more.
pub(crate) const LIVENESS_NS: u64 = 60_000 * MS;

/// A connection that gives no sign of life is reset by the kernel after this time.
pub(crate) const TCP_TIMEOUT_NS: u64 = 9_000 * MS;

/// Which writes the tracker sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrackerKind {
    /// Every one.
    Exact,
    /// It misses so many of 100.
    Lossy {
        /// Percent missed.
        percent: u64,
    },
}

/// The shape of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Pages of the guest.
    pub(crate) pages: usize,
    /// The first RAM block holds so many of them, the second the rest.
    pub(crate) first_block: usize,
    /// Data streams.
    pub(crate) streams: u16,
    /// Bytes in flight over all streams at most.
    pub(crate) window_bytes: u64,
    /// Pages are sent from live memory, so that they may arrive torn.
    pub(crate) by_reference: bool,
    /// A damaged table loses its stream; otherwise its pages become suspect.
    pub(crate) table_loses_stream: bool,
    /// Mean time between two writes of the guest.
    pub(crate) write_ns: u64,
    /// Pages that the guest writes to, of all.
    pub(crate) hot_pages: usize,
    /// Dirty tracker.
    pub(crate) tracker: TrackerKind,
    /// Read all of RAM again at the pause.
    pub(crate) verify_full: bool,
    /// Pages read again otherwise.
    pub(crate) sample_pages: u32,
    /// One-way delay of the network, least and most.
    pub(crate) delay_ns: (u64, u64),
    /// Silence after which a peer is lost.
    pub(crate) silence_ns: u64,
    pub(crate) deadline_ns: u64,
    /// Convergence.
    pub(crate) limits: RoundLimits,
    /// Longest time of an action on a node.
    pub(crate) action_ns_max: u64,
    /// Tries of the same VM after an abort.
    pub(crate) attempts_max: u32,
    /// Epoch of the source's ownership.
    pub(crate) epoch: u64,
    /// What goes wrong.
    pub(crate) faults: Vec<PlannedFault>,
}

impl Plan {
    /// A shape, if there is one, stands for what would be drawn.
    pub(crate) fn draw(rng: &mut Rng, shape: Option<Shape>) -> Self {
        let pages = rng.range(8, 120) as usize;
        let delay_least = rng.skewed(MS / 20, 150 * MS);
        let mut plan = Self {
            pages,
            first_block: rng.range(1, pages as u64 - 1) as usize,
            streams: rng.range(1, 4) as u16,
            window_bytes: rng.range(1, 8) * crate::pages::FRAME_BYTES_MOST,
            by_reference: rng.chance(50),
            table_loses_stream: rng.chance(50),
            write_ns: rng.skewed(MS / 2, 60 * MS),
            hot_pages: rng.range(1, pages as u64) as usize,
            tracker: if rng.chance(70) {
                TrackerKind::Exact
            } else {
                TrackerKind::Lossy {
                    percent: rng.range(1, 20),
                }
            },
            verify_full: rng.chance(25),
            sample_pages: rng.range(0, pages as u64) as u32,
            delay_ns: (delay_least, delay_least + rng.skewed(0, 100 * MS)),
            silence_ns: rng.range(1_500, 4_000) * MS,
            deadline_ns: rng.range(0, 1) * rng.skewed(MS, 20_000 * MS),
            limits: RoundLimits {
                downtime_ns_max: rng.skewed(MS, 2_000 * MS),
                downtime_ns_at_last: rng.skewed(MS, 4_000 * MS),
                throttle_percent_max: rng.range(0, 99) as u8,
                rounds_max: rng.range(0, 6) as u32,
                if_not_converged: match rng.range(0, 3) {
                    0 => IfNotConverged::Abort,
                    1 => IfNotConverged::PostCopy,
                    _ => IfNotConverged::SwitchOver,
                },
            },
            action_ns_max: rng.skewed(MS / 10, 300 * MS),
            attempts_max: rng.range(1, 3) as u32,
            epoch: rng.range(0, 5),
            faults: vec![],
        };
        if let Some(shape) = shape {
            shape.apply(&mut plan);
        }
        plan.faults = Fault::draw_all(rng, &plan);
        plan
    }

    /// Whether the destination has promised to say that it lives while the guest stands. Not drawn: seeds that once broke
    /// something go on to mean what they meant.
    pub(crate) const fn speaks_in_pause(&self) -> bool {
        self.silence_ns / MS % 10 < 7
    }

    /// Whether nothing at all goes wrong, so that the migration must succeed.
    pub(crate) const fn must_complete(&self) -> bool {
        self.faults.is_empty() && matches!(self.limits.if_not_converged, IfNotConverged::SwitchOver)
    }
}
