//! The memory of a raw mover: a memfd of this process alone.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use dwcp_simd::{FingerprintKey, LivePage, PAGE_BYTES, kernels};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Backing;

#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    map: MmapRaw,
}

impl Memory {
    /// Memory of incompressible content.
    pub(super) fn filled(mib: u64, backing: Backing) -> io::Result<Self> {
        let backing = match backing {
            Backing::Fresh => Backing::Allocated,
            other => other,
        };
        let memory = Self::empty(mib, backing)?;
        let mut state = 0x5EED_0042_u64;
        let first = memory.map.as_mut_ptr().cast::<u64>();
        for word in 0..memory.bytes() / 8 {
            state = dwcp_guest_page::next_random(state);
            // SAFETY: `word * 8 + 8` is within the mapping, which nobody else uses yet.
            unsafe { first.wrapping_add(word).write(state) };
        }
        Ok(memory)
    }

    /// Memory of zeros.
    pub(super) fn empty(mib: u64, backing: Backing) -> io::Result<Self> {
        let mut flags = MFdFlags::MFD_CLOEXEC;
        if backing == Backing::Huge {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let file = File::from(memfd_create("dwcp-wire", flags)?);
        file.set_len(mib << 20)?;
        let bytes = usize::try_from(mib << 20).map_err(io::Error::other)?;
        let mut options = MmapOptions::new();
        if backing != Backing::Fresh {
            options.populate();
        }
        let map = options.len(bytes).map_raw(&file)?;
        Ok(Self { file, map })
    }

    pub(super) fn bytes(&self) -> usize {
        self.map.len()
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A range as a piece for a system call.
    pub(super) fn piece(&self, range: Range<usize>) -> libc::iovec {
        assert!(range.end <= self.bytes());
        libc::iovec {
            iov_base: self.map.as_mut_ptr().wrapping_add(range.start).cast(),
            iov_len: range.len(),
        }
    }

    /// Reads the pages of a range as a migration's proof does, and adds up what they hold.
    pub(super) fn proof(&self, range: Range<usize>, key: &FingerprintKey) -> u64 {
        assert!(range.end <= self.bytes());
        let first = self.map.as_ptr().wrapping_add(range.start);
        (0..range.len() / PAGE_BYTES).fold(0, |sum: u64, page| {
            // SAFETY: the whole page lies in the range, and that in the mapping, which outlives the call.
            let page = unsafe { LivePage::new(first.wrapping_add(page * PAGE_BYTES)) };
            sum.wrapping_add(kernels().fingerprint_live(key, page).lo)
        })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        // SAFETY: the mapping is as long as that, and its writers have ended.
        let one = unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.bytes()) };
        // SAFETY: as above.
        let other = unsafe { std::slice::from_raw_parts(other.map.as_ptr(), other.bytes()) };
        one == other
    }
}
