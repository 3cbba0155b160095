//! `dwcp-sim`: many seeds quickly, or one seed slowly.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dwcp_sim::{Mutation, Report, Summary, hunt, run_many, run_seed};
use serde_json::json;

/// Seeds in which a planted bug must show.
const HUNT_SEEDS: u64 = 100_000;

/// Deterministic simulation of migrations under faults.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Seeds to run.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// First of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "from", "jobs", "mutants"])]
    seed: Option<u64>,
    /// With --seed: print everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant each known bug and show how it is found.
    #[arg(long)]
    mutants: bool,
    /// Plant this bug, by its name in the table of --mutants.
    #[arg(long, conflicts_with = "mutants")]
    mutant: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mutation = mutation(arguments.mutant.as_deref())?;
    let fine = if arguments.mutants {
        print_mutants(arguments.json)
    } else if let Some(seed) = arguments.seed {
        let report = run_seed(seed, mutation, arguments.trace);
        print_seed(seed, &report, arguments.json);
        report.violation.is_none()
    } else {
        let began = Instant::now();
        let summary = run_many(arguments.from, arguments.seeds, arguments.jobs, mutation);
        print_summary(&summary, began.elapsed().as_secs_f64(), arguments.json);
        summary.failures.is_empty()
    };
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn mutation(name: Option<&str>) -> anyhow::Result<Mutation> {
    let Some(name) = name else {
        return Ok(Mutation::None);
    };
    let mut all = Mutation::ALL.into_iter();
    all.find(|mutation| format!("{mutation:?}") == name)
        .ok_or_else(|| anyhow::anyhow!("no planted bug {name}; --mutants lists them"))
}

fn print_mutants(as_json: bool) -> bool {
    let mut fine = true;
    let mut rows = vec![];
    for mutation in Mutation::ALL {
        let caught = hunt(mutation, HUNT_SEEDS);
        fine &= caught.is_some();
        let name = format!("{mutation:?}");
        if as_json {
            rows.push(json!({"mutant": name, "caught": caught}));
        } else if let Some(caught) = caught {
            let (seed, invariant) = (caught.seed, caught.invariant);
            println!("{name:<24} seed {seed:<6} {invariant:<17} {}", caught.what);
        } else {
            println!("{name:<24} NOT FOUND in {HUNT_SEEDS} seeds");
        }
    }
    if as_json {
        println!(
            "{}",
            json!({"schema": "dwcp.sim.mutants/1", "mutants": rows})
        );
    }
    fine
}

fn print_seed(seed: u64, report: &Report, as_json: bool) {
    if as_json {
        let violation = report.violation.as_ref();
        let violation = violation.map(|found| json!([found.invariant, found.what]));
        println!(
            "{}",
            json!({
                "schema": "dwcp.sim.seed/1", "seed": seed, "hash": format!("{:016x}", report.hash),
                "steps": report.steps, "violation": violation, "trace": report.lines,
            })
        );
        return;
    }
    for line in &report.lines {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} steps, hash {:016x}",
        report.steps, report.hash
    );
    match &report.violation {
        None => println!("all invariants hold"),
        Some(found) => println!("BROKEN {}: {}", found.invariant, found.what),
    }
}

fn print_summary(summary: &Summary, seconds: f64, as_json: bool) {
    let per_second = summary.seeds as f64 / seconds.max(1e-9);
    if as_json {
        println!(
            "{}",
            json!({
                "schema": "dwcp.sim/1", "seconds": seconds, "seeds_per_s": per_second,
                "summary": summary,
            })
        );
        return;
    }
    let stats = &summary.stats;
    println!(
        "{} seeds, {} steps, {seconds:.1} s: {per_second:.0} seeds/s",
        summary.seeds, summary.steps
    );
    println!(
        "{} attempts, {} rounds running, {} paused, {} pages visited, {} lost by lossy trackers",
        stats.attempts,
        stats.rounds_running,
        stats.rounds_paused,
        stats.pages,
        stats.lost_by_tracker
    );
    for (title, counts) in [
        ("the guest at the end", &stats.guests),
        ("endings", &stats.endings),
        ("faults, by the source's phase", &stats.faults),
    ] {
        println!("{title}:");
        for (name, count) in counts {
            println!("  {count:>9}  {name}");
        }
    }
    for (seed, invariant, what) in &summary.failures {
        println!("BROKEN {invariant}, seed {seed}: {what}");
        println!("  replay: dwcp-sim --seed {seed} --trace");
    }
}
