//! Every planted bug must be found, and by an invariant that names it rightly.

use dwcp_sim::{Mutation, hunt};

const SEEDS_MAX: u64 = 50_000;

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Mutation> = Mutation::ALL
        .into_iter()
        .filter(|&mutation| hunt(mutation, SEEDS_MAX).is_none())
        .collect();
    assert_eq!(missed, []);
}

#[test]
fn each_invariant_finds_the_bug_that_it_is_for() {
    for (mutation, invariant) in [
        (Mutation::SkipLastRound, "no_lost_write"),
        (Mutation::ClearAfterRead, "no_lost_write"),
        (Mutation::ForgetSuspect, "no_lost_write"),
        (Mutation::ResumeAfterHandover, "single_runner"),
        (Mutation::RecoveryResumesPrepared, "single_runner"),
        (Mutation::CommitBeforeJournal, "proof_before_run"),
        (Mutation::SkipProof, "proof_before_run"),
        (Mutation::ForgetResume, "abort_restores"),
        (Mutation::AnswerOwnerWrongly, "never_neither"),
        (Mutation::IgnoreWindow, "bounded"),
        (Mutation::MiscountUnchanged, "conservation"),
    ] {
        let caught = hunt(mutation, SEEDS_MAX).map(|caught| caught.invariant);
        assert_eq!(caught.as_deref(), Some(invariant), "{mutation:?}");
    }
}
