//! `dwcp bench fault-matrix`: every fault in every phase of both kinds of migration, at moments that seeds decide.
//!
//! | file | what |
//! |---|---|
//! | `plan.rs` | what a seed decides |
//! | `harm.rs` | what is done |
//! | `table.rs` | what came of it |
//!
//! A run has two nodes, a guest and a link of its own. The link stops at the run's moment, the fault strikes, and
//! what was stopped goes on: where a run strikes does not depend on how fast the machine is.

mod harm;
mod plan;
mod table;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dwcp_api::TransferSettings;
use dwcp_api::node::Request;
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, LabError, MemoryCage, Proxy, RunSpec};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use super::draws::Draws;
use super::run::Record;
use super::whereabouts::{Where, find};
use crate::context::Context;
use crate::failure::Failure;
use crate::show;
use harm::{Ground, RecordBytes, Scene};
use plan::{Cell, Fault, Mode, Phase, Sizes, cells, moment};

const HELP: &str = "A run is good when exactly one copy of the guest runs in the end, at either side, and finds all \
of its memory whole. Killing the source's VMM is left out: its guest is lost by definition. A guest whose VMM is \
killed at the destination after the commit ends with it, which the journals must say.

One seed decides fault, phase, kind of migration and moment; --seed N --runs 1 with the same filters repeats one. \
Full disks and lack of memory need root. Ctrl-C ends it after the runs that are under way, with their table.

Examples:
  dwcp bench fault-matrix --runs 2000 --json > fault-matrix.json
  dwcp bench fault-matrix --fault cut-link --phase handover --runs 50
  dwcp bench fault-matrix --mode post-copy --phase postcopy --runs 100 --jobs 2";

/// `dwcp bench fault-matrix`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Runs: one migration and one fault each, cell after cell.
    #[arg(long, default_value_t = 153)]
    runs: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only this fault; may be given again.
    #[arg(long, value_enum)]
    fault: Vec<Fault>,
    /// Only this phase; may be given again.
    #[arg(long, value_enum)]
    phase: Vec<Phase>,
    /// Only this kind of migration.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Runs at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// RAM of the guest, MiB.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(8..=4096))]
    size_mib: u64,
    /// How long a daemon that is stopped stays so, seconds.
    #[arg(long, default_value_t = 10)]
    stop_s: u64,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Good,
    /// It runs nowhere.
    Lost,
    /// It runs on both sides.
    Doubled,
    /// It runs on one side, with pages that are not its own.
    Damaged,
    /// The migration was over before its moment.
    NotStruck,
    /// The machine cannot do that to it; the note says why.
    Skipped,
    /// The run could not be made; the note says why.
    Broken,
}

impl Outcome {
    /// Whether the fault has struck, and the guest was looked for.
    const fn is_count(self) -> bool {
        matches!(
            self,
            Self::Good | Self::Lost | Self::Doubled | Self::Damaged
        )
    }

    const fn is_bad(self) -> bool {
        !matches!(self, Self::Good | Self::NotStruck | Self::Skipped)
    }
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    seed: u64,
    #[serde(flatten)]
    cell: Cell,
    moment: String,
    outcome: Outcome,
    found: Option<Where>,
    total_ms: u64,
    note: String,
}

/// What all runs have in common.
struct Plan<'a> {
    args: &'a Args,
    cells: Vec<Cell>,
    spec: RunSpec,
    sizes: Sizes,
    /// Of source and destination, by kind of migration.
    records: [[RecordBytes; 2]; 2],
}

/// The moment of a run comes within this time, or not at all.
const MOMENT_TIME: Duration = Duration::from_secs(20);

/// After the fault is over, the guest must run somewhere within this time.
const SETTLE_TIME: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let cells = cells(&args.fault, &args.phase, &args.mode);
    if cells.is_empty() {
        let text = "no such cell: pre-copy has no phase postcopy";
        return Err(Failure::Usage(text.to_owned()));
    }
    let is_ended = end_on_signal()?;
    let plan = plan(args, cells)?;
    let runs = all(&plan, &is_ended);
    let record = Record::here("dwcp.bench.fault-matrix/1", runs);
    context.print(&record, || table::table(&record))?;
    match record
        .runs
        .iter()
        .filter(|run| run.outcome.is_bad())
        .count()
    {
        0 => Ok(()),
        bad => Err(Failure::other(anyhow::anyhow!("{bad} runs ended badly"))),
    }
}

