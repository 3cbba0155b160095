//! `dwcp vm`: attach, detach, list, and start a QEMU that can be moved.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dwcp_api::node::{Reply, Request};
use dwcp_api::{Attachment, VmInfo};

use crate::context::Context;
use crate::failure::Failure;
use crate::{run_qemu, show};

const HELP: &str = "Examples:
  dwcp vm run-qemu web -- -m 4G -nographic disk.qcow2
  dwcp vm attach web --qmp /run/web.qmp --uffd-socket /run/web.uffd
  dwcp vm attach sim --process /run/sim.sock
  dwcp vm list";

const DETACH_HELP: &str = "\
Examples:
  dwcp vm detach web
  dwcp vm detach web --json";

const LIST_HELP: &str = "\
Examples:
  dwcp vm list
  dwcp vm list --json";

/// `dwcp vm`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Attach a running VM; says what to change when it cannot be moved.
    Attach(AttachArgs),
    /// Forget a VM; it goes on running.
    #[command(after_help = DETACH_HELP)]
    Detach {
        /// VM name.
        name: String,
    },
    /// All VMs of this node.
    #[command(after_help = LIST_HELP)]
    List,
    /// Start QEMU so that it can be moved, and attach it.
    RunQemu(run_qemu::Args),
}

#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
struct AttachArgs {
    /// VM name, the same on both nodes of a migration.
    name: String,
    /// QEMU's QMP socket.
    #[arg(long, value_name = "PATH", required_unless_present = "process")]
    qmp: Option<PathBuf>,
    /// Socket of the preload library in that QEMU.
    #[arg(long, value_name = "PATH", requires = "qmp")]
    uffd_socket: Option<PathBuf>,
    /// Socket of a process that shares its RAM as memfds.
    #[arg(long, value_name = "SOCKET", conflicts_with = "qmp")]
    process: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    match &args.command {
        Command::Attach(args) => {
            let vm = attach(&args.name, attachment(args)?, context)?;
            context.print(&vm, || {
                format!(
                    "{}: {}, {}, {} of RAM, tracker {}",
                    vm.name,
                    vm.vmm,
                    vm.state,
                    show::bytes(vm.ram_bytes),
                    vm.tracker
                )
            })
        }
        Command::Detach { name } => {
            context.node.ask(&Request::DetachVm {
                name: name.clone(),
                attached_as: None,
            })?;
            let done = serde_json::json!({"detached": name});
            context.print(&done, || format!("{name}: forgotten"))
        }
        Command::List => list(context),
        Command::RunQemu(args) => run_qemu::run(args, context),
    }
}

fn list(context: &mut Context) -> Result<(), Failure> {
    let vms = match context.node.ask(&Request::ListVms)? {
        Reply::Vms(vms) => vms,
        other => return Err(Failure::unexpected(&other)),
    };
    context.print(&vms, || overview(&vms))
}

fn overview(vms: &[VmInfo]) -> String {
    if vms.is_empty() {
        return "no VMs".to_owned();
    }
    let known = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let mut text = show::table(
        ["name", "state", "RAM", "tracker", "VMM"],
        vms.iter().map(|vm| {
            let ram = match vm.ram_bytes {
                0 => "-".to_owned(),
                bytes => show::bytes(bytes),
            };
            let (tracker, vmm) = (known(&vm.tracker), known(&vm.vmm));
            [vm.name.clone(), vm.state.clone(), ram, tracker, vmm]
        }),
    );
    let noted: Vec<_> = vms.iter().filter(|vm| !vm.note.is_empty()).collect();
    if !noted.is_empty() {
        text.push_str("\n\nTried again and again:");
    }
    for vm in noted {
        text.push_str(&format!("\n  {}: {}", vm.name, vm.note));
    }
    text
}

/// Attaches a VM at the node.
pub(crate) fn attach(
    name: &str,
    attachment: Attachment,
    context: &mut Context,
) -> Result<VmInfo, Failure> {
    let request = Request::AttachVm {
        name: name.to_owned(),
        attachment,
    };
    match context.node.ask(&request)? {
        Reply::Vm(vm) => Ok(vm),
        other => Err(Failure::unexpected(&other)),
    }
}

fn attachment(args: &AttachArgs) -> Result<Attachment, Failure> {
    if let Some(socket) = &args.process {
        return Ok(Attachment::Process {
            socket: absolute(socket)?,
        });
    }
    let Some(qmp) = &args.qmp else {
        return Err(Failure::Usage("--qmp or --process is needed".to_owned()));
    };
    Ok(Attachment::Qemu {
        qmp_socket: absolute(qmp)?,
        uffd_socket: args.uffd_socket.as_deref().map(absolute).transpose()?,
    })
}

/// The daemons have another working folder: paths are made absolute here.
pub(crate) fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|path| Failure::Usage(format!("{}: not UTF-8", Path::new(&path).display())))
}
