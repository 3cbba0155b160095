//! Soft-dirty bits: `/proc/PID/clear_refs` and bit 55 of `/proc/PID/pagemap`.
//!
//! Reading and clearing are two steps, and a write between them is lost. So this tracker is a hint:
//! the round under pause compares all of RAM with what was sent. See proc_pid_clear_refs(5).

use std::fs::File;
use std::os::unix::fs::FileExt;

use dwcp_simd::PAGE_BYTES;

use super::{Collected, DirtyTracker, VmmError};
use crate::ram::{RamBitmap, RamLayout};

const SOFT_DIRTY: u64 = 1 << 55;

/// Entries read at once: 512 KiB.
const ENTRIES: usize = 65_536;

/// Tracks a process by its soft-dirty bits.
#[derive(Debug)]
pub struct SoftDirty {
    pid: i32,
    pagemap: File,
    /// Address and pages of each block in the VMM.
    blocks: Vec<(u64, u32)>,
}

impl SoftDirty {
    /// A tracker for the blocks of `layout`.
    ///
    /// # Errors
    /// When the kernel has no soft-dirty bits: found by asking a page of our own.
    pub fn new(pid: i32, layout: &RamLayout) -> Result<Self, VmmError> {
        if !is_supported() {
            let what = "the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";
            return Err(VmmError::Failed(what.into()));
        }
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(&path).map_err(|error| VmmError::system(path, error))?;
        let blocks = layout
            .blocks()
            .iter()
            .map(|b| (b.vmm_address(), b.pages()))
            .collect();
        Ok(Self {
            pid,
            pagemap,
            blocks,
        })
    }

    fn clear(&self) -> Result<(), VmmError> {
        let path = format!("/proc/{}/clear_refs", self.pid);
        std::fs::write(&path, "4").map_err(|error| VmmError::system(path, error))
    }
}

/// Whether a page that we have just written is soft-dirty.
#[must_use]
pub(crate) fn is_supported() -> bool {
    let page = Box::new([1u8; PAGE_BYTES]);
    let address = std::hint::black_box(page.as_ptr()) as u64;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, address / PAGE_BYTES as u64 * 8))
        .is_ok_and(|()| u64::from_ne_bytes(entry) & SOFT_DIRTY != 0)
}

impl DirtyTracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn arm(&mut self) -> Result<(), VmmError> {
        self.clear()
    }

    fn collect(&mut self, dirty: &mut RamBitmap) -> Result<Collected, VmmError> {
        let mut bytes = vec![0; ENTRIES * 8];
        for (bitmap, &(address, pages)) in dirty.blocks.iter_mut().zip(&self.blocks) {
            let mut page = 0;
            while page < pages {
                let count = (pages - page).min(ENTRIES as u32);
                let offset = (address / PAGE_BYTES as u64 + u64::from(page)) * 8;
                let part = &mut bytes[..count as usize * 8];
                self.pagemap
                    .read_exact_at(part, offset)
                    .map_err(|error| VmmError::system("pagemap", error))?;
                for (index, entry) in (page..).zip(part.as_chunks::<8>().0) {
                    if u64::from_ne_bytes(*entry) & SOFT_DIRTY != 0 {
                        bitmap.set_range(index, 1);
                    }
                }
                page += count;
            }
        }
        self.clear()?;
        Ok(Collected::Marked)
    }

    fn disarm(&mut self) {}
}
