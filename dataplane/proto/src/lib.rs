//! The migration as typed phases. Sans-IO: events in, actions out.
//!
//! ```text
//!            events                      actions
//!   driver ─────────► Source::on_event ─────────► driver
//! ```
//! Nothing here reads a clock, a socket or a random source: time comes with the event, and the
//! driver carries out the actions in order. Page bytes never pass through: a round is asked for as
//! a whole, and its outcome comes back as numbers.
//!
//! The one rule that everything serves: **a guest never runs on two nodes, and it is never on
//! none.** Handover is the point of no return. Before the destination's durable commit any failure
//! gives the guest back to the source; after it the source never resumes by itself.

#![forbid(unsafe_code)]

mod convergence;
mod destination;
mod forecast;
mod phase;
mod recovery;
mod source;

pub use convergence::{
    IfNotConverged, Outlook, RoundDecision, RoundInput, RoundLimits, decide_round,
    expected_downtime_ns, throttle,
};
pub use destination::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
pub use forecast::{DirtyCurve, Forecast, ForecastInput, forecast, forecast_from_start};
pub use phase::{Phase, is_transition_valid};
pub use recovery::{
    DestinationRecovery, LastRecord, SourceRecovery, VmState, recover_destination, recover_source,
};
pub use source::{
    RESUME_TRIES_MAX, RoundMeasure, Source, SourceAction, SourceConfig, SourceEvent,
    TRIES_WHILE_PAUSED_MAX, floor_char, patience_in_pause_ns,
};

/// Nanoseconds since the driver's own beginning of time. Our own type, so that a simulation can
/// reproduce every value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// Nanoseconds from `earlier` to `self`, 0 when it lies later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a driver makes durable in the node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JournalEntry {
    /// Source: the answer to a handover decides from now on, not this node alone.
    Prepared,
    /// The same, and after a handover the pages here are still needed.
    PreparedPostcopy,
    /// Destination: THE commit. Source: the commit was learned.
    Committed {
        /// Epoch of the new owner.
        epoch: u64,
    },
    /// Source: the commit was learned; the pages here are still needed.
    Serving {
        /// Epoch of the new owner.
        epoch: u64,
    },
    /// Destination: once committed, pages of the guest are missing until [`Self::Whole`].
    Fetching,
    /// Destination: no page is missing.
    Whole,
    /// Destination: this migration will never be committed here.
    Refused,
    /// Destination: the guest was told to run.
    Resumed,
    /// The migration is over, the guest is the source's.
    Aborted {
        /// Why.
        reason: String,
    },
    /// A person must look: `reason` says where the guest is.
    Failed {
        /// What is known.
        reason: String,
    },
}

/// How a migration ended, seen from one end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Which way.
    pub result: Ending,
    /// Why, in words for a person.
    pub reason: String,
}

/// Ways to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The guest is the destination's.
    Completed,
    /// The guest is the source's.
    Aborted,
    /// Not certain from here; the reason says what is known.
    Failed,
}

impl Outcome {
    fn new(result: Ending, reason: impl Into<String>) -> Self {
        Self {
            result,
            reason: reason.into(),
        }
    }
}
