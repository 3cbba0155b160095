//! What can happen next.

use std::fmt;

use crate::faults::{JournalFault, Side};

/// A step from one state to the next. Every step is one moment at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The next control message is heard, or that the connection is lost.
    Hears(Side),
    /// An engine reports what it has done.
    SourceTold(SourceDone),
    DestinationTold(DestinationDone),
    /// The VMM carries out the next command.
    VmmObeys(Side),
    /// The record under way is durable.
    Writes(Side),
    /// All device state is with the source's relay.
    DeviceGiven,
    /// The source VMM has ended its migration and stands.
    DeviceStands,
    /// The source VMM's stream is broken: it runs the guest by itself.
    RunsByItself,
    /// All device state is with the destination's relay.
    DeviceArrives,
    /// The destination VMM has loaded it.
    DeviceLoads,
    /// The last page of the round, and all marks.
    RoundArrives,
    /// So much time has passed that what is tried again is due.
    Ticks(Side),
    /// A restarted source asks who owns the VM.
    Asks,
    QuestionArrives,
    AnswerArrives {
        committed: bool,
    },
    /// In post-copy: the source connects again.
    Returns,
    /// In post-copy: the missing page comes, or it is noticed that none is missing.
    Fetches,
    /// In post-copy, all pages being there: the source has been silent for very long, and nobody serves.
    WaitsInVain,
    /// A data plane is started again.
    Restarts(Side),
    /// One whose journal failed for good ends.
    Exits(Death),
    /// Something goes wrong.
    Fault(Fault),
}

/// How a data plane dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) side: Side,
    /// Messages under way that still arrive.
    pub(super) sent: usize,
    /// Commands that its VMM has taken and still carries out.
    pub(super) commands: usize,
    /// The record under way is durable all the same.
    pub(super) durable: bool,
}

/// What goes wrong; each counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The control connection breaks: so many messages of each direction still arrive.
    Cut {
        to_source: usize,
        to_destination: usize,
    },
    /// The device state's connection breaks.
    CutDevice,
    /// A data plane is killed.
    Kill(Death),
    /// A VMM is killed; perhaps an empty one is started in its place.
    KillVmm { side: Side, replaced: bool },
    /// A command of the VMM fails.
    FailVmm(Side),
    /// The destination's VMM fails to load device state, and exits.
    FailLoad,
    /// The write under way fails.
    FailJournal(Side, JournalFault),
    /// The peer was not heard for longer than a peer may be silent, though it lives.
    Silence(Side),
    /// The same, for very long, while pages are compared.
    LongSilence,
    /// An operator stops the migration here.
    Cancel(Side),
    /// A page of the round arrives damaged.
    Damage,
    /// The tracker has missed a write, and the sample finds it.
    Missed,
    /// The destination cannot do without pages.
    NoPostcopy,
    /// A question, or its answer, is lost.
    LoseAnswer { answered: Option<bool> },
    /// A question comes twice.
    RepeatQuestion,
}

/// What the source's engine has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SourceDone {
    RoundSent,
    SampleRead,
    Paused,
    DeviceSent,
    Resumed,
    VmmFailed,
    RootRead,
}

/// What the destination's engine has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum DestinationDone {
    PostcopyPrepared,
    MissingTakenAhead,
    MissingTaken,
    Proven,
    ProofFailed,
    DeviceLoaded,
    Resumed,
    VmmFailed,
}

impl Step {
    /// Whether it is a fault: those are counted, and nothing waits for them.
    pub(super) const fn is_fault(self) -> bool {
        matches!(self, Self::Fault(_))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hears(side) => write!(to, "{side:?} hears"),
            Self::SourceTold(done) => write!(to, "Source told: {done:?}"),
            Self::DestinationTold(done) => write!(to, "Destination told: {done:?}"),
            Self::VmmObeys(side) => write!(to, "{side:?} VMM obeys"),
            Self::Writes(side) => write!(to, "{side:?} record durable"),
            Self::Ticks(side) => write!(to, "{side:?} tries again"),
            Self::Restarts(side) => write!(to, "{side:?} restarts"),
            Self::Fault(fault) => write!(to, "FAULT {fault:?}"),
            step => write!(to, "{step:?}"),
        }
    }
}
