//! Every planted bug must be found, and by an invariant that names it rightly.

use dwcp_sim::{Mutation, hunt};

const SEEDS_MAX: u64 = 100_000;

/// Bugs that more than one invariant can find first are left open.
const EXPECTED: [(Mutation, &str); 11] = [
    (Mutation::SkipLastRound, "no_lost_write"),
    (Mutation::ClearAfterRead, "no_lost_write"),
    (Mutation::ForgetSuspect, "no_lost_write"),
    (Mutation::ResumeAfterHandover, "single_runner"),
    (Mutation::RecoveryResumesPrepared, "single_runner"),
    (Mutation::CommitBeforeJournal, "proof_before_run"),
    (Mutation::SkipProof, "proof_before_run"),
    (Mutation::RecoverEmptyVmm, "proof_before_run"),
    (Mutation::ForgetResume, "abort_restores"),
    (Mutation::IgnoreWindow, "bounded"),
    (Mutation::MiscountUnchanged, "conservation"),
];

#[test]
fn every_planted_bug_is_found_by_the_invariant_that_it_is_for() {
    // Some hunts are long: two at a time.
    let (some, others) = Mutation::ALL.split_at(Mutation::ALL.len() / 2);
    std::thread::scope(|scope| {
        for part in [some, others] {
            scope.spawn(|| part.iter().copied().for_each(must_be_found));
        }
    });
}

fn must_be_found(mutation: Mutation) {
    let Some(caught) = hunt(mutation, SEEDS_MAX) else {
        panic!("{mutation:?} is not found in {SEEDS_MAX} seeds");
    };
    if let Some((_, invariant)) = EXPECTED.iter().find(|(at, _)| *at == mutation) {
        assert_eq!(
            caught.invariant, *invariant,
            "{mutation:?}: {}",
            caught.what
        );
    }
}
