//! `PAGEMAP_SCAN`, Linux 6.7: get and clear the written bits of a range in one step.
//!
//! See `Documentation/admin-guide/mm/pagemap.rst`. Headers older than the kernel lack it, so the
//! numbers are here.

use std::fs::File;
use std::os::fd::AsRawFd;

use dwcp_simd::PAGE_BYTES;
use nix::errno::Errno;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// Regions asked for at once: 96 KiB of answers.
const REGIONS: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96 && size_of::<PageRegion>() == 24);

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArgument);

/// A process' page map.
#[derive(Debug)]
pub(super) struct Pagemap {
    file: File,
    regions: Vec<PageRegion>,
}

impl Pagemap {
    pub(super) fn open(pid: i32) -> std::io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self {
            file,
            regions: vec![PageRegion::default(); REGIONS],
        })
    }

    /// Calls `written` with the first page and the count of each written run in
    /// `start..start + bytes`, and write-protects them again. Pages are counted from `start`.
    pub(super) fn take_written(
        &mut self,
        start: u64,
        bytes: u64,
        written: impl FnMut(u32, u32),
    ) -> Result<(), Errno> {
        self.scan(PM_SCAN_WP_MATCHING, start, bytes, written)
    }

    /// Pages written in `start..start + bytes`; they stay so.
    pub(super) fn count_written(&mut self, start: u64, bytes: u64) -> Result<u64, Errno> {
        let mut pages = 0;
        self.scan(0, start, bytes, |_, count| pages += u64::from(count))?;
        Ok(pages)
    }

    fn scan(
        &mut self,
        flags: u64,
        start: u64,
        bytes: u64,
        mut written: impl FnMut(u32, u32),
    ) -> Result<(), Errno> {
        let page = PAGE_BYTES as u64;
        let mut from = start;
        while from < start + bytes {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: flags | PM_SCAN_CHECK_WPASYNC,
                start: from,
                end: start + bytes,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: the kernel reads and writes `argument` and writes at most `vec_len` regions
            // to `vec`; both are ours, exclusively, and outlive the call.
            let found = match unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut argument) } {
                Ok(found) => found as usize,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            for region in &self.regions[..found.min(REGIONS)] {
                let first = (region.start - start) / page;
                let count = (region.end - region.start) / page;
                written(first as u32, count as u32);
            }
            if argument.walk_end <= from {
                return Err(Errno::EIO);
            }
            from = argument.walk_end;
        }
        Ok(())
    }
}
