//! Names of the phases and the transitions between them that are legal.

/// A phase of either end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing has happened.
    Idle,
    /// Version, capabilities, VM, RAM layout.
    Negotiate,
    /// Tracker armed, streams joined, destination RAM empty.
    Setup,
    /// Rounds while the guest runs.
    Precopy,
    /// The guest is paused: last pages, proof, device state.
    Switchover,
    /// Source: handover was sent. Destination: the commit is being made durable, or is.
    Handover,
    /// The guest runs at the destination, some of its pages are at the source.
    Postcopy,
    /// The guest runs at the destination.
    Complete,
    /// The guest runs at the source.
    Aborted,
    /// A person must look.
    Failed,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Idle,
        Self::Negotiate,
        Self::Setup,
        Self::Precopy,
        Self::Switchover,
        Self::Handover,
        Self::Postcopy,
        Self::Complete,
        Self::Aborted,
        Self::Failed,
    ];

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Complete | Self::Aborted | Self::Failed)
    }
}

/// Whether an end may go from one phase to the other. Every step of both machines asserts it.
///
/// | from | to |
/// |---|---|
/// | any but an end | itself |
/// | `Idle` | `Negotiate`, `Aborted` |
/// | `Negotiate` | `Setup`, `Aborted` |
/// | `Setup` | `Precopy`, `Aborted` |
/// | `Precopy` | `Switchover`, `Aborted` |
/// | `Switchover` | `Handover`, `Aborted`, `Failed` (the guest could not be resumed) |
/// | `Handover` | `Postcopy`, `Complete`, `Aborted` (the destination did not commit), `Failed` |
/// | `Postcopy` | `Complete`, `Failed` |
#[must_use]
pub const fn is_transition_valid(from: Phase, to: Phase) -> bool {
    use Phase::{
        Aborted, Complete, Failed, Handover, Idle, Negotiate, Postcopy, Precopy, Setup, Switchover,
    };
    match from {
        Idle => matches!(to, Idle | Negotiate | Aborted),
        Negotiate => matches!(to, Negotiate | Setup | Aborted),
        Setup => matches!(to, Setup | Precopy | Aborted),
        Precopy => matches!(to, Precopy | Switchover | Aborted),
        Switchover => matches!(to, Switchover | Handover | Aborted | Failed),
        Handover => matches!(to, Handover | Postcopy | Complete | Aborted | Failed),
        Postcopy => matches!(to, Postcopy | Complete | Failed),
        Complete => matches!(to, Complete),
        Aborted => matches!(to, Aborted),
        Failed => matches!(to, Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_an_end_and_no_phase_goes_back() {
        for from in Phase::ALL {
            for to in Phase::ALL {
                if is_transition_valid(from, to) {
                    assert!(to >= from, "{from:?} -> {to:?}");
                    assert!(!from.is_end() || from == to, "{from:?} -> {to:?}");
                }
            }
        }
    }

    #[test]
    fn only_what_was_handed_over_completes() {
        for from in Phase::ALL {
            let completes = is_transition_valid(from, Phase::Complete);
            assert_eq!(
                completes,
                from >= Phase::Handover && from <= Phase::Complete
            );
        }
    }
}