/// A signal that would end the program ends it after the runs that are under way: they have disks and daemons.
fn end_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block().map_err(Failure::other)?;
    let is_ended = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_ended);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            eprintln!("ends with the runs that are under way");
            ends.store(true, Ordering::Release);
        }
    });
    Ok(is_ended)
}

fn plan(args: &Args, cells: Vec<Cell>) -> Result<Plan<'_>, Failure> {
    let fill_mib = args.size_mib * 3 / 4;
    let hot_mib = args.size_mib / 8;
    // A round takes half a second, and a guest dirties a good part of its hot pages meanwhile.
    let mbit = args.size_mib * 12;
    let settings = profile::with_changes(
        &profile::load("datacenter")?,
        [
            "timeouts.peer_silence=3s",
            "timeouts.connect=2s",
            &format!("transfer.bandwidth_limit_mbit={mbit}"),
        ],
    )?;
    let guest = GuestSpec {
        choice: GuestChoice::Synthetic,
        ram_mib: args.size_mib,
        fill_mib,
        hot_mib,
        dirty_pages_per_s: hot_mib * 256,
        checked_pages_per_s: 1000,
        kind: Kind::Random,
        backing: Backing::Fresh,
    };
    let mut plan = Plan {
        args,
        cells,
        spec: RunSpec { guest, settings },
        sizes: Sizes {
            pages_bytes: fill_mib << 20,
            missing_bytes: hot_mib << 18,
        },
        records: Default::default(),
    };
    for mode in [Mode::PreCopy, Mode::PostCopy] {
        plan.records[mode as usize] = undisturbed(&plan.spec, mode)?;
    }
    Ok(plan)
}

/// What the nodes write into their journals when nothing happens.
fn undisturbed(spec: &RunSpec, mode: Mode) -> Result<[RecordBytes; 2], Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let lab = Lab::start(spec, folder.path(), &mut |_| {});
    let mut lab = lab.map_err(Failure::other)?;
    let to = lab.b.address().to_owned();
    begin(&mut lab, to, &spec.settings, mode).map_err(Failure::other)?;
    let found = find(&mut lab, false, SETTLE_TIME)?;
    if found.at != Where::Destination || !found.is_good() {
        let text = format!("undisturbed: {found:?}");
        return Err(Failure::other(anyhow::anyhow!(text)));
    }
    Ok([RecordBytes::read(&lab.a)?, RecordBytes::read(&lab.b)?])
}

/// Begins a migration; one of post-copy is told so at once.
fn begin(
    lab: &mut Lab,
    to: String,
    settings: &TransferSettings,
    mode: Mode,
) -> Result<(), LabError> {
    let id = lab.migrate_by(to, settings)?;
    if mode == Mode::PostCopy {
        lab.a.ask(&Request::Tune {
            which: id.to_string(),
            bandwidth_limit_mbit: None,
            post_copy: true,
        })?;
    }
    Ok(())
}

/// All runs, some at once; in the order of their seeds.
fn all(plan: &Plan<'_>, is_ended: &AtomicBool) -> Vec<Run> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let runs = Mutex::new(vec![]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed) as u64;
            if at >= plan.args.runs || is_ended.load(Ordering::Acquire) {
                return;
            }
            let run = one(plan, plan.args.seed + at);
            let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
            runs.push(run);
            let done = runs.len();
            let left_ms = began.elapsed().as_secs_f64() * 1000.0 / done as f64
                * (plan.args.runs as f64 - done as f64);
            let (all, left) = (plan.args.runs, show::duration(left_ms));
            eprintln!("[{done}/{all}, {left} left] {}", line(&runs[done - 1]));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..plan.args.jobs {
            scope.spawn(work);
        }
    });
    let mut runs = runs.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_by_key(|run| run.seed);
    runs
}

