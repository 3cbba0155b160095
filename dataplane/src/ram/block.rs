//! RAM blocks: files that this process and the VMM both map.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::{LivePage, PAGE_BYTES, Page};
use dwcp_wire::limits::{RAM_BLOCK_BYTES_MAX, RAM_BLOCKS_MAX};
use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

use super::access::Mapping;
use super::bitmap::DirtyBitmap;

/// Why RAM cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// A size that cannot be moved.
    #[error(
        "RAM block {name} has {bytes} bytes: must be 1 page to {RAM_BLOCK_BYTES_MAX} bytes, whole pages"
    )]
    Size {
        /// Block.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// More blocks than the protocol names, or none.
    #[error("{0} RAM blocks, must be 1 to {RAM_BLOCKS_MAX}")]
    Blocks(usize),
    /// A system call on the block's file failed.
    #[error("RAM block {name}: {what}: {source}")]
    System {
        /// Block.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The failure.
        source: std::io::Error,
    },
    /// The file is shorter than the block.
    #[error("RAM block {name}: its file has {file_bytes} bytes, the block {bytes}")]
    Short {
        /// Block.
        name: String,
        /// Size of the block.
        bytes: u64,
        /// Size of the file.
        file_bytes: u64,
    },
}

/// One RAM block, mapped.
#[derive(Debug)]
pub struct RamBlock {
    name: String,
    pub(super) mapping: Mapping,
    pub(super) file: OwnedFd,
    bytes: u64,
    vmm_address: u64,
    /// All of it has memory, for as long as nobody takes it away.
    pub(super) is_allocated: AtomicBool,
    is_in_hugetlbfs: bool,
    /// Its file can be written at an offset: not hugetlbfs, and not open for appending.
    pub(super) is_writable: bool,
}

