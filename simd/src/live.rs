//! Live guest memory: pages that change while they are read.

use std::marker::PhantomData;

use crate::{PAGE_BYTES, Page};

/// A page that others may be writing: no reference to its bytes is ever formed.
#[derive(Clone, Copy, Debug)]
pub struct LivePage<'a> {
    address: *const u8,
    memory: PhantomData<&'a ()>,
}

impl<'a> LivePage<'a> {
    /// A page at `address`.
    ///
    /// # Safety
    /// [`PAGE_BYTES`] bytes from `address` on stay mapped and readable for `'a`. They may change
    /// at any time, by another process or thread.
    #[must_use]
    pub const unsafe fn new(address: *const u8) -> Self {
        Self {
            address,
            memory: PhantomData,
        }
    }

    /// A page that nobody writes.
    #[must_use]
    pub const fn of(page: &'a Page) -> Self {
        Self {
            address: page.as_ptr(),
            memory: PhantomData,
        }
    }

    /// Asks for the start of the page to be brought into the cache. Worth it for the page after the
    /// one that is looked at, when the two do not follow each other in memory.
    #[inline]
    pub fn prefetch(self) {
        #[cfg(target_arch = "x86_64")]
        crate::arch::prefetch(self);
    }

    /// Where the line of 64 bytes starts.
    ///
    /// # Panics
    /// When the page has no such line.
    #[inline(always)]
    pub(crate) fn line(self, line: usize) -> *const u8 {
        assert!(line < PAGE_BYTES / 64, "a page has 64 lines");
        // SAFETY: `line * 64 < PAGE_BYTES`, and that many bytes lie in one mapping.
        unsafe { self.address.add(line * 64) }
    }
}
