//! `dwcp bench soak`: one guest back and forth between two nodes, thousands of times, and what the daemons hold
//! meanwhile: memory, descriptors, threads, journal.

use std::fmt::Write;
use std::time::Instant;

use dwcp_api::RunResult;
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, RunSpec, Usage};
use serde::Serialize;

use super::run::Record;
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A small synthetic guest under load is moved to the other node and back, again and again; its empty \
place is started anew each time. It looks at all of its memory at the end of every hundred moves. What the four \
daemons hold must not grow: the last quarter of the samples is held against the second. A data plane remembers how \
migrations ended, and forgets the oldest: a run of less than some thousand shows how that fills.

Examples:
  dwcp bench soak
  dwcp bench soak --migrations 1000 --json > soak.json";

/// Memory may grow by this much between the second quarter and the last: an allocator's ways, with a journal that is
/// read and compacted now and then.
const SLACK_BYTES: f64 = 3.0 * 1048576.0;

/// A journal is compacted when it is larger than half of this, or than twice what the last time left.
const JOURNAL_BYTES: f64 = 1048576.0;

/// So many migrations a journal has before it is compacted, with the outcomes that the last time left; and what
/// one of them takes meanwhile.
const REMEMBERED: f64 = 2000.0;
const OUTCOME_BYTES: f64 = 2048.0;

/// `dwcp bench soak`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Migrations, one after the other.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    migrations: u32,
    /// Change a key of the datacenter profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// A look at the daemons, while nothing moves.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    system: &'static str,
    case: &'static str,
    migrations: u32,
    seconds: f64,
    /// Of both nodes, data plane and control plane.
    usage: [Usage; 4],
    journal_bytes: u64,
    pause_ms_p50: f64,
    pause_ms_max: f64,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let changes = args.changes.iter().map(String::as_str);
    let settings = profile::with_changes(&profile::load("datacenter")?, changes)?;
    let spec = RunSpec {
        guest: guest(),
        settings,
    };
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let mut lab = Lab::start(&spec, folder.path(), &mut |_| {}).map_err(Failure::other)?;
    let (began, mut samples, mut pauses) = (Instant::now(), vec![], vec![]);
    let every = (args.migrations / 100).max(1);
    for done in 1..=args.migrations {
        pauses.push(move_once(&mut lab, &spec, done % every == 0)?);
        if done % every == 0 {
            let sample = sample(&lab, done, began, &mut pauses);
            if done % (every * 10) == 0 {
                eprintln!("{}", line(&sample));
            }
            samples.push(sample);
        }
        lab.turn_round(&spec, folder.path())
            .map_err(Failure::other)?;
    }
    let record = Record::here("dwcp.bench.soak/1", samples);
    context.print(&record, || table(&record))?;
    let grown = grown(&record.runs);
    if grown.is_empty() {
        return Ok(());
    }
    let what = grown.join(", ");
    Err(Failure::other(anyhow::anyhow!("grows: {what}")))
}

fn guest() -> GuestSpec {
    GuestSpec {
        choice: GuestChoice::Synthetic,
        ram_mib: 4,
        fill_mib: 3,
        hot_mib: 1,
        dirty_pages_per_s: 500,
        checked_pages_per_s: 0,
        kind: Kind::Text,
        backing: Backing::Fresh,
    }
}

/// Moves the guest; returns the pause in milliseconds.
fn move_once(lab: &mut Lab, spec: &RunSpec, looks: bool) -> Result<f64, Failure> {
    let report = if looks {
        let moved = lab.run(&spec.settings, &mut |_| {}, &mut |_| {});
        let moved = moved.map_err(Failure::other)?;
        if let Some(found) = moved.guest_says {
            return Err(Failure::other(anyhow::anyhow!("the guest found {found}")));
        }
        moved.report
    } else {
        lab.run_unseen(&spec.settings).map_err(Failure::other)?
    };
    if report.result == RunResult::Completed && report.verified {
        return Ok(report.downtime_ms);
    }
    let reason = report.reason;
    Err(Failure::other(anyhow::anyhow!("not moved: {reason}")))
}

