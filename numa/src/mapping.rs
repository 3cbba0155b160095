//! An anonymous private mapping with an owner: the system calls of [`crate::Arena`].

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::Result;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::policy;

/// Readable and writable zeroed memory, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping is ordinary memory of the process, reachable through this owner only; nothing
// about it belongs to the thread that made it.
unsafe impl Send for Mapping {}

// SAFETY: through a shared reference nothing can be written and nothing unmapped.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes, with `extra` flags beside private and anonymous.
    pub(crate) fn new(bytes: NonZeroUsize, extra: MapFlags) -> Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let start =
            unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE | extra) }?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Asks for transparent huge pages.
    pub(crate) fn advise_huge(&self) -> Result<()> {
        self.advise(MmapAdvise::MADV_HUGEPAGE)
    }

    /// Gives every page memory now. An error where touching the page would have been a signal.
    pub(crate) fn populate(&self) -> Result<()> {
        self.advise(MmapAdvise::MADV_POPULATE_WRITE)
    }

    /// Takes memory that is not there yet from `node`, as long as the node has any.
    pub(crate) fn prefer_node(&self, node: usize) -> std::io::Result<()> {
        policy::prefer_node(self.start.as_ptr().expose_provenance(), self.bytes(), node)
    }

    /// `advice` must be one that keeps the contents.
    fn advise(&self, advice: MmapAdvise) -> Result<()> {
        // SAFETY: the range is exactly this mapping, which lives as long as `self`; both advices in
        // this file change how it is backed and not what it holds.
        unsafe { madvise(self.range(), self.bytes(), advice) }
    }

    fn range(&self) -> NonNull<c_void> {
        self.start.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is unmapped only here; every slice made of it
        // borrows the owner, so none is left.
        let result = unsafe { munmap(self.range(), self.bytes()) };
        debug_assert!(
            result.is_ok(),
            "unmapping our own mapping cannot fail: {result:?}"
        );
    }
}
