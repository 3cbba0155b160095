//! The RAM of a synthetic guest, and its userfaultfd.

use dwcp_guest_page::{Kind, PAGE_BYTES};
use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::sys::memfd::{self, MFdFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of a huge page.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// `UFFD_USER_MODE_ONLY` of `linux/userfaultfd.h`: what an unprivileged process may ask for.
const USER_MODE_ONLY: libc::c_int = 1;

/// One block of guest RAM: a memfd mapped shared.
///
/// Other processes read and write the same memory, so no reference to it is ever formed: access goes
/// through the volatile page functions of `dwcp-guest-page`.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    map: MmapRaw,
    page_bytes: u64,
}

impl Memory {
    /// `nodes` get equal shares of it, in order; none leaves it to the kernel.
    pub(crate) fn new(
        mib: u64,
        hugetlb: bool,
        prealloc: bool,
        nodes: &[usize],
    ) -> io::Result<Self> {
        let mut flags = MFdFlags::MFD_CLOEXEC;
        let mut page_bytes = PAGE_BYTES as u64;
        if hugetlb {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
            page_bytes = HUGE_PAGE_BYTES;
        }
        let file = File::from(memfd::memfd_create(c"dwcp-guest-ram", flags)?);
        file.set_len(mib << 20)?;
        let bytes = usize::try_from(mib << 20).map_err(io::Error::other)?;
        let map = MmapOptions::new().len(bytes).map_raw(&file)?;
        let share = bytes / nodes.len().max(1);
        for (index, node) in nodes.iter().enumerate() {
            let start = map.as_mut_ptr() as usize + index * share;
            dwcp_numa::prefer_node(start, share, *node)?;
        }
        if prealloc {
            // Touched, as QEMU does: pages that are only reserved would be cleared when first used.
            map.advise(Advice::PopulateWrite)?;
        }
        Ok(Self {
            file,
            map,
            page_bytes,
        })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Pages of 4 KiB, whatever backs them.
    pub(crate) fn pages(&self) -> usize {
        self.map.len() / PAGE_BYTES
    }

    /// Size of the pages that back this memory.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    pub(crate) fn address(&self) -> u64 {
        self.map.as_mut_ptr().addr() as u64
    }

    /// Writes a page; see [`dwcp_guest_page::write_page`].
    pub(crate) fn write(&self, index: usize, kind: Kind, salt: u64, before: u32, generation: u32) {
        let page = self.page(index);
        let identity = index as u64 ^ salt;
        // SAFETY: `page` checked that the whole page lies in the mapping, which lives as long as
        // `self`; a page boundary is aligned to more than 8.
        unsafe { dwcp_guest_page::write_page(page, kind, identity, before, generation) };
    }

    /// Checks a page; see [`dwcp_guest_page::check_page`].
    pub(crate) fn check(&self, index: usize, kind: Kind, salt: u64, generation: u32) -> bool {
        let page = self.page(index);
        // SAFETY: as in `write`.
        unsafe { dwcp_guest_page::check_page(page, kind, index as u64 ^ salt, generation) }
    }

    fn page(&self, index: usize) -> *mut u64 {
        assert!(index < self.pages(), "page {index} of {}", self.pages());
        let base = self.map.as_mut_ptr();
        // SAFETY: the assertion keeps the offset inside the mapping.
        unsafe { base.add(index * PAGE_BYTES) }.cast()
    }
}

/// Makes a userfaultfd for this process, not yet initialised. `None` when the kernel does not allow it.
///
/// Without privileges only faults of user code can be handled: enough here, because only the guest's
/// own threads touch RAM while pages may be missing.
pub(crate) fn userfaultfd() -> Option<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    [flags, flags | USER_MODE_ONLY]
        .into_iter()
        .find_map(|flags| {
            // SAFETY: the call takes no pointer and gives a new descriptor or -1.
            let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
            let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
            // SAFETY: the kernel just made this descriptor; nobody else owns it.
            Some(unsafe { OwnedFd::from_raw_fd(fd) })
        })
}
