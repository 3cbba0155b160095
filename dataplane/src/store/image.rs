//! One baseline file: guest RAM in, guest RAM out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::{PAGE_BYTES, Page, kernels};
use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::ram::{RamBlock, RamLayout};

pub(super) const HEADER_BYTES: u64 = 64 * 1024;

/// Read or written at once.
const PIECE_PAGES: u32 = 128;

/// Whose RAM it is, and of which shape.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    schema: String,
    pub(super) vm: String,
    /// Name and bytes of each block.
    blocks: Vec<(String, u64)>,
}

impl Header {
    pub(super) fn of(vm: &str, layout: &RamLayout) -> Self {
        let block = |block: &RamBlock| (block.name().to_owned(), block.bytes());
        Self {
            schema: "dwcp.baseline/1".into(),
            vm: vm.to_owned(),
            blocks: layout.blocks().iter().map(block).collect(),
        }
    }

    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(serde_json::from_slice(text)?)
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        if text.len() as u64 >= HEADER_BYTES {
            return Err(io::Error::other("the names of the RAM blocks are too long"));
        }
        file.write_all_at(&text, 0)
    }
}

/// Writes all of RAM to a new file. Read by calls, not through the mapping: a VMM that is gone may
/// have its file cut short.
pub(super) fn write(
    path: &Path,
    header: &Header,
    layout: &RamLayout,
    stop: &AtomicBool,
) -> Result<u64, StoreError> {
    let failed = || StoreError::disk(format!("cannot write {}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed())?;
    header.write(&file).map_err(failed())?;
    let (mut start, mut written) = (HEADER_BYTES, 0);
    let mut piece = vec![[0; PAGE_BYTES]; PIECE_PAGES as usize];
    for block in layout.blocks() {
        let mut page = 0;
        while let Some(first) = next_data(block, page)? {
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Stopped);
            }
            let count = PIECE_PAGES.min(block.pages() - first) as usize;
            let pages = &mut piece[..count];
            read_whole(block.as_fd(), offset(0, first), pages.as_flattened_mut())
                .map_err(StoreError::disk("cannot read the guest's RAM"))?;
            let kept = |at: usize| start + offset(0, first + at as u32);
            for run in runs(pages, |_, page| !kernels().is_zero(page)) {
                let bytes = pages[run.clone()].as_flattened();
                file.write_all_at(bytes, kept(run.start))
                    .map_err(failed())?;
                written += bytes.len() as u64;
            }
            page = first + count as u32;
        }
        start += block.bytes();
    }
    // Its length says that it was finished, holes and all.
    file.set_len(start).map_err(failed())?;
    file.sync_all().map_err(failed())?;
    Ok(written)
}

/// Puts a file's pages into RAM, where that holds nothing.
pub(super) fn read(path: &Path, layout: &RamLayout, stop: &AtomicBool) -> Result<u64, StoreError> {
    let failed = || StoreError::disk(format!("cannot read {}", path.display()));
    let file = File::open(path).map_err(failed())?;
    let (mut start, mut filled) = (HEADER_BYTES, 0);
    let mut piece = vec![[0; PAGE_BYTES]; PIECE_PAGES as usize];
    for block in layout.blocks() {
        let mut in_use = crate::ram::DirtyBitmap::new(block.pages());
        block.mark_data(&mut in_use)?;
        let end = start + block.bytes();
        let mut at = start;
        while let Some(data) = seek_data(&file, at).map_err(failed())?.filter(|&d| d < end) {
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Stopped);
            }
            let first = (data.max(start) - start) / PAGE_BYTES as u64;
            let first = first as u32;
            let count = PIECE_PAGES.min(block.pages() - first) as usize;
            let pages = &mut piece[..count];
            read_whole(file.as_fd(), offset(start, first), pages.as_flattened_mut())
                .map_err(failed())?;
            let is_free = |at: usize, page: &Page| {
                let number = first + at as u32;
                !kernels().is_zero(page) && !holds_something(block, number, &in_use)
            };
            for run in runs(pages, is_free) {
                block.write_pages(first + run.start as u32, &pages[run.clone()])?;
                filled += run.len() as u64;
            }
            at = offset(start, first + count as u32);
        }
        start = end;
    }
    Ok(filled)
}

/// A page without memory is not looked at: that would allocate it.
fn holds_something(block: &RamBlock, page: u32, in_use: &crate::ram::DirtyBitmap) -> bool {
    let mut content = [0; PAGE_BYTES];
    in_use.contains(page) && {
        block.read_page(page, &mut content);
        !kernels().is_zero(&content)
    }
}

const fn offset(start: u64, page: u32) -> u64 {
    start + page as u64 * PAGE_BYTES as u64
}

/// The first page from `page` on that may hold something.
fn next_data(block: &RamBlock, page: u32) -> Result<Option<u32>, StoreError> {
    let data = match page < block.pages() {
        true => block.data_from(page)?.unwrap_or(page),
        false => block.pages(),
    };
    Ok((data < block.pages()).then_some(data))
}

/// Where the next data of a file begins; `None` behind the last.
fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match lseek(file, from as i64, Whence::SeekData) {
        Ok(data) => Ok(Some(data as u64)),
        Err(Errno::ENXIO) => Ok(None),
        // A file system that cannot tell.
        Err(Errno::EINVAL) => Ok(Some(from)),
        Err(errno) => Err(errno.into()),
    }
}

/// Pages that follow each other and are `wanted`.
fn runs(pages: &[Page], wanted: impl Fn(usize, &Page) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = vec![];
    for (at, page) in pages.iter().enumerate() {
        if !wanted(at, page) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

fn read_whole(file: BorrowedFd<'_>, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match pread(file, out, at as i64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                out = &mut out[bytes..];
                at += bytes as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