/// Memory of a file: `st_blocks` counts pieces of 512 bytes, see stat(2).
fn allocated_bytes(stat: &nix::sys::stat::FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

pub(super) const fn offset_of(page: u32) -> i64 {
    page as i64 * PAGE_BYTES as i64
}

impl RamBlock {
    /// Maps a block's file. `vmm_address` is where the VMM has mapped it.
    ///
    /// # Errors
    /// [`RamError::Size`], [`RamError::Short`], [`RamError::System`].
    pub fn map(
        name: String,
        file: OwnedFd,
        bytes: u64,
        vmm_address: u64,
    ) -> Result<Self, RamError> {
        let page = PAGE_BYTES as u64;
        if bytes == 0 || !bytes.is_multiple_of(page) || bytes > RAM_BLOCK_BYTES_MAX {
            return Err(RamError::Size { name, bytes });
        }
        let system = |what, source| RamError::System {
            name: name.clone(),
            what,
            source,
        };
        let stat = nix::sys::stat::fstat(&file).map_err(|errno| system("fstat", errno.into()))?;
        let file_bytes = stat.st_size as u64;
        if file_bytes < bytes {
            return Err(RamError::Short {
                name,
                bytes,
                file_bytes,
            });
        }
        let map = MmapOptions::new()
            .len(bytes as usize)
            .map_raw(&file)
            .map_err(|source| system("mmap", source))?;
        let flags =
            fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| system("fcntl", errno.into()))?;
        let appends = OFlag::from_bits_truncate(flags).contains(OFlag::O_APPEND);
        let file_system = fstatfs(&file).map_err(|errno| system("fstatfs", errno.into()))?;
        let is_in_hugetlbfs = file_system.filesystem_type() == HUGETLBFS_MAGIC;
        Ok(Self {
            mapping: Mapping::new(map),
            name,
            file,
            bytes,
            vmm_address,
            is_allocated: AtomicBool::new(allocated_bytes(&stat) >= bytes),
            is_in_hugetlbfs,
            is_writable: !appends && !is_in_hugetlbfs,
        })
    }

    /// The VMM's name of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its pages are hugetlbfs's: large, and for some calls none at all.
    #[must_use]
    pub const fn is_in_hugetlbfs(&self) -> bool {
        self.is_in_hugetlbfs
    }

    /// Size.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pages.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        // `map` bounded the size, so that page indexes fit 32 bits.
        (self.bytes / PAGE_BYTES as u64) as u32
    }

    /// Where the VMM has mapped it.
    #[must_use]
    pub const fn vmm_address(&self) -> u64 {
        self.vmm_address
    }

    /// Copies a page out of live RAM.
    ///
    /// # Panics
    /// When `page` is outside the block: pages come from our own bitmaps, or were checked.
    pub fn read_page(&self, page: u32, out: &mut Page) {
        self.mapping.read_page(page as usize, out);
    }

    /// A page of live RAM, to be looked at where it is.
    ///
    /// # Panics
    /// As [`Self::read_page`].
    #[must_use]
    pub fn live_page(&self, page: u32) -> LivePage<'_> {
        self.mapping.live_page(page as usize)
    }

    /// Address and length of a run of pages, for the kernel. Valid while `self` lives.
    ///
    /// # Panics
    /// When a page of the run is outside the block.
    pub(crate) fn span(&self, page: u32, count: u32) -> (*mut u8, usize) {
        self.mapping.span(page as usize, count as usize)
    }

    /// Where a page is mapped here, to ask the kernel about it.
    ///
    /// # Panics
    /// When `page` is outside the block.
    #[must_use]
    pub fn address(&self, page: u32) -> usize {
        self.span(page, 1).0.expose_provenance()
    }

    /// Copies a page into RAM.
    ///
    /// # Panics
    /// When `page` is outside the block: the decoder has checked it.
    pub fn write_page(&self, page: u32, data: &Page) {
        self.mapping.write_page(page as usize, data);
    }

    /// Gives all memory back: every page is zero afterwards.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn discard(&self) -> Result<(), RamError> {
        self.discard_pages(0, self.pages())
    }

    /// Gives the memory of a run of pages back: they are zero afterwards, and missing where that is told.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn discard_pages(&self, page: u32, count: u32) -> Result<(), RamError> {
        self.is_allocated.store(false, Ordering::Relaxed);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset_of(page), offset_of(count))
            .map_err(|errno| self.system("discard", errno))
    }

    /// Runs of pages without memory within `count` pages from `page` on, first page and length; none where the file system
    /// cannot tell.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn holes_in(&self, page: u32, count: u32) -> Result<Vec<(u32, u32)>, RamError> {
        let (mut page, end) = (page, (page + count).min(self.pages()));
        let mut holes = vec![];
        while page < end {
            let Some(data) = self.data_from(page)? else {
                return Ok(vec![]);
            };
            let data = data.min(end);
            if data > page {
                holes.push((page, data - page));
            }
            if data == end {
                break;
            }
            page = self.hole_behind(data)?;
        }
        Ok(holes)
    }

    /// Marks every page that may hold something else than zeros: what the file has allocated. Returns
    /// false when its file system cannot tell; all pages are marked then.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn mark_data(&self, bitmap: &mut DirtyBitmap) -> Result<bool, RamError> {
        let mut page = 0;
        loop {
            let Some(data) = self.data_from(page)? else {
                bitmap.set_range(0, self.pages());
                return Ok(false);
            };
            if data >= self.pages() {
                return Ok(true);
            }
            page = self.hole_behind(data)?;
            bitmap.set_range(data, page - data);
        }
    }

    /// The first page from `page` on that has memory; the number of pages when none has. Pages before
    /// it are zero, and should not be read: that would allocate them. `None` when the file system
    /// cannot tell.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn data_from(&self, page: u32) -> Result<Option<u32>, RamError> {
        // hugetlbfs has no notion of it, and says that all is data.
        if self.is_in_hugetlbfs {
            return Ok(None);
        }
        match lseek(&self.file, offset_of(page), Whence::SeekData) {
            Ok(data) => {
                let data = data as u64 / PAGE_BYTES as u64;
                Ok(Some(data.min(self.pages().into()) as u32))
            }
            Err(Errno::ENXIO) => Ok(Some(self.pages())),
            Err(Errno::EINVAL | Errno::ESPIPE) => Ok(None),
            Err(errno) => Err(self.system("lseek", errno)),
        }
    }

    /// The first page behind `data`, which has memory, that has none; the number of pages when all have.
    fn hole_behind(&self, data: u32) -> Result<u32, RamError> {
        let hole = lseek(&self.file, offset_of(data), Whence::SeekHole)
            .map_err(|errno| self.system("lseek", errno))?;
        let page = (hole as u64).div_ceil(PAGE_BYTES as u64);
        Ok(page.clamp(u64::from(data) + 1, self.pages().into()) as u32)
    }

    /// What the block has and could have.
    ///
    /// # Errors
    /// [`RamError::System`].
    pub fn room(&self) -> Result<Room, RamError> {
        let stat =
            nix::sys::stat::fstat(&self.file).map_err(|errno| self.system("fstat", errno))?;
        let held_bytes = allocated_bytes(&stat);
        let system = fstatfs(&self.file).map_err(|errno| self.system("fstatfs", errno))?;
        // The kernel's own tmpfs, behind a memfd, has no size; hugetlbfs reserves at mmap.
        let sized = system.blocks() > 0 && !self.is_in_hugetlbfs;
        let free = system.blocks_available() * system.block_size() as u64;
        Ok(Room {
            held_bytes,
            file_system_bytes: sized.then_some(free),
            is_reserved: self.is_in_hugetlbfs,
        })
    }

    pub(super) fn system(&self, what: &'static str, errno: Errno) -> RamError {
        RamError::System {
            name: self.name.clone(),
            what,
            source: errno.into(),
        }
    }
}

impl AsFd for RamBlock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for RamBlock {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

/// Memory behind a block's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Allocated already.
    pub held_bytes: u64,
    /// Free in its file system, where that has a size.
    pub file_system_bytes: Option<u64>,
    /// Huge pages, reserved when the VMM mapped them.
    pub is_reserved: bool,
}
