//! Limits of a node of the lab that are real: a disk that is small, memory that is not there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where the kernel has its first memory controller; nothing of it is needed where it has not.
const CAGES: &str = "/sys/fs/cgroup/memory";

/// A process that grows may be larger than what was to be its limit when that is set.
const CLOSE_TRIES: u32 = 16;

/// A disk in memory under a folder. Dropping it takes it away, with what is on it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes.
    ///
    /// # Errors
    /// From the system: it needs root.
    pub fn mount(folder: &Path, bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let options = format!("size={bytes},mode=700");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(
            Some("dwcp-lab"),
            folder,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A daemon that has not quite ended must not keep it.
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

/// A memory cgroup around one process. Dropping it lets the process, if it is left, go.
#[derive(Debug)]
pub struct MemoryCage {
    folder: PathBuf,
}

impl MemoryCage {
    /// Whether this machine has such cgroups.
    #[must_use]
    pub fn is_possible() -> bool {
        Path::new(CAGES).join("memory.usage_in_bytes").exists()
    }

    /// Puts a process into one without a limit.
    ///
    /// # Errors
    /// From the system: it needs root, and a cgroup of version 1.
    pub fn around(pid: u32) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dwcp-lab-{}-{number}", std::process::id());
        let folder = Path::new(CAGES).join(name);
        std::fs::create_dir(&folder)?;
        let cage = Self { folder };
        cage.write("cgroup.procs", &pid.to_string())?;
        Ok(cage)
    }

    /// From now on the process gets so many bytes more than it has: the kernel ends it where it needs others.
    ///
    /// # Errors
    /// From the system.
    pub fn close(&self, left_bytes: u64) -> io::Result<()> {
        for _ in 0..CLOSE_TRIES {
            match self.try_close(left_bytes) {
                // It took more than that meanwhile.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                closed => return closed,
            }
        }
        self.try_close(left_bytes)
    }

    fn try_close(&self, left_bytes: u64) -> io::Result<()> {
        let path = self.folder.join("memory.usage_in_bytes");
        let used = std::fs::read_to_string(path)?;
        let used: u64 = used.trim().parse().map_err(io::Error::other)?;
        self.write("memory.limit_in_bytes", &(used + left_bytes).to_string())
    }

    /// It gets what it needs again.
    ///
    /// # Errors
    /// From the system.
    pub fn open(&self) -> io::Result<()> {
        self.write("memory.limit_in_bytes", "-1")
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        std::fs::write(self.folder.join(file), text)
    }
}

impl Drop for MemoryCage {
    fn drop(&mut self) {
        let processes = std::fs::read_to_string(self.folder.join("cgroup.procs"));
        for process in processes.unwrap_or_default().lines() {
            let _ = std::fs::write(Path::new(CAGES).join("cgroup.procs"), process);
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}
