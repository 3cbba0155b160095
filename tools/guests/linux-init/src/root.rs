//! Going over to a system on a disk: `dwcp.workload=NAME` on the kernel's command line asks for it.
//!
//! The disk is mounted read-only, with a writable layer in RAM above it. So nothing is ever written to
//! it, and both ends of a move can have the same image.

use std::ffi::CStr;
use std::fs::{self, File, create_dir_all};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

use crate::program::mount;

/// Kernel modules of the archive, in the order of their names.
const MODULES: &str = "/modules";

/// The disk.
const DISK: &CStr = c"/dev/vda";

/// What goes on there.
const INIT: &str = "/sbin/dwcp-workload";

/// The kernel finds a disk long before.
const DISK_TIME: Duration = Duration::from_secs(30);

/// Whether the command line asks for it.
pub(crate) fn is_wanted(command_line: &str) -> bool {
    let mut words = command_line.split_ascii_whitespace();
    words.any(|word| word.starts_with("dwcp.workload="))
}

/// Goes over. Returns only what went wrong.
pub(crate) fn enter() -> String {
    let on_the_way = || -> Result<(), String> {
        load_modules()?;
        mount(c"devtmpfs", c"/dev").map_err(|error| format!("/dev: {error}"))?;
        wait_for_disk()?;
        mount_layers().map_err(|error| format!("the disk's file system: {error}"))?;
        change_root().map_err(|error| format!("changing the root: {error}"))
    };
    match on_the_way() {
        Ok(()) => format!("{INIT}: {}", Command::new(INIT).exec()),
        Err(reason) => reason,
    }
}

fn load_modules() -> Result<(), String> {
    let folder = fs::read_dir(MODULES).map_err(|error| format!("{MODULES}: {error}"))?;
    let mut files: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        load(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: an open file, an empty C string that outlives the call, no flags.
    let loaded =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match loaded {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // It is there already.
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}

fn wait_for_disk() -> Result<(), String> {
    let path = DISK.to_string_lossy();
    let deadline = Instant::now() + DISK_TIME;
    while !Path::new(path.as_ref()).exists() {
        if Instant::now() > deadline {
            return Err(format!("no disk {path}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn mount_layers() -> io::Result<()> {
    mount_at(DISK, c"/disk", c"ext4", libc::MS_RDONLY, c"")?;
    mount(c"tmpfs", c"/layer")?;
    create_dir_all("/layer/upper")?;
    create_dir_all("/layer/work")?;
    let layers = c"lowerdir=/disk,upperdir=/layer/upper,workdir=/layer/work";
    mount_at(c"overlay", c"/root", c"overlay", 0, layers)?;
    mount(c"devtmpfs", c"/root/dev")
}

fn change_root() -> io::Result<()> {
    std::env::set_current_dir("/root")?;
    mount_at(c".", c"/", c"", libc::MS_MOVE, c"")?;
    chroot(".")?;
    std::env::set_current_dir("/")
}

fn mount_at(
    source: &CStr,
    folder: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    create_dir_all(folder.to_string_lossy().as_ref())?;
    // SAFETY: C strings that outlive the call, which only reads them.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            flags,
            if data.is_empty() {
                ptr::null()
            } else {
                data.as_ptr().cast()
            },
        )
    };
    match mounted {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
