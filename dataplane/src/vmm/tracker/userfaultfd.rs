//! Write tracking of another process: its userfaultfd in `WP_ASYNC` mode, read by `PAGEMAP_SCAN`.
//!
//! A protected page costs the guest one fault at its first write, resolved by the kernel alone.
//! Not seen: writes by other processes (our own at a destination), pwrite to the file, DMA into
//! pages pinned earlier, hole punching. See userfaultfd(2), ioctl_userfaultfd(2).

use std::os::fd::OwnedFd;

use dwcp_simd::PAGE_BYTES;
use nix::errno::Errno;

use super::pagemap::Pagemap;
use super::{Collected, DirtyTracker, VmmError};
use crate::ram::{RamBitmap, RamBlock, RamLayout};
use crate::vmm::userfault::{Faults, Userfault};

/// What a probe tracks: the largest page that there is, since a part of one cannot be tracked. Two
/// milliseconds at most.
const PROBE_BYTES: u64 = 1 << 30;

/// Tracks the writes of the process that made a userfaultfd.
#[derive(Debug)]
pub struct Userfaultfd {
    uffd: Userfault,
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
        let uffd = Userfault::new(uffd, Faults::Writes)?;
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
        let mut blocks = self.blocks.iter();
        blocks.try_for_each(|&(start, len)| self.uffd.register(start, len, Faults::Writes))
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

    fn written(&mut self) -> Option<u64> {
        let Self {
            pagemap, blocks, ..
        } = self;
        let mut blocks = blocks.iter();
        blocks.try_fold(0, |sum, &(start, bytes)| {
            Some(sum + pagemap.count_written(start, bytes).ok()?)
        })
    }

    fn disarm(&mut self) {
        if !std::mem::take(&mut self.registered) {
            return;
        }
        for &(start, len) in &self.blocks {
            // A VMM that is gone has no ranges.
            let _ = self.uffd.unregister(start, len);
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

const _: () = assert!(PAGE_BYTES == 4096);

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, RawFd};

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
