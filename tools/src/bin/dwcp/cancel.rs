//! `dwcp cancel`: the guest stays at its source.

use dwcp_api::node::Request;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A VM that was handed over already is not taken back.

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
    context.print(&done, || format!("{}: cancelling", args.which))
}
