//! Making a userfaultfd, by whichever door is open.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY`: faults of the kernel itself are not reported. Write tracking does not need
/// them, since the kernel resolves those faults by itself.
const USER_MODE_ONLY: c_int = 1;

/// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0x00)`.
const IOC_NEW: libc::Ioctl = 0xAA00;

const FLAGS: c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// A userfaultfd, and which faults it tells.
pub(crate) struct Userfaultfd {
    pub(crate) fd: OwnedFd,
    /// Those of the kernel, too: without them the guest may not run on missing pages.
    pub(crate) tells_kernel_faults: bool,
}

/// The system call, then the device (group access by a udev rule), then user-mode faults only.
pub(crate) fn create() -> io::Result<Userfaultfd> {
    let of = |tells_kernel_faults| {
        move |fd| Userfaultfd {
            fd,
            tells_kernel_faults,
        }
    };
    by_call(FLAGS)
        .or_else(|_| by_device())
        .map(of(true))
        .or_else(|_| by_call(FLAGS | USER_MODE_ONLY).map(of(false)))
}

fn by_call(flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: userfaultfd(2) takes flags alone and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    owned(fd)
}

fn by_device() -> io::Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")?;
    // SAFETY: this ioctl takes flags by value and touches no memory of ours.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, FLAGS) };
    owned(fd.into())
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = c_int::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
