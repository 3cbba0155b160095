//! QEMU as a child: attached once its monitor is there, signals passed on, its exit code ours.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{ApiError, Attachment, ErrorCode, VmInfo};
use dwcp_dataplane::vmm::nobody_listens;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::arguments::Plan;
use super::attaching::Started;
use super::ram_file::RamFile;
use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;

/// They are QEMU's, not ours.
const FORWARDED: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Runs QEMU to its end; gives the exit code (128 and the signal's number when one killed it).
pub(super) fn run(
    name: &str,
    plan: &Plan,
    ram: Option<RamFile>,
    attachment: Attachment,
    context: &mut Context,
) -> Result<u8, Failure> {
    let Attachment::Qemu { qmp_socket, .. } = &attachment else {
        return Err(Failure::Usage("run-qemu attaches by QMP".to_owned()));
    };
    let qmp_socket = qmp_socket.clone();
    check_name_is_free(name, &attachment, context)?;
    clear_socket(name, &qmp_socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::other)?;
    let _entered = runtime.enter();
    // In place before QEMU is, so that no signal is missed.
    let mut signals = Signals::listen(FORWARDED).map_err(Failure::other)?;
    let mut child = spawn(plan)?;
    // QEMU has it now, and is the only one.
    drop(ram);
    let node = context.node.path().to_owned();
    let json = context.json;
    let started = Started {
        name: name.to_owned(),
        qmp_socket,
        attachment: attachment.clone(),
    };
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&ended);
    std::thread::spawn(move || started.attach(&has_ended, &mut Context::new(&node, json)));
    let status = runtime.block_on(wait(&mut child, &mut signals));
    ended.store(true, Ordering::Release);
    // The VM is gone from this node whether or not the node still hears of it. Another VM may have
    // got its name meanwhile.
    let _ = context.node.ask(&Request::DetachVm {
        name: name.to_owned(),
        attached_as: Some(attachment),
    });
    Ok(exit_code(status?))
}

/// Refuses the name of another VM that this node has. A node that does not answer has none to lose.
fn check_name_is_free(
    name: &str,
    attachment: &Attachment,
    context: &mut Context,
) -> Result<(), Failure> {
    let Ok(Reply::Vms(vms)) = context.node.ask(&Request::ListVms) else {
        return Ok(());
    };
    // The record of one that is gone gives way.
    let is_other =
        |vm: &&VmInfo| vm.name == name && vm.attachment != *attachment && vm.state != "gone";
    let Some(other) = vms.iter().find(is_other) else {
        return Ok(());
    };
    let text = format!(
        "another VM {name} is attached to this node: {}",
        other.state
    );
    let hint = format!("take another name, or `dwcp vm detach {name}` first");
    Err(ApiError::new(ErrorCode::Busy, text).with_hint(hint).into())
}

/// Removes a socket that was left by a QEMU that is gone, so that its path is not taken for the new
/// one's. A QEMU that still has it would be out of reach without it.
fn clear_socket(name: &str, qmp_socket: &str) -> Result<(), Failure> {
    if UnixStream::connect(qmp_socket).is_err_and(|error| nobody_listens(&error)) {
        return match std::fs::remove_file(qmp_socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(anyhow::Error::new(error)
                    .context(qmp_socket.to_owned())
                    .into())
            }
            _ => Ok(()),
        };
    }
    let text = format!("a QEMU named {name} runs on this node: {qmp_socket} is in use");
    Err(ApiError::new(ErrorCode::Busy, text)
        .with_hint(format!(
            "take another name, or end it: `dwcp vm list` shows {name}"
        ))
        .into())
}

fn spawn(plan: &Plan) -> Result<Child, Failure> {
    let mut command = Command::new(&plan.program);
    command.args(&plan.arguments);
    for (variable, value) in &plan.environment {
        match std::env::var(variable) {
            Ok(own) if variable == "LD_PRELOAD" && !own.is_empty() => {
                command.env(variable, format!("{value}:{own}"))
            }
            _ => command.env(variable, value),
        };
    }
    command.spawn().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let program = &plan.program;
            let text = format!("no {program}: install QEMU, or set DWCP_QEMU to the one to start");
            return Failure::Usage(text);
        }
        Failure::other(anyhow::Error::new(error).context(plan.program.clone()))
    })
}

async fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus, Failure> {
    loop {
        let signal = tokio::select! {
            status = child.wait() => return status.map_err(Failure::other),
            signal = signals.next() => signal,
        };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
