//! `dwcp probe`: what kind of path leads to another node.

use dwcp_api::PathSample;
use dwcp_api::node::{Reply, Request};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Opens a connection to the other node's data plane and closes it again: the kernel has \
measured the round trip then. Below 2 ms it is a datacenter's, above 50 ms the internet's. Loss, jitter and \
rate show while a guest is moved; `dwcp migrate --profile auto` begins with this, and follows them.

Examples:
  dwcp probe b
  dwcp probe 192.0.2.2:7440 --json";

/// `dwcp probe`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Peer's name, or host:port of its data plane.
    #[arg(value_name = "NODE")]
    to: String,
}

/// A path, and the mode that goes with it.
#[derive(Debug, Serialize)]
pub(crate) struct Probed {
    pub(crate) mode: String,
    pub(crate) why: String,
    #[serde(flatten)]
    sample: PathSample,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let probed = probe(&args.to, context)?;
    context.print(&probed, || {
        format!("{}: {} ({})", args.to, probed.mode, probed.why)
    })
}

/// Has this node look at the path to another one.
pub(crate) fn probe(to: &str, context: &mut Context) -> Result<Probed, Failure> {
    match context.node.ask(&Request::Probe { to: to.to_owned() })? {
        Reply::Path { sample, mode, why } => Ok(Probed { mode, why, sample }),
        other => Err(Failure::unexpected(&other)),
    }
}
