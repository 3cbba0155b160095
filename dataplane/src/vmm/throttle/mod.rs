//! CPU time kept from a guest that dirties its pages faster than they leave, and given back whatever happens.
//!
//! What is limited stands in a file of the state folder before it is: a data plane that was killed meanwhile gives
//! it back when it is started again.

mod group;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{VmmError, started_ticks, stat_fields};
use group::Group;

/// Folder of the state folder where it stands who is limited.
const FOLDER: &str = "throttled";

/// A guest gets no less of a core than this, in millionths.
const MICRO_CORES_MIN: u64 = 10_000;

/// Who is limited, as it stands on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    pid: i32,
    started_ticks: u64,
    group: Group,
}

/// A VMM whose CPU time may be limited. Dropped, it has all of it again.
#[derive(Debug)]
pub struct Throttle {
    lease: Lease,
    file: PathBuf,
    since: Instant,
    ticks: u64,
    /// What it used before it was limited.
    used_micro_cores: Option<u64>,
}

impl Throttle {
    /// Begins to watch how much a VMM uses. Nothing is limited.
    ///
    /// # Errors
    /// [`VmmError::Unsuitable`] when its cgroup cannot be limited, or not alone; [`VmmError::Gone`].
    pub fn watch(pid: i32, state_folder: &Path) -> Result<Self, VmmError> {
        let file = state_folder.join(FOLDER).join(format!("{pid}.json"));
        if let Some(lease) = read(&file)
            && !give_back(&lease, &file)
        {
            let what = "what an earlier migration took of its CPU time could not be given back";
            return Err(VmmError::Failed(what.to_owned()));
        }
        Ok(Self {
            lease: Lease {
                pid,
                started_ticks: started_ticks(pid)?,
                group: Group::of(pid, Path::new("/proc"))?,
            },
            file,
            since: Instant::now(),
            ticks: used_ticks(pid)?,
            used_micro_cores: None,
        })
    }

    /// A round begins: what the VMM uses in it is what may be taken of, as long as nothing is.
    pub fn mark(&mut self) {
        if !self.is_taken()
            && let Ok(ticks) = used_ticks(self.lease.pid)
        {
            (self.since, self.ticks) = (Instant::now(), ticks);
        }
    }

    /// Takes `percent` of what the VMM used before anything was taken.
    ///
    /// # Errors
    /// [`VmmError::System`]: nothing more is taken than before.
    pub fn take(&mut self, percent: u8) -> Result<(), VmmError> {
        let used = match self.used_micro_cores {
            Some(used) => used,
            None => self.begin()?,
        };
        let left = used * u64::from(100 - percent.min(99)) / 100;
        let limited = self
            .lease
            .group
            .limit(self.lease.pid, left.max(MICRO_CORES_MIN));
        if limited.is_err() {
            self.give_back();
        }
        limited
    }

    fn begin(&mut self) -> Result<u64, VmmError> {
        let ticks = used_ticks(self.lease.pid)?.saturating_sub(self.ticks);
        let seconds = self.since.elapsed().as_secs_f64().max(0.01);
        let used = (ticks as f64 / ticks_per_s()? / seconds * 1e6) as u64;
        write_durably(&self.file, &self.lease)
            .map_err(|error| VmmError::system(self.file.display().to_string(), error))?;
        Ok(*self.used_micro_cores.insert(used))
    }

    /// Whether anything is taken.
    #[must_use]
    pub const fn is_taken(&self) -> bool {
        self.used_micro_cores.is_some()
    }

