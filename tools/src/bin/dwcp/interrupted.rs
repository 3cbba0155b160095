//! A demo or a bench that a signal ends leaves nothing behind: no daemon, no guest, no link, no folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::failure::Failure;

/// Processes are ended within this time, or left: one that the kernel holds cannot be waited for.
const END_TIME: Duration = Duration::from_secs(5);

/// What a command makes while it runs. Dropping it takes the folder away, unless something was to be kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    /// Held by the one that takes things away, until the process has ended.
    ending: Arc<Mutex<()>>,
}

impl Scratch {
    /// All temporary folders are made in one from now on. SIGINT, SIGTERM and SIGHUP take away what this process has made, and
    /// end it, with 128 and the signal's number as exit code. To be called before there are threads.
    ///
    /// # Errors
    /// No folder, or no thread.
    pub(crate) fn begin() -> Result<Self, Failure> {
        let mut folder = tempfile::Builder::new()
            .prefix("dwcp-")
            .tempdir()
            .map_err(Failure::other)?;
        folder.disable_cleanup(true);
        let path = folder.path().to_owned();
        if tempfile::env::override_temp_dir(&path).is_err() {
            let text = "temporary folders have been made already";
            return Err(Failure::other(anyhow::anyhow!(text)));
        }
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        signals.thread_block().map_err(Failure::other)?;
        let ending = Arc::new(Mutex::new(()));
        let (scratch, ends) = (path.clone(), Arc::clone(&ending));
        std::thread::Builder::new()
            .name("dwcp-signals".into())
            .spawn(move || {
                if let Ok(signal) = signals.wait() {
                    // Whoever loses a daemon by this ends, too, but not before this is done.
                    let _held = ends.lock();
                    eprintln!("dwcp: {signal}: ending daemons, guests and links");
                    leave_nothing(&scratch);
                    std::process::exit(128 + signal as i32);
                }
            })
            .map_err(Failure::other)?;
        Ok(Self {
            folder: path,
            ending,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ending = self.ending.lock();
        // What was kept on purpose is in it, and keeps it.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn leave_nothing(scratch: &Path) {
    let until = Instant::now() + END_TIME;
    // More may be started meanwhile.
    loop {
        let all = descendants(std::process::id());
        for &pid in &all {
            // One that has ended by itself is no loss.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if all.iter().all(|&pid| is_dead(pid)) || Instant::now() > until {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // As they are named where they are made: by the process.
    let process = std::process::id();
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
    if let Err(error) = std::fs::remove_dir_all(scratch) {
        eprintln!("dwcp: {}: {error}", scratch.display());
    }
}

/// Children of a process, and theirs. Of one that has ended there are none.
fn descendants(of: u32) -> Vec<i32> {
    let mut found = vec![];
    let mut next = vec![of.to_string()];
    while let Some(pid) = next.pop() {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
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

/// Whether it has ended; nobody may have taken note of it yet.
fn is_dead(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The name before the state may have any character.
    state.map_or(true, |text| {
        text.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['Z', 'X']))
    })
}
