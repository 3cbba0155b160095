//! Seeds: many, the same twice, and those that once showed something.

use dwcp_sim::{Mutation, Shape, run_many, run_seed, run_shaped};

/// Enough for every phase to be hit by every kind of fault; the program runs millions.
const SEEDS: u64 = 2_000;

/// Seeds that planted bugs needed the longest hunt for: rare coincidences worth keeping.
const REGRESSIONS: [u64; 8] = [
    9_821, 17_514, 113_245, 192_579, 200_762, 288_043, 309_520, 8_537,
];

#[test]
fn all_invariants_hold() {
    let summary = run_many(0, SEEDS, 2, Mutation::None);
    assert_eq!(summary.failures, []);
    assert_eq!(summary.seeds, SEEDS);
}

#[test]
fn all_invariants_hold_for_seeds_that_once_broke_one() {
    for seed in REGRESSIONS {
        let report = run_seed(seed, Mutation::None, false);
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

/// A simulation that never completes, or never fails, checks nothing.
#[test]
fn every_end_is_reached_and_every_phase_is_hit() {
    let stats = run_many(0, SEEDS, 2, Mutation::None).stats;
    for ending in [
        "source completed",
        "source aborted",
        "source failed",
        "source completed after restart",
        "source aborted after restart",
        "destination completed",
        "destination completed after restart",
        "destination aborted after restart",
    ] {
        assert!(stats.endings.contains_key(ending), "{ending}: {stats:?}");
    }
    for guest in ["runs at the source", "runs at the destination", "in doubt"] {
        assert!(stats.guests.contains_key(guest), "{guest}: {stats:?}");
    }
    assert!(!stats.guests.contains_key("both run"));
    for phase in ["negotiate", "setup", "precopy", "switchover", "handover"] {
        for fault in ["crash", "cut control", "cancel", "stall", "fail journal"] {
            let name = format!("{phase}: {fault}");
            assert!(stats.faults.contains_key(&name), "{name}");
        }
    }
}

#[test]
fn a_seed_means_the_same_run_every_time() {
    for seed in 0..200 {
        let quiet = run_seed(seed, Mutation::None, false);
        let traced = run_seed(seed, Mutation::None, true);
        assert_eq!(quiet.hash, traced.hash, "seed {seed}");
        assert_eq!(quiet.steps, traced.steps, "seed {seed}");
        assert_eq!(quiet.stats, traced.stats, "seed {seed}");
        assert!(!traced.lines.is_empty());
    }
    let hash = |seed| run_seed(seed, Mutation::None, false).hash;
    assert_ne!(hash(1), hash(2));
}

/// A far, busy guest is moved or stays; a shape does not loosen an invariant.
#[test]
fn a_shape_changes_what_happens_and_not_what_must_hold() {
    let run = |delay, share| {
        let shape = Shape {
            one_way_delay_ms: delay,
            rewritten_per_mille_per_s: share,
        };
        let summary = run_shaped(0, 500, 2, shape);
        assert_eq!(summary.seeds, 500);
        assert_eq!(summary.failures, []);
        summary.stats
    };
    let (near, far) = (run(1, 100), run(75, 100));
    assert_ne!(near, far);
    let idle = run(1, 0);
    assert!(idle.guests["runs at the destination"] > 250, "{idle:?}");
}
