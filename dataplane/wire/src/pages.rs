//! The table at the start of a page frame's payload.
//!
//! ```text
//! payload = entry[entries] (16 B each)  fingerprint[pages with data] (8 B each)  data
//!           \__________________ table_bytes, under table_crc32c ______________/
//! ```
//! Data of the entries follows in their order, without gaps; then that of all entries of class
//! [`PageClass::Window`] together; then that of all entries of class [`PageClass::Delta`], whose size the
//! frame's header says.

use crate::limits::{FRAME_DATA_PAGES_MAX, PAGE_BYTES};

/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 16;

/// Bytes of one page's fingerprint on the wire: the low half of the 128 bits.
pub const FINGERPRINT_BYTES: usize = 8;

/// How the pages of a run are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum PageClass {
    /// No data: the pages are zero.
    Zero = 1,
    /// The pages as they are.
    Raw = 2,
    /// One zstd frame that yields all pages of the run.
    Zstd = 3,
    /// Pages in the data of the stream's window, behind that of the entries above.
    Window = 4,
    /// Pages in the frame's delta, at its end: what they are against what the destination holds for them.
    Delta = 5,
}

/// One run of pages.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 4 | `page`: first page index in the RAM block |
/// | 4 | 2 | `count`: pages, 1.. |
/// | 6 | 1 | `class` |
/// | 7 | 1 | zero |
/// | 8 | 4 | `data_bytes` |
/// | 12 | 4 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// First page index within the RAM block.
    pub page: u32,
    /// Pages in the run.
    pub count: u16,
    /// How they are carried.
    pub class: PageClass,
    /// Bytes of data that belong to the run.
    pub data_bytes: u32,
}

/// Why a table is refused. Nothing of its frame is applied then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Checksum of the table is wrong: damaged on the way.
    #[error("table checksum does not match")]
    Checksum,
    /// Unknown class, or a byte that must be zero is not.
    #[error("entry {0} is malformed")]
    Entry(usize),
    /// A run without pages, past the end of its block, or before the end of the run before it.
    #[error("entry {entry} names pages {page}..{end} of a block of {pages}, or is out of order")]
    Pages {
        /// Entry index.
        entry: usize,
        /// First page.
        page: u64,
        /// Behind the last page.
        end: u64,
        /// Pages of the block.
        pages: u64,
    },
    /// The data of the runs is not what the payload holds.
    #[error("entry {entry}: {found} data bytes do not fit {count} pages of class {class:?}")]
    Data {
        /// Entry index.
        entry: usize,
        /// Its data bytes.
        found: u32,
        /// Its pages.
        count: u16,
        /// Its class.
        class: PageClass,
    },
    /// Tables, fingerprints and data do not add up to the payload, or exceed a frame.
    #[error("payload of {payload} bytes, its table describes {described}")]
    Size {
        /// Payload bytes.
        payload: usize,
        /// What the table adds up to.
        described: usize,
    },
}

impl PageEntry {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.page.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.count.to_le_bytes());
        bytes[6] = self.class as u8;
        bytes[8..12].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes
    }

    /// Reads entry number `index` of a table.
    ///
    /// # Errors
    /// [`TableError::Entry`], [`TableError::Data`]: the entry contradicts itself.
    pub fn from_bytes(index: usize, bytes: &[u8; ENTRY_BYTES]) -> Result<Self, TableError> {
        let class = match bytes[6] {
            1 => PageClass::Zero,
            2 => PageClass::Raw,
            3 => PageClass::Zstd,
            4 => PageClass::Window,
            5 => PageClass::Delta,
            _ => return Err(TableError::Entry(index)),
        };
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let entry = Self {
            page: word(0),
            count: u16::from_le_bytes([bytes[4], bytes[5]]),
            class,
            data_bytes: word(8),
        };
        if entry.count == 0 || bytes[7] != 0 || word(12) != 0 {
            return Err(TableError::Entry(index));
        }
        let whole = entry.pages_with_data() * PAGE_BYTES;
        let found = entry.data_bytes as usize;
        let fits = match class {
            PageClass::Zero | PageClass::Window | PageClass::Delta => found == 0,
            PageClass::Raw => found == whole,
            PageClass::Zstd => found > 0 && found < whole,
        };
        if fits && entry.pages_with_data() <= FRAME_DATA_PAGES_MAX {
            return Ok(entry);
        }
        Err(TableError::Data {
            entry: index,
            found: entry.data_bytes,
            count: entry.count,
            class,
        })
    }

    /// Pages that carry data, and so a fingerprint.
    #[must_use]
    pub const fn pages_with_data(self) -> usize {
        match self.class {
            PageClass::Zero => 0,
            PageClass::Raw | PageClass::Zstd | PageClass::Window | PageClass::Delta => {
                self.count as usize
            }
        }
    }
}

/// Bytes of a table.
#[must_use]
pub const fn table_bytes(entries: usize, pages_with_data: usize) -> usize {
    entries * ENTRY_BYTES + pages_with_data * FINGERPRINT_BYTES
}
