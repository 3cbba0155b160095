//! Which pages are missing: as bitmaps on the wire, and as a set that shrinks.

use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_wire::MissingPages;
use dwcp_wire::limits::{MISSING_BYTES_MAX, MISSING_PAGES_MAX};

use crate::ram::{PAGES_PER_WORD, RamBitmap};

/// zstd level of a bitmap: most are nearly empty.
const LEVEL: i32 = 1;

/// Why a message does not say what is missing.
#[derive(Debug, thiserror::Error)]
#[error("pages from {page} on of RAM block {ram_block} are said to be missing, and are none")]
pub(in crate::migration) struct NotMissing {
    ram_block: u32,
    page: u32,
}

/// The messages that say which pages are missing.
///
/// # Errors
/// From zstd, when there is no memory.
pub(in crate::migration) fn tell_missing(missing: &RamBitmap) -> Result<Vec<MissingPages>, String> {
    let mut messages = vec![];
    for (ram_block, block) in (0..).zip(&missing.blocks) {
        let pieces = block
            .words()
            .chunks(MISSING_PAGES_MAX / PAGES_PER_WORD as usize);
        for (page, words) in (0..).step_by(MISSING_PAGES_MAX).zip(pieces) {
            if words.iter().all(|word| *word == 0) {
                continue;
            }
            let bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut zstd = Vec::with_capacity(MISSING_BYTES_MAX);
            zstd_safe::compress(&mut zstd, &bits, LEVEL)
                .map_err(|code| zstd_safe::get_error_name(code).to_owned())?;
            messages.push(MissingPages {
                ram_block,
                page,
                zstd,
            });
        }
    }
    Ok(messages)
}

/// Marks what a message says is missing. The output of the decoder is bounded by the piece.
///
/// # Errors
/// [`NotMissing`]: it is damaged, or of RAM that there is not.
pub(in crate::migration) fn note_missing(
    message: &MissingPages,
    missing: &mut RamBitmap,
) -> Result<(), NotMissing> {
    let MissingPages {
        ram_block,
        page,
        zstd,
    } = message;
    let refused = || NotMissing {
        ram_block: *ram_block,
        page: *page,
    };
    let block = missing.blocks.get_mut(*ram_block as usize);
    let block = block.ok_or_else(refused)?;
    let left = block.pages().checked_sub(*page).ok_or_else(refused)?;
    let pages = left.min(MISSING_PAGES_MAX as u32);
    let bytes = pages.div_ceil(PAGES_PER_WORD) as usize * size_of::<u64>();
    let mut bits = Vec::with_capacity(bytes);
    let filled = zstd_safe::decompress(&mut bits, zstd).map_err(|_| refused())?;
    if filled != bytes || !(*page).is_multiple_of(PAGES_PER_WORD) {
        return Err(refused());
    }
    let (words, _) = bits.as_chunks();
    for (word, at) in words.iter().zip((*page..).step_by(PAGES_PER_WORD as usize)) {
        block.mark_word(at, u64::from_le_bytes(*word));
    }
    Ok(())
}

/// Pages that are missing still. Shared by all who place pages.
#[derive(Debug)]
pub(super) struct Missing {
    blocks: Vec<Box<[AtomicU64]>>,
    left: AtomicU64,
    named: u64,
}

const fn place(page: u32) -> (usize, u64) {
    (
        (page / PAGES_PER_WORD) as usize,
        1 << (page % PAGES_PER_WORD),
    )
}

impl Missing {
    pub(super) fn new(bitmap: &RamBitmap) -> Self {
        let blocks = bitmap.blocks.iter();
        let named = bitmap.count();
        Self {
            blocks: blocks
                .map(|block| {
                    block
                        .words()
                        .iter()
                        .map(|word| AtomicU64::new(*word))
                        .collect()
                })
                .collect(),
            left: AtomicU64::new(named),
            named,
        }
    }

