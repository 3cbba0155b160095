//! Write tracking of another process: its userfaultfd in `WP_ASYNC` mode, read by `PAGEMAP_SCAN`.
//!
//! A protected page costs the guest one fault at its first write, resolved by the kernel alone.
//! Not seen: writes by other processes (our own at a destination), pwrite to the file, DMA into
//! pages pinned earlier, hole punching. See userfaultfd(2), ioctl_userfaultfd(2).

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_simd::PAGE_BYTES;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::pagemap::Pagemap;
use super::{Collected, DirtyTracker, VmmError};
use crate::ram::{RamBitmap, RamBlock, RamLayout};

/// What a probe tracks: the largest page that there is, since a part of one cannot be tracked. Two
/// milliseconds at most.
const PROBE_BYTES: u64 = 1 << 30;

const UFFD_API: u64 = 0xAA;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

#[repr(C)]
#[derive(Debug)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
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

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, ApiArgument);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, RegisterArgument);
nix::ioctl_read!(uffdio_unregister, 0xAA, 0x01, Range);

/// Tracks the writes of the process that made a userfaultfd.
#[derive(Debug)]
pub struct Userfaultfd {
    uffd: OwnedFd,
    pagemap: Pagemap,
    /// Address and bytes of each block in the VMM.
    blocks: Vec<(u64, u64)>,
    /// Some of them may be registered. Another tracker may register them once this one is disarmed.
    registered: bool,
}

impl Userfaultfd {
    /// Registers the blocks of `layout` for tracking.
    ///
    /// # Errors
    /// When the kernel is older than 6.7, or refuses.
    pub fn new(uffd: OwnedFd, pid: i32, layout: &RamLayout) -> Result<Self, VmmError> {
        let mut tracker = Self::open(uffd, pid, layout.blocks())?;
        // Proves that the kernel knows PAGEMAP_SCAN and tracks the range asynchronously.
        tracker.arm()?;
        Ok(tracker)
    }

    /// Whether [`Self::new`] would succeed, by tracking a little of the first block for a moment.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn probe(uffd: OwnedFd, pid: i32, layout: &RamLayout) -> Result<(), VmmError> {
        let first = layout.blocks().get(..1).unwrap_or_default();
        Self::open(uffd, pid, first)?.take(PROBE_BYTES, |_, _, _| {})
    }

    fn open(uffd: OwnedFd, pid: i32, blocks: &[RamBlock]) -> Result<Self, VmmError> {
        let features = FEATURE_PAGEFAULT_FLAG_WP
            | FEATURE_WP_HUGETLBFS_SHMEM
            | FEATURE_WP_UNPOPULATED
            | FEATURE_WP_ASYNC;
        let mut api = ApiArgument {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes `api`, ours alone, within its size.
        match unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) } {
            // A mover before us has done it: registering tells whether it asked for the same.
            Ok(_) | Err(Errno::EINVAL | Errno::EPERM) => {}
            Err(errno) => return Err(VmmError::system("UFFDIO_API", errno)),
        }
        let pagemap =
            Pagemap::open(pid).map_err(|e| VmmError::system(format!("/proc/{pid}/pagemap"), e))?;
        let tracker = Self {
            uffd,
            pagemap,
            blocks: blocks
                .iter()
                .map(|block| (block.vmm_address(), block.bytes()))
                .collect(),
            registered: true,
        };
        tracker.register()?;
        Ok(tracker)
    }

    fn register(&self) -> Result<(), VmmError> {
        for &(start, len) in &self.blocks {
            let range = Range { start, len };
            let mut argument = RegisterArgument {
                range,
                mode: REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: the kernel reads and writes `argument`, ours alone, within its size; the
            // range is in the VMM's address space, where it only changes how writes are noted.
            unsafe { uffdio_register(self.uffd.as_raw_fd(), &raw mut argument) }
                .map_err(|errno| VmmError::system("UFFDIO_REGISTER", errno))?;
        }
        Ok(())
    }

    /// Takes what was written in the first `most` bytes of each block.
    fn take(
        &mut self,
        most: u64,
        mut written: impl FnMut(usize, u32, u32),
    ) -> Result<(), VmmError> {
        for (index, &(start, bytes)) in self.blocks.iter().enumerate() {
            self.pagemap
                .take_written(start, bytes.min(most), |page, count| {
                    written(index, page, count);
                })
                .map_err(|errno| match errno {
                    Errno::ENOTTY => VmmError::Failed(
                        "the kernel has no PAGEMAP_SCAN (Linux 6.7 or newer is needed)".into(),
                    ),
                    Errno::ESRCH => VmmError::Gone("no such process".into()),
                    errno => VmmError::system("PAGEMAP_SCAN", errno),
                })?;
        }
        Ok(())
    }
}

