//! One run: a migration, its moment, its fault, and where the guest is then.

use std::time::{Duration, Instant};

use dwcp_api::MigrationStatus;
use dwcp_api::node::{Reply, Request};
use dwcp_tools::lab::{Lab, LabNode, MemoryCage, Moment, Proxy};

use super::harm::{Ground, Scene};
use super::plan::{Fault, Phase, When, moment};
use super::{BY_QUEUE_PAIRS, MOMENT_TIME, Outcome, Plan, Run, SETTLE_TIME};
use crate::bench::draws::Draws;
use crate::bench::whereabouts::{Where, find};
use crate::failure::Failure;

/// How often a node is asked whether the moment is there.
const ASK_TIME: Duration = Duration::from_millis(1);

pub(super) fn one(plan: &Plan<'_>, seed: u64) -> Run {
    let cell = plan.cells[(seed % plan.cells.len() as u64) as usize];
    let mut draws = Draws::of(seed);
    let (when, name) = moment(cell, plan.sizes, &mut draws);
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
        None => strike(plan, &mut run, when, &mut draws),
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

fn strike(plan: &Plan<'_>, run: &mut Run, when: When, draws: &mut Draws) -> Result<(), Failure> {
    let cell = run.cell;
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let side = usize::from(cell.fault == Fault::FullDiskDestination);
    let records = &plan.usual[cell.mode as usize].records[side];
    // Declared before the nodes: what they stand on goes after them.
    let ground = Ground::prepare(cell, folder.path(), records, draws)?;
    let mut lab = plan.lab(folder.path())?;
    if cell.fault == Fault::ClockJump {
        lab.let_clocks_jump().map_err(Failure::other)?;
    }
    let cage = match lab.b.dataplane_pid() {
        Some(pid) if cell.fault == Fault::OutOfMemoryDestination => {
            Some(MemoryCage::around(pid).map_err(Failure::other)?)
        }
        _ => None,
    };
    let proxy = Proxy::start(lab.b.address(), when.on_link()).map_err(Failure::other)?;
    plan.begin(&mut lab, proxy.address(), cell.mode)
        .map_err(Failure::other)?;
    let has_come = when.wait(&mut lab, &proxy);
    let wants_queue_pairs = plan.args.rdma.is_some() && cell.phase != Phase::Setup;
    let by = wants_queue_pairs.then(|| newest(&mut lab.a).map(|at| at.progress.transport));
    if has_come {
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
        _ if has_come && did_flip => Outcome::Good,
        _ => Outcome::NotStruck,
    };
    if run.outcome == Outcome::Good
        && let Some(by) = by.map(Option::unwrap_or_default)
        && by != BY_QUEUE_PAIRS
    {
        run.outcome = Outcome::Broken;
        run.note = format!("pages went by {by:?}, not by queue pairs ");
    }
    if run.outcome.is_bad() {
        run.note.push_str(&found.memory.unwrap_or_default());
        run.note.push_str(&found.journals);
        keep(&folder.keep(), run);
    }
    Ok(())
}

impl When {
    /// Where the link is to stop.
    const fn on_link(self) -> Option<Moment> {
        match self {
            Self::Link(moment) => Some(moment),
            Self::Sent(_) | Self::Read(_) => None,
        }
    }

    /// Waits until the moment is there; false where it does not come.
    fn wait(self, lab: &mut Lab, proxy: &Proxy) -> bool {
        let is_sent = |at: &MigrationStatus, bytes| {
            at.progress.wire_bytes >= bytes && at.progress.transport == BY_QUEUE_PAIRS
        };
        let is_read = |at: &MigrationStatus, pages| at.progress.read_pages >= pages;
        match self {
            Self::Link(_) => proxy.wait_stopped(MOMENT_TIME, || {
                newest(&mut lab.a).is_some_and(|at| at.report.is_some())
            }),
            Self::Sent(bytes) => told(&mut lab.a, |at| is_sent(at, bytes)),
            Self::Read(pages) => told(&mut lab.b, |at| is_read(at, pages)),
        }
    }
}

/// Waits until a node says so of a migration that is under way.
fn told(node: &mut LabNode, says: impl Fn(&MigrationStatus) -> bool) -> bool {
    let until = Instant::now() + MOMENT_TIME;
    while Instant::now() < until {
        match newest(node) {
            Some(at) if at.report.is_some() => return false,
            Some(at) if says(&at) => return true,
            _ => std::thread::sleep(ASK_TIME),
        }
    }
    false
}

/// The migration as a node tells it: there is one.
fn newest(node: &mut LabNode) -> Option<MigrationStatus> {
    match node.ask(&Request::Status { which: None }) {
        Ok(Reply::Migrations(list)) => list.into_iter().next_back(),
        _ => None,
    }
}

/// The logs and journals of a run that went wrong stay.
fn keep(folder: &std::path::Path, run: &mut Run) {
    let text = format!(" (logs and journals in {})", folder.display());
    run.note.push_str(&text);
}
