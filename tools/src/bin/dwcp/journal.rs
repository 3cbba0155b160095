//! `dwcp journal`: who owns what.

use dwcp_api::node::{Reply, Request};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

const HELP: &str = "Owner is `here`, `away` (handed over), or `in-doubt` (the handover was sent, \
the answer is not known: the guest stays paused until the other node says).

Examples:
  dwcp journal
  dwcp journal --json | jq '.[] | select(.owner == \"in-doubt\")'";

/// `dwcp journal`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, context: &mut Context) -> Result<(), Failure> {
    let list = match context.node.ask(&Request::Ownership)? {
        Reply::Ownership(list) => list,
        other => return Err(Failure::unexpected(&other)),
    };
    context.print(&list, || {
        if list.is_empty() {
            return "no VM was migrated from or to this node".to_owned();
        }
        show::table(
            ["vm", "owner", "epoch", "note"],
            list.iter().map(|entry| {
                [
                    entry.vm.clone(),
                    entry.owner.clone(),
                    entry.epoch.to_string(),
                    entry.note.clone(),
                ]
            }),
        )
    })
}
