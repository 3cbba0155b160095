//! `dwcp migrate`: move a VM.

use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{ErrorCode, MigrationId, MigrationReport, RunResult, StreamPath, TransferSettings};
use dwcp_controlplane::profile;
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;
use crate::{probe, show, watch};

const HELP: &str = "Waits for the end unless --no-wait; ending this command does not end the \
migration (dwcp cancel does). A dry run looks at the guest for two seconds and foretells rounds, time and pause, at the \
rate of the last migration to the node or that of transfer.bandwidth_limit_mbit. With --json the end is the report `dwcp.migration/1`, that of a dry \
run too: its result is `dry-run` when both nodes agree, or `aborted`.

Examples:
  dwcp migrate web --to b --watch
  dwcp migrate web --to b --profile auto
  dwcp migrate web --to 192.0.2.2:7440 --profile internet --set switchover.downtime_limit=2s
  dwcp migrate web --to b --profile internet --retry-s 3600
  dwcp migrate web --to b --path 10.0.1.1=10.0.1.2:7440 --path 10.0.2.1=10.0.2.2:7440
  dwcp migrate web --to b --dry-run
  dwcp migrate web --to b --json | jq .downtime_ms";

/// The profile that is chosen by the path.
const AUTO: &str = "auto";

/// `dwcp migrate`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name.
    vm: String,
    /// Peer's name, or host:port of its data plane.
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Profile: datacenter, hybrid, internet, a file, or auto: that of the path to the node, with a codec
    /// and a congestion control that follow the path [default: the node's default profile].
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
    /// Change a key of the profile: KEY=VALUE (dwcp config explain); may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// A path of the data streams, in turn: from a local address, to an address of the other node's data plane, or
    /// one of both (FROM=); may be given again. What breaks goes on by another path; the control connection leads
    /// to --to.
    #[arg(long = "path", value_name = "[FROM=]TO")]
    paths: Vec<StreamPath>,
    /// Show rounds, rate, time left and what limits it.
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    watch: bool,
    /// Check both nodes and negotiate; move nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait for the end (the default).
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Print the id and return.
    #[arg(long, conflicts_with = "retry_s")]
    no_wait: bool,
    /// Begin again when the connection is lost or a data plane is restarted, for so many seconds; with
    /// pages.reuse what had come counts.
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    retry_s: Option<u64>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let settings = TransferSettings {
        paths: args.paths.clone(),
        ..settings(args.profile.as_deref(), &args.changes, &args.to, context)?
    };
    if args.no_wait && !args.dry_run {
        let id = start(args, &settings, context)?;
        let started = json!({"id": id.to_string(), "vm": args.vm});
        return context.print(&started, || format!("{}: migration {id} started", args.vm));
    }
    let report = until_it_stays(args, &settings, context)?;
    context.print(&report, || {
        if args.dry_run {
            finding(&report, &args.to)
        } else {
            show::report(&report)
        }
    })?;
    match report.result {
        RunResult::Completed | RunResult::DryRun => Ok(()),
        _ => Err(Failure::ended(&report)),
    }
}

fn start(
    args: &Args,
    settings: &TransferSettings,
    context: &mut Context,
) -> Result<MigrationId, Failure> {
    let request = Request::Migrate {
        vm: args.vm.clone(),
        to: args.to.clone(),
        settings: settings.clone(),
        dry_run: args.dry_run,
    };
    match context.node.ask(&request)? {
        Reply::Started { id } => Ok(id),
        other => Err(Failure::unexpected(&other)),
    }
}

