//! Running a program of the host's in the guest, with what a program expects of a Linux: `/proc`, `/sys`,
//! `/dev`, a shared memory folder, a temporary one, the loopback interface.
//!
//! `dwcp.run=PATH` on the kernel's command line names it, `dwcp.args=A,B` its arguments. What it prints
//! goes to the serial port, and at last:
//! ```text
//! DWCP EXIT 0
//! ```

use std::ffi::CStr;
use std::fs::create_dir_all;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::ptr;

/// What is mounted: type, folder.
const MOUNTS: [(&CStr, &CStr); 4] = [
    (c"sysfs", c"/sys"),
    (c"devtmpfs", c"/dev"),
    (c"tmpfs", c"/dev/shm"),
    (c"tmpfs", c"/tmp"),
];

/// Mounts one file system.
pub(crate) fn mount(kind: &CStr, folder: &CStr) -> io::Result<()> {
    create_dir_all(folder.to_string_lossy().as_ref())?;
    // SAFETY: three C strings that outlive the call, which only reads them; no data argument.
    let mounted = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            ptr::null(),
        )
    };
    if mounted == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The program that the command line asks for, and its arguments.
pub(crate) fn wanted(command_line: &str) -> Option<Command> {
    let value = |key| {
        let mut words = command_line.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key))
    };
    let mut command = Command::new(value("dwcp.run=")?);
    let arguments = value("dwcp.args=").unwrap_or_default().split(',');
    command.args(arguments.filter(|argument| !argument.is_empty()));
    Some(command)
}

/// Runs it to its end, says how that was, and ends the machine.
pub(crate) fn run(mut program: Command) -> ! {
    for (kind, folder) in MOUNTS {
        if let Err(error) = mount(kind, folder) {
            println!("DWCP no {}: {error}", folder.to_string_lossy());
        }
    }
    if let Err(error) = loopback_up() {
        println!("DWCP no loopback: {error}");
    }
    match program.current_dir("/tmp").status() {
        Ok(status) => println!("DWCP EXIT {}", status.code().unwrap_or(-1)),
        Err(error) => println!("DWCP FAILED {}: {error}", program.get_program().display()),
    }
    // SAFETY: there is nothing to lose: no disk, no other process. The call does not return; started
    // with -no-reboot, QEMU ends.
    unsafe {
        libc::reboot(libc::LINUX_REBOOT_CMD_RESTART);
    }
    crate::stay_forever("DWCP FAILED the machine does not end")
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: no pointers; a new descriptor or -1.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: an `ifreq` is plain numbers and a union of such; all zero is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
