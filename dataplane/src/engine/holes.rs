//! Memory that an adapter was given, and that no page came to: it goes back to the system, so that a guest which was sparse
//! stays so.

use dwcp_wire::PageRange;

use super::Session;
use crate::ram::RamError;

/// Runs of zero pages in `range`.
fn zero_runs(session: &Session, range: &PageRange) -> impl Iterator<Item = (u32, u32)> {
    let (block, end) = (range.ram_block as usize, range.page + range.count);
    let is_zero = move |page: u32| {
        let global = session.layout.global_page(block, page);
        session.digests.get(global).is_none()
    };
    let mut page = range.page;
    std::iter::from_fn(move || {
        page += (page..end).take_while(|page| !is_zero(*page)).count() as u32;
        let run = (page..end).take_while(|page| is_zero(*page)).count() as u32;
        page += run;
        (run > 0).then(|| (page - run, run))
    })
}

/// How many pages of `ranges` are zero.
#[must_use]
pub fn count_zero(session: &Session, ranges: &[PageRange]) -> u64 {
    let runs = ranges.iter().flat_map(|range| zero_runs(session, range));
    runs.map(|(_, pages)| u64::from(pages)).sum()
}

/// Gives back the pages of `ranges` that are zero. Nothing writes them meanwhile, and no adapter knows them any more.
///
/// # Errors
/// From the blocks' files.
pub fn give_back(session: &Session, ranges: &[PageRange]) -> Result<(), RamError> {
    for range in ranges {
        let block = &session.layout.blocks()[range.ram_block as usize];
        zero_runs(session, range).try_for_each(|(page, pages)| block.discard_pages(page, pages))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dwcp_api::Codec;
    use dwcp_simd::{PAGE_BYTES, RamRoot, kernels};

    use super::*;
    use crate::ram::testing::ram;

    #[test]
    fn pages_that_came_stay_and_the_others_have_no_memory() {
        let session = Session::new(ram(&[64]), 7, Codec::Raw);
        let block = &session.layout.blocks()[0];
        for page in 0..64 {
            block.write_page(page, &[0; PAGE_BYTES]);
        }
        let mut root = RamRoot::default();
        for page in [8, 9, 31] {
            block.write_page(page, &[page as u8; PAGE_BYTES]);
            let fingerprint = kernels().fingerprint(&session.key, &[page as u8; PAGE_BYTES]);
            session
                .digests
                .set(page.into(), Some(fingerprint), &mut root);
        }
        let range = PageRange {
            ram_block: 0,
            page: 4,
            count: 28,
        };
        assert_eq!(count_zero(&session, &[range]), 25);
        give_back(&session, &[range]).unwrap();
        let held = block.room().unwrap().held_bytes;
        assert_eq!(held, (64 - 25) * PAGE_BYTES as u64);
        for page in [8, 9, 31] {
            let mut copy = [0; PAGE_BYTES];
            block.read_page(page, &mut copy);
            assert_eq!(copy, [page as u8; PAGE_BYTES]);
        }
        assert_eq!(block.holes_in(0, 64).unwrap(), [(4, 4), (10, 21)]);
    }
}
