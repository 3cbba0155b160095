//! `dwcp cancel`: the guest stays at its source.

use dwcp_api::node::Request;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Once the handover was sent only the destination decides: exit code 1. When it \
does not answer (in doubt), exit code 4. `dwcp status` says how the migration ended.

Examples:
  dwcp cancel web
  dwcp cancel 0123456789abcdef0123456789abcdef";

/// `dwcp cancel`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name, or migration id (32 hex digits).
    #[arg(value_name = "VM|ID")]
    which: String,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let which = args.which.clone();
    context.node.ask(&Request::Cancel { which })?;
    let done = serde_json::json!({"cancelled": args.which});
    context.print(&done, || {
        format!(
            "{0}: cancelling; `dwcp status {0}` shows the end",
            args.which
        )
    })
}
