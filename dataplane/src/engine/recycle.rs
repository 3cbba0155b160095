//! Destination RAM that is allocated already is kept: a page that exists is filled several times
//! faster than one that the kernel must find and clear first. What was in it must not survive.
//!
//! At the beginning the allocated pages are *unknown*. The first round overwrites most of them. When it
//! is over, those that the source never named are zero at the source: they are looked at, and cleared.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use dwcp_simd::{PAGE_BYTES, Page, RamRoot, kernels};

use super::Session;
use super::sweep::{in_shares, visit_unknown};
use crate::ram::RamError;

/// RAM that was in use before could not be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("destination RAM could not be cleared of what it held before")]
pub struct NotWiped;

const ZERO: Page = [0; PAGE_BYTES];

/// Marks allocated pages as unknown; returns how many there are. A block of which the file system
/// cannot tell what is allocated is emptied instead, unless all of it is.
///
/// # Errors
/// [`RamError`] from the blocks' files.
pub fn keep_allocated(session: &Session) -> Result<u64, RamError> {
    let mut allocated = session.layout.empty_bitmap();
    let mut pages = 0;
    for (index, block) in session.layout.blocks().iter().enumerate() {
        let bitmap = &mut allocated.blocks[index];
        let is_told = block.mark_data(bitmap)?;
        if !is_told && block.room()?.held_bytes < block.bytes() {
            block.discard()?;
            continue;
        }
        for page in (0..block.pages()).filter(|&page| bitmap.contains(page)) {
            let global = session.layout.global_page(index, page);
            session.digests.set_unknown(global);
            pages += 1;
        }
    }
    Ok(pages)
}

/// Clears every page that is still unknown, on all cores that this process may use. Returns how many
/// there were. Nothing else may write RAM meanwhile. Ends early when `stop` is set.
///
/// # Errors
/// [`NotWiped`]: some may still hold what was there before.
pub fn wipe_unknown(session: &Session, stop: &AtomicBool) -> Result<u64, NotWiped> {
    let parts = in_shares(session, |pages| wipe(session, &pages, stop));
    let wiped = parts.into_iter().map(|part| part.unwrap_or(Err(NotWiped)));
    wiped.sum()
}

fn wipe(session: &Session, pages: &Range<u64>, stop: &AtomicBool) -> Result<u64, NotWiped> {
    let mut found = 0;
    let wiped = visit_unknown(session, pages, stop, |block, page, global| {
        found += 1;
        let live = kernels().fingerprint_live(&session.key, block.live_page(page));
        if !session.key.is_zero(live) {
            block.write_page(page, &ZERO);
        }
        session.digests.set(global, None, &mut RamRoot::default());
    });
    wiped.then_some(found).ok_or(NotWiped)
}

#[cfg(test)]
mod tests {
    use dwcp_api::Codec;

    use super::*;
    use crate::ram::testing::ram;

    fn session(block_pages: &[u32]) -> Session {
        Session::new(ram(block_pages), 7, Codec::Raw)
    }

    #[test]
    fn what_was_there_does_not_survive_and_what_came_does() {
        let session = session(&[100, 3, 50]);
        let old = [0xAA; PAGE_BYTES];
        let blocks = session.layout.blocks();
        for page in 0..100 {
            blocks[0].write_page(page, &old);
        }
        blocks[2].write_page(49, &old);
        keep_allocated(&session).unwrap();
        let mut root = RamRoot::default();
        let new = kernels().fingerprint(&session.key, &[7; PAGE_BYTES]);
        blocks[0].write_page(5, &[7; PAGE_BYTES]);
        session.digests.set(5, Some(new), &mut root);
        assert_eq!(session.digests.root(), root, "unknown pages have no term");
        assert_eq!(
            wipe_unknown(&session, &AtomicBool::new(false)),
            Ok(100),
            "99 of block 0, one of block 2"
        );
        for (index, block) in blocks.iter().enumerate() {
            for page in 0..block.pages() {
                let mut copy = ZERO;
                block.read_page(page, &mut copy);
                let came = (index, page) == (0, 5);
                let expected = if came { 7 } else { 0 };
                assert!(copy == [expected; PAGE_BYTES], "page {page} of {index}");
                let global = session.layout.global_page(index, page);
                assert_eq!(session.digests.get(global).is_some(), came);
            }
        }
        assert_eq!(wipe_unknown(&session, &AtomicBool::new(false)), Ok(0));
    }

    #[test]
    fn a_wipe_that_was_stopped_does_not_say_that_all_is_clear() {
        let session = session(&[10]);
        session.layout.blocks()[0].write_page(3, &[0xAA; PAGE_BYTES]);
        keep_allocated(&session).unwrap();
        assert_eq!(
            wipe_unknown(&session, &AtomicBool::new(true)),
            Err(NotWiped)
        );
    }
}
