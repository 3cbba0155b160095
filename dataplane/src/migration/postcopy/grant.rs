//! What the source says of pages before an adapter reads them.

use dwcp_simd::{PAGE_BYTES, kernels};
use dwcp_wire::PageRange;

use crate::engine::Session;
use crate::ram::RamBitmap;

/// Lower halves of the fingerprints of the pages of a run that are missing there, as frames have them; 0 for the others. `None`
/// when none is missing. RAM stands still.
pub(in crate::migration) fn fingerprints(
    session: &Session,
    missing: &RamBitmap,
    run: &PageRange,
) -> Option<Vec<u64>> {
    let block = session.layout.blocks().get(run.ram_block as usize)?;
    let missing = missing.blocks.get(run.ram_block as usize)?;
    let mut copy = [0; PAGE_BYTES];
    let mut any = false;
    let low_of = |page| {
        if !missing.contains(page) {
            return 0;
        }
        any = true;
        block.read_page_once(page, &mut copy);
        kernels().fingerprint(&session.key, &copy).lo
    };
    let table = (run.page..run.page + run.count).map(low_of).collect();
    any.then_some(table)
}

#[cfg(test)]
mod tests {
    use dwcp_api::Codec;

    use super::*;
    use crate::ram::testing;

    #[test]
    fn missing_pages_have_fingerprints_and_zero_is_a_content() {
        let layout = testing::ram(&[64]);
        layout.blocks()[0].write_page(3, &[7; PAGE_BYTES]);
        layout.blocks()[0].write_page(5, &[9; PAGE_BYTES]);
        let session = Session::new(layout, 4711, Codec::Raw);
        let of = |byte| kernels().fingerprint(&session.key, &[byte; PAGE_BYTES]).lo;
        let mut missing = session.layout.empty_bitmap();
        missing.blocks[0].set_range(3, 2);
        let run = |page, count| PageRange {
            ram_block: 0,
            page,
            count,
        };
        let table = fingerprints(&session, &missing, &run(2, 4));
        assert_eq!(table, Some(vec![0, of(7), of(0), 0]));
        assert_eq!(fingerprints(&session, &missing, &run(5, 59)), None);
        let outside = PageRange {
            ram_block: 1,
            ..run(0, 4)
        };
        assert_eq!(fingerprints(&session, &missing, &outside), None);
    }
}
