//! Reading RAM again at the pause: does it hold what was sent, or applied?
//!
//! At the source this catches a tracker that missed a write, at the destination anything that went
//! wrong between the proof of a page and its place in RAM.

use std::ops::Range;

use dwcp_simd::{Fingerprint, PAGE_BYTES, Page, RamRoot, kernels};

use super::Session;
use super::sweep::in_shares;
use crate::ram::{RamBitmap, RamBlock};

/// What reading again found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reread {
    /// Pages read.
    pub pages: u64,
    /// Pages that are not what the digests say.
    pub differing: u64,
}

/// Reads `sample` pages, spread over all of RAM. `turn` shifts the sample, so that no page is left
/// out for ever.
#[must_use]
pub fn read_again(session: &Session, sample: u32, turn: u64) -> Reread {
    let pages = session.layout.pages();
    let stride = (pages / u64::from(sample.max(1))).max(1);
    let first = turn % stride;
    read(session, (first..pages).step_by(stride as usize))
}

/// Reads every page, on all cores that this process may use.
#[must_use]
pub fn read_everything(session: &Session) -> Reread {
    let parts = in_shares(session, |pages| read(session, pages));
    parts.into_iter().fold(Reread::default(), |sum, part| {
        let part = part.unwrap_or(Reread {
            pages: 0,
            differing: 1,
        });
        Reread {
            pages: sum.pages + part.pages,
            differing: sum.differing + part.differing,
        }
    })
}

/// Reads every page that has memory, on all cores that this process may use. Returns the root of what RAM
/// holds.
///
/// # Errors
/// From the system, or when a thread of it died.
pub fn read_root(session: &Session) -> Result<RamRoot, String> {
    let mut data = session.layout.empty_bitmap();
    let marked = session.layout.mark_data(&mut data);
    marked.map_err(|error| error.to_string())?;
    let parts = in_shares(session, |pages| root_of(session, &data, pages));
    parts
        .into_iter()
        .try_fold(RamRoot::default(), |mut root, part| {
            root.merge(part.map_err(|_| "RAM could not be read to its end")?);
            Ok(root)
        })
}

/// The part of the root that those of `pages` make that have memory.
fn root_of(session: &Session, data: &RamBitmap, pages: Range<u64>) -> RamRoot {
    let mut root = RamRoot::default();
    for (index, block) in session.layout.blocks().iter().enumerate() {
        let start = session.layout.global_page(index, 0);
        for (first, count) in data.blocks[index].runs() {
            let run = start + u64::from(first)..start + u64::from(first + count);
            for global in run.start.max(pages.start)..run.end.min(pages.end) {
                if let Some(found) = fingerprint(session, block, (global - start) as u32) {
                    root.add(global, found);
                }
            }
        }
    }
    root
}

fn read(session: &Session, pages: impl Iterator<Item = u64>) -> Reread {
    let mut found = Reread::default();
    let (mut block, mut first) = (0, 0);
    let mut hole = 0..0;
    for global in pages {
        let blocks = session.layout.blocks();
        while global - first >= u64::from(blocks[block].pages()) {
            first += u64::from(blocks[block].pages());
            block += 1;
            hole = 0..0;
        }
        let page = (global - first) as u32;
        let held = session.digests.get(global);
        if held.is_none() && session.has_forgotten() {
            continue;
        }
        // A page that should be zero, and has no memory, is: to read it would give it memory.
        let holds = if held.is_none() && is_hole(&blocks[block], page, &mut hole) {
            true
        } else {
            held == fingerprint(session, &blocks[block], page)
        };
        found.pages += 1;
        found.differing += u64::from(!holds);
    }
    found
}

/// Whether `page` has no memory. `hole` is the last one that was found.
fn is_hole(block: &RamBlock, page: u32, hole: &mut Range<u32>) -> bool {
    if !hole.contains(&page) {
        let data = block.data_from(page).ok().flatten();
        *hole = page..data.unwrap_or(page);
    }
    hole.contains(&page)
}

/// A page's fingerprint; `None` when it is zero.
fn fingerprint(session: &Session, block: &RamBlock, page: u32) -> Option<Fingerprint> {
    let mut copy: Page = [0; PAGE_BYTES];
    block.read_page_once(page, &mut copy);
    let is_zero = kernels().is_zero(&copy);
    (!is_zero).then(|| kernels().fingerprint(&session.key, &copy))
}

#[cfg(test)]
mod tests {
    use dwcp_api::Codec;

    use super::*;
    use crate::ram::testing::ram;

    /// 300 pages of which three are written, and a session that knows two of them.
    fn session() -> Session {
        let session = Session::new(ram(&[100, 200]), 7, Codec::Raw);
        let blocks = session.layout.blocks();
        let data = [7; PAGE_BYTES];
        let held = kernels().fingerprint(&session.key, &data);
        for (block, page, global) in [(0, 99, 99), (1, 0, 100)] {
            blocks[block].write_page(page, &data);
            let mut root = RamRoot::default();
            session.digests.set(global, Some(held), &mut root);
        }
        session
    }

    #[test]
    fn what_was_forgotten_is_not_compared() {
        let session = session();
        let mut forgotten = session.layout.empty_bitmap();
        forgotten.blocks[1].set_range(0, 1);
        let root = session.forget(&forgotten);
        assert_ne!(root, RamRoot::default());
        let read = read_everything(&session);
        let expected = Reread {
            pages: 1,
            differing: 0,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn the_root_of_ram_is_that_of_its_digests() {
        let session = session();
        let read = || read_root(&session).unwrap();
        assert_eq!(read(), session.digests.root());
        session.layout.blocks()[1].write_page(199, &[1; PAGE_BYTES]);
        assert_ne!(read(), session.digests.root());
    }

    #[test]
    fn reading_again_finds_what_differs_and_allocates_nothing() {
        let session = session();
        let blocks = session.layout.blocks();
        let held = || -> u64 {
            let rooms = blocks.iter().map(|block| block.room().unwrap().held_bytes);
            rooms.sum()
        };
        let before = held();
        let all = |differing| Reread {
            pages: 300,
            differing,
        };
        assert_eq!(read_everything(&session), all(0));
        assert_eq!(read_again(&session, 300, 5), all(0));
        assert_eq!(held(), before, "bytes of memory");
        // Written, and unknown to the digests; and known to them, but gone.
        blocks[1].write_page(199, &[1; PAGE_BYTES]);
        blocks[0].discard().unwrap();
        assert_eq!(read_everything(&session), all(2));
        assert_eq!(read_again(&session, 300, 5), all(2));
    }
}
