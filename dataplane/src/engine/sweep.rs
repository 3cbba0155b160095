//! Going over all of RAM on all cores that this process may use.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::Session;
use crate::ram::RamBlock;

/// Runs `work` on a share of RAM's pages per core. All are waited for, whatever one of them says; a
/// thread that panicked is an error in its place.
pub(super) fn in_shares<T: Send>(
    session: &Session,
    work: impl Fn(Range<u64>) -> T + Sync,
) -> Vec<thread::Result<T>> {
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let pages = session.layout.pages();
    let share = pages.div_ceil(threads);
    let work = &work;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|n| (n * share).min(pages)..((n + 1) * share).min(pages))
            .map(|pages| scope.spawn(move || work(pages)))
            .collect();
        parts.into_iter().map(|part| part.join()).collect()
    })
}

/// Visits the unknown ones of `pages`: the block, the page in it, and its number in all of RAM. False
/// when it ended early, since `stop` is set.
pub(super) fn visit_unknown(
    session: &Session,
    pages: &Range<u64>,
    stop: &AtomicBool,
    mut visit: impl FnMut(&RamBlock, u32, u64),
) -> bool {
    for (index, block) in session.layout.blocks().iter().enumerate() {
        let start = session.layout.global_page(index, 0);
        let from = pages.start.clamp(start, start + u64::from(block.pages())) - start;
        let upto = pages.end.clamp(start, start + u64::from(block.pages())) - start;
        for page in from as u32..upto as u32 {
            let global = start + u64::from(page);
            if !session.digests.is_unknown(global) {
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            visit(block, page, global);
        }
    }
    true
}
