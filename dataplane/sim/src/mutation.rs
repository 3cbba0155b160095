//! Planted bugs. They sit at the seam between machine and engine, by dropping or changing actions
//! and events, so that the machines stay clean; each must be found by an invariant.

/// A planted bug.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// None: the program as it is.
    #[default]
    None,
    /// The round of the paused guest sends nothing.
    SkipLastRound,
    /// The source runs the guest again after it sent the handover.
    ResumeAfterHandover,
    /// A page that arrived torn or damaged is taken for good.
    ForgetSuspect,
    /// The commit is answered before it is durable.
    CommitBeforeJournal,
    /// The question who owns the VM is answered the wrong way round.
    AnswerOwnerWrongly,
    /// Device state counts as loaded before it is.
    HandoverWithoutDevice,
    /// RAM counts as proven without having been read again.
    SkipProof,
    /// A restarted source resumes although a handover may have been sent.
    RecoveryResumesPrepared,
    /// The source VMM counts as standing while it may still resume by itself.
    DeviceSentEarly,
    /// An owner's query is answered past the machine, which goes on.
    QueryPastMachine,
    /// Dirty bits are cleared after the page was read.
    ClearAfterRead,
    /// Frames are sent without regard to the window.
    IgnoreWindow,
    /// Unchanged pages are not counted.
    MiscountUnchanged,
    /// The source says that the guest runs again and does not run it.
    ForgetResume,
    /// A commit whose write failed counts as refused, though it may be there.
    RefuseWithoutJournal,
    /// A restarted destination runs the empty VMM that took the place of its guest's.
    RecoverEmptyVmm,
    /// A restarted source recovers an older attempt than the newest.
    RecoverSuperseded,
    /// A destination that is told to discard its VM runs it.
    DiscardRuns,
    /// A destination that is told to discard its VM does nothing.
    ForgetDiscard,
    /// A page that is dirty is not named as missing.
    ForgetMissing,
    /// A restarted source does not serve the pages that the destination needs.
    ForgetServing,
    /// A restarted destination takes what is missing for zero pages.
    ForgetWhatIsMissing,
}

impl Mutation {
    /// All planted bugs.
    pub const ALL: [Self; 22] = [
        Self::SkipLastRound,
        Self::ResumeAfterHandover,
        Self::ForgetSuspect,
        Self::CommitBeforeJournal,
        Self::AnswerOwnerWrongly,
        Self::HandoverWithoutDevice,
        Self::SkipProof,
        Self::RecoveryResumesPrepared,
        Self::DeviceSentEarly,
        Self::QueryPastMachine,
        Self::ClearAfterRead,
        Self::IgnoreWindow,
        Self::MiscountUnchanged,
        Self::ForgetResume,
        Self::RefuseWithoutJournal,
        Self::RecoverEmptyVmm,
        Self::RecoverSuperseded,
        Self::DiscardRuns,
        Self::ForgetDiscard,
        Self::ForgetMissing,
        Self::ForgetServing,
        Self::ForgetWhatIsMissing,
    ];
}