    pub(super) fn contains(&self, block: u32, page: u32) -> bool {
        let (word, bit) = place(page);
        let word = self.blocks[block as usize].get(word);
        word.is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// A page is there. Whether it was missing: said once for each.
    pub(super) fn take(&self, block: u32, page: u32) -> bool {
        let (word, bit) = place(page);
        let word = self.blocks[block as usize].get(word);
        let was = word.is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
        if was {
            self.left.fetch_sub(1, Ordering::AcqRel);
        }
        was
    }

    /// Pages that are missing now.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Pages that were missing in the beginning.
    pub(super) const fn named(&self) -> u64 {
        self.named
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// The word of 64 pages that `page` lies in; 0 behind the block's end, `None` from there on.
    pub(super) fn word(&self, block: u32, page: u32) -> Option<u64> {
        let word = self.blocks.get(block as usize)?.get(place(page).0)?;
        Some(word.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::DirtyBitmap;

    fn bitmap() -> RamBitmap {
        RamBitmap {
            blocks: vec![
                DirtyBitmap::new(100),
                DirtyBitmap::new(3 * MISSING_PAGES_MAX as u32 + 70),
            ],
        }
    }

    #[test]
    fn what_is_missing_is_told_in_pieces() {
        let mut source = bitmap();
        source.blocks[0].set_range(98, 2);
        source.blocks[1].set_range(5, 1);
        // The second piece has none.
        source.blocks[1].set_range(2 * MISSING_PAGES_MAX as u32 + 1, 9);
        source.blocks[1].set_range(3 * MISSING_PAGES_MAX as u32 + 60, 10);
        let messages = tell_missing(&source).unwrap();
        assert_eq!(messages.len(), 4);
        let mut here = bitmap();
        for message in &messages {
            note_missing(message, &mut here).unwrap();
        }
        assert_eq!(here, source);
    }

    /// What was named before the pause stays so.
    #[test]
    fn what_is_told_later_is_missing_as_well() {
        let (mut first, mut later) = (bitmap(), bitmap());
        first.blocks[1].set_range(5, 3);
        later.blocks[1].set_range(9, 1);
        let mut here = bitmap();
        for told in [&first, &later] {
            for message in &tell_missing(told).unwrap() {
                note_missing(message, &mut here).unwrap();
            }
        }
        first.union(&later);
        assert_eq!(here, first);
    }

    #[test]
    fn a_message_of_something_else_is_refused() {
        let mut source = bitmap();
        source.blocks[1].set_range(5, 1);
        let good = tell_missing(&source).unwrap().remove(0);
        let mut bomb = Vec::with_capacity(1 << 16);
        zstd_safe::compress(&mut bomb, &vec![0; 1 << 24], 1).unwrap();
        let bad = [
            MissingPages {
                ram_block: 2,
                ..good.clone()
            },
            // Its piece would be shorter.
            MissingPages {
                ram_block: 0,
                ..good.clone()
            },
            MissingPages {
                page: 64,
                ..good.clone()
            },
            MissingPages {
                page: u32::MAX,
                ..good.clone()
            },
            MissingPages {
                zstd: bomb,
                ..good.clone()
            },
            MissingPages {
                zstd: vec![1, 2, 3],
                ..good.clone()
            },
        ];
        for (index, message) in bad.iter().enumerate() {
            let said = note_missing(message, &mut bitmap());
            // A whole piece, from another page on: there are as many left.
            assert!(said.is_err() || index == 2, "{index}");
        }
    }

    #[test]
    fn each_page_is_taken_once() {
        let mut source = bitmap();
        source.blocks[1].set_range(63, 2);
        let missing = Missing::new(&source);
        assert!(missing.contains(1, 63) && !missing.contains(1, 65));
        assert_eq!([missing.take(1, 63), missing.take(1, 63)], [true, false]);
        assert_eq!((missing.left(), missing.named()), (1, 2));
        assert!(!missing.take(0, 4711));
    }
}
