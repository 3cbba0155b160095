//! What can go wrong, and when.

use dwcp_proto::Phase;

use crate::plan::Plan;
use crate::rng::Rng;

/// One end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The node that has the VM.
    Source,
    /// The node that shall have it.
    Destination,
}

impl Side {
    /// The other end.
    #[must_use]
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// How a journal write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum JournalFault {
    /// An error, and nothing is written, so many times.
    NotWritten {
        /// Writes that fail.
        times: u32,
    },
    /// An error after which nobody knows; the record is there. No write succeeds until a restart.
    UnknownButThere,
    /// An error after which nobody knows; the record is not there.
    UnknownAndLost,
}

/// Damage to the next page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Its header: the stream is lost.
    Header,
    /// Its table.
    Table,
    /// The data of one page.
    Page,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The control connection breaks; what is in flight is lost.
    CutControl,
    /// A data stream breaks, and cannot be replaced.
    CutStream,
    /// A data stream breaks, and is replaced.
    BreakStream,
    /// The device state's connection breaks.
    CutDevice,
    /// Everything between the nodes breaks, and new connections fail for so long.
    CutAll {
        /// Nanoseconds.
        for_ns: u64,
    },
    /// Nothing arrives at this side for so long; the other direction works.
    Stall {
        /// Who hears nothing.
        to: Side,
        /// Nanoseconds.
        for_ns: u64,
    },
    /// A data plane dies; it is started again after so long.
    Crash {
        /// Which.
        side: Side,
        /// Nanoseconds.
        for_ns: u64,
        /// Bytes that it had sent still arrive.
        flushed: bool,
    },
    /// A node loses power: data plane and VMM die at once, the journal stays.
    Reboot {
        /// Which.
        side: Side,
        /// Nanoseconds.
        for_ns: u64,
        /// An empty VMM waits when it is back.
        replaced: bool,
    },
    /// The destination node is gone for good.
    DestinationLost,
    /// The operator stops it here.
    Cancel(Side),
    /// The VMM dies; perhaps somebody starts an empty one in its place.
    KillVmm {
        /// Whose.
        side: Side,
        /// A new one waits soon after.
        replaced: bool,
    },
    /// The next VMM command fails.
    FailVmm(Side),
    /// The next journal write fails.
    FailJournal(Side, JournalFault),
    /// The next page frame arrives damaged.
    Damage(Damage),
    /// The next questions about ownership, or the answers, are lost.
    LoseQueries {
        /// How many.
        count: u32,
    },
    /// A node's clock jumps ahead.
    ClockJump {
        /// Whose.
        side: Side,
        /// Nanoseconds.
        by_ns: u64,
    },
}

/// What a fault waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trigger {
    /// So many events have been handed to machines.
    Events(u64),
    /// The source has come to this phase.
    Phase(Phase),
    /// Everything has come to an end.
    End,
}

/// A fault and the moment for it: its trigger, and a little later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedFault {
    pub(crate) fault: Fault,
    pub(crate) trigger: Trigger,
    pub(crate) delay_ns: u64,
}

impl Fault {
    /// Names of the kinds, for statistics.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CutControl => "cut control",
            Self::CutStream => "cut stream",
            Self::BreakStream => "break stream",
            Self::CutDevice => "cut device",
            Self::CutAll { .. } => "cut all",
            Self::Stall { .. } => "stall",
            Self::Crash { .. } => "crash",
            Self::Reboot { .. } => "reboot",
            Self::DestinationLost => "destination lost",
            Self::Cancel(_) => "cancel",
            Self::KillVmm { .. } => "kill vmm",
            Self::FailVmm(_) => "fail vmm",
            Self::FailJournal(..) => "fail journal",
            Self::Damage(_) => "damage",
            Self::LoseQueries { .. } => "lose queries",
            Self::ClockJump { .. } => "clock jump",
        }
    }

    /// None at all in every eighth run, otherwise few, sometimes many.
    pub(crate) fn draw_all(rng: &mut Rng, plan: &Plan) -> Vec<PlannedFault> {
        if rng.chance(12) {
            return vec![];
        }
        let count = 1 + rng.skewed(0, 5);
        (0..count).map(|_| Self::plan(rng, plan)).collect()
    }

    /// Machines see 30 to 60 events in a whole migration; half of the faults hit one of them. The
    /// other half looks for the short phases, that would be hit too seldom.
    fn plan(rng: &mut Rng, plan: &Plan) -> PlannedFault {
        let trigger = match rng.index(16) {
            0..=7 => Trigger::Events(rng.range(0, 45)),
            8..=9 => Trigger::Phase(Phase::Switchover),
            10..=13 => Trigger::Phase(Phase::Handover),
            14 => Trigger::Phase(Phase::Aborted),
            _ => Trigger::End,
        };
        PlannedFault {
            fault: Self::draw(rng, plan),
            trigger,
            delay_ns: rng.skewed(0, plan.delay_ns.1 + plan.action_ns_max),
        }
    }

    fn draw(rng: &mut Rng, plan: &Plan) -> Self {
        let side = if rng.chance(50) {
            Side::Source
        } else {
            Side::Destination
        };
        let for_ns = rng.skewed(0, plan.silence_ns * 3);
        match rng.index(24) {
            0 | 1 => Self::CutControl,
            2 => Self::CutStream,
            3 => Self::CutDevice,
            4 => Self::CutAll { for_ns },
            5 | 6 => Self::Stall { to: side, for_ns },
            7..=10 => Self::Crash {
                side,
                for_ns,
                flushed: rng.chance(50),
            },
            11 if rng.chance(30) => Self::DestinationLost,
            11 | 12 => Self::Cancel(side),
            13 => Self::KillVmm {
                side,
                replaced: rng.chance(50),
            },
            14 => Self::FailVmm(side),
            15 | 16 => Self::FailJournal(
                side,
                match rng.index(3) {
                    0 => JournalFault::NotWritten {
                        times: rng.range(1, 4) as u32,
                    },
                    1 => JournalFault::UnknownButThere,
                    _ => JournalFault::UnknownAndLost,
                },
            ),
            17 => Self::Damage(match rng.index(3) {
                0 => Damage::Header,
                1 => Damage::Table,
                _ => Damage::Page,
            }),
            18 => Self::Reboot {
                side,
                for_ns,
                replaced: rng.chance(70),
            },
            20..=22 => Self::BreakStream,
            19 => Self::LoseQueries {
                count: rng.range(1, 6) as u32,
            },
            _ => Self::ClockJump {
                side,
                by_ns: rng.skewed(0, plan.silence_ns * 2),
            },
        }
    }
}
