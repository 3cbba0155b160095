//! The userfaultfd of a VMM: what can be asked of the kernel with it from another process.
//!
//! See userfaultfd(2), ioctl_userfaultfd(2). It belongs to the address space that made it; all
//! addresses here are the VMM's.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_simd::{PAGE_BYTES, Page};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::VmmError;

const UFFD_API: u64 = 0xAA;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_PAGEFAULT: u8 = 0x12;

/// Bytes of a `uffd_msg`.
const EVENT_BYTES: usize = 32;

/// Where the address lies in one that tells a fault.
const EVENT_ADDRESS: usize = 16;

#[repr(C)]
#[derive(Debug)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug)]
struct RegisterArgument {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct CopyArgument {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    /// Bytes copied, or an error with the sign turned.
    copied: i64,
}

#[repr(C)]
#[derive(Debug)]
struct ZeroArgument {
    range: Range,
    mode: u64,
    /// As [`CopyArgument::copied`].
    zeroed: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, ApiArgument);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, RegisterArgument);
nix::ioctl_read!(uffdio_unregister, 0xAA, 0x01, Range);
nix::ioctl_read!(uffdio_wake, 0xAA, 0x02, Range);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, CopyArgument);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroArgument);

/// A userfaultfd as the VMM gave it.
#[derive(Debug)]
pub struct HandedUserfaultfd {
    /// The descriptor.
    pub fd: OwnedFd,
    /// Faults of the kernel itself are told as well, as when it copies into guest RAM for the VMM.
    pub tells_kernel_faults: bool,
}

/// What faults are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// First writes are noted by the kernel.
    Writes,
    /// Pages without memory are told, and waited for.
    Missing,
}

