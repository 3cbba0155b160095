//! What the destination's RAM holds already: pages of a transfer that broke off, or of an earlier
//! stay. The destination says so by their fingerprints, and the source sends the rest.
//!
//! Nothing is trusted for being there: each page is read now, under this migration's key. From then on
//! it is like a page that was applied, by its digest and in the root, at both ends.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use dwcp_simd::{Fingerprint, RamRoot, kernels};
use dwcp_wire::limits::HELD_PAGES_MAX;
use dwcp_wire::{Control, HeldPages};

use super::Session;
use super::sweep::{in_shares, visit_unknown};

/// Looking at RAM was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("looking at what RAM holds was stopped")]
pub struct Stopped;

/// Reads every page that is still unknown, on all cores that this process may use, and says in the
/// digests what it holds. Returns their part of the root. Nothing else may write RAM meanwhile.
///
/// # Errors
/// [`Stopped`] once `stop` is set.
pub fn look_at_unknown(session: &Session, stop: &AtomicBool) -> Result<RamRoot, Stopped> {
    let parts = in_shares(session, |pages| look(session, &pages, stop));
    let mut root = RamRoot::default();
    for part in parts {
        root.merge(part.unwrap_or(Err(Stopped))?);
    }
    Ok(root)
}

fn look(session: &Session, pages: &Range<u64>, stop: &AtomicBool) -> Result<RamRoot, Stopped> {
    let mut root = RamRoot::default();
    let looked = visit_unknown(session, pages, stop, |block, page, global| {
        let found = kernels().fingerprint_live(&session.key, block.live_page(page));
        let held = (!session.key.is_zero(found)).then_some(found);
        session.digests.set(global, held, &mut root);
    });
    looked.then_some(root).ok_or(Stopped)
}

/// Zero pages between others that are told of with them: a message of its own costs more.
const GAP_PAGES_MAX: usize = 16;

/// The messages that tell a source what the digests of `session` hold.
pub fn held_messages(session: &Session) -> impl Iterator<Item = Control> {
    let blocks = session.layout.blocks().iter().enumerate();
    blocks.flat_map(move |(index, block)| {
        let mut next = 0;
        std::iter::from_fn(move || {
            let held = |page: u32| {
                let global = session.layout.global_page(index, page);
                session.digests.get(global)
            };
            let first = (next..block.pages()).find(|&page| held(page).is_some())?;
            let (mut fingerprints, mut told) = (vec![], 0);
            for page in (first..block.pages()).take(HELD_PAGES_MAX) {
                let found = held(page);
                fingerprints.push(found.unwrap_or_default());
                if found.is_some() {
                    told = fingerprints.len();
                } else if fingerprints.len() - told > GAP_PAGES_MAX {
                    break;
                }
            }
            fingerprints.truncate(told);
            next = first + told as u32;
            Some(Control::Held(HeldPages::new(
                index as u32,
                first,
                &fingerprints,
            )))
        })
    })
}

/// What a destination says that it holds is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the destination says that it holds pages {page}..{end} of RAM block {ram_block}, which are not there or told already"
)]
pub struct NotThere {
    ram_block: u32,
    page: u32,
    end: u64,
}

