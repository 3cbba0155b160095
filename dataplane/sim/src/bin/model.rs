//! `dwcp-model`: every order of everything in the handover, with a few faults.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dwcp_sim::Mutation;
use dwcp_sim::model::{Counterexample, Explored, Found, MUTANTS, Variant, explore, hunt};
use serde_json::{Value, json};

/// Model check of the switchover, the handover and post-copy: explores every state that any order of messages,
/// completions, restarts and faults leads to, and says in how many the guest is where it should be.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Faults at most: connections that are lost, processes that are killed, writes and commands that fail.
    #[arg(long, default_value_t = 2, value_name = "N")]
    faults: u32,
    /// Only one way to move the guest.
    #[arg(long, value_name = "WAY")]
    only: Option<Way>,
    /// Plant each known bug and show how it is found.
    #[arg(long)]
    mutants: bool,
    /// Plant this bug, by its name in the table of --mutants, and print the shortest way to it.
    #[arg(long, conflicts_with = "mutants", value_name = "NAME")]
    mutant: Option<String>,
    /// With --mutants: print the shortest way to each.
    #[arg(long, requires = "mutants")]
    trace: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  dwcp-model                              all states with two faults, a few seconds
  dwcp-model --faults 1 --only post-copy  fewer of them
  dwcp-model --mutants                    each planted bug, and what finds it
  dwcp-model --mutant QueryPastMachine    step by step how the guest comes to run twice

The exit code is 1 when an invariant does not hold, or a planted bug is not found.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// All pages go before the guest runs there.
    PreCopy,
    /// Pages follow when it runs there.
    PostCopy,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let fine = if arguments.mutants {
        print_mutants(&MUTANTS, &arguments, arguments.trace)
    } else if let Some(name) = &arguments.mutant {
        let mut all = MUTANTS.into_iter();
        let mutation = all.find(|mutation| format!("{mutation:?}") == *name);
        let mutation = mutation
            .ok_or_else(|| anyhow::anyhow!("no planted bug {name}; --mutants lists them"))?;
        print_mutants(&[mutation], &arguments, true)
    } else {
        print_all(&arguments)
    };
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(explored: &Explored) {
    let Explored {
        states,
        depth,
        seconds,
        ..
    } = explored;
    eprintln!("{seconds:6.0} s: {states} states, depth {depth}");
}

fn print_all(arguments: &Arguments) -> bool {
    let variants = match arguments.only {
        None => Variant::BOTH.to_vec(),
        Some(Way::PreCopy) => vec![Variant::Precopy],
        Some(Way::PostCopy) => vec![Variant::Postcopy],
    };
    let mut fine = true;
    let mut rows = vec![];
    for variant in variants {
        let explored = explore(variant, Mutation::None, arguments.faults, &tell);
        fine &= explored.counterexample.is_none();
        if arguments.json {
            rows.push(as_json(variant, &explored));
        } else {
            print(variant, arguments.faults, &explored);
        }
    }
    if arguments.json {
        let faults = arguments.faults;
        println!(
            "{}",
            json!({"schema": "dwcp.model/1", "faults": faults, "variants": rows})
        );
    }
    fine
}

fn print(variant: Variant, faults: u32, explored: &Explored) {
    println!(
        "{}, {faults} faults at most: {} states, {} transitions, depth {}, {:.1} s",
        variant.name(),
        explored.states,
        explored.transitions,
        explored.depth,
        explored.seconds
    );
    println!("  ends, by where the guest is:");
    for (end, count) in &explored.ends {
        println!("  {count:>9}  {end}");
    }
    match &explored.counterexample {
        None => println!("  all invariants hold, and from each state a good end can be reached"),
        Some(counterexample) => print_way(counterexample),
    }
}

fn print_way(counterexample: &Counterexample) {
    let violation = &counterexample.violation;
    println!("BROKEN {}: {}", violation.invariant, violation.what);
    for (number, (step, state)) in counterexample.steps.iter().enumerate() {
        println!("{number:>4}  {step}\n          {state}");
    }
}

fn as_json(variant: Variant, explored: &Explored) -> Value {
    json!({
        "variant": variant.name(), "states": explored.states, "transitions": explored.transitions,
        "depth": explored.depth, "ends": explored.ends, "seconds": explored.seconds,
        "counterexample": explored.counterexample.as_ref().map(way_as_json),
    })
}

fn way_as_json(counterexample: &Counterexample) -> Value {
    let violation = &counterexample.violation;
    json!({
        "invariant": violation.invariant, "what": violation.what, "steps": counterexample.steps,
    })
}

fn print_mutants(mutants: &[Mutation], arguments: &Arguments, with_ways: bool) -> bool {
    let mut fine = true;
    let mut rows = vec![];
    for &mutation in mutants {
        let found = hunt(mutation, arguments.faults, &tell);
        fine &= found.is_some();
        let name = format!("{mutation:?}");
        if arguments.json {
            rows.push(json!({"mutant": name, "found": found.as_ref().map(found_as_json)}));
            continue;
        }
        let Some(found) = found else {
            println!("{name:<24} NOT FOUND with {} faults", arguments.faults);
            continue;
        };
        let Counterexample { violation, steps } = &found.counterexample;
        println!(
            "{name:<24} {} faults, {:<9} {:>3} steps  {:<17} {}",
            found.faults,
            found.variant.name(),
            steps.len() - 1,
            violation.invariant,
            violation.what
        );
        if with_ways {
            print_way(&found.counterexample);
        }
    }
    if arguments.json {
        println!(
            "{}",
            json!({"schema": "dwcp.model.mutants/1", "mutants": rows})
        );
    }
    fine
}

fn found_as_json(found: &Found) -> Value {
    json!({
        "faults": found.faults, "variant": found.variant.name(),
        "way": way_as_json(&found.counterexample),
    })
}
