//! QEMU as a child: attached once its monitor is there, signals passed on, its exit code ours.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dwcp_api::node::Request;
use dwcp_api::{Attachment, ErrorCode};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::arguments::Plan;
use crate::context::Context;
use crate::failure::Failure;
use crate::vm;

/// QEMU's monitor must be there within this.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks for it.
const MONITOR_PERIOD: Duration = Duration::from_millis(20);

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
    attachment: Attachment,
    context: &mut Context,
) -> Result<u8, Failure> {
    let Attachment::Qemu { qmp_socket, .. } = &attachment else {
        return Err(Failure::Usage("run-qemu attaches by QMP".to_owned()));
    };
    let qmp_socket = qmp_socket.clone();
    // Left from a QEMU that was killed; its path must not be taken for the new one's.
    let _ = std::fs::remove_file(&qmp_socket);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    FORWARDED.into_iter().for_each(|signal| signals.add(signal));
    // The standard library gives the child an empty mask again.
    signals.thread_block().map_err(Failure::other)?;
    let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(Failure::other)?;
    let mut child = spawn(plan)?;
    let node = context.node.path().to_owned();
    let attached_name = name.to_owned();
    let json = context.json;
    std::thread::spawn(move || {
        attach(
            &attached_name,
            &qmp_socket,
            &attachment,
            &mut Context::new(&node, json),
        );
    });
    let status = wait(&mut child, &pending);
    if let Some(file) = &plan.ram_file {
        let _ = std::fs::remove_file(file);
    }
    // The VM is gone from this node whether or not the node still hears of it.
    let _ = context.node.ask(&Request::DetachVm {
        name: name.to_owned(),
    });
    Ok(exit_code(status?))
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
    let child = command.spawn().with_context(|| plan.program.clone());
    Ok(child?)
}

fn wait(child: &mut Child, pending: &SignalFd) -> Result<ExitStatus, Failure> {
    loop {
        if let Some(status) = child.try_wait().map_err(Failure::other)? {
            return Ok(status);
        }
        let info = match pending.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(Failure::other(error)),
        };
        let signal = i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|n| Signal::try_from(n).ok());
        if let Some(signal) = signal.filter(|signal| FORWARDED.contains(signal))
            && let Ok(pid) = i32::try_from(child.id())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Attaches the VM; a failure is said, and QEMU runs on: it can be attached later by hand.
fn attach(name: &str, qmp_socket: &str, attachment: &Attachment, context: &mut Context) {
    let began = Instant::now();
    let by_hand = match attachment {
        Attachment::Qemu {
            uffd_socket: Some(uffd),
            ..
        } => {
            format!("dwcp vm attach {name} --qmp {qmp_socket} --uffd-socket {uffd}")
        }
        _ => format!("dwcp vm attach {name} --qmp {qmp_socket}"),
    };
    loop {
        if Path::new(qmp_socket).exists() {
            match vm::attach(name, attachment.clone(), context) {
                Ok(vm) => {
                    eprintln!(
                        "dwcp: {name} attached: {}, tracker {}",
                        vm.state, vm.tracker
                    );
                    return;
                }
                // The socket is bound a moment before QEMU listens on it.
                Err(Failure::Api(error))
                    if error.code == ErrorCode::System && began.elapsed() < MONITOR_TIMEOUT => {}
                Err(failure) => {
                    failure.report(false);
                    eprintln!("dwcp: {name} runs, but is not attached; later: {by_hand}");
                    return;
                }
            }
        }
        if began.elapsed() > MONITOR_TIMEOUT {
            eprintln!("dwcp: {name}: QEMU's monitor did not appear at {qmp_socket}");
            return;
        }
        std::thread::sleep(MONITOR_PERIOD);
    }
}
