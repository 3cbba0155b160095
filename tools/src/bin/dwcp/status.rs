//! `dwcp status`: migrations, running and ended.

use dwcp_api::MigrationStatus;
use dwcp_api::node::{Reply, Request};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

const HELP: &str = "Examples:
  dwcp status
  dwcp status web
  dwcp status 0123456789abcdef0123456789abcdef --json | jq .report.downtime_ms";

/// `dwcp status`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name (its newest migration) or migration id; without it all migrations.
    #[arg(value_name = "VM|ID")]
    which: Option<String>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let which = args.which.clone();
    let list = match context.node.ask(&Request::Status { which })? {
        Reply::Migrations(list) => list,
        other => return Err(Failure::unexpected(&other)),
    };
    match &list[..] {
        [one] if args.which.is_some() => context.print(one, || detail(one)),
        _ => context.print(&list, || overview(&list)),
    }
}

fn overview(list: &[MigrationStatus]) -> String {
    if list.is_empty() {
        return "no migrations since the data plane started".to_owned();
    }
    show::table(
        [
            "vm",
            "part",
            "peer",
            "phase",
            "round",
            "on the wire",
            "time or ETA",
            "id",
        ],
        list.iter().map(|status| {
            let (wire, time) = match &status.report {
                Some(report) => (report.wire_bytes, show::duration(report.total_ms)),
                None => (status.progress.wire_bytes, show::eta(&status.progress)),
            };
            [
                status.vm.clone(),
                format!("{:?}", status.role).to_lowercase(),
                status.peer.clone(),
                show::phase(status.phase),
                status.progress.round.to_string(),
                show::bytes(wire),
                time,
                status.id.to_string(),
            ]
        }),
    )
}

fn detail(status: &MigrationStatus) -> String {
    status
        .report
        .as_ref()
        .map_or_else(|| show::progress_line(status), show::report)
}
