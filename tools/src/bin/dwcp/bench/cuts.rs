//! `dwcp bench cuts`: cut the link, or restart a data plane, at a seeded moment of a migration over it, and
//! see that the migration ends well, and what was sent twice for it.

use std::fmt::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use dwcp_api::{MigrationReport, RunResult};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, Plane, RunSpec};
use dwcp_wan::control::Request;
use dwcp_wan::link::{self, Link};
use dwcp_wan::params::Direction;
use serde::Serialize;

use super::machine::Machine;
use super::numbers::{size_mib, some};
use super::stat::median;
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str =
    "Needs root: the link is two network namespaces and dwcp-wan between them. Each point \
is `dwcp migrate --retry-s` with the internet profile. One seed decides what happens, and when; \
--seed N --points 1 repeats one. What was sent twice is what the link carried beyond a migration \
that nothing disturbs.

Examples:
  dwcp bench cuts --points 50
  dwcp bench cuts --kind stream --points 20
  dwcp bench cuts --link 500mbit,50ms --size-mib 256 --json > cuts.json
  dwcp bench cuts --seed 17 --points 1";

/// `dwcp bench cuts`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Points: one migration and one disturbance each.
    #[arg(long, default_value_t = 50, value_parser = some::<u64>)]
    points: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rate, round-trip time, loss each way.
    #[arg(long, value_name = "RATE,RTT[,LOSS]", default_value = "100mbit,50ms", value_parser = Road::parse)]
    link: Road,
    /// RAM of the guest, MiB; nine tenths of it are data.
    #[arg(long, default_value_t = 128, value_parser = size_mib)]
    size_mib: u64,
    /// What happens; by the seed if it is not given.
    #[arg(long, value_enum)]
    kind: Option<Harm>,
    /// Change a key of the internet profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Harm {
    /// Nothing passes either way for a second.
    Cut1S,
    /// Nothing passes for five seconds.
    Cut5S,
    /// Nothing passes for half a minute.
    Cut30S,
    /// The source's data plane is killed and started anew.
    SourceRestart,
    /// The destination's data plane is killed and started anew.
    DestinationRestart,
    /// One data stream ends, at one of the nodes.
    Stream,
}

#[derive(Clone, Debug, Serialize)]
struct Point {
    seed: u64,
    harm: Harm,
    after_ms: f64,
    /// What the link had carried to the destination by then.
    carried_bytes: u64,
    /// What it had carried in the end.
    wire_bytes: u64,
    /// Beyond what a migration takes that nothing disturbs.
    sent_twice_bytes: u64,
    total_ms: f64,
    good: bool,
    note: String,
}

#[derive(Debug, Serialize)]
struct Record {
    schema: &'static str,
    machine: Machine,
    link: String,
    ram_bytes: u64,
    usual_ms: f64,
    usual_bytes: u64,
    points: Vec<Point>,
}

/// Time for a migration to end well, disturbed as it is.
const RETRY_S: u64 = 180;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("internet")?;
    let spec = RunSpec {
        settings: profile::with_changes(&base, args.changes.iter().map(String::as_str))?,
        guest: GuestSpec {
            choice: GuestChoice::Synthetic,
            ram_mib: args.size_mib,
            fill_mib: args.size_mib * 9 / 10,
            hot_mib: 16.min(args.size_mib / 2),
            dirty_pages_per_s: 20,
            checked_pages_per_s: 0,
            // Of bytes that cannot be made fewer by sending them again.
            kind: Kind::Random,
            backing: Backing::Fresh,
        },
    };
    let usual = one(args, &spec, args.seed, None)?;
    if !usual.good {
        return Err(Failure::other(anyhow::anyhow!(
            "undisturbed: {}",
            usual.note
        )));
    }
    eprintln!(
        "undisturbed: {:.0} ms, {:.1} MiB; {} points",
        usual.total_ms,
        mib(usual.wire_bytes),
        args.points
    );
    let mut points = vec![];
    for seed in args.seed..args.seed + args.points {
        let mut point = one(args, &spec, seed, Some(usual.total_ms))?;
        point.sent_twice_bytes = point.wire_bytes.saturating_sub(usual.wire_bytes);
        eprintln!("{}", point.line());
        points.push(point);
    }
    let record = Record {
        schema: "dwcp.bench.cuts/1",
        machine: Machine::here(),
        link: args.link.name.clone(),
        ram_bytes: args.size_mib << 20,
        usual_ms: usual.total_ms,
        usual_bytes: usual.wire_bytes,
        points,
    };
    context.print(&record, || table(&record))?;
    match record.points.iter().filter(|point| !point.good).count() {
        0 => Ok(()),
        bad => Err(Failure::other(anyhow::anyhow!("{bad} points ended badly"))),
    }
}

