//! Model check: every order of everything in the switchover, the handover and post-copy, with a few faults.
//!
//! ```text
//!   begin ──► World { source, destination, wire, questions } ──► steps ──► take ──► World …
//!               │ drives the real dwcp_proto::Source and dwcp_proto::Destination, and the recovery tables
//!               ├─ search: each state once, breadth first; what must hold is looked at in each
//!               └─ graph: from each state a good end can be reached without more faults
//! ```
//! The random simulation draws one order of events, with pages, rounds and clocks; this takes all of them, of
//! what decides who owns the guest. Left out, therefore: pages (there is one), what happens before the report of
//! the last round that runs, data streams that are replaced, a second migration.
//!
//! # What makes fewer states of it
//!
//! - **Time** is how long ago something was: not at all, a second, or longer than a peer may be silent. The
//!   first two come by themselves, the third is a fault while the peer lives.
//! - **Words** decide nothing and are taken out.
//! - **Actions** are carried out as soon as they may be, up to the next record. Nobody sees whether a process has
//!   taken an event but by what it sends, tells its VMM or writes. What was sent may arrive at any later
//!   moment; when a process dies, any end of what it sent, and of what it told its VMM, may be lost; and its
//!   record under way may be there or not. So a death between two actions is one of the deaths that are
//!   taken.
//! - **Completions** are a set: they come in any order.

mod begin;
mod destination;
mod destination_vmm;
mod end;
mod graph;
mod next;
mod recovery;
mod search;
mod show;
mod source;
mod step;
mod wire;
mod world;

pub use begin::Variant;
pub use search::{Counterexample, Explored, Progress};

use crate::mutation::Mutation;

/// Planted bugs that this can find. The others are of how pages are sent and counted, and of a second migration.
pub const MUTANTS: [Mutation; 18] = [
    Mutation::SkipLastRound,
    Mutation::ResumeAfterHandover,
    Mutation::ForgetSuspect,
    Mutation::CommitBeforeJournal,
    Mutation::AnswerOwnerWrongly,
    Mutation::HandoverWithoutDevice,
    Mutation::SkipProof,
    Mutation::RecoveryResumesPrepared,
    Mutation::DeviceSentEarly,
    Mutation::QueryPastMachine,
    Mutation::ForgetResume,
    Mutation::RefuseWithoutJournal,
    Mutation::RecoverEmptyVmm,
    Mutation::DiscardRuns,
    Mutation::ForgetDiscard,
    Mutation::ForgetMissing,
    Mutation::ForgetServing,
    Mutation::ForgetWhatIsMissing,
];

/// Explores every state with so many faults at most, up to the first broken invariant.
#[must_use]
pub fn explore(
    variant: Variant,
    mutation: Mutation,
    faults: u32,
    progress: Progress<'_>,
) -> Explored {
    search::explore(&begin::begin(variant, mutation, faults), progress)
}

/// How a planted bug was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// With so many faults; not with fewer.
    pub faults: u32,
    /// Where.
    pub variant: Variant,
    /// The shortest way to it.
    pub counterexample: Counterexample,
}

/// Looks for a planted bug, first without faults, then with one, up to so many.
#[must_use]
pub fn hunt(mutation: Mutation, faults_max: u32, progress: Progress<'_>) -> Option<Found> {
    let both = |faults| Variant::BOTH.map(|variant| (faults, variant));
    (0..=faults_max)
        .flat_map(both)
        .find_map(|(faults, variant)| {
            let explored = explore(variant, mutation, faults, progress);
            Some(Found {
                faults,
                variant,
                counterexample: explored.counterexample?,
            })
        })
}
