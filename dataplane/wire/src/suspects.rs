//! Fewer ranges for the same suspect pages.

use crate::PageRange;

/// Ranges that cover every page of `ranges` and are no more than `most`, or one per RAM block: sorted,
/// without overlaps, none over the border of a block. The smallest gaps are closed first. A page in a
/// gap is sent again for nothing, which costs a page; one that is left out would fail the proof.
#[must_use]
pub fn cover(mut ranges: Vec<PageRange>, most: usize) -> Vec<PageRange> {
    ranges.sort_unstable_by_key(|range| (range.ram_block, range.page));
    join(&mut ranges, |gap| gap == 0);
    if ranges.len() <= most {
        return ranges;
    }
    let mut gaps: Vec<_> = ranges
        .windows(2)
        .filter_map(|pair| gap(&pair[0], &pair[1]))
        .collect();
    let surplus = ranges.len() - most;
    if surplus >= gaps.len() {
        join(&mut ranges, |_| true);
        return ranges;
    }
    let (smaller, &mut last, _) = gaps.select_nth_unstable(surplus - 1);
    let mut of_last = surplus - smaller.iter().filter(|&&gap| gap < last).count();
    join(&mut ranges, |gap| {
        if gap == last && of_last > 0 {
            of_last -= 1;
            return true;
        }
        gap < last
    });
    ranges
}

/// Joins sorted neighbours whose gap is to be closed.
fn join(ranges: &mut Vec<PageRange>, mut closes: impl FnMut(u64) -> bool) {
    ranges.dedup_by(|next, range| {
        let joins = gap(range, next).is_some_and(&mut closes);
        if joins {
            let end = end(range).max(end(next));
            range.count = u32::try_from(end - u64::from(range.page)).unwrap_or(u32::MAX);
        }
        joins
    });
}

/// Pages between two sorted ranges of one block.
fn gap(before: &PageRange, after: &PageRange) -> Option<u64> {
    let same = before.ram_block == after.ram_block;
    same.then(|| u64::from(after.page).saturating_sub(end(before)))
}

fn end(range: &PageRange) -> u64 {
    u64::from(range.page) + u64::from(range.count)
}
