//! Runs: one seed, many seeds, and the hunt for planted bugs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use crate::invariants::Violation;
use crate::mutation::Mutation;
use crate::shape::Shape;
use crate::stats::Stats;
use crate::world::World;

/// What one seed came to.
#[derive(Debug)]
pub struct Report {
    /// Hash over everything that happened.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// Counts.
    pub stats: Stats,
    /// The broken invariant, if one broke.
    pub violation: Option<Violation>,
    /// What happened, when it was asked for.
    pub lines: Vec<String>,
}

/// Runs one seed. A panic of a machine is a broken invariant like any other.
#[must_use]
pub fn run_seed(seed: u64, mutation: Mutation, keep_lines: bool) -> Report {
    run_world(World::new(seed, mutation, None, keep_lines))
}

fn run_world(mut world: World) -> Report {
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Some(Violation {
                invariant: "no_panic",
                what: text.unwrap_or_else(|| "a machine panicked".to_owned()),
            })
        }
    };
    Report {
        hash: world.trace().hash(),
        steps: world.trace().steps(),
        stats: world.stats().clone(),
        lines: world.trace().lines().to_vec(),
        violation,
    }
}

/// What many seeds came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Steps taken.
    pub steps: u64,
    /// Counts over all.
    pub stats: Stats,
    /// Broken invariants: seed, invariant, what was found. The first few.
    pub failures: Vec<(u64, String, String)>,
}

/// Failures kept in a summary.
const FAILURES_MAX: usize = 20;

impl Summary {
    fn take(&mut self, seed: u64, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.stats.add(&report.stats);
        if let Some(violation) = &report.violation {
            let failure = (seed, violation.invariant.to_owned(), violation.what.clone());
            self.failures.push(failure);
        }
    }

    fn join(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.stats.add(&other.stats);
        self.failures.extend(other.failures);
        self.failures.sort();
        self.failures.truncate(FAILURES_MAX);
    }
}

/// Runs `count` seeds from `first` on `jobs` threads. Stops early after many failures.
#[must_use]
pub fn run_many(first: u64, count: u64, jobs: u64, mutation: Mutation) -> Summary {
    run_all(first, count, jobs, |seed| run_seed(seed, mutation, false))
}

/// As [`run_many`], without a planted bug, every run of that shape.
#[must_use]
pub fn run_shaped(first: u64, count: u64, jobs: u64, shape: Shape) -> Summary {
    run_all(first, count, jobs, |seed| {
        run_world(World::new(seed, Mutation::None, Some(shape), false))
    })
}

fn run_all(first: u64, count: u64, jobs: u64, run: impl Fn(u64) -> Report + Sync) -> Summary {
    let (jobs, run) = (jobs.max(1), &run);
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let work = |job: u64| {
            move || {
                let mut part = Summary::default();
                for seed in (first + job..first + count).step_by(jobs as usize) {
                    part.take(seed, &run(seed));
                    if part.failures.len() >= FAILURES_MAX {
                        break;
                    }
                }
                part
            }
        };
        let threads: Vec<_> = (0..jobs).map(|job| scope.spawn(work(job))).collect();
        for thread in threads {
            if let Ok(part) = thread.join() {
                summary.join(part);
            }
        }
    });
    summary
}

/// How a planted bug was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caught {
    /// The first seed that shows it.
    pub seed: u64,
    /// The invariant that broke.
    pub invariant: String,
    /// What was found.
    pub what: String,
}

/// Looks for a planted bug in the first `seeds_max` seeds.
#[must_use]
pub fn hunt(mutation: Mutation, seeds_max: u64) -> Option<Caught> {
    (0..seeds_max).find_map(|seed| {
        let violation = run_seed(seed, mutation, false).violation?;
        Some(Caught {
            seed,
            invariant: violation.invariant.to_owned(),
            what: violation.what,
        })
    })
}
