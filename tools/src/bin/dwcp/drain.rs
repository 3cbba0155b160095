//! `dwcp drain`: move every running VM of this node to others.

use std::time::Duration;

use dwcp_api::node::{Reply, Request};
use dwcp_api::{MigrationId, MigrationReport, RunResult, TransferSettings};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::{migrate, show};

const HELP: &str = "Run it on the node that is to be empty. Each of the other nodes must have an empty place of the \
same name waiting for each VM that it is to take. VMs are shared out in turn; one that a node does not take is \
offered to the next. They are all asked for at once, and leave a few at a time (transfer.at_once). Ending this \
command ends no migration.

The end is 0 when nothing that runs is left here, and 7 when something is, or may be: a VM that is being moved \
already, or whose VMM does not answer.

Examples:
  dwcp drain --to b
  dwcp drain --to b --to c --dry-run
  dwcp drain --to b --profile internet --set switchover.if_not_converged=post-copy
  dwcp drain --to b --json | jq '.vms[] | select(.result != \"completed\")'";

/// Between two looks at the migrations.
const PERIOD: Duration = Duration::from_millis(200);

/// `dwcp drain`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Peer's name, or host:port of its data plane; may be given again.
    #[arg(long, value_name = "NODE", required = true)]
    to: Vec<String>,
    /// Profile, as of dwcp migrate; auto is that of the path to the first node.
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
    /// Change a key of the profile: KEY=VALUE (dwcp config explain); may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Ask the other nodes whether they would take the VMs; move nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What became of a VM.
#[derive(Debug, Serialize)]
struct Moved {
    vm: String,
    /// The node that took it, or was asked last.
    to: String,
    result: RunResult,
    reason: String,
    /// Of the last migration; none where nobody could be asked.
    report: Option<MigrationReport>,
}

#[derive(Debug, Serialize)]
struct Drained {
    schema: &'static str,
    dry_run: bool,
    vms: Vec<Moved>,
}

/// A VM on its way.
struct Leaving {
    vm: String,
    /// Nodes that it has been offered to.
    asked: usize,
    /// Which of them is the first in its turn.
    first: usize,
    id: Option<MigrationId>,
    ended: Option<Moved>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let profile = args.profile.as_deref();
    let settings = migrate::settings(profile, &args.changes, &args.to[0], context)?;
    let (running, others) = here(context)?;
    let mut all: Vec<_> = running
        .into_iter()
        .enumerate()
        .map(|(turn, vm)| Leaving {
            vm,
            asked: 0,
            first: turn % args.to.len(),
            id: None,
            ended: None,
        })
        .collect();
    for leaving in &mut all {
        leaving.offer(args, &settings, context);
    }
    while all.iter().any(|leaving| leaving.ended.is_none()) {
        std::thread::sleep(PERIOD);
        for leaving in all.iter_mut().filter(|leaving| leaving.ended.is_none()) {
            leaving.look(args, &settings, context)?;
        }
    }
    let drained = Drained {
        schema: "dwcp.drain/1",
        dry_run: args.dry_run,
        vms: all
            .into_iter()
            .filter_map(|leaving| leaving.ended)
            .chain(others)
            .collect(),
    };
    context.print(&drained, || table(&drained))?;
    let stays = drained.vms.iter().find(|moved| !moved.is_well());
    stays.map_or(Ok(()), |moved| {
        Err(Failure::Ended {
            result: moved.result,
            refused: false,
        })
    })
}

/// Names of the VMs that run here and that nobody moves; and those of which that is not known, or not so: they stay.
fn here(context: &mut Context) -> Result<(Vec<String>, Vec<Moved>), Failure> {
    let vms = match context.node.ask(&Request::ListVms)? {
        Reply::Vms(vms) => vms,
        other => return Err(Failure::unexpected(&other)),
    };
    let (mut running, mut others) = (vec![], vec![]);
    for vm in vms {
        match vm.state.as_str() {
            "running" => running.push(vm.name),
            // Nothing of these runs here.
            "incoming" | "paused" | "postmigrate" | "shutdown" | "gone" => {}
            state => others.push(Moved {
                vm: vm.name,
                to: String::new(),
                result: RunResult::Aborted,
                reason: format!("not asked for: it is `{state}` here (dwcp status, dwcp recover)"),
                report: None,
            }),
        }
    }
    Ok((running, others))
}

impl Leaving {
    /// Offers it to the next nodes until one can be asked, or none is left.
    fn offer(&mut self, args: &Args, settings: &TransferSettings, context: &mut Context) {
        while self.asked < args.to.len() {
            let to = &args.to[(self.first + self.asked) % args.to.len()];
            self.asked += 1;
            let request = Request::Migrate {
                vm: self.vm.clone(),
                to: to.clone(),
                settings: settings.clone(),
                dry_run: args.dry_run,
            };
            let reason = match context.node.ask(&request) {
                Ok(Reply::Started { id }) => return self.id = Some(id),
                Ok(other) => Failure::unexpected(&other).text(),
                Err(failure) => Failure::from(failure).text(),
            };
            self.end(to, RunResult::Aborted, reason, None);
        }
    }

    /// What has become of it. One that was refused is offered to the next node.
    fn look(
        &mut self,
        args: &Args,
        settings: &TransferSettings,
        context: &mut Context,
    ) -> Result<(), Failure> {
        let Some(id) = self.id else { return Ok(()) };
        let which = Some(id.to_string());
        let mut list = match context.node.ask(&Request::Status { which })? {
            Reply::Migrations(list) => list,
            other => return Err(Failure::unexpected(&other)),
        };
        let Some(report) = list.pop().and_then(|status| status.report) else {
            return Ok(());
        };
        let (result, reason) = (report.result, report.reason.clone());
        eprintln!("{} to {}: {}", self.vm, report.peer, show::result(result));
        let (refused, to) = (report.refused, report.peer.clone());
        self.end(&to, result, reason, Some(report));
        if refused && self.asked < args.to.len() {
            (self.ended, self.id) = (None, None);
            self.offer(args, settings, context);
        }
        Ok(())
    }

    fn end(
        &mut self,
        to: &str,
        result: RunResult,
        reason: String,
        report: Option<MigrationReport>,
    ) {
        self.ended = Some(Moved {
            vm: self.vm.clone(),
            to: to.to_owned(),
            result,
            reason,
            report,
        });
    }
}

impl Moved {
    const fn is_well(&self) -> bool {
        matches!(self.result, RunResult::Completed | RunResult::DryRun)
    }
}

fn table(drained: &Drained) -> String {
    if drained.vms.is_empty() {
        return "no VM runs here".to_owned();
    }
    let rows = drained.vms.iter().map(|moved| {
        let (total, downtime) = moved
            .report
            .as_ref()
            .map_or_else(Default::default, |report| {
                (
                    show::duration(report.total_ms),
                    show::duration(report.downtime_ms),
                )
            });
        [
            moved.vm.clone(),
            moved.to.clone(),
            show::result(moved.result),
            total,
            downtime,
            moved.reason.clone(),
        ]
    });
    show::table(["vm", "to", "result", "total", "stood", "why"], rows)
}
