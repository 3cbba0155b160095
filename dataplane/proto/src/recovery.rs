//! What a restarted daemon does with a migration that was under way when it died.
//!
//! Pure tables: the journal's last record and what the VMM says decide, nothing else.
//!
//! **Only the newest migration of a VM is recovered.** An older one whose end could not be written
//! has been superseded: to resume its guest would run it beside the newest one's destination, and
//! to discard its VM would end a guest that the newest one took over. Such a migration is only
//! ever closed in the journal, its VM is left alone.

/// The newest record that this node's journal holds of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRecord {
    /// It began.
    Begin,
    /// Source: a handover may have been sent.
    Prepared,
    /// Source: owned there, and its pages here are needed.
    Serving,
    /// Destination: owned here, and pages of it are missing. It was run, or was about to be.
    Fetching,
    /// Destination: owned here. Source: learned that it is owned there.
    Committed,
    /// Destination: promised never to commit; its copy may still be loaded.
    Refused,
}

/// What the VMM says of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Its vCPUs run.
    Running,
    /// They stand, and can be told to run.
    Paused,
    /// It waits for a migration: an empty VMM, whatever it was before.
    Incoming,
    /// The VMM is gone.
    Gone,
}

/// What a restarted source does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRecovery {
    /// The guest was never given away: run it, write `Aborted`.
    Resume,
    /// It runs already: write `Aborted`.
    RunsHere,
    /// Ask the destination, and keep the guest paused until it answers.
    AskDestination,
    /// The destination owns it, and needs pages of it: serve them.
    Serve,
    /// The destination owns it: nothing to do.
    GivenAway,
    /// The VMM died here before the guest was given away: say so.
    Lost,
}

/// What a restarted destination does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationRecovery {
    /// Owned here and paused: run it, write `Resumed`.
    Resume,
    /// Owned here and running: write `Resumed`.
    RunsHere,
    /// Owned here, pages are missing: fetch them, and run it if it stands.
    Fetch,
    /// Not owned here: discard what was loaded, then write `Aborted`.
    Refuse,
    /// Owned here, but the VMM is gone: say so.
    Lost,
}

/// | last record | guest | do |
/// |---|---|---|
/// | `Committed` | any | `GivenAway` |
/// | `Serving` | stands | `Serve` |
/// | `Serving` | gone | `Lost`: what the destination had fetched is all there is |
/// | any other | runs | `RunsHere`: a guest handed over stands still here |
/// | `Prepared` | any other | `AskDestination` |
/// | `Begin` | stands | `Resume` |
/// | `Begin` | gone | `Lost`: so too when an empty VMM waits in its place |
#[must_use]
pub const fn recover_source(last: LastRecord, vm: VmState) -> SourceRecovery {
    match (last, vm) {
        (LastRecord::Committed, _) => SourceRecovery::GivenAway,
        (LastRecord::Serving, VmState::Paused) => SourceRecovery::Serve,
        (LastRecord::Serving, _) => SourceRecovery::Lost,
        (_, VmState::Running) => SourceRecovery::RunsHere,
        (LastRecord::Prepared, _) => SourceRecovery::AskDestination,
        (_, VmState::Paused) => SourceRecovery::Resume,
        (_, VmState::Incoming | VmState::Gone) => SourceRecovery::Lost,
    }
}

/// | last record | guest | do |
/// |---|---|---|
/// | `Fetching` | any: it cannot answer while it waits for a page | `Fetch` |
/// | `Committed` | stands | `Resume` |
/// | `Committed` | runs | `RunsHere` |
/// | `Committed` | gone | `Lost`: so too when an empty VMM waits in its place |
/// | any other | any | `Refuse` |
#[must_use]
pub const fn recover_destination(last: LastRecord, vm: VmState) -> DestinationRecovery {
    match (last, vm) {
        (LastRecord::Fetching, _) => DestinationRecovery::Fetch,
        (LastRecord::Committed, VmState::Running) => DestinationRecovery::RunsHere,
        (LastRecord::Committed, VmState::Incoming | VmState::Gone) => DestinationRecovery::Lost,
        (LastRecord::Committed, VmState::Paused) => DestinationRecovery::Resume,
        (
            LastRecord::Begin | LastRecord::Prepared | LastRecord::Serving | LastRecord::Refused,
            _,
        ) => DestinationRecovery::Refuse,
    }
}
