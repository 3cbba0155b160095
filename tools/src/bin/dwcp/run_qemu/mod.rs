//! `dwcp vm run-qemu`: QEMU with what a migration needs, in the foreground.

mod arguments;
mod attaching;
mod memory;
mod process;
mod ram_file;

use std::path::{Path, PathBuf};

use dwcp_api::Attachment;
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;
use crate::vm;
use arguments::{Added, Plan};
use ram_file::RamFile;

const HELP: &str = "Added to QEMU's arguments: a QMP socket, shared memory when none is given \
(size from -m), and with --incoming `-incoming defer -S`. The library libdwcp_preload.so is \
preloaded when it lies next to the dwcp program or in ../lib/dwcp: it hands out the userfaultfd \
by which written pages are found fastest.

Guest RAM is a file without a name in the folder of --mem-path, that QEMU inherits: it goes with \
QEMU, however that ends. --dry-run shows a named one, for a launch line of your own.

QEMU is $DWCP_QEMU, or the first word after -- when that is no option, or qemu-system-x86_64. \
Signals are passed on; the exit code is QEMU's.

Examples:
  dwcp vm run-qemu web -- -m 4G -smp 2 -nographic disk.qcow2
  dwcp vm run-qemu web --incoming -- -m 4G -smp 2 -nographic disk.qcow2
  dwcp vm run-qemu web --dry-run -- /opt/qemu/bin/qemu-system-x86_64 -m 512";

/// Variable that names the QEMU program.
const QEMU_ENV: &str = "DWCP_QEMU";
/// Variable that tells the preload library where to serve.
const UFFD_ENV: &str = "DWCP_UFFD_SOCKET";
const PRELOAD_NAME: &str = "libdwcp_preload.so";

/// `dwcp vm run-qemu`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name, the same on both nodes of a migration.
    name: String,
    /// Start as the destination: wait for a migration.
    #[arg(long)]
    incoming: bool,
    /// Folder for the file behind guest RAM.
    #[arg(long, value_name = "PATH", default_value = "/dev/shm")]
    mem_path: PathBuf,
    /// Folder for QEMU's sockets [default: the folder of the node's socket].
    #[arg(long, value_name = "PATH")]
    run_folder: Option<PathBuf>,
    /// Print the command line and start nothing.
    #[arg(long)]
    dry_run: bool,
    /// QEMU's arguments.
    #[arg(last = true, required = true, value_name = "QEMU ARGS")]
    qemu: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    check_name(&args.name)?;
    let folder = match &args.run_folder {
        Some(folder) => folder.clone(),
        None => context
            .node
            .path()
            .parent()
            .unwrap_or_else(|| Path::new("/"))
            .to_owned(),
    };
    let folder = vm::absolute(&folder)?;
    let preload = find_preload();
    let mut added = Added {
        qmp_socket: format!("{folder}/{}.qmp", args.name),
        uffd_socket: preload
            .as_ref()
            .map(|_| format!("{folder}/{}.uffd", args.name)),
        ram_file: vm::absolute(&args.mem_path.join(format!("dwcp-{}.ram", args.name)))?,
        preload,
        incoming: args.incoming,
        default_program: std::env::var(QEMU_ENV).ok(),
    };
    let mut plan = arguments::plan(&args.qemu, &added).map_err(Failure::Usage)?;
    if args.dry_run {
        return dry_run(&plan, context);
    }
    let ram = if plan.adds_ram {
        let ram = RamFile::make(&args.mem_path)?;
        added.ram_file = ram.path();
        plan = arguments::plan(&args.qemu, &added).map_err(Failure::Usage)?;
        Some(ram)
    } else {
        None
    };
    if plan.environment.is_empty() {
        eprintln!(
            "dwcp: {PRELOAD_NAME} not found next to dwcp: written pages are found by a slower tracker"
        );
    }
    let attachment = Attachment::Qemu {
        qmp_socket: added.qmp_socket,
        uffd_socket: added.uffd_socket,
    };
    match process::run(&args.name, &plan, ram, attachment, context)? {
        0 => Ok(()),
        code => Err(Failure::Exit(code)),
    }
}

/// The name becomes part of file names, before any daemon has checked it.
fn check_name(name: &str) -> Result<(), Failure> {
    if dwcp_api::is_name(name) {
        return Ok(());
    }
    let rule = dwcp_api::NAME_RULE;
    Err(Failure::Usage(format!("`{name}` cannot name a VM: {rule}")))
}

fn dry_run(plan: &Plan, context: &Context) -> Result<(), Failure> {
    let environment: serde_json::Map<_, _> = plan
        .environment
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let value = json!({
        "program": plan.program, "arguments": plan.arguments, "environment": environment,
    });
    context.print(&value, || plan.command_line())
}

fn find_preload() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    [
        folder.join(PRELOAD_NAME),
        folder.join("../lib/dwcp").join(PRELOAD_NAME),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .and_then(|path| path.into_os_string().into_string().ok())
}
