//! A Debian with something to do: a database, a store beside a compiler, or next to nothing. What it is
//! for: RAM as servers have it, instead of RAM filled by a pattern.
//!
//! The disk is made by `tools/setup --workloads`, and read-only. Booting and filling takes minutes under
//! emulation: a guest that is warm is saved to a file, and others go on from there.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use dwcp_qmp::MigrationStatus;

use super::builder::{Backend, qemu_binary};
use super::images::{Images, archive_of, linux_init, linux_kernel, read, repository_root, rewrite};
use super::{GuestError, QemuGuest};

/// Names a disk made by `tools/setup --workloads`.
const DISK_VARIABLE: &str = "DWCP_WORKLOAD_DISK";

/// Boot, start and fill may take so long under emulation.
const WARM_TIME: Duration = Duration::from_secs(900);

/// A saved guest is read or written within this time.
const STATE_TIME: Duration = Duration::from_secs(120);

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// `PostgreSQL` with a million rows, and 20 transactions a second.
    Database,
    /// Redis with 120,000 records of which some are rewritten, beside compilers.
    Store,
    /// Daemons, and a page cache.
    Idle,
}

/// A workload, and which of the guests that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadGuest {
    /// What it does.
    pub workload: Workload,
    /// Two guests of different seeds were booted one by one, and their data differs.
    pub seed: u32,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Database, Self::Store, Self::Idle];

    /// Its name, on the command line as in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Store => "store",
            Self::Idle => "idle",
        }
    }

    /// RAM of a guest that does it, MiB.
    #[must_use]
    pub const fn memory_mib(self) -> u64 {
        match self {
            Self::Database => 1024,
            Self::Store => 768,
            Self::Idle => 512,
        }
    }
}

impl WorkloadGuest {
    /// For the kernel's command line.
    pub(super) fn command_line(self) -> String {
        format!(
            "dwcp.workload={} dwcp.seed={}",
            self.workload.name(),
            self.seed
        )
    }

    /// The file with this guest, warm; boots it when there is none yet.
    ///
    /// # Errors
    /// [`GuestError`]: what is missing, or how the guest failed.
    pub fn warm(self, say: &mut dyn FnMut(&str)) -> Result<PathBuf, GuestError> {
        let disk = workload_disk()?;
        let folder = disk.with_file_name("states");
        let file_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| GuestError::File { path, source }
        };
        fs::create_dir_all(&folder).map_err(file_error(&folder))?;
        let name = format!("{}-{}", self.workload.name(), self.seed);
        let path = folder.join(format!("{name}-{:016x}.state", self.key(&disk)?));
        if path.is_file() {
            return Ok(path);
        }
        say(&format!(
            "{name}: no saved guest yet; booting one, some minutes"
        ));
        let scratch = tempfile::tempdir_in(&folder).map_err(file_error(&folder))?;
        let unnamed = scratch.path().join("state");
        self.boot_and_save(scratch.path(), &unnamed)?;
        fs::rename(&unnamed, &path).map_err(file_error(&path))?;
        Ok(path)
    }

    fn boot_and_save(self, folder: &Path, state: &Path) -> Result<(), GuestError> {
        let mut guest = QemuGuest::builder(self.workload.name(), folder)
            .workload(self)
            .backend(Backend::Private)
            .spawn()?;
        guest.wait_warm(WARM_TIME)?;
        let mut qmp = guest.qmp()?;
        // Stopped, it is written in one pass, and goes on at `cont`.
        qmp.stop()?;
        qmp.migrate(&format!("exec:cat > '{}'", state.display()))?;
        let end = qmp.wait_migrate(|info| info.status.is_final(), STATE_TIME)?;
        match end.status {
            MigrationStatus::Completed => Ok(()),
            status => Err(GuestError::Failed {
                name: guest.name().to_owned(),
                detail: format!(
                    "it cannot be saved: {status:?} {}",
                    end.error_desc.unwrap_or_default()
                ),
            }),
        }
    }

    /// Changes with all that a saved guest was made of.
    fn key(self, disk: &Path) -> Result<u64, GuestError> {
        let mut hasher = DefaultHasher::new();
        self.workload.memory_mib().hash(&mut hasher);
        self.command_line().hash(&mut hasher);
        read(&linux_init()?)?.hash(&mut hasher);
        for path in [disk, &linux_kernel()?] {
            let about = fs::metadata(path).map_err(|source| GuestError::File {
                path: path.into(),
                source,
            })?;
            let modified = about.modified().ok();
            let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            (about.len(), since).hash(&mut hasher);
        }
        let binary = qemu_binary();
        let version = Command::new(&binary).arg("--version").output();
        let version = version.map_err(|source| GuestError::Spawn {
            binary: binary.to_string_lossy().into_owned(),
            source,
        })?;
        version.stdout.hash(&mut hasher);
        Ok(hasher.finish())
    }
}

impl QemuGuest {
    /// Lets a guest that was started with `incoming` and `paused` go on from a saved state.
    ///
    /// # Errors
    /// [`GuestError::Ended`] with QEMU's words when the state is not one of such a guest.
    pub fn restore(&mut self, state: &Path) -> Result<(), GuestError> {
        let mut qmp = self.qmp()?;
        qmp.migrate_incoming(&format!("exec:cat '{}'", state.display()))?;
        // It has not begun yet while there is none.
        let is_over =
            |status: MigrationStatus| status.is_final() && status != MigrationStatus::None;
        let end = qmp.wait_migrate(|info| is_over(info.status), STATE_TIME);
        // QEMU ends where it cannot read a state; that says more than the monitor.
        self.check_alive()?;
        end?;
        qmp.cont()?;
        Ok(())
    }
}

/// The disk that `tools/setup --workloads` made.
///
/// # Errors
/// [`GuestError::NoImage`] says how to make it.
pub fn workload_disk() -> Result<PathBuf, GuestError> {
    let named = env::var_os(DISK_VARIABLE).map(PathBuf::from);
    let made = repository_root().map(|root| root.join(".cache/workloads/debian.raw"));
    let found = [named, made]
        .into_iter()
        .flatten()
        .find(|path| path.is_file());
    found.ok_or_else(|| GuestError::NoImage {
        what: "disk for the workloads",
        hint: format!("run `tools/setup --workloads` as root, or name one in {DISK_VARIABLE}"),
    })
}

/// The disk as an argument of QEMU: read-only, so both ends of a move may have it open.
pub(super) fn disk_arguments() -> Result<[OsString; 2], GuestError> {
    let mut drive = OsString::from("format=raw,if=virtio,readonly=on,file=");
    // A comma would end the name.
    drive.push(workload_disk()?.to_string_lossy().replace(',', ",,"));
    Ok(["-drive".into(), drive])
}

/// The kernel, and an archive with what it needs to reach the disk.
pub(super) fn images() -> Result<Images, GuestError> {
    let kernel = linux_kernel()?;
    let folder = kernel.with_file_name("modules");
    let listed = fs::read_dir(&folder).map_err(|_| GuestError::NoImage {
        what: "kernel modules for the guest's disk",
        hint: format!(
            "{} is missing: run `tools/setup --workloads`",
            folder.display()
        ),
    })?;
    let mut modules: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    let mut cpio = archive_of(&linux_init()?)?;
    cpio.folder("modules", 0o755);
    for module in &modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        cpio.file(&format!("modules/{name}"), 0o644, &read(module)?);
    }
    let initrd = rewrite("dwcp-guest-workload.cpio", &cpio.finish())?;
    Ok(Images {
        kernel,
        initrd: Some(initrd),
    })
}