/// Source: the destination holds these pages. Returns their part of the root.
///
/// # Errors
/// [`NotThere`]: pages that no block has, or that were told before.
pub fn take_held(session: &Session, held: &HeldPages) -> Result<RamRoot, NotThere> {
    let refused = || NotThere {
        ram_block: held.ram_block,
        page: held.page,
        end: u64::from(held.page) + held.pages() as u64,
    };
    let index = held.ram_block as usize;
    let block = session.layout.blocks().get(index).ok_or_else(refused)?;
    if refused().end > u64::from(block.pages()) {
        return Err(refused());
    }
    let mut root = RamRoot::default();
    for (page, fingerprint) in (held.page..).zip(held.fingerprints()) {
        let global = session.layout.global_page(index, page);
        if fingerprint == Fingerprint::default() {
            continue;
        }
        if session.digests.get(global).is_some() {
            return Err(refused());
        }
        session.digests.set(global, Some(fingerprint), &mut root);
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use dwcp_api::Codec;
    use dwcp_simd::PAGE_BYTES;

    use super::*;
    use crate::engine::keep_allocated;
    use crate::ram::testing::ram;

    fn session(blocks: &[u32]) -> Session {
        Session::new(ram(blocks), 7, Codec::Raw)
    }

    /// Both ends come to the same root, and the source knows the pages that are there.
    #[test]
    fn the_source_learns_what_the_destination_holds() {
        let blocks = [5, HELD_PAGES_MAX as u32 * 2 + 100];
        let (destination, source) = (session(&blocks), session(&blocks));
        let written: Vec<(usize, u32)> = [(0, 3), (1, 0), (1, 1)]
            .into_iter()
            .chain((50..HELD_PAGES_MAX as u32 + 90).map(|page| (1, page)))
            .collect();
        for &(block, page) in &written {
            destination.layout.blocks()[block].write_page(page, &[page as u8 | 1; PAGE_BYTES]);
        }
        // Memory without content is known to be zero.
        destination.layout.blocks()[0].write_page(1, &[0; PAGE_BYTES]);
        keep_allocated(&destination).unwrap();
        let stop = AtomicBool::new(false);
        let root = look_at_unknown(&destination, &stop).unwrap();
        assert_eq!(root, destination.digests.root());
        let mut learned = RamRoot::default();
        for message in held_messages(&destination) {
            let bytes = dwcp_wire::encode_control(&message).unwrap();
            let Ok(Control::Held(held)) = dwcp_wire::decode_control(&bytes) else {
                panic!("{message:?}")
            };
            learned.merge(take_held(&source, &held).unwrap());
        }
        assert_eq!(learned, root);
        assert_eq!(source.digests.root(), root);
        let known = (0..source.layout.pages()).filter(|&page| source.digests.get(page).is_some());
        assert_eq!(known.count(), written.len());
    }

    #[test]
    fn pages_that_are_not_there_and_pages_told_twice_are_refused() {
        let source = session(&[10, 10]);
        let one = [Fingerprint { lo: 1, hi: 2 }; 3];
        for (block, page) in [(2, 0), (0, 8), (0, u32::MAX), (u32::MAX, 0)] {
            let held = HeldPages::new(block, page, &one);
            take_held(&source, &held).unwrap_err();
        }
        take_held(&source, &HeldPages::new(1, 7, &one)).unwrap();
        take_held(&source, &HeldPages::new(1, 5, &one)).unwrap_err();
    }

    /// Every other page: as many messages as runs would be more than a mailbox takes.
    #[test]
    fn small_gaps_are_told_with_their_neighbours() {
        let (destination, source) = (session(&[4096]), session(&[4096]));
        let holds = |page: u32| page % 2 == 1 || page < 100;
        for page in (0..4096).filter(|&page| holds(page) && !(200..300).contains(&page)) {
            destination.layout.blocks()[0].write_page(page, &[7; PAGE_BYTES]);
        }
        keep_allocated(&destination).unwrap();
        let root = look_at_unknown(&destination, &AtomicBool::new(false)).unwrap();
        let mut messages = 0;
        for message in held_messages(&destination) {
            let Control::Held(held) = message else {
                panic!("{message:?}")
            };
            take_held(&source, &held).unwrap();
            messages += 1;
        }
        assert_eq!(messages, 2);
        assert_eq!(source.digests.root(), root);
    }

    #[test]
    fn looking_ends_when_it_is_told_to() {
        let session = session(&[64]);
        session.layout.blocks()[0].write_page(1, &[1; PAGE_BYTES]);
        keep_allocated(&session).unwrap();
        assert_eq!(
            look_at_unknown(&session, &AtomicBool::new(true)),
            Err(Stopped)
        );
    }
}
