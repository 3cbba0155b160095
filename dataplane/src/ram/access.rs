//! The one place that touches guest memory.
//!
//! A guest writes its memory while we read it, from another process. So no reference to guest
//! memory is ever formed: bytes are copied through raw pointers, or read once by a page kernel, or
//! moved by the kernel, to which a span is an address and a length.

use dwcp_simd::{LivePage, PAGE_BYTES, Page};
use memmap2::MmapRaw;
use nix::sys::mman::{MmapAdvise, madvise};

/// What one fault maps, at most, of a file's memory that is there: the kernel's `fault_around_bytes`
/// (64 KiB), in pages.
pub(super) const FAULT_AROUND_PAGES: u32 = 16;

/// A shared mapping of a RAM block's file.
#[derive(Debug)]
pub(super) struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    /// What a mover reads or writes is not what the guest uses: the kernel is told to take no note of
    /// it. That keeps the order in which it would reclaim the guest's pages, and makes unmapping them
    /// cheaper.
    pub(super) fn new(map: MmapRaw) -> Self {
        if let Some(base) = std::ptr::NonNull::new(map.as_mut_ptr().cast()) {
            // SAFETY: the range is the mapping, and the advice changes neither its content nor what
            // may be done with it. A kernel that refuses it loses the gain alone.
            let _ = unsafe { madvise(base, map.len(), MmapAdvise::MADV_SEQUENTIAL) };
        }
        Self { map }
    }

    /// Copies one page out. The page as a whole may be torn; each byte is one that it held.
    pub(super) fn read_page(&self, page: usize, out: &mut Page) {
        let from = self.page_pointer(page).cast_const();
        // SAFETY: `page_pointer` proved that PAGE_BYTES bytes from `from` lie in the mapping, which
        // lives as long as `self`. `out` is exclusive and private, so they cannot overlap. Other
        // processes may write the source meanwhile: the copy is then a mix of old and new bytes,
        // which the caller's dirty bit makes good.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), PAGE_BYTES) };
    }

    /// One page, to be looked at where it is.
    pub(super) fn live_page(&self, page: usize) -> LivePage<'_> {
        let address = self.page_pointer(page).cast_const();
        // SAFETY: `page_pointer` proved that PAGE_BYTES bytes from `address` lie in the mapping, which
        // lives as long as `self`, to which the page is bound.
        unsafe { LivePage::new(address) }
    }

    /// Address and length of `count` pages, for a system call that reads or writes them.
    pub(super) fn span(&self, page: usize, count: usize) -> (*mut u8, usize) {
        let first = self.page_pointer(page);
        if count > 1 {
            let _in_bounds = self.page_pointer(page + count - 1);
        }
        (first, count * PAGE_BYTES)
    }

    /// Maps `count` pages, in one call instead of a fault each. Asked for as a read: that maps pages
    /// around as well, and a shared mapping of memory that is never written back is writable at once.
    pub(super) fn populate(&self, page: usize, count: usize) -> nix::Result<()> {
        let (base, bytes) = self.span(page, count);
        let Some(base) = std::ptr::NonNull::new(base.cast()) else {
            return Ok(());
        };
        // SAFETY: the span lies in the mapping, and populating it changes neither its content nor
        // what may be done with it.
        unsafe { madvise(base, bytes, MmapAdvise::MADV_POPULATE_READ) }
    }

    /// Maps a page, and with it those around it that have memory ([`FAULT_AROUND_PAGES`]).
    pub(super) fn map_around(&self, page: usize) {
        let at = self.page_pointer(page);
        // SAFETY: `page_pointer` proved that `at` lies in the mapping. The byte is not looked at: that
        // others write it meanwhile does not matter.
        let _ = unsafe { at.read_volatile() };
    }

    /// Copies one page in.
    pub(super) fn write_page(&self, page: usize, data: &Page) {
        let to = self.page_pointer(page);
        // SAFETY: as in `read_page`, with the directions exchanged. Within this process one worker
        // alone writes a page: a stream's frames are applied by the worker that owns the stream,
        // and a page is on one stream in a round.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, PAGE_BYTES) };
    }

    fn page_pointer(&self, page: usize) -> *mut u8 {
        assert!(
            page < self.map.len() / PAGE_BYTES,
            "page {page} is outside its block"
        );
        // SAFETY: `page * PAGE_BYTES + PAGE_BYTES <= len` by the assertion, so the result and the
        // page behind it lie within the one mapping.
        unsafe { self.map.as_mut_ptr().add(page * PAGE_BYTES) }
    }
}
