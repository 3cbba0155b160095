//! The model check: all states with one fault, and every planted bug that it is for.

use dwcp_sim::Mutation;
use dwcp_sim::model::{Explored, MUTANTS, Variant, explore, hunt};

/// The planted bug that hides best needs two.
const FAULTS_MAX: u32 = 2;

fn quiet(_: &Explored) {}

fn whole(variant: Variant, faults: u32) -> Explored {
    let explored = explore(variant, Mutation::None, faults, &quiet);
    if let Some(found) = &explored.counterexample {
        panic!(
            "{variant:?}: {:?} after {:#?}",
            found.violation, found.steps
        );
    }
    explored
}

#[test]
fn without_a_fault_the_guest_always_runs_at_the_destination() {
    for variant in Variant::BOTH {
        let explored = whole(variant, 0);
        let ends: Vec<_> = explored.ends.into_keys().collect();
        assert_eq!(ends, ["runs at the destination"], "{variant:?}");
    }
}

#[test]
fn with_one_fault_it_runs_on_one_side_unless_its_vmm_was_killed() {
    for variant in Variant::BOTH {
        let explored = whole(variant, 1);
        let ends: Vec<_> = explored.ends.keys().copied().collect();
        assert_eq!(
            ends,
            [
                "its owner's VMM was killed",
                "runs at the destination",
                "runs at the source"
            ],
            "{variant:?}"
        );
        assert!(explored.states > 10_000, "{variant:?}: {explored:?}");
        assert!(explored.transitions > explored.states);
    }
}

/// The numbers are in the documents: they must mean something.
#[test]
fn the_same_states_are_found_every_time() {
    let count = || {
        let explored = whole(Variant::Postcopy, 1);
        (explored.states, explored.transitions, explored.depth)
    };
    assert_eq!(count(), count());
}

/// Bugs that more than one invariant can find first are left out.
const EXPECTED: [(Mutation, &str); 12] = [
    (Mutation::SkipLastRound, "no_lost_write"),
    (Mutation::ForgetSuspect, "no_lost_write"),
    (Mutation::ForgetMissing, "no_lost_write"),
    (Mutation::ForgetWhatIsMissing, "no_lost_write"),
    (Mutation::ResumeAfterHandover, "single_runner"),
    (Mutation::RecoveryResumesPrepared, "single_runner"),
    (Mutation::RefuseWithoutJournal, "single_runner"),
    (Mutation::CommitBeforeJournal, "proof_before_run"),
    (Mutation::SkipProof, "proof_before_run"),
    (Mutation::RecoverEmptyVmm, "proof_before_run"),
    (Mutation::ForgetResume, "abort_restores"),
    (Mutation::ForgetDiscard, "no_copy_stays"),
];

#[test]
fn every_planted_bug_is_found_by_the_invariant_that_it_is_for() {
    for mutation in MUTANTS {
        let Some(found) = hunt(mutation, FAULTS_MAX, &quiet) else {
            panic!("{mutation:?} is not found");
        };
        let violation = &found.counterexample.violation;
        let expected = EXPECTED.iter().find(|(at, _)| *at == mutation);
        if let Some((_, invariant)) = expected {
            assert_eq!(violation.invariant, *invariant, "{mutation:?}");
        }
    }
}

/// A way is read by people: each step, and what it led to.
#[test]
fn the_way_to_a_planted_bug_is_told() {
    let found = hunt(Mutation::RecoverEmptyVmm, FAULTS_MAX, &quiet);
    let Some(found) = found else {
        panic!("not found");
    };
    let steps = &found.counterexample.steps;
    let faults = steps.iter().filter(|(step, _)| step.starts_with("FAULT"));
    assert_eq!(faults.count(), found.faults as usize);
    assert!(steps[0].1.contains("guest Running"), "{:?}", steps[0]);
    let last = steps.last().map(|(_, state)| state.as_str());
    let empty = last.is_some_and(|state| state.contains("journal Committed"));
    assert!(empty, "{last:?}");
}
