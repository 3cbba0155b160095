//! The command line of a node: a file per command.
//!
//! To add one: a file with `Args` and `run(&Args, &mut Context) -> Result<(), Failure>`, a variant
//! of [`Command`], an arm in [`run`].
#![forbid(unsafe_code)]

mod bench;
mod cancel;
mod config;
mod context;
mod demo;
mod doctor;
mod drain;
mod failure;
mod journal;
mod migrate;
mod node;
mod pki;
mod probe;
mod recover;
mod run_qemu;
mod show;
mod signals;
mod status;
mod store;
mod tune;
mod usage;
mod vm;
mod watch;
mod watched;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::Context;
use failure::Failure;

const HELP: &str = "\
Exit codes:
  0  done                          4  the other node refused or cannot be reached
  1  failed                        5  a daemon of this node does not answer
  2  wrong usage or configuration  6  the VM cannot be moved as it was started
  3  VM, migration, peer, key or   7  the migration was aborted; the guest runs at the source
     profile not found             8  something half done waits for a node or a person

Examples:
  dwcp doctor
  dwcp vm run-qemu web -- -m 4G -nographic disk.qcow2
  dwcp migrate web --to b --watch
  dwcp status web --json
  dwcp recover";

/// Moves running virtual machines between nodes.
#[derive(Parser, Debug)]
#[command(name = "dwcp", version, after_help = HELP)]
struct Cli {
    /// Socket of the node's control plane.
    #[arg(
        long,
        global = true,
        env = "DWCP_NODE_SOCKET",
        value_name = "PATH",
        default_value = "/var/lib/dwcp/node.sock"
    )]
    node_socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Two nodes on this machine, a guest under load, one migration, the proof, the numbers.
    Demo(demo::Args),
    /// Load tools: comparisons and fault loops, with records of the machine.
    Bench(bench::Args),
    /// What this node has, what is missing, and how to mend it.
    Doctor(doctor::Args),
    /// Who this node is, its data plane, its peers.
    Node(node::Args),
    /// Virtual machines of this node.
    Vm(vm::Args),
    /// Move a VM to another node.
    Migrate(Box<migrate::Args>),
    /// Move all running VMs to other nodes.
    Drain(Box<drain::Args>),
    /// Migrations since the data plane started.
    Status(status::Args),
    /// Give a VM that is being moved back to this node.
    Cancel(cancel::Args),
    /// Explain and finish half-done migrations, by an operator's decision where a node is gone for good.
    Recover(recover::Args),
    /// Say what kind of path leads to another node.
    Probe(probe::Args),
    /// Change how a VM is moved, while it is.
    Tune(tune::Args),
    /// Pages that this node keeps for VMs that come: of VMs that left, of disk images.
    Store(store::Args),
    /// Who owns each VM, by this node's handover journal.
    Journal(journal::Args),
    /// Check, explain and show configuration; needs no node.
    Config(config::Args),
    /// Certificates of nodes, by a small private CA; needs no node.
    Pki(pki::Args),
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if usage::wants_json(&arguments) => return usage::refused(&error).report(true),
        Err(error) => error.exit(),
    };
    let mut context = Context::new(&cli.node_socket, cli.json);
    // A fault matrix ends by itself, with the table of what it has.
    let keeps = match &cli.command {
        Command::Bench(args) if !args.ends_by_itself() => Some(false),
        Command::Demo(args) => Some(args.keeps()),
        _ => None,
    };
    match keeps.map_or(Ok(None), watched::watch) {
        Ok(None) => {}
        Ok(Some(code)) => return ExitCode::from(code),
        Err(failure) => return failure.report(context.fails_as_json()),
    }
    match run(&cli.command, &mut context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(context.fails_as_json()),
    }
}

fn run(command: &Command, context: &mut Context) -> Result<(), Failure> {
    match command {
        Command::Bench(args) => bench::run(args, context),
        Command::Demo(args) => demo::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Node(args) => node::run(args, context),
        Command::Vm(args) => vm::run(args, context),
        Command::Migrate(args) => migrate::run(args, context),
        Command::Drain(args) => drain::run(args, context),
        Command::Status(args) => status::run(args, context),
        Command::Cancel(args) => cancel::run(args, context),
        Command::Recover(args) => recover::run(args, context),
        Command::Probe(args) => probe::run(args, context),
        Command::Tune(args) => tune::run(args, context),
        Command::Store(args) => store::run(args, context),
        Command::Journal(args) => journal::run(args, context),
        Command::Config(args) => config::run(args, context),
        Command::Pki(args) => pki::run(args, context),
    }
}
