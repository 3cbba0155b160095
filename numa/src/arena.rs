//! Memory for buffers: one mapping, in huge pages when there are any, on one node when there are
//! several, touched before the first migration needs it.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::MapFlags;

use crate::mapping::Mapping;
use crate::policy;
use crate::slots::BufferSlots;

pub(crate) const BASE_PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// Zero bytes, or more than an address space holds.
    #[error("An arena of {bytes} bytes is not possible")]
    Size {
        /// The size asked for.
        bytes: usize,
    },
    /// The kernel gave no memory, in any kind of page.
    #[error("Cannot map {bytes} bytes")]
    Map {
        /// The size asked for.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The mapping is there, but not the memory behind it.
    #[error("Cannot pre-fault {bytes} bytes")]
    Populate {
        /// The size asked for.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A buffer of zero bytes, or larger than the arena.
    #[error("Buffers of {buffer_bytes} bytes do not fit an arena of {arena_bytes}")]
    Split {
        /// The buffer size asked for.
        buffer_bytes: usize,
        /// The size of the arena.
        arena_bytes: usize,
    },
}

/// What to try. The default tries everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArenaOptions {
    /// Try reserved huge pages of 2 MiB first (`vm.nr_hugepages`).
    pub huge_tlb: bool,
    /// Otherwise ask for transparent huge pages.
    pub transparent_huge: bool,
    /// Touch every page now. Reserved huge pages are always touched.
    pub prefault: bool,
}

impl Default for ArenaOptions {
    fn default() -> Self {
        Self {
            huge_tlb: true,
            transparent_huge: true,
            prefault: true,
        }
    }
}

/// What an arena got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArenaBacking {
    /// Reserved huge pages of 2 MiB. They cannot be swapped or split; registering them with the
    /// ring or an adapter is cheap.
    HugeTlb2M,
    /// 4 KiB pages, which the kernel agreed to merge to 2 MiB where it can.
    TransparentHuge,
    /// 4 KiB pages.
    Base4K,
}

/// A span of zeroed memory, owned by whoever holds the value; it may move between threads.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    backing: ArenaBacking,
    bound_node: Option<usize>,
}

impl Arena {
    /// Makes an arena of at least `bytes` bytes, rounded up to the pages it got.
    ///
    /// With `node` on a machine of several nodes, the memory comes from there as long as the node
    /// has any; [`Arena::bound_node`] says whether that was possible. Huge pages of either kind are
    /// tried from 2 MiB on.
    pub fn new(
        bytes: usize,
        node: Option<usize>,
        options: ArenaOptions,
    ) -> Result<Self, ArenaError> {
        let node = node.filter(|_| policy::online_node_count() > 1);
        if options.huge_tlb
            && bytes >= HUGE_PAGE_BYTES
            && let Some(arena) = Self::reserved_huge(bytes, node)
        {
            return Ok(arena);
        }
        let mapping = Mapping::new(rounded(bytes, BASE_PAGE_BYTES)?, MapFlags::empty())
            .map_err(|source| ArenaError::Map { bytes, source })?;
        let bound_node = node.filter(|node| mapping.prefer_node(*node).is_ok());
        let wants_huge = options.transparent_huge && bytes >= HUGE_PAGE_BYTES;
        let is_huge = wants_huge && is_transparent_huge_enabled() && mapping.advise_huge().is_ok();
        let backing = if is_huge {
            ArenaBacking::TransparentHuge
        } else {
            ArenaBacking::Base4K
        };
        let mut arena = Self {
            mapping,
            backing,
            bound_node,
        };
        if options.prefault {
            arena
                .prefault()
                .map_err(|source| ArenaError::Populate { bytes, source })?;
        }
        Ok(arena)
    }

    /// Tries reserved huge pages. They are populated here, where a lack of them (on this node) is an
    /// error code: touched later it would be a signal.
    fn reserved_huge(bytes: usize, node: Option<usize>) -> Option<Self> {
        let flags = MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB;
        let mapping = Mapping::new(rounded(bytes, HUGE_PAGE_BYTES).ok()?, flags).ok()?;
        let bound_node = node.filter(|node| mapping.prefer_node(*node).is_ok());
        mapping.populate().ok()?;
        Some(Self {
            mapping,
            backing: ArenaBacking::HugeTlb2M,
            bound_node,
        })
    }

    /// Populates; kernels before 5.14 do not know how, and have every page touched instead.
    fn prefault(&mut self) -> Result<(), Errno> {
        match self.mapping.populate() {
            Err(Errno::EINVAL) => {
                for page in self.as_mut_slice().chunks_mut(BASE_PAGE_BYTES) {
                    page[0] = std::hint::black_box(0);
                }
                Ok(())
            }
            result => result,
        }
    }

    /// Returns the size in bytes: at least what was asked for.
    #[expect(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.bytes()
    }

    /// Returns what kind of pages it got.
    pub fn backing(&self) -> ArenaBacking {
        self.backing
    }

    /// Returns the node its memory comes from; `None` when none was asked for, when there is only
    /// one, or when the kernel refused.
    pub fn bound_node(&self) -> Option<usize> {
        self.bound_node
    }

    /// Returns the start, for registration with the ring or an adapter. Valid while the arena lives;
    /// writing through it is for the holder of the arena alone.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.mapping.start().as_ptr()
    }

    /// Returns all of it.
    pub fn as_slice(&self) -> &[u8] {
        let range = NonNull::slice_from_raw_parts(self.mapping.start(), self.len());
        // SAFETY: the range is the whole mapping: readable, initialised (the kernel zeroes it), and
        // alive as long as `self`, which the result borrows. Writers need `&mut self`.
        unsafe { range.as_ref() }
    }

    /// Returns all of it, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let mut range = NonNull::slice_from_raw_parts(self.mapping.start(), self.len());
        // SAFETY: as in `as_slice`, and writable; `&mut self` makes the borrow the only one.
        unsafe { range.as_mut() }
    }

    /// Cuts the arena into buffers of `buffer_bytes`, each at the start of a page.
    pub fn split(self, buffer_bytes: usize) -> Result<BufferSlots, ArenaError> {
        BufferSlots::new(self, buffer_bytes)
    }
}

/// Returns `bytes` rounded up to whole pages.
fn rounded(bytes: usize, page_bytes: usize) -> Result<NonZeroUsize, ArenaError> {
    let rounded = bytes.checked_next_multiple_of(page_bytes);
    rounded
        .and_then(NonZeroUsize::new)
        .ok_or(ArenaError::Size { bytes })
}

/// Returns whether the kernel gives transparent huge pages to those who ask.
fn is_transparent_huge_enabled() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|modes| !modes.contains("[never]"))
}
