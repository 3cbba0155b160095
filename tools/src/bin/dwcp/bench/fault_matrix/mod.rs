//! `dwcp bench fault-matrix`: every fault in every phase of both kinds of migration, at moments that seeds decide.
//!
//! | file | what |
//! |---|---|
//! | `plan.rs` | what a seed decides |
//! | `strike.rs` | one run |
//! | `harm.rs` | what is done |
//! | `table.rs` | what came of it |
//!
//! A run has two nodes, a guest and a link of its own. The link stops at the run's moment, the fault strikes, and
//! what was stopped goes on: where a run strikes does not depend on how fast the machine is. Queue pairs do not go by that link:
//! where pages do, the moments that are counted in pages are seen in what the nodes tell.

mod harm;
mod plan;
mod strike;
mod table;

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dwcp_api::node::Request;
use dwcp_api::{MigrationId, TrackerChoice, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{Ends, GuestChoice, GuestSpec, Lab, LabError, RunSpec};
use nix::sys::signal::SigSet;
use serde::Serialize;

use super::numbers::some;
use super::run::Record;
use super::whereabouts::{Where, find};
use crate::context::Context;
use crate::failure::Failure;
use crate::show;
use crate::watched::ENDING;
use harm::RecordBytes;
use plan::{Cell, Fault, Mode, Phase, Sizes, cells};
use strike::one;

const HELP: &str = "A run is good when exactly one copy of the guest runs in the end, at either side, and finds all \
of its memory whole. Killing the source's VMM is left out: its guest is lost by definition. A guest whose VMM is \
killed at the destination after the commit ends with it, which the journals must say.

One seed decides fault, phase, kind of migration and moment; --seed N --runs 1 with the same filters repeats one. \
Full disks and lack of memory need root. Ctrl-C ends it after the runs that are under way, with their table.

Examples:
  dwcp bench fault-matrix --runs 2000 --json > fault-matrix.json
  dwcp bench fault-matrix --fault cut-link --phase handover --runs 50
  dwcp bench fault-matrix --mode post-copy --phase postcopy --runs 100 --jobs 2
  dwcp bench fault-matrix --rdma 192.0.2.7 --fault kill-source-data-plane,kill-destination-data-plane --runs 36";

/// `dwcp bench fault-matrix`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Runs: one migration and one fault each, cell after cell.
    #[arg(long, default_value_t = 153, value_parser = some::<u64>)]
    runs: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only these faults.
    #[arg(long, value_enum, value_delimiter = ',')]
    fault: Vec<Fault>,
    /// Only these phases.
    #[arg(long, value_enum, value_delimiter = ',')]
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
    /// Pages go by queue pairs, of this machine's RDMA device that has this address; the link carries the rest.
    #[arg(long, value_name = "ADDRESS")]
    rdma: Option<IpAddr>,
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
    /// By kind of migration.
    usual: [Usual; 2],
}

/// What a migration leaves that nothing disturbs.
#[derive(Debug, Default)]
struct Usual {
    /// Of source and destination.
    records: [RecordBytes; 2],
    /// Pages that the destination's adapter has read for the guest.
    read_pages: u64,
}

/// The transport in a report whose streams were queue pairs.
const BY_QUEUE_PAIRS: &str = "rdma";

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
    let signals: SigSet = ENDING.into_iter().collect();
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

/// A round takes half a second, and a guest dirties a good part of its hot pages meanwhile.
fn settings(args: &Args) -> Result<TransferSettings, Failure> {
    let mbit = args.size_mib * 12;
    let changes = [
        "timeouts.peer_silence=3s".to_owned(),
        "timeouts.connect=2s".to_owned(),
        format!("transfer.bandwidth_limit_mbit={mbit}"),
    ];
    // Pages that are encoded are placed by nobody's adapter; and keys for reading take their time, where guests are emulated.
    let by_queue_pairs = [
        "transfer.rdma=auto".to_owned(),
        "pages.codec=raw".to_owned(),
        format!("transfer.bandwidth_limit_mbit={}", mbit / 4),
    ];
    let by_queue_pairs = by_queue_pairs.iter().filter(|_| args.rdma.is_some());
    let changes = changes.iter().chain(by_queue_pairs).map(String::as_str);
    profile::with_changes(&profile::load("datacenter")?, changes).map_err(Failure::from)
}