/// The report of the last attempt: another follows one whose connection was lost, or whose data plane was
/// restarted, while there is time.
fn until_it_stays(
    args: &Args,
    settings: &TransferSettings,
    context: &mut Context,
) -> Result<MigrationReport, Failure> {
    let end = args
        .retry_s
        .map(|s| Instant::now() + Duration::from_secs(s));
    let (began, mut sent_before) = (Instant::now(), 0);
    for attempt in 1.. {
        let started = start(args, settings, context);
        // Before it ever was, a VM that is not there is a mistake.
        let was_there = started.is_ok() || attempt > 1;
        let ended = started.and_then(|id| watch::until_end(id, args.watch, context));
        let why = match &ended {
            Ok(report) => can_be_tried_again(report, attempt).then(|| report.reason.clone()),
            Err(failure) => may_come_back(failure).filter(|_| was_there),
        };
        let wait = Duration::from_secs(1 << (attempt - 1).min(3));
        let is_time = end.is_some_and(|end| Instant::now() + wait < end);
        let Some(why) = why.filter(|_| is_time) else {
            let took = began.elapsed();
            return ended.map(|report| with_attempts(report, attempt, took, sent_before));
        };
        sent_before += ended.map_or(0, |report| report.wire_bytes);
        eprintln!(
            "{}: attempt {attempt} ended: {why}; the next in {} s",
            args.vm,
            wait.as_secs()
        );
        std::thread::sleep(wait);
    }
    unreachable!("an attempt is the last one")
}

/// The report of an attempt that was not the first says so: its time and bytes are not all.
fn with_attempts(
    mut report: MigrationReport,
    attempt: u32,
    took: Duration,
    sent_before: u64,
) -> MigrationReport {
    if attempt > 1 {
        report.notes.push(format!(
            "this is attempt {attempt}; all of them took {}, and those before sent {}",
            show::duration(took.as_secs_f64() * 1000.0),
            show::bytes(sent_before)
        ));
    }
    report
}

/// A destination that was never reached is a mistake at first; later it is not back yet.
fn can_be_tried_again(report: &MigrationReport, attempt: u32) -> bool {
    report.connection_lost && !report.refused || attempt > 1 && report.refused
}

/// Why there was no report, if this node may be on its way back: its data plane was restarted, and has not
/// found its VMs again yet.
fn may_come_back(failure: &Failure) -> Option<String> {
    match failure {
        Failure::Api(error)
            if matches!(
                error.code,
                ErrorCode::PlaneDown | ErrorCode::NotFound | ErrorCode::Busy
            ) =>
        {
            Some(error.message.clone())
        }
        _ => None,
    }
}

/// What a dry run found.
fn finding(report: &MigrationReport, to: &str) -> String {
    match report.result {
        RunResult::DryRun => {
            let can = format!("{} can be moved to {to}", report.vm);
            let ahead = report.prospect.as_ref().map(show::prospect);
            let notes = report.notes.iter().map(|note| format!("note: {note}"));
            let lines = [Some(can), ahead].into_iter().flatten().chain(notes);
            lines.collect::<Vec<_>>().join("\n")
        }
        _ => format!("{} cannot be moved to {to}: {}", report.vm, report.reason),
    }
}

/// How to move to node `to`: a profile, or the node's own, with changes.
pub(crate) fn settings(
    profile: Option<&str>,
    changes: &[String],
    to: &str,
    context: &mut Context,
) -> Result<TransferSettings, Failure> {
    let base = match profile {
        Some(AUTO) => by_path(to, context)?,
        Some(profile) => profile::load(profile)?,
        None => match context.node.ask(&Request::Node)? {
            Reply::Node(node) => node.default_settings,
            other => return Err(Failure::unexpected(&other)),
        },
    };
    let changes = changes.iter().map(String::as_str);
    Ok(profile::with_changes(&base, changes)?)
}

/// The built-in profile of the path's mode, and all that follows a path.
fn by_path(to: &str, context: &mut Context) -> Result<TransferSettings, Failure> {
    let probe::Probed { mode, why, .. } = probe::probe(to, context)?;
    eprintln!("the path to {to} is {mode}: {why}");
    let base = profile::load(&mode)?;
    let changes = ["pages.codec=auto", "transfer.follow_path=true"];
    Ok(profile::with_changes(&base, changes)?)
}