    /// Gives everything back.
    pub fn give_back(&mut self) {
        if self.used_micro_cores.take().is_some() {
            give_back(&self.lease, &self.file);
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Gives back what a data plane that was killed had taken. Returns the VMMs.
pub fn give_back_all(state_folder: &Path) -> Vec<i32> {
    let Ok(files) = fs::read_dir(state_folder.join(FOLDER)) else {
        return vec![];
    };
    let mut pids = vec![];
    for file in files.flatten().map(|file| file.path()) {
        match read(&file) {
            Some(lease) => {
                give_back(&lease, &file);
                pids.push(lease.pid);
            }
            // Nothing is taken before the file is whole.
            None => drop(fs::remove_file(&file)),
        }
    }
    pids
}

fn read(file: &Path) -> Option<Lease> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Whether nothing is taken any more.
fn give_back(lease: &Lease, file: &Path) -> bool {
    let is_it = started_ticks(lease.pid).is_ok_and(|ticks| ticks == lease.started_ticks);
    match lease.group.lift(is_it) {
        Err(error) if is_it => {
            // The file stays: it is tried again by the next migration, and at the next start.
            tracing::error!(pid = lease.pid, %error, "the VMM's CPU time is still limited");
            false
        }
        _ => {
            let _ = fs::remove_file(file);
            true
        }
    }
}

fn write_durably(file: &Path, lease: &Lease) -> io::Result<()> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut out = fs::File::create(file)?;
    out.write_all(&serde_json::to_vec(lease)?)?;
    out.sync_all()?;
    fs::File::open(folder)?.sync_all()
}

/// CPU time of a process so far, in clock ticks.
fn used_ticks(pid: i32) -> Result<u64, VmmError> {
    // User and system time are the 12th and 13th field behind the name.
    Ok(stat_fields(pid, [11, 12])?.iter().sum())
}

fn ticks_per_s() -> Result<f64, VmmError> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .map_err(|error| VmmError::system("sysconf", error))?;
    Ok(ticks.unwrap_or(100) as f64)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// A process that takes all of a core.
    struct Busy(Child);

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Busy {
        fn start() -> Self {
            let looping = Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn();
            Self(looping.unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }

        fn group(&self) -> String {
            fs::read_to_string(format!("/proc/{}/cgroup", self.pid())).unwrap()
        }
    }

    fn taken(busy: &Busy, state: &Path) -> Option<Throttle> {
        let mut throttle = match Throttle::watch(busy.pid(), state) {
            Ok(throttle) => throttle,
            Err(error) => {
                eprintln!("skipped: CPU time cannot be limited here: {error}");
                return None;
            }
        };
        std::thread::sleep(Duration::from_millis(300));
        if let Err(error) = throttle.take(80) {
            eprintln!("skipped: CPU time cannot be limited here: {error}");
            return None;
        }
        Some(throttle)
    }

    /// CPU time in a second, of what it takes without a limit on a machine that is as busy.
    fn share(busy: &Busy) -> f64 {
        let free = Busy::start();
        let of = |busy: &Busy| used_ticks(busy.pid()).unwrap();
        let (before, before_free) = (of(busy), of(&free));
        std::thread::sleep(Duration::from_secs(1));
        (of(busy) - before) as f64 / (of(&free) - before_free).max(1) as f64
    }

    #[test]
    fn a_process_gets_less_of_a_core_and_then_all_of_it() {
        let (state, busy) = (tempfile::tempdir().unwrap(), Busy::start());
        let before = busy.group();
        let Some(mut throttle) = taken(&busy, state.path()) else {
            return;
        };
        assert!(throttle.is_taken());
        let less = share(&busy);
        throttle.give_back();
        let all = share(&busy);
        assert!(less < all / 2.0, "{less} of {all}");
        assert_eq!(busy.group(), before);
        assert_eq!(give_back_all(state.path()), Vec::<i32>::new());
    }

    #[test]
    fn what_a_killed_data_plane_took_is_given_back_by_the_next() {
        let (state, busy) = (tempfile::tempdir().unwrap(), Busy::start());
        let before = busy.group();
        let Some(throttle) = taken(&busy, state.path()) else {
            return;
        };
        std::mem::forget(throttle);
        assert_eq!(give_back_all(state.path()), vec![busy.pid()]);
        assert_eq!(busy.group(), before);
        assert_eq!(give_back_all(state.path()), Vec::<i32>::new());
    }

    /// Otherwise the limit would be what it was before, and be given back for ever.
    #[test]
    fn what_was_left_is_given_back_before_anything_is_taken_again() {
        let (state, busy) = (tempfile::tempdir().unwrap(), Busy::start());
        let before = busy.group();
        let Some(throttle) = taken(&busy, state.path()) else {
            return;
        };
        std::mem::forget(throttle);
        let again = Throttle::watch(busy.pid(), state.path()).unwrap();
        assert_eq!(busy.group(), before);
        drop(again);
        // Of a state folder that is gone.
        let Some(throttle) = taken(&busy, state.path()) else {
            return;
        };
        std::mem::forget(throttle);
        let elsewhere = tempfile::tempdir().unwrap();
        let mut again = Throttle::watch(busy.pid(), elsewhere.path()).unwrap();
        again.take(50).unwrap();
        drop(again);
        assert_eq!(busy.group(), before);
    }

    #[test]
    fn a_vmm_that_is_gone_leaves_nothing_behind() {
        let (state, busy) = (tempfile::tempdir().unwrap(), Busy::start());
        let Some(mut throttle) = taken(&busy, state.path()) else {
            return;
        };
        drop(busy);
        throttle.give_back();
        assert_eq!(fs::read_dir(state.path().join(FOLDER)).unwrap().count(), 0);
    }
}