fn one(plan: &Plan<'_>, seed: u64) -> Run {
    let cell = plan.cells[(seed % plan.cells.len() as u64) as usize];
    let mut draws = Draws::of(seed);
    let (stop_at, name) = moment(cell, plan.sizes, &mut draws);
    let began = Instant::now();
    let mut run = Run {
        seed,
        cell,
        moment: name,
        outcome: Outcome::Skipped,
        found: None,
        total_ms: 0,
        note: String::new(),
    };
    let result = match why_not(cell.fault) {
        Some(why) => {
            run.note = why;
            Ok(())
        }
        None => strike(plan, &mut run, stop_at, &mut draws),
    };
    if let Err(failure) = result {
        run.outcome = Outcome::Broken;
        run.note = failure.text();
    }
    run.total_ms = began.elapsed().as_millis() as u64;
    run
}

/// What the machine lacks for a fault.
fn why_not(fault: Fault) -> Option<String> {
    let needs_root = matches!(
        fault,
        Fault::FullDiskSource | Fault::FullDiskDestination | Fault::OutOfMemoryDestination
    );
    let has_cages = fault != Fault::OutOfMemoryDestination || MemoryCage::is_possible();
    match (needs_root && !nix::unistd::geteuid().is_root(), has_cages) {
        (true, _) => Some("needs root".to_owned()),
        (_, false) => Some("no memory cgroups of version 1".to_owned()),
        _ => None,
    }
}

fn strike(
    plan: &Plan<'_>,
    run: &mut Run,
    stop_at: dwcp_tools::lab::Moment,
    draws: &mut Draws,
) -> Result<(), Failure> {
    let (cell, settings) = (run.cell, &plan.spec.settings);
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let side = usize::from(cell.fault == Fault::FullDiskDestination);
    let records = &plan.records[cell.mode as usize][side];
    // Declared before the nodes: what they stand on goes after them.
    let ground = Ground::prepare(cell, folder.path(), records, draws)?;
    let lab = Lab::start(&plan.spec, folder.path(), &mut |_| {});
    let mut lab = lab.map_err(Failure::other)?;
    if cell.fault == Fault::ClockJump {
        lab.let_clocks_jump().map_err(Failure::other)?;
    }
    let cage = match lab.b.dataplane_pid() {
        Some(pid) if cell.fault == Fault::OutOfMemoryDestination => {
            Some(MemoryCage::around(pid).map_err(Failure::other)?)
        }
        _ => None,
    };
    let proxy = Proxy::start(lab.b.address(), Some(stop_at)).map_err(Failure::other)?;
    begin(&mut lab, proxy.address(), settings, cell.mode).map_err(Failure::other)?;
    let has_ended = |lab: &mut Lab| {
        let list = lab.a.ask(&Request::Status { which: None });
        matches!(list, Ok(dwcp_api::node::Reply::Migrations(list))
            if list.iter().all(|status| status.report.is_some()))
    };
    let stopped = proxy.wait_stopped(MOMENT_TIME, || has_ended(&mut lab));
    if stopped {
        let scene = Scene {
            lab: &mut lab,
            proxy: &proxy,
            ground: &ground,
            cage: cage.as_ref(),
            stop_time: Duration::from_secs(plan.args.stop_s),
        };
        scene.harm(cell.fault, draws)?;
    }
    let vmm_killed = cell.fault == Fault::KillDestinationVmm;
    let found = find(&mut lab, vmm_killed, SETTLE_TIME)?;
    let did_flip = cell.fault != Fault::Corrupt || proxy.has_flipped();
    run.found = Some(found.at);
    run.outcome = match found.at {
        Where::Neither => Outcome::Lost,
        Where::Both => Outcome::Doubled,
        _ if !found.is_good() => Outcome::Damaged,
        _ if stopped && did_flip => Outcome::Good,
        _ => Outcome::NotStruck,
    };
    if run.outcome.is_bad() {
        run.note = format!("{}{}", found.memory.unwrap_or_default(), found.journals);
        keep(&folder.keep(), run);
    }
    Ok(())
}

/// The logs and journals of a run that went wrong stay.
fn keep(folder: &std::path::Path, run: &mut Run) {
    let text = format!(" (logs and journals in {})", folder.display());
    run.note.push_str(&text);
}

fn line(run: &Run) -> String {
    format!(
        "seed {}: {:?} {}, {:?} of {:?}: {:?}{} in {} ms {}",
        run.seed,
        run.cell.fault,
        run.moment,
        run.cell.phase,
        run.cell.mode,
        run.outcome,
        run.found.map_or_else(String::new, |at| format!(", {at:?}")),
        run.total_ms,
        run.note
    )
}