fn sample(lab: &Lab, migrations: u32, began: Instant, pauses: &mut Vec<f64>) -> Sample {
    let ([data, control], [data_there, control_there]) = (lab.a.usage(), lab.b.usage());
    let mut nodes = [[data, control], [data_there, control_there]];
    // They change their parts with each move: node-a first.
    let a_is_source = lab.a.folder().ends_with("node-a");
    if !a_is_source {
        nodes.reverse();
    }
    let pauses = std::mem::take(pauses);
    Sample {
        system: "dwcp",
        case: "back and forth",
        migrations,
        seconds: began.elapsed().as_secs_f64(),
        usage: [nodes[0][0], nodes[0][1], nodes[1][0], nodes[1][1]],
        journal_bytes: lab.a.journal_bytes().max(lab.b.journal_bytes()),
        pause_ms_max: pauses.iter().copied().fold(0.0, f64::max),
        pause_ms_p50: median(pauses.into_iter()),
    }
}

/// What is held, and by how much it may be more.
type Figure = (&'static str, fn(&Usage) -> u64, f64);

const DAEMONS: [&str; 4] = [
    "data plane of node-a",
    "control plane of node-a",
    "data plane of node-b",
    "control plane of node-b",
];

/// The median of a figure over the second quarter of the samples, and over the last.
fn quarters(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> (f64, f64) {
    let quarter = (samples.len() / 4).max(1);
    let over = |from: usize| {
        let some = samples.iter().skip(from).take(quarter);
        median(some.map(|sample| of(sample) as f64))
    };
    (over(quarter), over(samples.len() - quarter))
}

/// What the daemons hold more of in the end.
fn grown(samples: &[Sample]) -> Vec<String> {
    let mut grown = vec![];
    let first = samples
        .get(samples.len() / 4)
        .map_or(0.0, |first| f64::from(first.migrations));
    let filling = (REMEMBERED - first).max(0.0);
    for (index, daemon) in DAEMONS.iter().enumerate() {
        let figures: [Figure; 3] = [
            (
                "memory",
                |usage| usage.bytes,
                SLACK_BYTES + filling * OUTCOME_BYTES,
            ),
            ("descriptors", |usage| usage.descriptors, 2.0),
            ("threads", |usage| usage.threads, 2.0),
        ];
        for (what, of, slack) in figures {
            let (early, late) = quarters(samples, |sample| of(&sample.usage[index]));
            if late > early + slack {
                grown.push(format!("{what} of the {daemon} from {early} to {late}"));
            }
        }
    }
    let (early, late) = quarters(samples, |sample| sample.journal_bytes);
    if late > JOURNAL_BYTES {
        grown.push(format!("the journal from {early} to {late} bytes"));
    }
    grown
}

fn line(sample: &Sample) -> String {
    let mib = |usage: &Usage| usage.bytes as f64 / 1048576.0;
    let [data, control, data_there, control_there] = &sample.usage;
    format!(
        "{} migrations, {:.0} s: data planes {:.1} and {:.1} MiB, control planes {:.1} and {:.1} MiB, {} descriptors, \
         {} threads, journal {} KiB, pause {:.1} ms, at most {:.1} ms",
        sample.migrations,
        sample.seconds,
        mib(data),
        mib(data_there),
        mib(control),
        mib(control_there),
        sample
            .usage
            .iter()
            .map(|usage| usage.descriptors)
            .sum::<u64>(),
        sample.usage.iter().map(|usage| usage.threads).sum::<u64>(),
        sample.journal_bytes >> 10,
        sample.pause_ms_p50,
        sample.pause_ms_max
    )
}

fn table(record: &Record<Sample>) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    let samples = &record.runs;
    let steps = (samples.len() / 10).max(1);
    for sample in samples.iter().skip(steps - 1).step_by(steps) {
        let _ = writeln!(out, "{}", line(sample));
    }
    let grown = grown(samples);
    let _ = match grown.as_slice() {
        [] => writeln!(out, "\nnothing grows"),
        some => writeln!(out, "\ngrows: {}", some.join(", ")),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(bytes: impl Fn(u64) -> u64) -> Vec<Sample> {
        let of = |at: u64| Sample {
            system: "dwcp",
            case: "",
            migrations: at as u32,
            seconds: 0.0,
            usage: [Usage {
                bytes: bytes(at),
                descriptors: 9,
                threads: 4,
            }; 4],
            journal_bytes: 4096,
            pause_ms_p50: 1.0,
            pause_ms_max: 2.0,
        };
        (1..=100).map(of).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_begins() {
        assert!(grown(&samples(|at| (at.min(20) + 10) << 20)).is_empty());
        let leaks = grown(&samples(|at| (10 << 20) + (at << 18)));
        assert_eq!(leaks.len(), 4, "{leaks:?}");
        assert!(leaks[0].starts_with("memory of the data plane of node-a"));
    }
}
