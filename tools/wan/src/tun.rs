//! A TUN device: IP packets in and out, superframes as the kernel has them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

/// Where they come from.
pub(crate) const TUN_PATH: &str = "/dev/net/tun";

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
}

/// One device; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes the device in the network namespace of the calling thread.
    pub(crate) fn open(device: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN_PATH)?;
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: i16::try_from(flags).map_err(io::Error::other)?,
            },
        };
        // SAFETY: the descriptor is open and `request` is a whole `ifreq` that outlives the call.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }?;
        let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
        // SAFETY: the descriptor is open; the argument is a plain number.
        unsafe { ioctl::set_offload(file.as_raw_fd(), offload.cast_signed()) }?;
        Ok(Self { file })
    }

    /// The next frame, if one is there.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_nothing_there(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a frame to the kernel; false where it refuses it.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        (&self.file).write(frame).is_ok()
    }
}

/// A device that is down gives `EIO`: there is nothing to be had until it is up.
fn is_nothing_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(libc::EIO)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
