//! How pages get into a RAM block, and its memory into our mapping.

use std::sync::atomic::Ordering;

use dwcp_simd::{PAGE_BYTES, Page};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

use super::access::FAULT_AROUND_PAGES;
use super::block::{RamBlock, RamError, offset_of};

impl RamBlock {
    /// Maps pages ahead of their first use: `pages` are those to be read of the 64 from `first` on, a bit
    /// each. A fault maps many of them at once, and what is mapped can be prefetched. A page without
    /// memory is given it.
    ///
    /// # Panics
    /// When one of the pages is outside the block.
    pub fn map_ahead(&self, first: u32, mut pages: u64) {
        while pages != 0 {
            let bit = pages.trailing_zeros();
            self.mapping.map_around((first + bit) as usize);
            let next_piece = (bit / FAULT_AROUND_PAGES + 1) * FAULT_AROUND_PAGES;
            pages &= u64::MAX.checked_shl(next_piece).unwrap_or(0);
        }
    }

    /// Makes sure that a run of pages has memory, and is mapped, before the kernel fills it.
    ///
    /// # Errors
    /// [`RamError::System`] when there is no memory left. A kernel that does not know the call (before
    /// 5.14) finds the memory page by page, as it is filled.
    pub fn populate(&self, page: u32, count: u32) -> Result<(), RamError> {
        if self.is_allocated.load(Ordering::Relaxed) {
            // A fault a piece costs half of the call below, which looks at every page.
            (page..page + count)
                .step_by(FAULT_AROUND_PAGES as usize)
                .for_each(|page| self.mapping.map_around(page as usize));
            return Ok(());
        }
        match self.mapping.populate(page as usize, count as usize) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(self.system("memory for pages", errno)),
        }
    }

    /// Whether data is best received straight into RAM. Where memory has yet to be found, to write the
    /// file is cheaper: the kernel neither clears what is written whole, nor maps it page by page.
    #[must_use]
    pub fn is_filled_in_place(&self) -> bool {
        !self.is_writable || self.is_allocated.load(Ordering::Relaxed)
    }

    /// Copies pages into RAM, by the way that [`Self::is_filled_in_place`] says.
    ///
    /// # Errors
    /// [`RamError::System`] when there is no memory left.
    ///
    /// # Panics
    /// When one of the pages is outside the block: the decoder has checked it.
    pub fn write_pages(&self, first: u32, pages: &[Page]) -> Result<(), RamError> {
        if self.is_filled_in_place() {
            (first..)
                .zip(pages)
                .for_each(|(page, data)| self.write_page(page, data));
            return Ok(());
        }
        assert!(
            u64::from(first) + pages.len() as u64 <= self.pages().into(),
            "pages from {first} on end outside their block"
        );
        let mut bytes = pages.as_flattened();
        let mut offset = offset_of(first);
        while !bytes.is_empty() {
            match pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(self.system("write", Errno::ENOSPC)),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as i64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.system("memory for pages", errno)),
            }
        }
        Ok(())
    }

    /// As [`Self::read_page`], for a page that is perhaps not mapped here and will not be read again: in
    /// RAM that was written through its file a fault would cost more than the call.
    ///
    /// # Panics
    /// As [`Self::read_page`].
    pub fn read_page_once(&self, page: u32, out: &mut Page) {
        let by_call = !self.is_filled_in_place() && page < self.pages();
        if !by_call || pread(&self.file, out, offset_of(page)) != Ok(PAGE_BYTES) {
            self.read_page(page, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const PAGES: u32 = 40;

    fn file() -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create("dwcp-test-fill", flags).unwrap();
        nix::unistd::ftruncate(&file, i64::from(PAGES) * PAGE_BYTES as i64).unwrap();
        file
    }

    fn block(file: OwnedFd) -> RamBlock {
        RamBlock::map("ram".into(), file, u64::from(PAGES) * PAGE_BYTES as u64, 0).unwrap()
    }

    /// Writes pages 7 to 9, and looks at them and their neighbours in both ways.
    fn write_and_look(block: &RamBlock) {
        let pages = [[1; PAGE_BYTES], [2; PAGE_BYTES], [3; PAGE_BYTES]];
        block.write_pages(7, &pages).unwrap();
        for (page, byte) in [(6, 0), (7, 1), (8, 2), (9, 3), (10, 0)] {
            let (mut once, mut mapped) = ([9; PAGE_BYTES], [9; PAGE_BYTES]);
            block.read_page_once(page, &mut once);
            block.read_page(page, &mut mapped);
            assert_eq!((once, mapped), ([byte; PAGE_BYTES], [byte; PAGE_BYTES]));
        }
    }

    #[test]
    fn memory_that_is_there_is_filled_in_place_and_other_memory_written() {
        let fresh = block(file());
        assert!(!fresh.is_filled_in_place());
        write_and_look(&fresh);
        let full = file();
        nix::unistd::write(&full, &vec![0; PAGES as usize * PAGE_BYTES]).unwrap();
        let full = block(full);
        assert!(full.is_filled_in_place());
        write_and_look(&full);
        full.discard().unwrap();
        assert!(!full.is_filled_in_place());
    }

    /// pwrite(2) would add to its end.
    #[test]
    fn a_file_open_for_appending_is_filled_in_place() {
        let file = file();
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        let block = block(file);
        assert!(block.is_filled_in_place());
        write_and_look(&block);
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let block = block(file());
        fcntl(&block, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).unwrap();
        let error = block.write_pages(0, &[[1; PAGE_BYTES]]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("RAM block ram: memory for pages:")
        );
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn nothing_is_written_behind_the_end() {
        let _ = block(file()).write_pages(PAGES - 1, &[[1; PAGE_BYTES]; 2]);
    }

    #[test]
    fn mapping_ahead_gives_no_memory_to_pages_that_are_not_asked_for() {
        let block = block(file());
        block.write_pages(20, &[[1; PAGE_BYTES]]).unwrap();
        block.map_ahead(0, 1 << 20);
        assert_eq!(block.room().unwrap().held_bytes, PAGE_BYTES as u64);
        block.map_ahead(0, 1 << 3 | 1 << 20);
        assert_eq!(block.room().unwrap().held_bytes, 2 * PAGE_BYTES as u64);
    }
}
