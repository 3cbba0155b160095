//! The emulator's process, as the link's folder names it.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it may take to end after each signal.
const END_LIMIT: Duration = Duration::from_secs(2);
const FILE: &str = "pid";

/// A process by number and start: numbers come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    started_ticks: u64,
}

/// Says in the folder which process its emulator is: this one.
///
/// # Errors
/// From the system.
pub fn claim(folder: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let (_, started_ticks) = stat(pid.cast_signed()).ok_or_else(|| io::Error::other("no /proc"))?;
    fs::write(folder.join(FILE), format!("{pid} {started_ticks}\n"))
}

/// Whether the folder names this process still.
pub(crate) fn is_claimed(folder: &Path) -> bool {
    let own = std::process::id().cast_signed();
    Process::read(folder).is_some_and(|process| process.pid == own)
}

impl Process {
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join(FILE)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let (pid, started_ticks) = (pid.parse().ok()?, started.parse().ok()?);
        Some(Self { pid, started_ticks })
    }

    fn is_alive(self) -> bool {
        let found = stat(self.pid);
        found.is_some_and(|(state, started)| state != 'Z' && started == self.started_ticks)
    }

    /// Asks it to end, then makes it.
    pub(crate) fn end(self) -> io::Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if !self.is_alive() {
                return Ok(());
            }
            match kill(Pid::from_raw(self.pid), signal) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
            let deadline = Instant::now() + END_LIMIT;
            while self.is_alive() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        match self.is_alive() {
            true => Err(io::Error::other(format!(
                "process {} does not end",
                self.pid
            ))),
            false => Ok(()),
        }
    }
}

/// State and start of a process, from `/proc/PID/stat` (fields 3 and 22).
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let folder = tempfile::tempdir().unwrap();
        claim(folder.path()).unwrap();
        let own = Process::read(folder.path()).unwrap();
        assert!(own.is_alive());
        let other = Process {
            started_ticks: own.started_ticks + 1,
            ..own
        };
        assert!(!other.is_alive());
        other.end().unwrap();
        assert!(
            own.is_alive(),
            "another process of the same number is left alone"
        );
    }
}
