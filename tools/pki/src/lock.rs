//! One command at a time works on a CA's folder.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::files::{PkiError, failed};

const LOCK: &str = "lock";
/// A command is done within moments; one that holds the folder for longer is stopped or stuck.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Keeps other commands off the folder while it lives; a process that ends gives it back.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

/// Waits for the folder.
pub(crate) fn lock(folder: &Path) -> Result<Lock, PkiError> {
    lock_within(folder, LIMIT)
}

fn lock_within(folder: &Path, limit: Duration) -> Result<Lock, PkiError> {
    let path = folder.join(LOCK);
    let deadline = Instant::now() + limit;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed(&path))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(Lock(held)),
            Err((again, Errno::EWOULDBLOCK | Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(failed(&path)(errno.into())),
        }
        if Instant::now() >= deadline {
            return Err(PkiError::Busy { path });
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_command_waits_and_is_told_when_it_takes_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        let early = lock_within(folder.path(), Duration::from_millis(50)).unwrap_err();
        assert!(early.to_string().contains("another command"), "{early}");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(folder.path()));
            thread::sleep(Duration::from_millis(100));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