fn guest(args: &Args) -> GuestSpec {
    let hot_mib = args.size_mib / 8;
    GuestSpec {
        choice: GuestChoice::Synthetic,
        ram_mib: args.size_mib,
        // What has holes is not registered: its pages would go through rings.
        fill_mib: match args.rdma {
            None => args.size_mib * 3 / 4,
            Some(_) => args.size_mib,
        },
        hot_mib,
        dirty_pages_per_s: hot_mib * 256,
        checked_pages_per_s: 1000,
        kind: Kind::Random,
        backing: Backing::Fresh,
    }
}

fn plan(args: &Args, cells: Vec<Cell>) -> Result<Plan<'_>, Failure> {
    let guest = guest(args);
    let spec = RunSpec {
        guest,
        settings: settings(args)?,
    };
    let sizes = Sizes {
        pages_bytes: guest.fill_mib << 20,
        missing_bytes: guest.hot_mib << 18,
        read_pages: None,
    };
    let mut plan = Plan {
        args,
        cells,
        spec,
        sizes,
        usual: Default::default(),
    };
    for mode in [Mode::PreCopy, Mode::PostCopy] {
        plan.usual[mode as usize] = plan.undisturbed(mode)?;
    }
    if args.rdma.is_some() {
        let usual = plan.usual[Mode::PostCopy as usize].read_pages;
        eprintln!("{usual} pages are READ for a guest that nothing disturbs");
        plan.sizes.read_pages = Some(usual);
    }
    Ok(plan)
}

impl Plan<'_> {
    fn lab(&self, folder: &Path) -> Result<Lab, Failure> {
        let address = self.args.rdma.map(|address| address.to_string());
        let ends = address.as_deref().map(Ends::at);
        Lab::start_over(&self.spec, folder, ends, &mut |_| {}).map_err(Failure::other)
    }

    /// Begins a migration; one of post-copy is told so at once.
    fn begin(&self, lab: &mut Lab, to: String, mode: Mode) -> Result<MigrationId, LabError> {
        let mut settings = self.spec.settings.clone();
        let is_postcopy = mode == Mode::PostCopy;
        if is_postcopy && self.args.rdma.is_some() {
            // Which does not say what was written: all pages follow the guest, and it waits for many of them.
            settings.tracker = TrackerChoice::Fingerprint;
        }
        let id = lab.migrate_by(to, &settings)?;
        if is_postcopy {
            lab.a.ask(&Request::Tune {
                which: id.to_string(),
                bandwidth_limit_mbit: None,
                post_copy: true,
            })?;
        }
        Ok(id)
    }

    /// Moves a guest, and does nothing to it.
    fn undisturbed(&self, mode: Mode) -> Result<Usual, Failure> {
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let mut lab = self.lab(folder.path())?;
        let to = lab.b.address().to_owned();
        let id = self.begin(&mut lab, to, mode).map_err(Failure::other)?;
        let found = find(&mut lab, false, SETTLE_TIME)?;
        let failed = |text: String| Err(Failure::other(anyhow::anyhow!("undisturbed: {text}")));
        if found.at != Where::Destination || !found.is_good() {
            return failed(format!("{found:?}"));
        }
        let Some(report) = lab.status(id).map_err(Failure::other)?.report else {
            return failed("no report".to_owned());
        };
        if self.args.rdma.is_some() && report.transport != BY_QUEUE_PAIRS {
            let (by, notes) = (report.transport, report.notes.join("; "));
            return failed(format!("pages went by {by}, not by queue pairs: {notes}"));
        }
        Ok(Usual {
            records: [RecordBytes::read(&lab.a)?, RecordBytes::read(&lab.b)?],
            read_pages: report.postcopy.map_or(0, |postcopy| postcopy.read_pages),
        })
    }
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
