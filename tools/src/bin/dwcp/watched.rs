//! A demo or a bench that a signal ends leaves nothing behind: no daemon, no guest, no link, no folder.
//!
//! ```text
//! dwcp bench …   watches        takes all away once nobody makes anything any more
//!   └ dwcp bench …              does it
//!       └ daemons, guests       come to the one that watches when their parent has ended
//! ```

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::failure::Failure;
use crate::signals::{Signals, is_ignored};

/// In the environment of the process that is watched.
const WATCHED: &str = "DWCP_WATCHED";

/// Processes are ended within this time, or left: one that the kernel holds cannot be waited for.
const END_TIME: Duration = Duration::from_secs(5);

/// They ask for an end.
pub(crate) const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
];

/// Runs this program's command line in a process of its own, with a folder of its own for all that is temporary, and returns its
/// exit code: 128 and the signal's number where one ended it. `None` in that process itself. What it `keeps` stays.
///
/// # Errors
/// No folder, or no process.
pub(crate) fn watch(keeps: bool) -> Result<Option<u8>, Failure> {
    if std::env::var_os(WATCHED).is_some() {
        // It does not outlive the one that watches.
        set_pdeathsig(Signal::SIGKILL).map_err(Failure::other)?;
        return Ok(None);
    }
    set_child_subreaper(true).map_err(Failure::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::other)?;
    let _entered = runtime.enter();
    // In place before there is anything.
    let heard = ENDING.into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::listen(heard).map_err(Failure::other)?;
    let mut folder = tempfile::Builder::new()
        .prefix("dwcp-")
        .tempdir()
        .map_err(Failure::other)?;
    folder.disable_cleanup(true);
    let folder = folder.path();
    let ended = runtime.block_on(async {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(WATCHED, "1")
            .env("TMPDIR", folder)
            .spawn()?;
        let process = child.id().unwrap_or_default();
        let ended = end(&mut child, &mut signals).await?;
        std::io::Result::Ok((process, ended))
    });
    match ended.map_err(Failure::other)? {
        (_, Ok(code)) => {
            // What was kept on purpose is in it, and keeps it.
            let _ = std::fs::remove_dir(folder);
            Ok(Some(u8::try_from(code).unwrap_or(1)))
        }
        (process, Err(signal)) => {
            eprintln!("dwcp: {signal}: ending daemons, guests and links");
            end_processes();
            take_links_down(process);
            if !keeps && let Err(error) = std::fs::remove_dir_all(folder) {
                eprintln!("dwcp: {}: {error}", folder.display());
            }
            Ok(Some(128 + signal as u8))
        }
    }
}

/// Its exit code, or the signal that is to end it, or has: a terminal sends it to both.
async fn end(child: &mut Child, signals: &mut Signals) -> std::io::Result<Result<i32, Signal>> {
    let status = tokio::select! {
        status = child.wait() => status?,
        signal = signals.next() => return Ok(Err(signal)),
    };
    let signal = status
        .signal()
        .and_then(|signal| Signal::try_from(signal).ok());
    Ok(match signal {
        Some(signal) => Err(signal),
        None => Ok(status.code().unwrap_or(1)),
    })
}

/// Ends all that come from this process. Those whose parent has ended are its own children then.
fn end_processes() {
    let until = Instant::now() + END_TIME;
    loop {
        let all = descendants(std::process::id());
        for &pid in &all {
            // One that has ended by itself is no loss.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        while matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        ) {}
        if all.is_empty() || Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Children of a process, and theirs.
fn descendants(of: u32) -> Vec<i32> {
    let mut found = vec![];
    let mut next = vec![of.to_string()];
    while let Some(pid) = next.pop() {
        let threads = std::fs::read_dir(Path::new("/proc").join(&pid).join("task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                next.push(child.to_owned());
                found.extend(child.parse::<i32>());
            }
        }
    }
    found
}

/// Those of a process, as it names them.
fn take_links_down(process: u32) {
    let (link, namespaces) = (format!("bench-{process}"), format!("dwcp-{process}-"));
    for name in dwcp_wan::link::list() {
        if name.to_string() == link
            && let Err(error) = dwcp_wan::link::down(&name)
        {
            eprintln!("dwcp: link {name}: {error}");
        }
    }
    for namespace in dwcp_wan::namespace::names() {
        if namespace.starts_with(&namespaces)
            && let Err(error) = dwcp_wan::namespace::remove(&namespace)
        {
            eprintln!("dwcp: network namespace {namespace}: {error}");
        }
    }
}
