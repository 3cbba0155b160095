//! `dwcp-wan run`: a link for as long as a command runs.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use dwcp_wan::link::{Link, LinkName};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::Failure;
use crate::signals::{self, Held};
use crate::up::NewLink;

const HELP: &str = "The command runs here, not in a namespace of the link; it finds the link by
  DWCP_WAN_A_NETNS, DWCP_WAN_B_NETNS      names of the namespaces
  DWCP_WAN_A_ADDRESS, DWCP_WAN_B_ADDRESS  addresses
  DWCP_WAN_NAME                           the link's name, for `dwcp-wan set` and `cut`

The exit code is the command's; 128 + N when signal N ended it, 127 when there is no such command, 126 \
when it cannot be run. SIGINT, SIGQUIT, SIGTERM and SIGHUP are passed on; the link is taken down in any \
case.

Examples:
  dwcp-wan run --rate 100mbit --delay 50ms -- sh -c \\
    'ip netns exec $DWCP_WAN_A_NETNS ping -c 3 $DWCP_WAN_B_ADDRESS'
  dwcp-wan run --rate 1gbit --delay 10ms --loss 0.01% -- ./migrate-test.sh";

/// How long a command may take to end after a signal.
const END_LIMIT: Duration = Duration::from_secs(10);

/// `dwcp-wan run`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Name of the link [default: run-PID].
    #[arg(long)]
    name: Option<LinkName>,
    #[command(flatten)]
    link: NewLink,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The name given, or one of this process's own.
pub(crate) fn own_name(given: Option<&LinkName>, kind: &str) -> Result<LinkName, Failure> {
    match given {
        Some(name) => Ok(name.clone()),
        None => {
            let name = format!("{kind}-{}", std::process::id());
            name.parse().map_err(Failure::Other)
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let signals = Held::hold()?;
    let name = own_name(args.name.as_ref(), "run")?;
    let link = args.link.up_for_now(&name, &signals)?;
    let mut child = start(&args.command, &link)?;
    let status = wait(&mut child, &signals)?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

fn start(command: &[OsString], link: &Link) -> Result<Child, Failure> {
    let program = &command[0];
    let mut command_line = Command::new(program);
    command_line
        .args(&command[1..])
        .env("DWCP_WAN_NAME", link.name.to_string())
        .env("DWCP_WAN_A_NETNS", &link.namespaces[0])
        .env("DWCP_WAN_B_NETNS", &link.namespaces[1])
        .env("DWCP_WAN_A_ADDRESS", &link.addresses[0])
        .env("DWCP_WAN_B_ADDRESS", &link.addresses[1]);
    signals::release_in(&mut command_line);
    command_line.spawn().map_err(|error| Failure::Command {
        program: program.display().to_string(),
        error,
    })
}

fn wait(child: &mut Child, signals: &Held) -> Result<ExitStatus, Failure> {
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            child.kill()?;
            return Ok(child.wait()?);
        }
        while let Some(info) = signals.next()? {
            let number = i32::from(signals::number(&info));
            if number == Signal::SIGCHLD as i32 {
                continue;
            }
            deadline = deadline.or_else(|| Some(Instant::now() + END_LIMIT));
            // What a terminal sends, it sends to the command as well.
            let is_from_terminal = info.ssi_code == libc::SI_KERNEL;
            if let (false, Ok(signal)) = (is_from_terminal, Signal::try_from(number)) {
                // It has not been waited for: the number is still its own.
                let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
        });
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], left) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(Failure::Other(errno.to_string())),
        }
    }
}