impl DirtyTracker for Userfaultfd {
    fn name(&self) -> &'static str {
        "userfaultfd"
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn arm(&mut self) -> Result<(), VmmError> {
        self.take(u64::MAX, |_, _, _| {})
    }

    fn collect(&mut self, dirty: &mut RamBitmap) -> Result<Collected, VmmError> {
        self.take(u64::MAX, |block, page, count| {
            dirty.blocks[block].set_range(page, count);
        })?;
        Ok(Collected::Marked)
    }

    fn disarm(&mut self) {
        if !std::mem::take(&mut self.registered) {
            return;
        }
        for &(start, len) in &self.blocks {
            let mut range = Range { start, len };
            // SAFETY: the kernel reads `range`, ours alone. Unregistering lifts the protection; a
            // VMM that is gone has none, so that an error changes nothing.
            let _ = unsafe { uffdio_unregister(self.uffd.as_raw_fd(), &raw mut range) };
        }
    }
}

impl Drop for Userfaultfd {
    /// The VMM keeps its userfaultfd, and with it what is registered: each write would cost the guest
    /// a fault for ever.
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Gets the userfaultfd of a VMM from its preload library.
///
/// # Errors
/// When nobody serves `path`, or the library has none to give.
pub fn fetch(path: &str) -> Result<OwnedFd, VmmError> {
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
    for control in message.cmsgs().map_err(|errno| failed(errno.into()))? {
        if let ControlMessageOwned::ScmRights(raw) = control
            && let Some(&fd) = raw.first()
        {
            // SAFETY: the kernel has just made this descriptor for this process; there is room for
            // one only, and it is taken once.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(VmmError::Failed(
        "the kernel refuses userfaultfd to the VMM".into(),
    ))
}

const _: () = assert!(PAGE_BYTES == 4096);

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::ram::RamBlock;

    fn userfaultfd() -> Option<OwnedFd> {
        // SAFETY: userfaultfd(2) takes flags alone and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// A block of `pages` pages that this process, which plays the VMM, has mapped at `address`.
    fn block(address: u64, pages: u64) -> RamBlock {
        let bytes = pages * PAGE_BYTES as u64;
        let file = memfd_create("dwcp-test-ram", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, bytes as i64).unwrap();
        RamBlock::map("ram".into(), file, bytes, address).unwrap()
    }

    /// A range that stays registered costs the guest a fault at each first write, and belongs to
    /// nobody who would lift it.
    #[test]
    fn nothing_stays_registered_when_a_later_block_cannot_be() {
        let memory = memmap2::MmapOptions::new().len(16 * PAGE_BYTES).map_anon();
        let memory = memory.unwrap();
        let good = || block(memory.as_ptr() as u64, 16);
        let pid = std::process::id() as i32;
        let both = RamLayout::new(vec![good(), block(1 << 46, 16)]).unwrap();
        let one = RamLayout::new(vec![good()]).unwrap();
        let supported = userfaultfd().map(|uffd| Userfaultfd::new(uffd, pid, &one).map(drop));
        if !matches!(supported, Some(Ok(()))) {
            eprintln!("skipped: no userfaultfd tracking ({supported:?})");
            return;
        }
        // As the VMM does, this keeps its userfaultfd.
        let first = userfaultfd().unwrap();
        let _kept = first.try_clone().unwrap();
        let error = Userfaultfd::new(first, pid, &both).unwrap_err();
        assert!(error.to_string().contains("UFFDIO_REGISTER"), "{error}");
        // What one userfaultfd has registered another is refused.
        let probing = userfaultfd().unwrap();
        Userfaultfd::probe(probing.try_clone().unwrap(), pid, &one).unwrap();
        Userfaultfd::new(userfaultfd().unwrap(), pid, &one).unwrap();
    }
}
