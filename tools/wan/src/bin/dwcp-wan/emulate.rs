//! The emulator's process: what `up` starts.

use dwcp_wan::link::LinkName;
use dwcp_wan::{emulator, process};
use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::setsid;

use crate::failure::Failure;

/// Before what it is to slow down.
const NICENESS: i32 = -15;

/// `dwcp-wan emulate`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    name: LinkName,
    a: String,
    b: String,
    device: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Whoever started it may have a terminal, and may hold signals.
    setsid().map_err(std::io::Error::from)?;
    SigSet::empty()
        .thread_set_mask()
        .map_err(std::io::Error::from)?;
    let folder = args.name.folder();
    process::claim(&folder)?;
    // SAFETY: plain numbers; the process's own. Where it is refused, delays are less exact, no more.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    let namespaces = [args.a.clone(), args.b.clone()];
    emulator::run(&folder, &namespaces, &args.device)?;
    Ok(())
}