/// One migration; disturbed within the time that it usually takes, if that is known.
fn one(args: &Args, spec: &RunSpec, seed: u64, usual_ms: Option<f64>) -> Result<Point, Failure> {
    let harms = Harm::value_variants();
    let of_seed = harms[(seed % harms.len() as u64) as usize];
    let harm = args.kind.unwrap_or(of_seed);
    // Points of one harm are spread over the migration, each at a place of its own.
    let share = (seed as f64 * 0.618).fract();
    let link = args.link.up(seed, "bbr")?;
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let mut lab = Lab::start_over(spec, folder.path(), Some((&*link).into()), &mut |_| {})
        .map_err(Failure::other)?;
    let began = Instant::now();
    let migration = begin(args, &lab, folder.path())?;
    let mut point = Point {
        seed,
        harm,
        after_ms: 0.0,
        carried_bytes: 0,
        wire_bytes: 0,
        sent_twice_bytes: 0,
        total_ms: 0.0,
        good: false,
        note: String::new(),
    };
    if let Some(usual_ms) = usual_ms {
        let moment = Duration::from_secs_f64(usual_ms * share / 1000.0);
        std::thread::sleep(moment.saturating_sub(began.elapsed()));
        point.after_ms = began.elapsed().as_secs_f64() * 1000.0;
        point.carried_bytes = carried(&link)?;
        disturb(harm, seed, &mut lab, &link)?;
    }
    let report = end(migration)?;
    point.total_ms = began.elapsed().as_secs_f64() * 1000.0;
    point.wire_bytes = carried(&link)?;
    (point.good, point.note) = match report {
        Err(why) => (false, why),
        Ok(report) if report.result != RunResult::Completed => (false, report.reason),
        Ok(report) => match (lab.guest.verify_at_destination(), lab.guest.running()) {
            (Ok(Ok(())), (false, true)) => (true, replaced(&report)),
            (Ok(Err(why)), _) => (false, why),
            (Err(error), _) => (false, error.to_string()),
            (_, running) => (false, format!("runs at source, destination: {running:?}")),
        },
    };
    Ok(point)
}

fn replaced(report: &MigrationReport) -> String {
    let replaced = |note: &&String| note.contains("was replaced");
    report
        .notes
        .iter()
        .find(replaced)
        .cloned()
        .unwrap_or_default()
}

/// As an operator would.
fn begin(args: &Args, lab: &Lab, folder: &Path) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(Failure::other)?;
    let log = std::fs::File::create(folder.join("migrate.log")).map_err(Failure::other)?;
    let mut command = Command::new(program);
    command
        .arg("--node-socket")
        .arg(lab.a.folder().join("node.sock"))
        .args(["--json", "migrate", "guest", "--profile", "internet"])
        .args(["--to", lab.b.address()])
        .args(["--retry-s", &RETRY_S.to_string()]);
    for change in &args.changes {
        command.args(["--set", change]);
    }
    let child = command.stdout(Stdio::piped()).stderr(log).spawn();
    child.map_err(Failure::other)
}

fn disturb(harm: Harm, seed: u64, lab: &mut Lab, link: &Link) -> Result<(), Failure> {
    let cut = |seconds: u64| {
        let request = Request::Cut {
            ways: vec![Direction::AToB, Direction::BToA],
            for_ns: Some(seconds * 1_000_000_000),
        };
        let asked = link::ask(&link.name, &request);
        asked.map(drop).map_err(Failure::other)
    };
    let node = match harm {
        Harm::Cut1S => return cut(1),
        Harm::Cut5S => return cut(5),
        Harm::Cut30S => return cut(30),
        Harm::SourceRestart => &mut lab.a,
        Harm::DestinationRestart => &mut lab.b,
        Harm::Stream => {
            let node = if seed.is_multiple_of(2) {
                &lab.a
            } else {
                &lab.b
            };
            // Before the streams are there, and after the handover, there is nothing to break.
            let broken = node.break_stream(seed / 2);
            return broken.map(drop).map_err(Failure::other);
        }
    };
    node.kill(Plane::Data);
    node.revive().map_err(Failure::other)
}

/// The report, or what the command said.
fn end(migration: Child) -> Result<Result<MigrationReport, String>, Failure> {
    let output = migration.wait_with_output().map_err(Failure::other)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(serde_json::from_str(&text).map_err(|_| text.into_owned()))
}

fn carried(link: &Link) -> Result<u64, Failure> {
    let status = link::ask(&link.name, &Request::Show).map_err(Failure::other)?;
    Ok(status.ways[0].counters.passed_bytes)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Point {
    /// Of what the destination had when it happened.
    fn sent_twice_share(&self) -> f64 {
        self.sent_twice_bytes as f64 / self.carried_bytes.max(1) as f64
    }

    fn line(&self) -> String {
        format!(
            "seed {}: {:?} after {:.0} ms and {:.1} MiB: {:.0} ms, {:.1} MiB, {:.1} MiB of them twice {}{}",
            self.seed,
            self.harm,
            self.after_ms,
            mib(self.carried_bytes),
            self.total_ms,
            mib(self.wire_bytes),
            mib(self.sent_twice_bytes),
            if self.good { "good " } else { "BAD " },
            self.note
        )
    }
}

fn table(record: &Record) -> String {
    let mut out = format!(
        "{}\n\n{}: undisturbed {:.0} ms, {:.1} MiB\n\n",
        record.machine.line(),
        record.link,
        record.usual_ms,
        mib(record.usual_bytes)
    );
    out.push_str("                        points   good  median s  sent twice MiB, median, most  of carried\n");
    for &harm in Harm::value_variants() {
        let of_it: Vec<_> = record.points.iter().filter(|p| p.harm == harm).collect();
        if of_it.is_empty() {
            continue;
        }
        let twice = of_it.iter().map(|point| mib(point.sent_twice_bytes));
        let _ = writeln!(
            out,
            "{:<24} {:>5} {:>6} {:>9.1} {:>23.2} {:>5.2} {:>11.1}%",
            format!("{harm:?}"),
            of_it.len(),
            of_it.iter().filter(|point| point.good).count(),
            median(of_it.iter().map(|point| point.total_ms / 1000.0)),
            median(twice.clone()),
            twice.fold(0.0, f64::max),
            median(of_it.iter().map(|point| point.sent_twice_share() * 100.0))
        );
    }
    out
}