/// A userfaultfd whose API was agreed on.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Agrees on the API, unless a mover before this one has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(fd: OwnedFd, faults: Faults) -> Result<Self, VmmError> {
        let tracking = FEATURE_PAGEFAULT_FLAG_WP
            | FEATURE_WP_HUGETLBFS_SHMEM
            | FEATURE_WP_UNPOPULATED
            | FEATURE_WP_ASYNC;
        let missing = FEATURE_MISSING_SHMEM | FEATURE_MISSING_HUGETLBFS;
        let this = Self { fd };
        match this.agree(tracking | missing) {
            // It was agreed on: registering tells whether for the same. Or the kernel lacks a part.
            Err(Errno::EINVAL | Errno::EPERM) if faults == Faults::Missing => {
                let _ = this.agree(missing);
                Ok(this)
            }
            Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(this),
            Err(errno) => Err(VmmError::system("UFFDIO_API", errno)),
        }
    }

    fn agree(&self, features: u64) -> Result<(), Errno> {
        let mut api = ApiArgument {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes `api`, ours alone, within its size.
        unsafe { uffdio_api(self.fd.as_raw_fd(), &raw mut api) }.map(drop)
    }

    /// Has the faults of a range told, or noted.
    ///
    /// # Errors
    /// [`VmmError::System`].
    pub fn register(&self, start: u64, len: u64, faults: Faults) -> Result<(), VmmError> {
        let mut argument = RegisterArgument {
            range: Range { start, len },
            mode: match faults {
                Faults::Writes => REGISTER_MODE_WP,
                Faults::Missing => REGISTER_MODE_MISSING,
            },
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes `argument`, ours alone, within its size; the range is in
        // the VMM's address space, where it only changes what becomes of faults.
        unsafe { uffdio_register(self.fd.as_raw_fd(), &raw mut argument) }
            .map(drop)
            .map_err(|errno| VmmError::system("UFFDIO_REGISTER", errno))
    }

    /// Faults of a range are the kernel's again. Who waits goes on: what is missing is zero then.
    ///
    /// # Errors
    /// From the system: a VMM that is gone has no ranges.
    pub fn unregister(&self, start: u64, len: u64) -> Result<(), Errno> {
        let mut range = Range { start, len };
        // SAFETY: the kernel reads `range`, ours alone; see above.
        unsafe { uffdio_unregister(self.fd.as_raw_fd(), &raw mut range) }.map(drop)
    }

    /// Puts pages where none are, and wakes who waits for them. Returns how many were put: fewer than
    /// all when one is there already, or a signal came.
    ///
    /// # Errors
    /// `EEXIST` when the first is there already.
    pub fn copy(&self, to: u64, pages: &[Page]) -> Result<usize, Errno> {
        let mut argument = CopyArgument {
            to,
            from: pages.as_ptr() as u64,
            len: size_of_val(pages) as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the kernel reads and writes `argument`, and reads `len` bytes at `from`, which are
        // `pages`. It writes pages of the VMM that have no memory: nobody has a reference to those.
        let done = unsafe { uffdio_copy(self.fd.as_raw_fd(), &raw mut argument) };
        done_pages(done, argument.copied)
    }

    /// Puts zero pages where none are; otherwise as [`Self::copy`].
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn zero(&self, to: u64, count: u32) -> Result<usize, Errno> {
        let mut argument = ZeroArgument {
            range: Range {
                start: to,
                len: u64::from(count) * PAGE_BYTES as u64,
            },
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: the kernel reads and writes `argument`, ours alone; see above.
        let done = unsafe { uffdio_zeropage(self.fd.as_raw_fd(), &raw mut argument) };
        done_pages(done, argument.zeroed)
    }

    /// Wakes who waits in a range: they try again, and what is still missing is told again.
    pub fn wake(&self, start: u64, len: u64) {
        let mut range = Range { start, len };
        // SAFETY: the kernel reads `range`, ours alone. With nobody to wake nothing happens.
        let _ = unsafe { uffdio_wake(self.fd.as_raw_fd(), &raw mut range) };
    }

    /// Addresses of faults that wait, handed to `take`. Returns at once.
    ///
    /// # Errors
    /// From the system.
    pub fn read_faults(&self, mut take: impl FnMut(u64)) -> Result<(), Errno> {
        let mut bytes = [0; 64 * EVENT_BYTES];
        match nix::unistd::read(&self.fd, &mut bytes) {
            Ok(filled) => {
                let (events, _) = bytes[..filled].as_chunks::<EVENT_BYTES>();
                for event in events.iter().filter(|event| event[0] == EVENT_PAGEFAULT) {
                    let address = event[EVENT_ADDRESS..].first_chunk();
                    take(address.map_or(0, |bytes| u64::from_ne_bytes(*bytes)));
                }
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Of a call that did something the count is told beside an error that stopped it.
fn done_pages(outcome: Result<i32, Errno>, bytes: i64) -> Result<usize, Errno> {
    match outcome {
        Err(errno) if bytes <= 0 => Err(errno),
        _ => Ok(usize::try_from(bytes).unwrap_or(0) / PAGE_BYTES),
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gets the userfaultfd of a VMM from its preload library.
///
/// # Errors
/// When nobody serves `path`, or the library has none to give.
pub fn fetch(path: &str) -> Result<HandedUserfaultfd, VmmError> {
    let failed =
        |error: std::io::Error| VmmError::system(format!("userfaultfd socket {path}"), error);
    let stream = UnixStream::connect(path).map_err(failed)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .map_err(failed)?;
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)
        .map_err(|errno| failed(errno.into()))?;
    let mut handed = None;
    for control in message.cmsgs().map_err(|errno| failed(errno.into()))? {
        if let ControlMessageOwned::ScmRights(raw) = control
            && let Some(&fd) = raw.first()
        {
            // SAFETY: the kernel has just made this descriptor for this process; there is room for
            // one only, and it is taken once.
            handed = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    let fd = handed
        .ok_or_else(|| VmmError::Failed("the kernel refuses userfaultfd to the VMM".into()))?;
    Ok(HandedUserfaultfd {
        fd,
        tells_kernel_faults: byte != *b"2",
    })
}
